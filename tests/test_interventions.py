"""Latents replaced: each intervention does what it says, and finds out who answers from the chain."""

import zlib

import pytest
import torch
from conftest import chatty

from minilatent.config import UserError
from minilatent.evaluate import solve_all
from minilatent.study import interventions
from minilatent.study.interventions import INTERVENTIONS, Chains, answers_given, intervene
from minilatent.study.measures import from_hex


@pytest.mark.parametrize("name", ["latent_sft", "cot_sft"])
def test_latents_replaced_by_themselves_change_nothing(tok, examples, name):
    method = chatty(tok, name)
    method.model.double()
    questions = [e.question for e in examples[:8]]
    out = method.solve(questions)
    assert len(set(out.lengths.tolist())) > 1, "ragged chains, or the test tests little"
    assert answers_given(method, questions, out.latents, out.lengths) == out.answers


def test_interventions_do_what_they_say(tok, examples):
    method = chatty(tok, "latent_sft")
    names = [*INTERVENTIONS]
    found = intervene(method, examples, names)
    assert found == intervene(method, examples, names), "seeded"
    assert found["keep"]["unchanged"] == 1.0 and found["keep"]["n"] == len(examples)
    assert set(found["swap"]) == {"n", "accuracy", "ci95", "unchanged", "follows_donor"}
    each = intervene(method, examples, ["keep", "swap"], batch=7, per_question=True)
    judged, correct = (
        from_hex(each["swap"]["questions"][key], len(examples)) for key in ("judged", "correct")
    )
    assert sum(judged) == each["swap"]["n"] and sum(correct) == round(
        each["swap"]["accuracy"] * each["swap"]["n"]
    )
    assert (
        from_hex(each["keep"]["questions"]["correct"], len(examples))
        == solve_all(method, examples)["correct"]
    )

    out = method.solve([e.question for e in examples[:6]])
    z, n, g = out.latents, out.lengths, torch.Generator().manual_seed(0)
    donor = torch.tensor([1, 2, 3, 4, 5, 0])
    chains = Chains(z, n, donor, method.model.embed(out.chain), z[0, 0] + 1, g)
    noisy, _ = INTERVENTIONS["noise"](chains)
    assert (
        torch.allclose(noisy.norm(dim=-1), z.norm(dim=-1), rtol=1e-4) and (noisy - z).norm() > 0.5 * z.norm()
    )
    swapped, steps = INTERVENTIONS["swap"](chains)
    assert torch.equal(swapped[0], z[1]) and torch.equal(steps, n[donor])
    mixed, _ = INTERVENTIONS["shuffle"](chains)
    for row, (a, b) in enumerate(zip(mixed, z)):  # the same latents, none from padding
        assert torch.allclose(a[: n[row]].sum(0), b[: n[row]].sum(0), atol=1e-3) and not a[n[row] :].any()
    assert not torch.equal(mixed, z)
    average, steps = INTERVENTIONS["mean"](chains)
    assert (average == z[0, 0] + 1).all() and average.shape == z.shape and torch.equal(steps, n)
    zeros, steps = INTERVENTIONS["zeros"](chains)
    assert zeros.shape == z.shape and not zeros.any() and torch.equal(steps, n)
    assert torch.equal(INTERVENTIONS["truncate"](chains)[1], n // 2) and torch.equal(
        INTERVENTIONS["truncate"](chains)[0], z
    )
    assert torch.equal(interventions.intervention("truncate:2")(chains)[1], n.clamp(max=2))
    assert torch.equal(interventions.intervention("truncate:-2")(chains)[1], (n - 2).clamp(min=0))
    for wrong in ("truncate:", "truncate:-", "truncate:1.5", "truncates"):
        with pytest.raises(UserError, match="unknown intervention"):
            interventions.intervention(wrong)
    loud, _ = INTERVENTIONS["loud"](chains)
    assert torch.allclose(loud.norm(dim=-1), 10 * z.norm(dim=-1), rtol=1e-4)
    longer, steps = INTERVENTIONS["extend"](chains)
    assert torch.equal(steps, n + 4)
    for row, (a, b, k) in enumerate(zip(longer, z, n)):
        assert torch.equal(a[:k], b[:k]) and torch.equal(a[k : k + 4], b[k - 1].expand(4, -1))
    one, _ = INTERVENTIONS["top1"](chains)
    assert torch.equal(one[0, 0], method.model.embed.weight[out.chain[0, 0]])


def answering(method, monkeypatch, answers):
    """The method, but its answers are answers(questions, latents), with its own latents or with others."""
    free = method.solve

    def solve(questions, **options):
        out = free(questions, **options)
        out.answers = answers(questions, out.latents)
        return out

    monkeypatch.setattr(
        analysis, "answers_given", lambda method, questions, latents, steps: answers(questions, latents)
    )
    monkeypatch.setattr(method, "solve", solve)
    return method


def test_a_model_that_answers_from_its_chain_follows_the_donor(tok, examples, monkeypatch):
    """A fake whose answer is read off the first latent: swap must then give the donor's answer, always."""
    method = answering(
        chatty(tok, "latent_sft"),
        monkeypatch,
        lambda questions, latents: [str(round(abs(z[0].sum().item()) * 1e4)) for z in latents],
    )
    found = intervene(method, examples, ["swap", "keep"])
    assert found["swap"]["follows_donor"] == 1.0 and found["keep"]["unchanged"] == 1.0


def test_a_model_that_ignores_its_chain_is_found_out(tok, examples, monkeypatch):
    """The mirror of it: a fake that answers from the question alone never follows a donor."""
    method = answering(
        chatty(tok, "latent_sft"),
        monkeypatch,
        lambda questions, latents: [str(zlib.crc32(q.encode()) % 10_000) for q in questions],
    )
    found = intervene(method, examples, ["swap", "noise", "zeros"])
    assert found["swap"]["follows_donor"] == 0.0 and {f["unchanged"] for f in found.values()} == {1.0}


def test_the_mean_latent_is_the_data_sets_and_not_a_batchs(tok, examples, monkeypatch):
    method, seen = chatty(tok, "latent_sft"), []
    method.model.double()
    monkeypatch.setitem(INTERVENTIONS, "mean", lambda c: (seen.append(c.mean), (c.z, c.steps))[1])
    intervene(method, examples, ["mean"], batch=7)
    out = method.solve([e.question for e in examples])
    expected = out.latents.sum((0, 1)) / out.lengths.sum()
    assert len(seen) > 3 and all(torch.allclose(mean, expected, atol=1e-4) for mean in seen)


@pytest.mark.parametrize("name", ["latent_sft", "cot_sft", "colar", "coconut"])
def test_top1_is_of_tokens_and_their_mixtures_only(tok, examples, name):
    method = chatty(tok, name)
    assert method.mixed == (name == "latent_sft") and interventions.applies("top1", method) == (
        name in ("latent_sft", "cot_sft")
    )
    if interventions.applies("top1", method):
        found = intervene(method, examples[:4], ["top1"])["top1"]
        assert found["n"] == 4 and (found["unchanged"] == 1.0 or name == "latent_sft")
    else:
        with pytest.raises(UserError, match="top1.*feeds neither tokens nor mixtures"):
            intervene(method, examples[:4], ["top1"])


def test_no_cot_has_no_latents_to_replace(tok, examples):
    with pytest.raises(UserError, match="does not think"):
        intervene(chatty(tok, "no_cot"), examples, ["noise"])
