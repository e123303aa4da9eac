"""Pause tokens: the model reads them, no label asks for them, and there are as many as the setting says."""

import pytest
import torch
import torch.nn.functional as F
from conftest import small_row, tiny_model

from minilatent import tasks
from minilatent.batch import IGNORE, encode
from minilatent.config import UserError
from minilatent.methods import METHODS
from minilatent.run import resolve


def make(tok, **changes):
    model = tiny_model(tok.vocab_size, scale=3.0, context=160, tied=False).double()
    return METHODS["pause"](resolve({"method": "pause", "num_latents": 3, **changes}), tok, model)


@pytest.mark.parametrize("n", [0, 1, 3])
def test_the_loss_is_that_of_every_answer_by_itself_after_n_pauses(tok, n):
    rows, method, nll = (
        encode(tasks.load("mini", "train", limit=7), tok, 512)[0],
        make(tok, num_latents=n),
        [],
    )
    for row in rows:
        prompt = [*row.prompt, *[tok.latent] * n, tok.end_think]
        logits = method.model.logits(method.model(torch.tensor([prompt + row.answer])))[0]
        for i, y in enumerate(row.answer, len(prompt) - 1):
            nll.append(F.cross_entropy(logits[i], torch.tensor(y)))
    loss, _ = method.loss(method.collate(rows))
    torch.testing.assert_close(loss, torch.stack(nll).mean(), rtol=0, atol=1e-10)


def test_no_label_asks_for_a_pause_and_the_one_embedding_of_all_pauses_learns(tok):
    method, t, e, p = make(tok), tok.think, tok.end_think, tok.latent
    rows = [small_row(tok, [1, 2], [9], [20, tok.eos]), small_row(tok, [1], [], [21, tok.eos])]
    batch = method.collate(rows)
    assert batch["ids"].tolist() == [[1, 2, t, p, p, p, e, 20], [1, t, p, p, p, e, 21, tok.eos]]
    assert batch["labels"].tolist() == [[IGNORE] * 6 + [20, tok.eos], [IGNORE] * 5 + [21, tok.eos, IGNORE]]
    method.loss(batch)[0].backward()
    assert method.model.embed.weight.grad[p].abs().sum() > 0


@pytest.mark.parametrize("n", [0, 3])
def test_at_inference_each_question_gets_its_n_pauses_and_the_answer_that_training_would_give(tok, n):
    method, examples = make(tok, num_latents=n).eval(), tasks.load("mini", "test", limit=6)
    out = method.solve([e.question for e in examples])
    assert out.lengths.tolist() == [n] * 6 and out.closed.all() and out.latents.shape == (6, n, 16)
    assert (out.latents == method.model.embed.weight[tok.latent]).all()
    for e, tokens in zip(examples, out.tokens):
        ids = [*tok.encode(e.question), tok.think, *[tok.latent] * n, tok.end_think]
        logits = method.model.logits(method.model(torch.tensor([ids]))[0, -1])
        logits[tok.never] = -float("inf")
        assert tokens[0] == logits.argmax()


def test_a_negative_number_of_pauses_is_refused(tok):
    with pytest.raises(UserError, match="--num_latents -1 is out of range: 0 or more"):
        make(tok, num_latents=-1)
