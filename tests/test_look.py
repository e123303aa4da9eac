"""What latents look like, on cases worked out by hand; and the command that tells it."""

import json
import math

import pytest
import torch
from conftest import PNG, chatty, script

from minilatent.config import UserError
from minilatent.study.latents import cosines, effective_rank, hidden_states, look, spectrum


def test_the_effective_rank_of_what_one_can_count():
    g = torch.Generator().manual_seed(0)
    one = torch.randn(1, 8, generator=g)
    assert effective_rank(one * torch.randn(50, 1, generator=g)) == pytest.approx(
        1, abs=1e-3
    )  # parallel, or opposite
    for n in (2, 5, 8):
        assert effective_rank(torch.linalg.qr(torch.randn(8, 8, generator=g))[0][:n]) == pytest.approx(
            n, rel=1e-4
        )
    assert effective_rank(3 * torch.eye(8).repeat(4, 1)) == pytest.approx(
        8
    )  # each four times; scale is no matter
    # Two directions whose energies are 9 : 1.
    H = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1))
    assert effective_rank(torch.tensor([[3.0, 0, 0], [0, 1.0, 0]])) == pytest.approx(math.exp(H))
    x = torch.randn(40, 8, generator=g)
    energy = torch.linalg.svdvals(x.double()) ** 2
    assert torch.allclose(spectrum(x), energy / energy.sum()) and torch.allclose(spectrum(x.T), spectrum(x))


def test_cosines_within_a_chain_and_between_questions_against_loops():
    g = torch.Generator().manual_seed(1)
    steps = torch.tensor([3, 0, 4, 1])
    z = torch.randn(4, 4, 6, generator=g) * (torch.arange(4) < steps[:, None])[:, :, None]
    by_step, within, between = cosines(z, steps)
    cosine = lambda a, b: torch.cosine_similarity(a, b, dim=0).item()
    pairs = [cosine(c[i], c[j]) for c, n in zip(z, steps) for i in range(n) for j in range(n) if i != j]
    assert within == pytest.approx(sum(pairs) / len(pairs), abs=1e-6)
    pairs = [
        cosine(z[a, i], z[b, i])
        for a in range(4)
        for b in range(4)
        for i in range(min(steps[a], steps[b]))
        if a != b
    ]
    assert between == pytest.approx(sum(pairs) / len(pairs), abs=1e-6)
    assert by_step[0, 1] == pytest.approx((cosine(z[0, 0], z[0, 1]) + cosine(z[2, 0], z[2, 1])) / 2, abs=1e-6)
    assert by_step[3, 3] == pytest.approx(1) and by_step[0, 3] == pytest.approx(
        cosine(z[2, 0], z[2, 3]), abs=1e-6
    )


def test_latents_that_are_all_alike_or_all_apart():
    steps = torch.tensor([3, 3])
    _, within, between = cosines(torch.ones(2, 3, 6), steps)
    assert within == pytest.approx(1) and between == pytest.approx(1)
    _, within, between = cosines(torch.eye(6).view(2, 3, 6), steps)
    assert within == pytest.approx(0) and between == pytest.approx(0)
    assert cosines(torch.ones(1, 1, 6), torch.tensor([1]))[1:] == (None, None)  # no pairs


def test_the_latents_of_explicit_cot_are_embeddings(tok, examples):  # noqa: F811
    method = chatty(tok, "cot_sft")
    seen, table = look(method, examples, batch=7), method.model.embed.weight
    fed = torch.cat(
        [
            table[row[:n]]
            for row, n in [
                (o.chain[0], int(o.lengths)) for o in (method.solve([e.question]) for e in examples)
            ]
        ]
    )
    assert seen["latents"] == len(fed) and seen["norms"][-1] == pytest.approx(
        fed.norm(dim=-1).max().item(), abs=1e-3
    )
    assert seen["rank"] == pytest.approx(effective_rank(fed), rel=1e-4) and seen["entropy_by_step"] is None
    first = [example["nearest"] for example in seen["illustration"]][0]
    assert all(words[0].endswith(" 1.00") for words in first)  # each is a token's own


def test_a_mixture_of_one_token_has_no_entropy_and_one_of_many_has(tok, examples):  # noqa: F811
    sure, mixed = (look(chatty(tok, "latent_sft", k=k), examples)["entropy_by_step"] for k in (1, 10))
    assert max(sure) == 0 and 0 < max(mixed) <= math.log(10) + 1e-6
    assert look(chatty(tok, "latent_sft", latent="hidden"), examples)["entropy_by_step"] is None
    assert look(chatty(tok, "latent_sft"), examples, batch=7)["cosine_within"] == pytest.approx(
        look(chatty(tok, "latent_sft"), examples)["cosine_within"], abs=1e-4
    )


def test_the_states_of_the_space_are_those_that_foretell_the_chain_and_its_end(tok, examples):  # noqa: F811
    method = chatty(tok, "cot_sft")
    states = hidden_states(method, examples[:1])
    out = method.solve([examples[0].question])
    said = method.model.logits(states)
    said[:, tok.never] = float("-inf")
    expected = out.chain[0, : int(out.lengths)].tolist() + [tok.end_think] * int(out.closed)
    assert said.argmax(-1).tolist()[: len(expected)] == expected and len(states) == int(out.lengths) + 1
    assert len(hidden_states(chatty(tok, "no_cot"), examples[:5])) == 5  # it has only an end


def test_the_command_writes_the_numbers_and_draws_both_figures(runs, tmp_path, capsys):  # noqa: F811
    for name, given in (("latent_sft", ["--look", "--data", "mini", "mini_svamp"]), ("colar", [])):
        files = {key: tmp_path / f"{name}_{key}.png" for key in ("look_figure", "space_figure")}
        out = tmp_path / f"{name}.json"
        script("eval")(
            [
                "--ckpt",
                str(runs[name]),
                "--limit",
                "8",
                "--json",
                str(out),
                *given,
                *(x for k, f in files.items() for x in (f"--{k}", str(f))),
            ]
        )
        assert all(
            "rank" in r["look"] and r["look"]["spectrum_embeddings"] for r in json.loads(out.read_text())
        )
        assert "an illustration" in capsys.readouterr().out and all(
            f.read_bytes()[:4] == PNG for f in files.values()
        )
    with pytest.raises(UserError, match="no latents to look at"):
        script("eval")(["--ckpt", str(runs["no_cot"]), "--limit", "4", "--look"])
