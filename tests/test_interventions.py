"""Latents replaced: each intervention does what it says, and reveals who answers from the chain."""

import zlib

import pytest
import torch
from conftest import chatty

from minilatent.config import UserError
from minilatent.evaluate import solve_all
from minilatent.study import interventions
from minilatent.study.interventions import INTERVENTIONS, Latents, answers_given, donors, intervene
from minilatent.study.measures import from_hex
from minilatent.tasks.answers import Example


def test_a_donors_answer_is_neither_the_right_one_nor_the_questions_own():
    """Otherwise `follows_donor` counts answers that never changed."""
    examples = [Example("?", (), answer) for answer in ("1", "2", "3", "4")]
    own = ["2", "2", "1", None]  # what the model answers
    chosen = donors(examples, own, torch.tensor([5, 5, 5, 5])).tolist()
    assert chosen[:2] == [-1, 2]  # 0: only 1 and 2 are there, its own and right; 1: takes 1 from question 2
    assert chosen[2] in (0, 1) and chosen[3] in (0, 1, 2)


@pytest.mark.parametrize("name", ["latent_sft", "cot_sft"])
def test_latents_replaced_by_themselves_change_nothing(tok, examples, name):
    method = chatty(tok, name)
    method.model.double()
    questions = [e.question for e in examples[:8]]
    out = method.solve(questions)
    assert len(set(out.lengths.tolist())) > 1, "ragged chains, or the test tests little"
    assert answers_given(method, questions, out.latents, out.lengths) == out.answers


def test_each_intervention_does_what_it_says(tok, examples):
    method = chatty(tok, "latent_sft")
    out = method.solve([e.question for e in examples[:6]])
    z, n, donor = out.latents, out.lengths, torch.tensor([1, 2, 3, 4, 5, 0])
    generator, likeliest = torch.Generator().manual_seed(0), method.model.embed(out.chain)
    latents = Latents(z, n, donor, likeliest, z[0, 0] + 1, generator)
    replaced = {name: replace(latents) for name, replace in INTERVENTIONS.items()}
    norm, close = z.norm(dim=-1), {"rtol": 1e-4, "atol": 1e-4}

    lengths = {"swap": n[donor], "truncate": n // 2}
    for name, (_, steps) in replaced.items():
        assert torch.equal(steps, lengths.get(name, n)), name

    z_of = {name: latent for name, (latent, _) in replaced.items()}
    assert torch.equal(z_of["keep"], z) and torch.equal(z_of["truncate"], z)
    torch.testing.assert_close(z_of["noise"].norm(dim=-1), norm, **close)
    assert (z_of["noise"] - z).norm() > 0.5 * z.norm()
    assert torch.equal(z_of["swap"][0], z[1])
    assert z_of["zeros"].shape == z.shape and not z_of["zeros"].any()
    assert z_of["mean"].shape == z.shape and (z_of["mean"] == z[0, 0] + 1).all()
    assert torch.equal(z_of["top1"][0, 0], method.model.embed.weight[out.chain[0, 0]])
    assert not torch.equal(z_of["shuffle"], z)
    for row, k in enumerate(n.tolist()):
        mixed, own = z_of["shuffle"][row], z[row]
        assert torch.allclose(mixed[:k].sum(0), own[:k].sum(0), atol=1e-3) and not mixed[k:].any()


def test_an_unknown_intervention_is_an_error(tok, examples):
    with pytest.raises(UserError, match="unknown intervention 'truncates': did you mean 'truncate'"):
        intervene(chatty(tok, "latent_sft"), examples, ["truncates"])


def test_results_are_seeded_and_kept_by_question(tok, examples):
    method = chatty(tok, "latent_sft")
    found = intervene(method, examples, ["keep", "noise", "swap"], batch=7, per_question=True)
    assert found == intervene(method, examples, ["keep", "noise", "swap"], batch=7, per_question=True)
    assert found["keep"]["unchanged"] == 1.0 and found["keep"]["n"] == len(examples)
    swap = found["swap"]
    assert set(swap) == {"n", "accuracy", "ci95", "unchanged", "follows_donor", "questions"}
    bits = lambda result, key: from_hex(result["questions"][key], len(examples))
    assert sum(bits(swap, "judged")) == swap["n"]
    assert sum(bits(swap, "correct")) == round(swap["accuracy"] * swap["n"])
    assert bits(found["keep"], "correct") == solve_all(method, examples)["correct"]


def answering(method, monkeypatch, answers):
    """The method, but its answers are answers(questions, latents), with its own latents or with others."""
    free = method.solve

    def solve(questions, **options):
        out = free(questions, **options)
        out.answers = answers(questions, out.latents)
        return out

    monkeypatch.setattr(interventions, "answers_given", lambda _, questions, z, steps: answers(questions, z))
    monkeypatch.setattr(method, "solve", solve)
    return method


def test_a_model_that_answers_from_its_chain_follows_the_donor(tok, examples, monkeypatch):
    """A fake whose answer is read off the first latent: swap must then give the donor's answer, always."""
    read = lambda questions, latents: [str(round(abs(z[0].sum().item()) * 1e4)) for z in latents]
    method = answering(chatty(tok, "latent_sft"), monkeypatch, read)
    found = intervene(method, examples, ["swap", "keep"])
    assert found["swap"]["follows_donor"] == 1.0 and found["keep"]["unchanged"] == 1.0


def test_a_model_that_ignores_its_chain_is_found_out(tok, examples, monkeypatch):
    """The mirror of it: a fake that answers from the question alone never follows a donor."""
    ignore = lambda questions, latents: [str(zlib.crc32(q.encode()) % 10_000) for q in questions]
    method = answering(chatty(tok, "latent_sft"), monkeypatch, ignore)
    found = intervene(method, examples, ["swap", "noise", "zeros"])
    assert found["swap"]["follows_donor"] == 0.0 and {f["unchanged"] for f in found.values()} == {1.0}


def test_the_mean_latent_is_the_data_sets_and_not_a_batchs(tok, examples, monkeypatch):
    method, seen = chatty(tok, "latent_sft"), []
    method.model.double()
    monkeypatch.setitem(INTERVENTIONS, "mean", lambda x: (seen.append(x.mean), (x.z, x.steps))[1])
    intervene(method, examples, ["mean"], batch=7)
    out = method.solve([e.question for e in examples])
    expected = out.latents.sum((0, 1)) / out.lengths.sum()
    assert len(seen) > 3 and all(torch.allclose(mean, expected, atol=1e-4) for mean in seen)


@pytest.mark.parametrize("name", ["latent_sft", "cot_sft", "colar", "coconut"])
def test_top1_is_of_tokens_and_their_mixtures_only(tok, examples, name):
    method = chatty(tok, name)
    assert method.mixed == (name == "latent_sft")
    if name in ("latent_sft", "cot_sft"):
        found = intervene(method, examples[:4], ["top1"])["top1"]
        assert found["n"] == 4 and (found["unchanged"] == 1.0 or name == "latent_sft")
    else:
        with pytest.raises(UserError, match="top1.*feeds neither tokens nor mixtures"):
            intervene(method, examples[:4], ["top1"])


def test_no_cot_has_no_latents_to_replace(tok, examples):
    with pytest.raises(UserError, match="does not think"):
        intervene(chatty(tok, "no_cot"), examples, ["noise"])
