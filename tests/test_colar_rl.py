"""CoLaR's RL: the surrogate by hand, samples one by one, the plain policy gradient, rewards that rise."""

import dataclasses
import math
import random

import pytest
import torch
from conftest import tiny_model
from test_colar import make

from minilatent import tasks
from minilatent.batch import encode
from minilatent.config import UserError
from minilatent.losses import log_not, mean_by
from minilatent.masks import LATENT, TAIL
from minilatent.methods import METHODS, grpo
from minilatent.methods.grpo import advantages, clipped_surrogate
from minilatent.optim import train_only
from minilatent.run import resolve

REWARDS = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
PARTS = ("latents", "decisions", "answer")


@pytest.fixture(scope="module")
def rows(tok):
    return encode(tasks.load("mini", "train", limit=9), tok, 512)[0]


def make_rl(tok, **changes):
    return make(tok, "colar_rl", **{"latent_loss": "nll", "group": 3, **changes})


def rolled(tok, rows, seed=0, **changes):
    method = make_rl(tok, **changes)
    return method, method.rollout(rows[:3], random.Random(seed))


def rewarded(method, batch, rewards=REWARDS):
    """As if the samples had earned these rewards: random weights are never right."""
    return method.with_old_log_probs(method.with_advantages(batch, rewards))


# ------------------------------------------------------------------ by hand


def test_advantages_and_the_surrogate_by_hand():
    A = advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]]))
    std = math.sqrt(3) / 4  # of 1, 0, 0, 0
    torch.testing.assert_close(A[0], torch.tensor([0.75, -0.25, -0.25, -0.25]) / std)
    assert (A[1] == 0).all()  # nothing to learn from
    old = torch.zeros(6)
    new = torch.tensor([1.5, 1.5, 0.5, 0.5, 1.1, 0.9]).log()  # the ratios
    advantage = torch.tensor([2.0, -2.0, 2.0, -2.0, 1.0, -1.0])
    gain, clipped = clipped_surrogate(new, old, advantage, 0.2)
    torch.testing.assert_close(gain, torch.tensor([2.4, -3.0, 1.0, -1.6, 1.1, -0.9]))
    assert clipped.tolist() == [True, False, False, True, False, False]
    means, some = mean_by(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([2, 2, 0]), 4)
    assert means.tolist() == [5.0, 0.0, 2.0, 0.0] and some.tolist() == [True, False, True, False]


def test_log_not_is_the_log_of_the_other_tokens_probability():
    logits = torch.randn(20, 9, generator=torch.Generator().manual_seed(0)) * 3
    torch.testing.assert_close(log_not(logits, 4), (1 - logits.softmax(-1)[:, 4]).log(), rtol=1e-4, atol=1e-5)
    assert log_not(torch.tensor([[0.0, 40.0]]), 1).item() == pytest.approx(-40.0)  # 1 - p is 0 in float32


# ------------------------------------------------------------------ rollouts


def test_a_samples_reward_is_whether_it_gives_its_own_questions_answer(tok, rows, monkeypatch):
    """The answers that count as right are set to what some of the samples gave: the same rollout then earns
    these rewards."""
    monkeypatch.setattr(grpo, "is_correct", lambda answer, gold: answer == gold)  # they are no numbers
    method, batch = rolled(tok, rows)
    tails = [ids[kind == TAIL].tolist()[1:] for ids, kind in zip(batch["ids"], batch["kind"])]
    given = [tok.decode(t) for t in tails]
    gold = [given[1], given[3], "no answer"]  # one of question 0's samples, the first of question 1's
    asked = [dataclasses.replace(r, tail=[tok.end_think, *tok.encode(g)]) for r, g in zip(rows, gold)]
    again = method.rollout(asked, random.Random(0))
    assert torch.equal(again["ids"], batch["ids"])
    right = [answer == gold[i // 3] for i, answer in enumerate(given)]
    assert again["right"].tolist() == right and sum(right) >= 2 and not all(right)
    rewards = torch.tensor(right).float().view(3, 3)
    assert torch.equal(again["rewards"], rewards)
    std, mean = torch.std_mean(rewards, 1, correction=0, keepdim=True)
    expected = (rewards - mean) / (std + 1e-6)
    torch.testing.assert_close(again["advantage"].view(3, 3), expected)


def test_samples_repeat_with_their_seed_and_differ_inside_a_group(tok, rows):
    one, again, other = (rolled(tok, rows, seed)[1] for seed in (0, 0, 1))
    assert torch.equal(one["z"], again["z"]) and torch.equal(one["ids"], again["ids"])
    assert one["z"].shape != other["z"].shape or not torch.equal(one["z"], other["z"])
    second = int((one["kind"][0] == LATENT).sum())
    assert not torch.equal(one["z"][0], one["z"][second])  # two samples' first latents
    assert (one["kind"] == TAIL).sum(1).min() >= 2  # </think> and at least one token
    closed = torch.cat([rolled(tok, rows, seed)[1]["closed"] for seed in range(6)])
    assert closed.any() and not closed.all()  # both ways to end a chain occur


def test_the_parts_of_an_accumulated_step_get_different_samples(tok, rows):
    method, noise = make_rl(tok), []
    for row in rows[:2]:  # ε = (z - μ) / σ of the first latent
        batch = method.rollout([row], random.Random(0))
        x = method.embed_with(batch["ids"], batch["kind"], batch["z"])
        before = int((batch["kind"][0] == LATENT).nonzero()[0]) - 1
        mu, log_sigma = method.latent_head(method.model(embeds=x)[0, before])
        noise.append((batch["z"][0] / method.scale - mu) / log_sigma.exp())
    assert noise[0].std().item() == pytest.approx(1.0, abs=0.5)
    assert not torch.allclose(*noise, atol=0.1)


def test_a_cold_end_is_greedy_and_a_hot_one_ends_chains_anywhere(tok, rows):
    method, questions = make(tok, max_chain=64), [r.text for r in rows]

    def lengths(questions, temperature):
        end = {"sample_end": torch.Generator().manual_seed(1), "end_temperature": temperature}
        return method.solve(questions, **end).lengths

    assert torch.equal(lengths(questions, 1e-4), method.solve(questions).lengths)
    each = 1 / (tok.vocab_size - len(tok.never))  # all tokens alike: the chance to end at each latent
    expected = 1 - (1 - each) ** 63  # 0.11
    assert (lengths(questions * 40, 1e4) < 64).double().mean().item() == pytest.approx(expected, abs=0.05)


def test_the_log_says_how_many_chains_have_one_latent_or_were_cut_off(tok, rows):
    method, batch = rolled(tok, rows, seed=11, max_chain=2)
    logged, count = method.loss(batch)[1], (batch["kind"] == LATENT).sum(1)
    assert logged["one_latent"] == pytest.approx((count == 1).float().mean().item())
    assert logged["cut_off"] == pytest.approx(1 - batch["closed"].float().mean().item())
    assert logged["cut_off"] > 0.5


# ------------------------------------------------------------------ the objective


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_the_log_probabilities_are_those_of_every_sample_by_itself(tok, rows, temperature):
    """Latents, every decision to go on or to end, and the answer: what was sampled, and nothing else."""
    method, batch = rolled(tok, rows, end_temperature=temperature)
    found, _ = method.log_probs(batch)
    E, z, used, expected = method.model.embed.weight, batch["z"], 0, {part: [] for part in PARTS}
    for r in range(9):
        ids = batch["ids"][r][batch["kind"][r] >= 0].tolist()
        first, n = ids.index(tok.latent), ids.count(tok.latent)
        mine, used = z[used : used + n], used + n
        x = torch.stack([*E[ids[:first]], *mine, *E[ids[first + n :]]])
        h = method.model(embeds=x[None])[0]
        logits = method.model.logits(h)
        logits[:, tok.never] = -float("inf")
        for i in range(n):
            mu, log_sigma = method.latent_head(h[first + i - 1])
            density = torch.distributions.Normal(mu, log_sigma.exp()).log_prob(mine[i] / method.scale)
            expected["latents"].append((density.mean().item(), r))
            end = (logits[first + i] / temperature).softmax(-1)[tok.end_think]
            if i < n - 1:
                expected["decisions"].append(((1 - end).log().item(), r))
            elif batch["closed"][r]:
                expected["decisions"].append((end.log().item(), r))
        log_q = logits.log_softmax(-1)
        for i in range(first + n + 1, len(ids)):
            expected["answer"].append((log_q[i - 1, ids[i]].item(), r))
    assert used == len(z)
    for part, (values, sample) in found.items():
        assert sample.tolist() == [r for _, r in expected[part]], part
        torch.testing.assert_close(values, torch.tensor([v for v, _ in expected[part]]), rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("average", [True, False])
def test_the_first_inner_step_is_the_plain_policy_gradient(tok, rows, average):
    """The ratio is exactly 1, so the surrogate is the advantage and its gradient A · ∇log p."""
    method, batch = rolled(tok, rows, average=average)
    batch = rewarded(method, batch)
    for part, (values, _) in method.log_probs(method.informative(batch))[0].items():
        assert torch.equal(values, batch["old_" + part]), part
    loss, logged = method.loss(batch)
    assert all(logged["clipped_" + part] == 0.0 for part in PARTS)
    assert logged["reward"] == pytest.approx(1 / 3) and logged["no_advantage"] == pytest.approx(1 / 3)
    parameters = list(train_only(method, method.trainable()).values())
    surrogate = torch.autograd.grad(loss, parameters, allow_unused=True)
    plain = 0.0
    for values, sample in method.log_probs(batch)[0].values():  # the third group has no advantage
        some = (sample < 6).float()
        weight = some / (6 * torch.bincount(sample, minlength=9)[sample]) if average else some / some.sum()
        plain = plain - (weight * batch["advantage"][sample] * values).sum()
    for a, b in zip(surrogate, torch.autograd.grad(plain, parameters, allow_unused=True)):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_groups_without_an_advantage_cost_no_pass(tok, rows):
    method, batch = rolled(tok, rows)
    seen = []
    spy = lambda model, args, kwargs: seen.append(len(kwargs["embeds"]))
    method.model.register_forward_pre_hook(spy, with_kwargs=True)
    method.loss(rewarded(method, batch))
    assert seen == [6, 6]  # p_old and p: nine samples, of which three agree


def test_a_second_inner_step_is_clipped(tok, rows):
    method, batch = rolled(tok, rows)
    batch = rewarded(method, batch)
    with torch.no_grad():
        method.latent_head.mu.bias.add_(1.0)
    logged = method.loss(batch)[1]
    assert logged["clipped_latents"] > 0 and logged["clipped_answer"] == 0.0  # only the latents' μ moved


def test_the_first_pass_and_the_loss_agree_in_bfloat16(tok, rows):
    """p_old by the same pass as p: the ratio is 1 in any precision."""
    method, batch = rolled(tok, rows, dtype="bfloat16")
    batch = rewarded(method, batch)
    with torch.autocast("cpu", torch.bfloat16):
        for part, (values, _) in method.log_probs(method.informative(batch))[0].items():
            assert torch.equal(values, batch["old_" + part]), part


def test_rl_raises_the_reward_of_a_model_end_to_end(tok, rows):
    """The reward here is for the shortest chain of a group: the decisions must learn it."""
    method, lengths = make_rl(tok, group=8), []
    optimizer = torch.optim.Adam(train_only(method, method.trainable()).values(), lr=1e-3)
    for step in range(8):
        batch = method.rollout(rows[:2], random.Random(step))
        n = (batch["kind"] == LATENT).sum(1).float().view(2, 8)
        lengths.append(n.mean().item())
        shortest = (n == n.min(1, keepdim=True).values).float()
        loss, _ = method.loss(rewarded(method, batch, shortest))
        optimizer.zero_grad(), loss.backward(), optimizer.step()
    assert sum(lengths[-2:]) / 2 < sum(lengths[:2]) / 2 - 1, lengths


# ------------------------------------------------------------------ where it starts


def test_rl_starts_from_a_colar_run_with_a_sigma(tok):
    method = make_rl(tok)
    with pytest.raises(UserError, match="starts from a CoLaR run"):
        method.adopt({}, {})
    for no_sigma in ({"latent_loss": "mse"}, {"latent_loss": "soft_mse", "entropy_weight": 0.0}):
        with pytest.raises(UserError, match=f"--latent_loss {no_sigma['latent_loss']}, which leaves none"):
            method.adopt({}, {"method": "colar", **no_sigma})


def test_rl_inherits_the_head_its_width_and_the_larger_floor_of_its_sigma(tok):
    config = resolve({"method": "colar_rl"})
    start = {"method": "colar", "head_width": 9, "latent_loss": "nll", "sigma_floor": 0.25}
    METHODS["colar_rl"].inherit(config, start)
    assert (config.head_width, config.latent_loss, config.sigma_floor) == (9, "nll", 0.25)
    METHODS["colar_rl"].inherit(config, {**start, "sigma_floor": 0.1})
    assert config.sigma_floor == 0.25  # what was asked for, if it is more: it explores further
    method = METHODS["colar_rl"](config, tok, tiny_model(tok.vocab_size))
    heads = [make(tok, seed=7, head_width=width).latent_head.state_dict() for width in (9, 7)]
    right, narrow = ({f"latent_head.{n}": t for n, t in head.items()} for head in heads)
    method.adopt({**right, "scale": torch.tensor(1.0)}, start)
    assert method.scale == 1.0  # the unit of its latents
    assert all(torch.equal(method.latent_head.state_dict()[n], t) for n, t in heads[0].items())
    name = "latent_head.mu.weight"
    with pytest.raises(UserError, match="the latent head of --init .*size mismatch for mu.weight"):
        method.adopt({**right, name: narrow[name]}, start)
