"""results/space.py: hidden states against embeddings, and how many directions they fill."""

import math
import re

import torch
from conftest import PNG, ROOT, chatty
from pytest import approx

from results import space
from results.space import effective_rank, spectrum


def test_the_effective_rank_of_what_one_can_count():
    g = torch.Generator().manual_seed(0)
    parallel = torch.randn(1, 8, generator=g) * torch.randn(50, 1, generator=g)
    assert effective_rank(parallel) == approx(1, abs=1e-3)  # or opposite
    orthogonal = torch.linalg.qr(torch.randn(8, 8, generator=g))[0]
    for n in (2, 5, 8):
        both = torch.cat([orthogonal[:n], -orthogonal[:n]])
        assert effective_rank(both) == approx(n, rel=1e-4) == effective_rank(both + 7)  # around the mean
        assert effective_rank(3 * both.repeat(4, 1)) == approx(n, rel=1e-4)  # scale is no matter
    # Two directions, one three times as long as the other.
    H = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    cross = torch.tensor([[3.0, 0, 0], [-3.0, 0, 0], [0, 1.0, 0], [0, -1.0, 0]])
    assert effective_rank(cross) == approx(math.exp(H))
    x = torch.randn(40, 8, generator=g)
    values = torch.linalg.eigvalsh(torch.cov(x.T.double())).flip(0).sqrt()
    assert torch.allclose(spectrum(x), values / values.sum())


def test_the_effective_rank_is_that_of_lesson_3():
    """They had one name and two definitions: 97 and 26 for the same embeddings."""
    lesson = (ROOT / "tutorials/03_hidden_states.py").read_text(encoding="utf-8")
    theirs = {"torch": torch}
    exec(re.search(r"def effective_rank\(X\).*?\n    return [^\n]*\n", lesson, re.DOTALL)[0], theirs)
    x = torch.randn(60, 16, generator=torch.Generator().manual_seed(0)) * torch.arange(16)
    assert effective_rank(x) == approx(theirs["effective_rank"](x)[0].item(), rel=1e-4)


def test_the_states_of_the_space_are_those_that_predict_the_chain_and_its_end(tok, examples):
    method = chatty(tok, "cot_sft")
    states = space.hidden_states(method, examples[:1])
    out = method.solve([examples[0].question])
    logits = method.model.logits(states)
    logits[:, tok.never] = float("-inf")
    expected = out.chain[0, : int(out.lengths)].tolist() + [tok.end_think] * int(out.closed)
    assert logits.argmax(-1).tolist()[: len(expected)] == expected and len(states) == int(out.lengths) + 1
    assert len(space.hidden_states(chatty(tok, "no_cot"), examples[:5])) == 5  # it has only an end


def test_the_space_is_drawn(runs, tmp_path):
    figure = tmp_path / "space.png"
    space.main(["--ckpt", str(runs["latent_sft"]), "--limit", "8", "--figure", str(figure)])
    assert figure.read_bytes()[:4] == PNG
