"""What latents look like, on cases worked out by hand; and the command that reports it."""

import json
import math

import pytest
import torch
from conftest import PNG, chatty, script
from pytest import approx

from minilatent.config import UserError
from minilatent.study.latents import cosines, describe_latents, effective_rank, hidden_states, spectrum


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
    energy = torch.linalg.svdvals(x.double()) ** 2
    assert torch.allclose(spectrum(x), energy / energy.sum()) and torch.allclose(spectrum(x.T), spectrum(x))


def test_cosines_within_a_chain_and_between_questions_against_loops():
    g = torch.Generator().manual_seed(1)
    steps = torch.tensor([3, 0, 4, 1])
    z = torch.randn(4, 4, 6, generator=g) * (torch.arange(4) < steps[:, None])[:, :, None]
    by_step, within, between = cosines(z, steps)
    cosine = lambda a, b: torch.cosine_similarity(a, b, dim=0).item()
    own, others = [], []
    for a, n in enumerate(steps.tolist()):
        for i in range(n):
            own += [cosine(z[a, i], z[a, j]) for j in range(n) if j != i]
            others += [cosine(z[a, i], z[b, i]) for b in range(4) if b != a and i < steps[b]]
    assert within == approx(sum(own) / len(own), abs=1e-6)
    assert between == approx(sum(others) / len(others), abs=1e-6)
    both = (cosine(z[0, 0], z[0, 1]) + cosine(z[2, 0], z[2, 1])) / 2
    expected = [both, cosine(z[2, 0], z[2, 3]), 1]
    assert [by_step[0, 1], by_step[0, 3], by_step[3, 3]] == approx(expected, abs=1e-6)


def test_latents_that_are_all_alike_or_all_apart():
    steps = torch.tensor([3, 3])
    assert cosines(torch.ones(2, 3, 6), steps)[1:] == approx((1, 1))
    assert cosines(torch.eye(6).view(2, 3, 6), steps)[1:] == approx((0, 0))
    assert cosines(torch.ones(1, 1, 6), torch.tensor([1]))[1:] == (None, None)  # no pairs


def test_the_latents_of_explicit_cot_are_embeddings(tok, examples):
    method = chatty(tok, "cot_sft")
    found = describe_latents(method, examples, batch=7)
    chains = []
    for example in examples:
        out = method.solve([example.question])
        chains += out.chain[0, : int(out.lengths)].tolist()
    fed = method.model.embed.weight[chains]
    assert found["latents"] == len(fed) and found["rank"] == approx(effective_rank(fed), rel=1e-4)
    assert found["norms"][-1] == approx(fed.norm(dim=-1).max().item(), abs=1e-3)
    assert found["entropy_by_step"] is None
    assert all(tokens[0].endswith(" 1.00") for tokens in found["nearest"])  # each is a token's own


def test_a_mixture_of_one_token_has_no_entropy_and_one_of_many_has(tok, examples):
    sure, mixed = (describe_latents(chatty(tok, "latent_sft", k=k), examples) for k in (1, 10))
    assert max(sure["entropy_by_step"]) == 0 and 0 < max(mixed["entropy_by_step"]) <= math.log(10) + 1e-6
    hidden = describe_latents(chatty(tok, "latent_sft", latent="hidden"), examples)
    assert hidden["entropy_by_step"] is None
    batches = describe_latents(chatty(tok, "latent_sft"), examples, batch=7)
    assert batches["cosine_within"] == approx(mixed["cosine_within"], abs=1e-4)
    assert batches["entropy_by_step"] == approx(mixed["entropy_by_step"], abs=1e-3)


def test_the_states_of_the_space_are_those_that_predict_the_chain_and_its_end(tok, examples):
    method = chatty(tok, "cot_sft")
    states = hidden_states(method, examples[:1])
    out = method.solve([examples[0].question])
    logits = method.model.logits(states)
    logits[:, tok.never] = float("-inf")
    expected = out.chain[0, : int(out.lengths)].tolist() + [tok.end_think] * int(out.closed)
    assert logits.argmax(-1).tolist()[: len(expected)] == expected and len(states) == int(out.lengths) + 1
    assert len(hidden_states(chatty(tok, "no_cot"), examples[:5])) == 5  # it has only an end


def test_the_command_writes_the_numbers_and_draws_both_figures(runs, tmp_path, capsys):
    evaluate = script("eval")
    for name, given in (("latent_sft", ["--latents", "--data", "mini", "mini_svamp"]), ("colar", [])):
        out, figures = tmp_path / f"{name}.json", []
        argv = ["--ckpt", str(runs[name]), "--limit", "8", "--json", str(out), *given]
        for option in ("latents_figure", "space_figure"):
            figures.append(tmp_path / f"{name}_{option}.png")
            argv += [f"--{option}", str(figures[-1])]
        evaluate(argv)
        for result in json.loads(out.read_text(encoding="utf-8")):
            assert result["latents"]["rank"] and result["latents"]["spectrum_embeddings"]
        assert "an illustration" in capsys.readouterr().out
        assert all(figure.read_bytes()[:4] == PNG for figure in figures)
    with pytest.raises(UserError, match="no latents to describe"):
        evaluate(["--ckpt", str(runs["no_cot"]), "--limit", "4", "--latents"])
