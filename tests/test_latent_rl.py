"""Latent-GRPO: the density and its mirror by hand, who keeps an advantage, and samples one by one."""

import math
import random

import pytest
import torch
from conftest import tiny_model

from minilatent import tasks
from minilatent.batch import encode
from minilatent.config import UserError
from minilatent.latent import clamped_gumbel
from minilatent.masks import LATENT
from minilatent.methods import METHODS
from minilatent.methods.grpo import advantages
from minilatent.methods.latent_rl import gumbel_log_density, nucleus
from minilatent.optim import train_only
from minilatent.run import resolve

SMALL = {"eval_batch": 4, "max_chain": 6, "max_answer": 3, "batch_size": 4, "group": 3, "k": 4}
REWARDS = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
PARTS = ("latents", "decisions", "answer")


@pytest.fixture(scope="module")
def rows(tok):
    return encode(tasks.load("mini", "train", limit=9), tok, 512)[0]


def make(tok, **changes):
    """A model that often predicts </think> and <eos>: some chains and answers end by themselves."""
    model = tiny_model(tok.vocab_size, scale=3.0, context=512, tied=False)
    with torch.no_grad():
        model.head.weight[[tok.end_think, tok.eos]] *= 12
    return METHODS["latent_rl"](resolve({"method": "latent_rl", **SMALL, **changes}), tok, model).train()


def rewarded(method, batch, rewards=REWARDS):
    """As if the samples had earned these rewards: random weights are never right."""
    return method.with_old_log_probs(method.with_advantages(batch, rewards))


def rolled(tok, rows, seed=5, weights=torch.float32, **changes):
    """A rollout with REWARDS, none of its samples cut off. With this seed some noise is below 0."""
    method = make(tok, **changes).to(weights)
    batch = method.rollout(rows[:3], random.Random(seed))
    return method, rewarded(method, {**batch, "whole": torch.ones(9, dtype=torch.bool)})


# ------------------------------------------------------------------ by hand


def test_the_density_of_a_latent_and_its_gradient_by_hand():
    log_p = torch.tensor([[0.5, -1.0], [0.5, -1.0]], requires_grad=True)
    score = torch.tensor([[1.5, -1.5], [1.5, -1.5]])  # d = 1 and -0.5
    density = gumbel_log_density(score, log_p, torch.tensor([[False], [True]]))
    value = (-1 - math.exp(-1) + 0.5 - math.exp(0.5)) / 2
    torch.testing.assert_close(density, torch.tensor([value, value]))
    density.sum().backward()
    plain = [1 - math.exp(-1), 1 - math.exp(0.5)]  # of -d - e^-d by log p, d = y - log p
    mirrored = [plain[0], math.exp(-0.5) - 1]  # of d - e^d
    torch.testing.assert_close(log_p.grad * 2, torch.tensor([plain, mirrored]))
    far = torch.tensor([[-200.0]], requires_grad=True)
    gumbel_log_density(torch.tensor([[0.0]]), far, torch.tensor([[True]])).backward()
    assert far.grad.isfinite().all()  # neither branch computes e^200
    gumbel = torch.distributions.Gumbel(log_p.detach(), torch.ones(2, 2)).log_prob(score).mean(-1)
    torch.testing.assert_close(density.detach(), gumbel)
    half = torch.distributions.Gumbel(log_p.detach(), torch.full((2, 2), 0.5)).log_prob(score).mean(-1)
    torch.testing.assert_close(gumbel_log_density(score, log_p.detach(), scale=0.5) + math.log(2), half)


def test_only_the_likeliest_tokens_are_drawn():
    p = torch.tensor([[0.1, 0.6, 0.05, 0.25], [0.97, 0.01, 0.01, 0.01]])
    drawn = [[False, True, False, True], [True, False, False, False]]  # 0.85 >= 0.8, 0.97
    assert (nucleus(p.log(), 0.8) > -math.inf).tolist() == drawn
    torch.testing.assert_close(nucleus(p.log(), 1.0), p.log())
    score = torch.tensor([[0.5, -math.inf, 0.2], [0.5, 0.4, 0.2]])  # the second of the first was not drawn
    log_p = torch.zeros(2, 3, requires_grad=True)
    density = gumbel_log_density(score, log_p, torch.tensor([[True], [True]]))
    alone = gumbel_log_density(score[:1, ::2], torch.zeros(1, 2), torch.tensor([[True]]))
    torch.testing.assert_close(density[:1].detach(), alone)
    density.sum().backward()
    assert log_p.grad.isfinite().all() and log_p.grad[0, 1] == 0


def noise_of(method, batch):
    """d = y - log p of all entries that were drawn, under the policy that sampled y."""
    x = method.embed_with(batch["ids"], batch["kind"], method.latent_embeddings(batch))
    h = method.model(embeds=x)[:, :-1]
    log_p = method.allowed(method.model.logits(h[batch["kind"][:, 1:] == LATENT])).log_softmax(-1)
    return (batch["score"] - log_p.gather(-1, batch["top"])).detach()[batch["score"] > -math.inf]


def test_the_noise_is_clamped_and_one_sided_by_a_shift_that_changes_no_latent(tok, rows):
    noise = clamped_gumbel((4000,), torch.Generator().manual_seed(0))
    assert noise.min() == -1.5 and noise.max() == 3.0 and abs(noise.mean() - 0.55) < 0.05
    (method, one), (_, two) = (rolled(tok, rows, weights=torch.float64, one_sided=s) for s in (True, False))
    drawn = one["score"] > -math.inf
    assert torch.equal(one["top"][drawn], two["top"][drawn])
    torch.testing.assert_close(one["score"].softmax(-1), two["score"].softmax(-1))
    torch.testing.assert_close(one["score"], two["score"] + 1.5)
    assert noise_of(method, one).min() > -1e-4 and noise_of(method, two).min() < -0.1


def test_without_noise_the_superposition_is_the_likeliest_entries_own(tok, rows):
    assert noise_of(*rolled(tok, rows, gumbel_scale=1e-6, one_sided=False)).abs().max() < 1e-4
    assert noise_of(*rolled(tok, rows, one_sided=False)).abs().max() > 0.1


def test_advantages_leave_out_what_does_not_count():
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [1.0, 0.0, 1.0, 1.0]])
    counts = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 1]], dtype=torch.bool)
    expected = torch.tensor([[1.0, -1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(advantages(rewards, counts), expected, rtol=1e-4, atol=0)


# ------------------------------------------------------------------ samples


@pytest.mark.parametrize("s", [1.0, 0.5])
def test_the_log_probabilities_are_those_of_every_sample_by_itself(tok, rows, s):
    """Latents, every decision to go on or to end, and the answer; each sample alone, without padding."""
    method, batch = rolled(tok, rows, mirror=False, gumbel_scale=s)
    found, _ = method.log_probs(batch)
    E, used, expected = method.model.embed.weight, 0, {part: [] for part in PARTS}
    assert (batch["kind"] < 0).any() and len((batch["kind"] == LATENT).sum(1).unique()) > 1
    for r in range(9):
        ids = batch["ids"][r][batch["kind"][r] >= 0].tolist()
        first, n = ids.index(tok.latent), ids.count(tok.latent)
        score, top = (batch[name][used : used + n] for name in ("score", "top"))
        used += n
        alpha = score.exp() / score.exp().sum(1, keepdim=True)
        z = [sum(a * E[t] for a, t in zip(*latent)) for latent in zip(alpha, top)]
        x = torch.stack([*E[ids[:first]], *z, *E[ids[first + n :]]])
        logits = method.model.logits(method.model(embeds=x[None])[0])
        logits[:, tok.never] = -float("inf")
        log_q = logits.log_softmax(-1)
        for i in range(n):
            d = (score[i] - log_q[first + i - 1, top[i]])[alpha[i] > 0] / s
            expected["latents"].append((sum(-x - torch.exp(-x) for x in d).item() / len(d), r))
            end = log_q[first + i, tok.end_think].exp()
            if i < n - 1:
                expected["decisions"].append(((1 - end).log().item(), r))
            elif batch["closed"][r]:
                expected["decisions"].append((end.log().item(), r))
        for i in range(first + n + 1, len(ids)):
            expected["answer"].append((log_q[i - 1, ids[i]].item(), r))
    assert used == len(batch["score"])
    for part, (values, sample) in found.items():
        assert sample.tolist() == [r for _, r in expected[part]], part
        torch.testing.assert_close(values, torch.tensor([v for v, _ in expected[part]]), rtol=1e-4, atol=2e-4)
    for r in range(6):  # those of groups with an advantage
        mine = [v for pairs in expected.values() for v, sample in pairs if sample == r]
        assert batch["likely"][r].item() == pytest.approx(sum(mine) / len(mine), abs=2e-4)


@pytest.mark.parametrize("switches", [{}, {"average": False}, {"best_first": False}, {"one_sided": False}])
def test_the_first_inner_step_is_the_plain_policy_gradient_over_the_groups_that_count(tok, rows, switches):
    """The ratio is exactly 1, so the surrogate is the advantage and its gradient A · ∇log p; the third group
    has no advantage."""
    method, batch = rolled(tok, rows, mirror=False, **switches)
    for part, (values, _) in method.log_probs(method.informative(batch))[0].items():
        assert torch.equal(values, batch["old_" + part]), part
    loss, logged = method.loss(batch)
    assert all(logged["clipped_" + part] == 0.0 for part in PARTS)
    assert logged["reward"] == pytest.approx(3 / 9) and logged["no_advantage"] == pytest.approx(1 / 3)
    assert {"accuracy", "len", "entropy"} <= logged.keys() and logged["entropy"] > 0
    parameters, plain = list(train_only(method, method.trainable()).values()), 0.0
    for part, (values, sample) in method.log_probs(batch)[0].items():
        some = sample < 6
        A = batch["latent_advantage"] if part == "latents" else batch["advantage"][sample[some]]
        share = torch.full_like(values, 1 / int(some.sum()))
        if method.config.average:
            share = 1 / (6 * torch.bincount(sample, minlength=9)[sample])
        plain = plain - (share[some] * A * values[some]).sum()
    surrogate = torch.autograd.grad(loss, parameters, allow_unused=True)
    for a, b in zip(surrogate, torch.autograd.grad(plain, parameters, allow_unused=True)):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_the_ratio_is_one_in_bfloat16_too(tok, rows):
    method, batch = rolled(tok, rows, dtype="bfloat16")
    with torch.autocast("cpu", torch.bfloat16):
        for part, (values, _) in method.log_probs(method.informative(batch))[0].items():
            assert torch.equal(values, batch["old_" + part]), part


@pytest.mark.parametrize("one_sided", [True, False])
def test_the_mirror_changes_the_gradient_of_two_sided_noise_and_no_value(tok, rows, one_sided):
    losses, gradients = [], []
    for mirror in (True, False):
        method, batch = rolled(tok, rows, one_sided=one_sided, mirror=mirror, best_first=False)
        batch["score"] = batch["score"] + 1e-3 * one_sided  # d = 0 must not become -1e-7
        losses.append(method.loss(batch)[0])
        gradients.append(torch.autograd.grad(losses[-1], method.model.head.weight)[0])
    assert torch.equal(*losses)
    assert torch.equal(*gradients) == one_sided


def test_at_the_first_latent_only_the_likeliest_right_sample_has_an_advantage(tok, rows):
    _, batch = rolled(tok, rows)
    count = (batch["kind"] == LATENT).sum(1)[:6]  # the third group has no advantage
    A, likely = batch["advantage"], batch["likely"]
    winners = {0: max((0, 2), key=lambda r: likely[r]), 1: 4}
    for r, own in enumerate(batch["latent_advantage"].split(count.tolist())):
        wins = winners[r // 3] == r
        assert A[r] != 0 and own[0] == (A[r] if wins else 0) and (own[1:] == A[r]).all(), r
    off = rolled(tok, rows, best_first=False)[1]
    assert torch.equal(off["latent_advantage"], off["advantage"][:6].repeat_interleave(count))


def test_a_sample_that_was_cut_off_has_no_part_in_its_group(tok, rows):
    method, batch = rolled(tok, rows)
    batch["whole"][2:4] = False
    batch = method.with_advantages(batch, REWARDS)
    expected = torch.tensor([1.0, -1, 0, 0, 1, -1, 0, 0, 0])
    torch.testing.assert_close(batch["advantage"], expected, rtol=1e-4, atol=0)
    assert torch.equal(method.informative(batch)["advantage"], batch["advantage"][:6])
    assert batch["rewards"].sum() == 2
    batch["whole"][1] = False  # one is left: nothing to compare it with
    assert len(method.informative(method.with_advantages(batch, REWARDS))["ids"]) == 3  # the second group
    loss, logged = method.loss(rewarded(method, batch, torch.zeros(3, 3)))  # no group has an advantage
    assert loss == 0 and logged["no_advantage"] == 1


def test_whole_samples_and_samples_that_were_cut_off_occur(tok, rows):
    method = make(tok, max_answer=40)
    whole = torch.cat([method.rollout(rows[:3], random.Random(seed))["whole"] for seed in range(4)])
    assert whole.any() and not whole.all()


def test_samples_repeat_with_their_seed_and_differ_inside_a_group(tok, rows):
    one, again, other = (rolled(tok, rows, seed)[1] for seed in (0, 0, 1))
    assert torch.equal(one["score"], again["score"]) and torch.equal(one["ids"], again["ids"])
    assert one["score"].shape != other["score"].shape or not torch.equal(one["score"], other["score"])
    assert not torch.equal(one["score"][0], one["score"][int((one["kind"][0] == LATENT).sum())])
    assert one["top"].shape[1] == 4 and not torch.isin(one["top"], torch.tensor(tok.never)).any()


def test_rl_raises_the_reward_of_a_model_end_to_end(tok, rows):
    """The reward here is for an odd most likely token at the first latent: the latents must learn it."""
    method, found = make(tok, group=16, max_chain=2, k=2, best_first=False), []
    optimizer = torch.optim.Adam(train_only(method, method.trainable()).values(), lr=3e-3)
    for step in range(16):
        batch = method.rollout(rows[:2], random.Random(step))
        batch["whole"] = torch.ones(32, dtype=torch.bool)
        count = (batch["kind"] == LATENT).sum(1)
        rewards = (batch["top"][count.cumsum(0) - count, 0] % 2).float().view(2, 16)
        found.append(rewards.mean().item())
        loss, _ = method.loss(rewarded(method, batch, rewards))
        optimizer.zero_grad(), loss.backward(), optimizer.step()
    assert sum(found[-4:]) / 4 > sum(found[:4]) / 4 + 0.2, found


# ------------------------------------------------------------------ where it starts


def test_all_is_trained_but_the_embeddings(tok):
    method = make(tok)
    trained = train_only(method, method.trainable())
    assert {n for n, _ in method.named_parameters()} - trained.keys() == {"model.embed.weight"}


def test_it_starts_from_a_latent_sft_run_of_the_same_superpositions(tok):
    method, fits = make(tok), {"latent": "superposition", "k": 4, "ratio": 2}
    for name in ("latent_sft", "latent_rl"):
        method.adopt({}, {**fits, "method": name})
    fits["method"] = "latent_sft"
    for settings, said in (
        ({}, "starts from a Latent-SFT run"),
        ({"method": "cot_sft"}, "starts from a Latent-SFT run"),
        ({**fits, "latent": "hidden"}, "--latent hidden"),
        ({**fits, "k": 10}, "--k 10"),
        ({**fits, "ratio": 4}, "--ratio 4"),
    ):
        with pytest.raises(UserError, match=said):
            method.adopt({}, settings)
    with pytest.raises(UserError, match="--lora_dropout 0"):
        make(tok, lora_rank=2, lora_dropout=0.1).adopt({}, fits)
