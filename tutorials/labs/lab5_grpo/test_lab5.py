"""Tests of lab 5, against loops, torch.distributions and numbers worked out by hand."""

import math

import pytest
import torch
from labkit import close, generator, load, randn
from torch.distributions import Categorical, Normal

lab = load(__file__)
POINTS = {
    "group_advantage": 3,
    "latent_log_density": 4,
    "decision_log_prob": 4,
    "clipped_surrogate": 4,
    "sample_means": 3,
    "objective": 4,
}


class Test_group_advantage:
    def test_numbers_by_hand(self):
        """Mean ¼, variance 3/16."""
        rewards = torch.tensor([[1.0, 0, 0, 0], [0, 2, 2, 0]], dtype=torch.float64)
        s = math.sqrt(3) / 4
        expected = torch.tensor(
            [[0.75 / s, -0.25 / s, -0.25 / s, -0.25 / s], [-1, 1, 1, -1]], dtype=torch.float64
        )
        close(lab.group_advantage(rewards, eps=0.0), expected)

    @pytest.mark.parametrize("Q, G", [(1, 2), (3, 4), (5, 8)])
    @pytest.mark.parametrize("eps", [1e-6, 0.5])
    def test_against_loops(self, Q, G, eps):
        rewards = randn(Q, G, salt=1)
        expected = torch.zeros_like(rewards)
        for q, row in enumerate(rewards.tolist()):
            mean = sum(row) / G
            std = math.sqrt(sum((r - mean) ** 2 for r in row) / G)
            expected[q] = torch.tensor([(r - mean) / (std + eps) for r in row], dtype=torch.float64)
        close(lab.group_advantage(rewards, eps), expected)

    def test_groups_are_independent(self):
        rewards = randn(3, 4, salt=2)
        moved = rewards + torch.tensor([[0.0], [5.0], [-3.0]], dtype=torch.float64)
        close(lab.group_advantage(moved), lab.group_advantage(rewards))
        close(lab.group_advantage(rewards)[1:2], lab.group_advantage(rewards[1:2]))

    def test_equal_rewards_give_0_and_no_nan(self):
        for rewards in (
            torch.ones(2, 4, dtype=torch.float64),
            torch.zeros(1, 3, dtype=torch.float64),
            torch.ones(3, 1, dtype=torch.float64),
        ):
            assert torch.equal(lab.group_advantage(rewards), torch.zeros_like(rewards))

    def test_a_group_of_equal_rewards_does_not_change_the_others(self):
        rewards = torch.tensor([[1.0, 1, 1, 1], [1, 0, 1, 0]], dtype=torch.float64)
        expected = torch.tensor([[0.0, 0, 0, 0], [1, -1, 1, -1]], dtype=torch.float64)
        close(lab.group_advantage(rewards), expected / (1 + 2e-6), 1e-6)

    def test_one_of_many_has_a_large_advantage(self):
        """√(G - 1) for one correct rollout in G, whatever the reward's unit."""
        for reward in (1.0, 1e-5, 1e3):
            rewards = torch.zeros(1, 401, dtype=torch.float64)
            rewards[0, 7] = reward
            close(lab.group_advantage(rewards, eps=0.0)[0, 7], 20.0)

    def test_the_default_epsilon_is_a_millionth_added_to_the_std(self):
        rewards = 1e-6 * torch.tensor([[1.0, -1.0]], dtype=torch.float64)
        close(lab.group_advantage(rewards), torch.tensor([[0.5, -0.5]], dtype=torch.float64))

    def test_the_dtype_is_kept(self):
        assert lab.group_advantage(torch.tensor([[0.0, 1.0]])).dtype == torch.float32


class Test_latent_log_density:
    @pytest.mark.parametrize("n, C", [(1, 1), (4, 3), (2, 16)])
    @pytest.mark.parametrize("reduce", ["sum", "mean"])
    def test_it_is_that_of_torch_distributions_in_the_normalised_space(self, n, C, reduce):
        z, mu, log_sigma = 0.02 * randn(n, C, salt=3), randn(n, C, salt=4), 0.5 * randn(n, C, salt=5)
        each = Normal(mu, log_sigma.exp()).log_prob(z / 0.02)
        close(lab.latent_log_density(z, mu, log_sigma, 0.02, reduce), getattr(each, reduce)(-1))

    def test_numbers_by_hand(self):
        """z / std = 3, μ = 1, σ = 2: one σ away, in both dimensions."""
        full = lambda x: torch.full((1, 2), x, dtype=torch.float64)
        each = -0.5 - math.log(2) - 0.5 * math.log(2 * math.pi)
        close(
            lab.latent_log_density(full(1.5), full(1.0), full(math.log(2)), 0.5, "sum"),
            torch.tensor([2 * each], dtype=torch.float64),
        )
        close(
            lab.latent_log_density(full(1.5), full(1.0), full(math.log(2)), 0.5, "mean"),
            torch.tensor([each], dtype=torch.float64),
        )

    def test_no_sigma_is_too_wide_or_too_narrow(self):
        """One σ away."""
        one = lambda x: torch.tensor([[x]], dtype=torch.float64)
        for s in (12.0, 30.0, -12.0, -30.0):
            close(
                lab.latent_log_density(one(math.exp(s)), one(0.0), one(s), 1.0, "sum"),
                torch.tensor([-0.5 - s - 0.5 * math.log(2 * math.pi)], dtype=torch.float64),
            )

    def test_no_latent_is_too_far_away(self):
        one = lambda x: torch.tensor([[x]], dtype=torch.float64)
        density = lab.latent_log_density(one(1000.0), one(0.0), one(0.0), 1.0, "sum")
        close(density, torch.tensor([-500_000 - 0.5 * math.log(2 * math.pi)], dtype=torch.float64), 1e-12)

    def test_the_gradient_reaches_mu_and_sigma_and_not_the_sampled_latent(self):
        mu, log_sigma = randn(3, 4, salt=6).requires_grad_(), (0.3 * randn(3, 4, salt=7)).requires_grad_()
        z = (mu + 1.0) * 0.5  # sampled from this very policy and not detached
        lab.latent_log_density(z, mu, log_sigma, 0.5, "sum").sum().backward()
        d, s = 1.0, log_sigma.detach().exp()
        close(mu.grad, d / s**2)
        close(log_sigma.grad, d**2 / s**2 - 1)

    def test_the_dtype_is_kept(self):
        assert lab.latent_log_density(*[torch.ones(2, 3)] * 3, 0.5, "mean").dtype == torch.float32


class Test_decision_log_prob:
    @pytest.mark.parametrize("n, V, end", [(1, 2, 0), (6, 5, 3), (4, 9, 8)])
    def test_it_is_that_of_a_coin_with_the_models_probability(self, n, V, end):
        logits, ended = 2 * randn(n, V, salt=8), torch.arange(n) % 2 == 0
        p = Categorical(logits=logits).probs[:, end]
        expected = torch.tensor(
            [math.log(x) if e else math.log(1 - x) for x, e in zip(p.tolist(), ended.tolist())],
            dtype=torch.float64,
        )
        close(lab.decision_log_prob(logits, ended, end), expected)

    def test_both_decisions_together_are_certain(self):
        logits = randn(5, 7, salt=9)
        yes = lab.decision_log_prob(logits, torch.ones(5, dtype=torch.bool), 2)
        no = lab.decision_log_prob(logits, torch.zeros(5, dtype=torch.bool), 2)
        close(yes.exp() + no.exp(), torch.ones(5, dtype=torch.float64))

    def test_the_same_number_added_to_all_logits_changes_nothing(self):
        """No number means "never": a logit of -1e4 hides a token only if the others are larger."""
        logits = torch.tensor([[0.0, 5, 3, 4], [2, 0, 1, 1]], dtype=torch.float64)
        ended = torch.tensor([False, False])
        expected = (1 - logits.softmax(-1)[:, 3]).log()
        close(lab.decision_log_prob(logits - 1e12, ended, 3), expected, 1e-3)  # rounded to 1e-4 there
        logits = randn(6, 5, salt=24)
        ended = torch.arange(6) % 2 == 0
        for shift in (-30_000.0, 30_000.0):
            close(
                lab.decision_log_prob(logits + shift, ended, 3), lab.decision_log_prob(logits, ended, 3), 1e-9
            )

    def test_continuing_against_a_certain_end_is_unlikely_but_not_impossible(self):
        """1 - p(end) is 0 in floating point; the logarithm is still about -60."""
        logits = torch.tensor([[60.0, 0.0, 0.0], [1e4, 0.0, -1e4]], dtype=torch.float64).requires_grad_()
        out = lab.decision_log_prob(logits, torch.tensor([False, False]), 0)
        close(out, torch.tensor([math.log(2) - 60, -1e4], dtype=torch.float64))
        out.sum().backward()
        assert logits.grad.isfinite().all() and (logits.grad[:, 0] < 0).all()

    def test_ending_where_the_end_is_all_but_impossible(self):
        logits = torch.tensor([[-60.0, 0.0, 0.0], [-1e4, 0.0, -1e4]], dtype=torch.float64).requires_grad_()
        out = lab.decision_log_prob(logits, torch.tensor([True, True]), 0)
        close(out, torch.tensor([-60 - math.log(2), -1e4], dtype=torch.float64))
        out.sum().backward()
        close(logits.grad[:, 0], torch.ones(2, dtype=torch.float64))

    def test_a_token_that_can_never_come_changes_nothing_and_makes_no_nan(self):
        logits, ended = randn(4, 5, salt=25), torch.tensor([True, False, True, False])
        without = lab.decision_log_prob(logits, ended, 1)
        never = torch.full((4, 1), float("-inf"), dtype=torch.float64)
        logits = torch.cat([logits, never], dim=1).requires_grad_()
        out = lab.decision_log_prob(logits, ended, 1)
        close(out, without)
        out.sum().backward()
        assert logits.grad.isfinite().all() and not logits.grad[:, 5].any()

    def test_the_gradient_is_that_of_the_coin(self):
        logits = randn(2, 4, salt=10).requires_grad_()
        lab.decision_log_prob(logits, torch.tensor([True, False]), 1).sum().backward()
        p = logits.detach().softmax(-1)
        one = torch.tensor([0.0, 1, 0, 0], dtype=torch.float64)
        close(logits.grad[0], one - p[0])
        close(logits.grad[1], -p[1, 1] / (1 - p[1, 1]) * (one - p[1]))

    def test_the_dtype_is_kept(self):
        assert lab.decision_log_prob(torch.ones(2, 3), torch.tensor([True, False]), 0).dtype == torch.float32


class Test_clipped_surrogate:
    def test_the_four_corners_by_hand(self):
        """ρ = 2 and ½ with A = ±1 and ε = 0.2: the clip may only reduce the objective."""
        new = torch.tensor([2.0, 0.5, 2.0, 0.5], dtype=torch.float64).log()
        advantage = torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=torch.float64)
        close(
            lab.clipped_surrogate(new, torch.zeros_like(new), advantage, 0.2),
            torch.tensor([1.2, 0.5, -2.0, -0.8], dtype=torch.float64),
        )

    @pytest.mark.parametrize("n", [1, 40])
    @pytest.mark.parametrize("clip", [0.1, 0.2, 0.5])
    def test_against_loops(self, n, clip):
        new, old, advantage = randn(n, salt=11), randn(n, salt=12), randn(n, salt=13)
        expected = []
        for a, b, A in zip(new.tolist(), old.tolist(), advantage.tolist()):
            ratio = math.exp(a - b)
            expected.append(min(ratio * A, min(max(ratio, 1 - clip), 1 + clip) * A))
        close(lab.clipped_surrogate(new, old, advantage, clip), torch.tensor(expected, dtype=torch.float64))

    def test_only_the_clip_limits_a_ratio_or_an_advantage(self):
        """ρ = e^30 and e^-30, A = ±50: two of the four are not clipped."""
        new = torch.tensor([30.0, 30.0, -30.0, -30.0], dtype=torch.float64).requires_grad_()
        advantage = torch.tensor([50.0, -50.0, 50.0, -50.0], dtype=torch.float64)
        out = lab.clipped_surrogate(new, torch.zeros(4, dtype=torch.float64), advantage, 0.2)
        expected = torch.tensor([60.0, -50 * math.exp(30), 50 * math.exp(-30), -40.0], dtype=torch.float64)
        close(out / expected, torch.ones(4, dtype=torch.float64))
        out.sum().backward()
        close(new.grad / expected, torch.tensor([0.0, 1.0, 1.0, 0.0], dtype=torch.float64))

    def test_at_the_first_step_it_is_the_policy_gradient(self):
        """ρ is exactly 1, its gradient the log-probability's."""
        new, advantage = randn(5, salt=14).requires_grad_(), randn(5, salt=15)
        out = lab.clipped_surrogate(new, new.detach(), advantage, 0.2)
        close(out, advantage)
        out.sum().backward()
        close(new.grad, advantage)

    def test_there_is_no_gradient_where_the_clip_takes_effect_and_one_elsewhere(self):
        new = torch.tensor([2.0, 0.5, 2.0, 0.5], dtype=torch.float64).log().requires_grad_()
        advantage = torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=torch.float64)
        lab.clipped_surrogate(new, torch.zeros(4, dtype=torch.float64), advantage, 0.2).sum().backward()
        close(new.grad, torch.tensor([0.0, 0.5, -2.0, 0.0], dtype=torch.float64))

    def test_the_gradient_reaches_neither_the_old_policy_nor_the_advantage(self):
        new, old, advantage = (randn(6, salt=s).requires_grad_() for s in (16, 17, 18))
        lab.clipped_surrogate(new, old, advantage, 0.2).sum().backward()
        assert old.grad is None and advantage.grad is None and new.grad.any()

    def test_the_dtype_is_kept(self):
        assert lab.clipped_surrogate(*[torch.ones(3)] * 3, 0.2).dtype == torch.float32


class Test_sample_means:
    def test_numbers_by_hand(self):
        values, sample = (
            torch.tensor([1.0, 2, 6, 4, 8, 0], dtype=torch.float64),
            torch.tensor([0, 2, 0, 2, 2, 0]),
        )
        close(
            lab.sample_means(values, sample, 4), torch.tensor([7 / 3, 0, 14 / 3, 0], dtype=torch.float64)
        )  # a 0 is a value

    @pytest.mark.parametrize("n, samples", [(1, 1), (1, 3), (20, 6), (50, 4)])
    @pytest.mark.parametrize("scale", [1.0, 1e3, 1e-5])
    def test_against_loops(self, n, samples, scale):
        values, sample = scale * randn(n, salt=19), torch.randint(0, samples, (n,), generator=generator(20))
        expected = []
        for r in range(samples):
            mine = [v for v, s in zip(values.tolist(), sample.tolist()) if s == r]
            expected.append(sum(mine) / len(mine) if mine else 0.0)
        close(lab.sample_means(values, sample, samples), torch.tensor(expected, dtype=torch.float64))

    def test_the_gradient_of_a_value_is_one_over_its_samples_count(self):
        values = randn(5, salt=21).requires_grad_()
        (
            lab.sample_means(values, torch.tensor([1, 0, 1, 1, 2]), 4)
            * torch.tensor([1.0, 3.0, 5.0, 7.0], dtype=torch.float64)
        ).sum().backward()
        close(values.grad, torch.tensor([1.0, 1.0, 1.0, 1.0, 5.0], dtype=torch.float64))

    def test_no_values_at_all(self):
        out = lab.sample_means(torch.zeros(0, dtype=torch.float64), torch.zeros(0, dtype=torch.long), 2)
        close(out, torch.zeros(2, dtype=torch.float64))

    def test_the_dtype_is_kept(self):
        assert lab.sample_means(torch.ones(2), torch.tensor([0, 1]), 2).dtype == torch.float32


def make_parts(R, salt, scale=0.4):
    """Latents, decisions and answers of R samples of different lengths, in random order."""
    parts = {}
    for i, (name, longest) in enumerate((("latents", 5), ("decisions", 5), ("answer", 3))):
        count = torch.randint(1, longest + 1, (R,), generator=generator(salt + 10 * i))
        sample = torch.repeat_interleave(torch.arange(R), count)
        sample = sample[torch.randperm(len(sample), generator=generator(salt + 10 * i + 1))]
        parts[name] = (
            scale * randn(len(sample), salt=salt + 10 * i + 2),
            scale * randn(len(sample), salt=salt + 10 * i + 3),
            sample,
        )
    return parts


class Test_objective:
    @pytest.mark.parametrize("R", [1, 2, 8])
    @pytest.mark.parametrize("clip", [0.1, 0.3])
    def test_against_loops(self, R, clip):
        parts, advantage = make_parts(R, 100 + R), randn(R, salt=22)
        total = 0.0
        for r in range(R):
            A = advantage[r].item()
            for new, old, sample in parts.values():
                gains = []
                for a, b, s in zip(new.tolist(), old.tolist(), sample.tolist()):
                    if s == r:
                        ratio = math.exp(a - b)
                        gains.append(min(ratio * A, min(max(ratio, 1 - clip), 1 + clip) * A))
                total += sum(gains) / len(gains)
        close(lab.objective(parts, advantage, clip), total / R)

    def test_at_the_first_step_it_is_the_number_of_parts_times_the_mean_advantage(self):
        parts = {name: (new, new, sample) for name, (new, _, sample) in make_parts(4, 200).items()}
        advantage = randn(4, salt=23)
        close(lab.objective(parts, advantage, 0.2), 3 * advantage.mean())
        del parts["decisions"]
        close(lab.objective(parts, advantage, 0.2), 2 * advantage.mean())
        parts |= {"a": parts["latents"], "b": parts["latents"], "c": parts["answer"]}  # any names, any number
        close(lab.objective(parts, advantage, 0.2), 5 * advantage.mean())

    def test_each_latent_of_a_short_chain_counts_more_than_one_of_a_long_chain(self):
        """±1 / length per latent, whatever the sign."""
        new = torch.zeros(6, dtype=torch.float64, requires_grad=True)
        sample = torch.tensor([0, 0, 0, 0, 0, 1])
        advantage = torch.tensor([1.0, 1.0], dtype=torch.float64)
        lab.objective(
            {"latents": (new, torch.zeros(6, dtype=torch.float64), sample)}, advantage, 0.2
        ).backward()
        close(new.grad, torch.tensor([0.1] * 5 + [0.5], dtype=torch.float64))

    def test_a_sample_without_any_of_a_part_counts_as_zero_and_still_counts(self):
        new = torch.zeros(2, dtype=torch.float64)
        advantage = torch.tensor([3.0, 1.0, 5.0], dtype=torch.float64)
        close(lab.objective({"latents": (new, new, torch.tensor([0, 2]))}, advantage, 0.2), 8 / 3)
        close(
            lab.objective({"latents": (new, new, torch.tensor([0, 1]))}, advantage, 0.2), 4 / 3
        )  # the last one has none

    def test_a_part_without_any_values_adds_nothing(self):
        none, advantage = torch.zeros(0, dtype=torch.float64), randn(3, salt=26)
        parts = make_parts(3, 400)
        expected = lab.objective(parts, advantage, 0.2)
        parts["decisions too"] = none, none, torch.zeros(0, dtype=torch.long)
        close(lab.objective(parts, advantage, 0.2), expected)

    def test_only_the_clip_limits_a_ratio(self):
        new = torch.tensor([15.0], dtype=torch.float64)
        parts = {"latents": (new, torch.zeros_like(new), torch.tensor([0]))}
        advantage = torch.tensor([-1.0, 0.0], dtype=torch.float64)
        close(lab.objective(parts, advantage, 0.2), -math.exp(15) / 2)

    def test_the_dtype_is_kept(self):
        one = torch.ones(2)
        out = lab.objective({"latents": (one, one, torch.tensor([0, 1]))}, one, 0.2)
        assert out.dtype == torch.float32

    def test_the_gradient_reaches_every_new_log_probability_and_no_old_one(self):
        parts = {
            name: (old.clone().requires_grad_(), old.clone().requires_grad_(), sample)
            for name, (_, old, sample) in make_parts(3, 300).items()
        }
        advantage = torch.tensor([1.0, -1.0, 2.0], dtype=torch.float64).requires_grad_()
        lab.objective(parts, advantage, 0.2).backward()
        for new, old, _ in parts.values():
            assert new.grad is not None and (new.grad != 0).all() and old.grad is None
        assert advantage.grad is None, "the advantage has a gradient"
