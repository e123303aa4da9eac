"""CoLaR's RL: the surrogate by hand, samples one by one, the plain policy gradient at first, and rewards that rise."""

import dataclasses
import math
import random

import pytest
import torch
from test_colar import make, rows  # noqa: F401  (rows: a fixture)

from minilatent.config import UserError
from minilatent.losses import advantages, clipped_surrogate, mean_by
from minilatent.masks import LATENT, TAIL
from minilatent.methods.colar import log_not


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
    assert log_not(torch.tensor([[0.0, 40.0]]), 1).item() == pytest.approx(
        -40.0
    )  # where 1 - p is 0 in float32


def rolled(tok, rows, seed=0, **changes):
    method = make(tok, "colar_rl", latent_loss="nll", **changes)
    return method, method.rollout(rows[:3], random.Random(seed))


def score(method, batch, rewards):
    """As if the samples had earned these rewards: random weights are never right."""
    rewards = torch.tensor(rewards).view(-1, 3)
    return method.remember(method.judge(batch, rewards))


REWARDS = [1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]


def test_a_samples_reward_is_whether_it_says_its_own_questions_answer(tok, rows, monkeypatch):
    """The answers that count as right are set to what some of the samples said: the same rollout then earns these rewards."""
    monkeypatch.setattr(
        rl, "is_correct", lambda answer, gold: answer == gold
    )  # random weights say no numbers
    method, batch = rolled(tok, rows)
    tails = [ids[kind == TAIL].tolist()[1:] for ids, kind in zip(batch["ids"], batch["kind"])]
    said = [tok.decode(t) for t in tails]
    gold = [said[1], said[3], "no answer"]  # one of question 0's samples, the first of question 1's
    asked = [dataclasses.replace(r, answer=tok.encode(g)) for r, g in zip(rows, gold)]
    again = method.rollout(asked, random.Random(0))
    assert torch.equal(again["ids"], batch["ids"])
    right = [answer == gold[i // 3] for i, answer in enumerate(said)]
    assert again["right"].tolist() == right and sum(right) >= 2 and not all(right)
    assert again["rewards"].tolist() == [[float(r) for r in right[i : i + 3]] for i in (0, 3, 6)]
    for i in range(3):
        r = again["rewards"][i]
        torch.testing.assert_close(
            again["advantage"].view(3, 3)[i], (r - r.mean()) / (r.std(unbiased=False) + 1e-6)
        )


def test_the_log_tells_how_many_chains_collapsed(tok, rows):
    method, batch = rolled(tok, rows, max_chain=3)
    logged, count = method.loss(batch, None, 0.0)[1], (batch["kind"] == LATENT).sum(1)
    assert logged["one_latent"] == pytest.approx((count == 1).float().mean().item())
    assert (
        logged["cut_off"] == pytest.approx(1 - batch["closed"].float().mean().item())
        and logged["cut_off"] > 0.5
    )


@pytest.mark.parametrize(
    "length, said", [(1.0, "one latent"), (7.9, "the maximum of --max_chain"), (4.0, "")]
)
def test_a_collapse_is_told(tok, rows, capsys, monkeypatch, length, said):
    method, _ = rolled(tok, rows, max_chain=8)
    monkeypatch.setattr(grpo, "accuracy", lambda *_: {"accuracy": 0.25, "mean_len": length})
    assert method.validate([]) == {"accuracy": 0.25, "mean_len": length}
    err = capsys.readouterr().err
    assert f"collapsed to {said}: accuracy 0.250, #L {length:.1f}" in err if said else not err


def test_the_parts_of_an_accumulated_step_draw_different_samples(tok, rows):
    method = make(tok, "colar_rl", latent_loss="nll")
    a, b = (method.rollout([row], random.Random(0)) for row in rows[:2])
    drawn = []
    for batch in (a, b):  # ε = (z - μ) / σ of the first latent
        kind = batch["kind"][:1]
        mu, log_sigma = method.latent_head(
            method.model(embeds=method.embed_with(batch["ids"], batch["kind"], batch["z"]))[0]
        )
        first = int((kind[0] == LATENT).nonzero()[0]) - 1
        drawn.append((batch["z"][0] / method.scale - mu[first]) / log_sigma[first].exp())
    assert drawn[0].std().item() == pytest.approx(1.0, abs=0.5) and not torch.allclose(
        drawn[0], drawn[1], atol=0.1
    )


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_the_log_probabilities_are_those_of_every_sample_by_itself(tok, rows, temperature):
    """Latents, every decision to go on or to end, and the answer: what sampling drew, and nothing else."""
    method, batch = rolled(tok, rows, end_temperature=temperature)
    found, _ = method.log_probs(batch)
    E, scale, z, at = method.model.embed.weight, method.scale, batch["z"], 0
    expected = {"latents": [], "decisions": [], "answer": []}
    for r in range(9):
        ids, kind = batch["ids"][r], batch["kind"][r]
        ids = ids[kind >= 0].tolist()
        n = int((kind == LATENT).sum())
        x = torch.stack([E[t] for t in ids])
        first = ids.index(tok.latent)
        x[first : first + n] = z[at : at + n]
        h = method.model(embeds=x[None])[0]
        logits = method.model.logits(h)
        logits[:, tok.never] = -float("inf")
        log_q = logits.log_softmax(-1)
        for i in range(n):
            mu, log_sigma = method.latent_head(h[first + i - 1])
            density = torch.distributions.Normal(mu, log_sigma.exp()).log_prob(z[at + i] / scale).mean()
            expected["latents"].append((density.item(), r))
            end = (logits[first + i] / temperature).softmax(-1)[tok.end_think]
            if i < n - 1:
                expected["decisions"].append(((1 - end).log().item(), r))
            elif batch["closed"][r]:
                expected["decisions"].append((end.log().item(), r))
        for i in range(first + n + 1, len(ids)):
            expected["answer"].append((log_q[i - 1, ids[i]].item(), r))
        at += n
    assert at == len(z)
    for name, (values, sample) in found.items():
        assert sample.tolist() == [r for _, r in expected[name]], name
        torch.testing.assert_close(values, torch.tensor([v for v, _ in expected[name]]), rtol=1e-4, atol=2e-4)


def test_a_cold_end_is_greedy_and_a_hot_one_ends_chains_anywhere(tok, rows):
    method, questions = make(tok, max_chain=64), [r.text for r in rows for _ in range(100)]
    cold, hot = (
        method.solve(questions, sample_end=torch.Generator().manual_seed(1), end_temperature=t).lengths
        for t in (1e-4, 1e4)
    )
    assert torch.equal(cold, method.solve(questions).lengths)
    every = 1 / (tok.vocab_size - len(tok.never))  # all tokens alike: the chance to end at each latent
    assert (hot < 64).double().mean().item() == pytest.approx(1 - (1 - every) ** 63, abs=0.05)  # 0.11


def test_both_ways_to_end_a_chain_occur_above(tok, rows):
    closed = torch.cat([rolled(tok, rows, seed)[1]["closed"] for seed in range(6)])
    assert closed.any() and not closed.all()


@pytest.mark.parametrize("average", [True, False])
def test_the_first_inner_step_is_the_plain_policy_gradient(tok, rows, average):
    """The ratio is exactly 1, so the surrogate is the advantage and its gradient A · ∇log p."""
    method, batch = rolled(tok, rows, average=average)
    batch = score(method, batch, REWARDS)
    for name, (values, _) in method.log_probs(method.heard(batch))[0].items():
        assert torch.equal(values, batch["old_" + name]), name
    loss, logged = method.loss(batch, None, 0.0)
    assert (
        {logged["clipped_" + name] for name in ("latents", "decisions", "answer")} == {0.0}
        and logged["reward"] == pytest.approx(1 / 3)
        and logged["silent"] == pytest.approx(1 / 3)
    )
    parameters = [p for m in method.trainable() for p in m.parameters()]
    surrogate = torch.autograd.grad(loss, parameters, allow_unused=True)
    plain = 0.0
    for values, sample in method.log_probs(batch)[
        0
    ].values():  # the third group is silent: two have a part in the mean
        some = (sample < 6).float()
        weight = some / (6 * torch.bincount(sample, minlength=9)[sample]) if average else some / some.sum()
        plain = plain - (weight * batch["advantage"][sample] * values).sum()
    for a, b in zip(surrogate, torch.autograd.grad(plain, parameters, allow_unused=True)):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_silent_groups_cost_no_pass(tok, rows):
    method, batch = rolled(tok, rows)
    seen = []
    method.model.register_forward_pre_hook(
        lambda model, args, kwargs: seen.append(len(kwargs["embeds"])), with_kwargs=True
    )
    method.loss(score(method, batch, REWARDS), None, 0.0)
    assert seen == [6, 6]  # p_old and p: nine samples, of which three agree


def test_a_second_inner_step_meets_the_clip(tok, rows):
    method, batch = rolled(tok, rows)
    batch = score(method, batch, REWARDS)
    with torch.no_grad():
        method.latent_head.mu.bias.add_(1.0)
    logged = method.loss(batch, None, 0.0)[1]
    assert (
        logged["clipped_latents"] > 0 and logged["clipped_answer"] == 0.0
    )  # the latents stay what they were: only their μ moved


def test_samples_repeat_with_their_seed_and_differ_inside_a_group(tok, rows):
    one, again, other = (rolled(tok, rows, seed)[1] for seed in (0, 0, 1))
    assert torch.equal(one["z"], again["z"]) and torch.equal(one["ids"], again["ids"])
    assert one["z"].shape != other["z"].shape or not torch.equal(one["z"], other["z"])
    first = torch.stack([one["z"][0], one["z"][int((one["kind"][0] == LATENT).sum())]])
    assert not torch.equal(first[0], first[1])
    tail = (one["kind"] == TAIL).sum(1)
    assert tail.min() >= 2  # </think> and at least one token


def test_rl_raises_the_reward_of_a_two_armed_bandit():
    """Two chains, a latent near -1 or near +1; the reward is for +1. The latents' part of the surrogate alone."""
    g = torch.Generator().manual_seed(0)
    mu = torch.nn.Parameter(torch.zeros(4))
    optimizer = torch.optim.Adam([mu], lr=0.05)
    reward = lambda z: (z.mean(-1) > 0.3).float()
    draw = lambda: mu.detach() + torch.randn(64, 8, 4, generator=g)
    before = reward(draw()).mean()
    for _ in range(60):
        z = draw()
        A = advantages(reward(z)).view(-1)
        with torch.no_grad():
            old = torch.distributions.Normal(mu, 1.0).log_prob(z).mean(-1).view(-1)
        for _ in range(2):
            new = torch.distributions.Normal(mu, 1.0).log_prob(z).mean(-1).view(-1)
            loss = -clipped_surrogate(new, old, A, 0.2)[0].mean()
            optimizer.zero_grad(), loss.backward(), optimizer.step()
    assert before < 0.4 and reward(draw()).mean() > 0.9


def test_rl_raises_the_reward_of_a_model_end_to_end(tok, rows):
    """The reward here is for the shortest chain of a group: the decisions must learn it."""
    method = make(tok, "colar_rl", latent_loss="nll", group=8)
    optimizer = torch.optim.Adam([p for m in method.trainable() for p in m.parameters()], lr=1e-3)
    lengths = []
    for step in range(25):
        batch = method.rollout(rows[:2], random.Random(step))
        n = (batch["kind"] == LATENT).sum(1)
        lengths.append(n.float().mean().item())
        rewards = (n == n.view(2, 8).min(1).values.repeat_interleave(8)).float().view(2, 8)
        loss, _ = method.loss(method.remember(method.judge(batch, rewards)), None, 0.0)
        optimizer.zero_grad(), loss.backward(), optimizer.step()
    assert sum(lengths[-5:]) / 5 < sum(lengths[:5]) / 5 - 1, lengths


def test_the_first_pass_and_the_loss_agree_in_bfloat16(tok, rows):
    """p_old by the same pass as p: the ratio is 1 in any precision."""
    method, batch = rolled(tok, rows, dtype="bfloat16")
    batch = score(method, batch, REWARDS)
    with torch.autocast("cpu", torch.bfloat16):
        for name, (values, _) in method.log_probs(method.heard(batch))[0].items():
            assert torch.equal(values, batch["old_" + name]), name


def test_rl_starts_from_a_colar_run_with_a_sigma(tok):
    method = make(tok, "colar_rl", latent_loss="nll")
    with pytest.raises(UserError, match="starts from a CoLaR run"):
        method.adopt({}, {})
    for no_sigma in ({"latent_loss": "mse"}, {"latent_loss": "soft_mse", "entropy_weight": 0.0}):
        with pytest.raises(UserError, match=f"--latent_loss {no_sigma['latent_loss']}, which leaves none"):
            method.adopt({}, {"method": "colar", **no_sigma})
    head = make(tok, seed=7, head_width=9).latent_head.state_dict()
    method.inherit(
        method.config, {"method": "colar", "head_width": 9, "latent_loss": "nll", "sigma_floor": 0.25}
    )
    assert (method.config.latent_loss, method.config.sigma_floor) == ("nll", 0.25)
    method.inherit(
        method.config, {"method": "colar", "head_width": 9, "latent_loss": "nll", "sigma_floor": 0.1}
    )
    assert method.config.sigma_floor == 0.25  # what was asked for, if it is more: it explores further
    method = type(method)(method.config, tok, method.model)
    method.adopt(
        {f"latent_head.{n}": t for n, t in head.items()} | {"scale": torch.tensor(1.0)},
        {"method": "colar", "latent_loss": "nll"},
    )
    assert method.scale == 1.0  # the unit of its latents
    assert all(torch.equal(method.latent_head.state_dict()[n], t) for n, t in head.items())
    with pytest.raises(UserError, match="the latent head of --init .*mu.weight.* has shape"):
        method.adopt(
            {
                f"latent_head.{n}": t
                for n, t in make(tok, head_width=7).latent_head.state_dict().items()
                if n == "mu.weight"
            }
            | {f"latent_head.{n}": t for n, t in head.items() if n != "mu.weight"},
            {"method": "colar", "latent_loss": "nll"},
        )
