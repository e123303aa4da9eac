"""Looped: the blocks run R times, cached or not, and nothing else is different from No-CoT."""

import pytest
import torch
from conftest import tiny_model, train

from minilatent import run, tasks
from minilatent.batch import encode
from minilatent.cache import KVCache
from minilatent.config import UserError
from minilatent.methods import METHODS


def make(tok, loops=3, name="looped"):
    own = {"loops": loops} if name == "looped" else {}
    model = tiny_model(tok.vocab_size, scale=3.0, context=160, tied=False).double()
    return METHODS[name](run.resolve({"method": name, **own}), tok, model)


def test_the_blocks_run_three_times_with_the_same_weights(tok):
    method, plain = make(tok), make(tok, name="no_cot")
    ids = torch.tensor([[5, 7, 9, 11]])
    states = []
    hidden = method.model(ids, states=states)
    plain.model.blocks = torch.nn.ModuleList([*plain.model.blocks] * 3)
    torch.testing.assert_close(hidden, plain.model(ids), rtol=0, atol=0)
    assert len(states) == len(plain.model.blocks)


def test_one_loop_is_no_cot(tok):
    rows = encode(tasks.load("mini", "train", limit=5), tok, 512)[0]
    method, plain = make(tok, 1), make(tok, name="no_cot")
    loss, expected = (m.loss(m.collate(rows))[0] for m in (method, plain))
    torch.testing.assert_close(loss, expected, rtol=0, atol=0)


def test_each_loop_has_keys_and_values_of_its_own_in_the_cache(tok):
    model, ids = make(tok).model, torch.tensor([[5, 7, 9, 11, 6], [4, 4, 8, 3, 2]])
    cache = KVCache(model.config, rows=2, capacity=5, dtype=torch.float64)
    parts = [model(ids[:, :3], cache=cache), *(model(ids[:, t : t + 1], cache=cache) for t in (3, 4))]
    torch.testing.assert_close(torch.cat(parts, dim=1), model(ids), rtol=0, atol=1e-10)


def test_a_run_keeps_its_loops(tmp_path, one_tokenizer):
    train(tmp_path / "run", "looped", "--steps", 2, "--loops", 2, "--init", "none", "--n_layer", 2)
    method = run.load_run(tmp_path / "run", torch.device("cpu"))
    assert method.model.config.loops == 2 and method.config.loops == 2
    with pytest.raises(UserError, match="--loops 0 is out of range: 1 or more"):
        run.resolve({"method": "looped", "loops": 0})
