"""results/space.py: hidden states against embeddings, and how many directions they fill."""

import math

import torch
from conftest import PNG, chatty
from pytest import approx

from results import space
from results.space import effective_rank, spectrum


def test_the_effective_rank_of_what_one_can_count():
    g = torch.Generator().manual_seed(0)
    parallel = torch.randn(1, 8, generator=g) * torch.randn(50, 1, generator=g)
    assert effective_rank(parallel) == approx(1, abs=1e-3)  # or opposite
    orthogonal = torch.linalg.qr(torch.randn(8, 8, generator=g))[0]
    for n in (2, 5, 8):
        assert effective_rank(orthogonal[:n]) == approx(n, rel=1e-4)
    assert effective_rank(3 * torch.eye(8).repeat(4, 1)) == approx(8)  # each four times; scale is no matter
    # Two directions whose energies are 9 : 1.
    H = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1))
    assert effective_rank(torch.tensor([[3.0, 0, 0], [0, 1.0, 0]])) == approx(math.exp(H))
    x = torch.randn(40, 8, generator=g)
    energy = torch.linalg.eigvalsh(x.T.double() @ x.double()).flip(0)
    assert torch.allclose(spectrum(x), energy / energy.sum()) and torch.allclose(spectrum(x.T), spectrum(x))


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
