"""Tests of lab 3, against loops, torch.distributions and numbers worked out by hand."""

import math

import pytest
import torch
from labkit import close, generator, load, randn
from torch.distributions import Normal

lab = load(__file__)
POINTS = {
    "to_blocks": 2,
    "compress": 4,
    "random_labels": 3,
    "next_targets": 4,
    "gaussian_nll": 3,
    "soft_mse": 3,
    "next_input": 2,
}


class Test_to_blocks:
    def test_two_chains_by_hand(self):
        blocks, counts = lab.to_blocks([[5, 6, 7, 8, 9], [4, 3]], 2, 0)
        assert blocks.tolist() == [[5, 6], [7, 8], [9, 0], [4, 3]] and counts == [3, 1]

    def test_a_chain_shorter_than_the_factor_is_one_block(self):
        blocks, counts = lab.to_blocks([[7, 8]], 5, -1)
        assert blocks.tolist() == [[7, 8, -1, -1, -1]] and counts == [1]

    def test_at_factor_one_every_token_is_a_block(self):
        blocks, counts = lab.to_blocks([[3, 1, 2], [9]], 1, 0)
        assert blocks.tolist() == [[3], [1], [2], [9]] and counts == [3, 1]

    def test_an_empty_chain_has_no_block_and_counts_0(self):
        blocks, counts = lab.to_blocks([[1], [], [2, 3, 4]], 3, 0)
        assert blocks.tolist() == [[1, 0, 0], [2, 3, 4]] and counts == [1, 0, 1]
        for chains in ([[], []], []):
            blocks, counts = lab.to_blocks(chains, 4, 0)
            assert blocks.shape == (0, 4) and counts == [0] * len(chains)

    def test_a_token_that_looks_like_padding_is_a_token(self):
        blocks, counts = lab.to_blocks([[0, 5, 0]], 2, 0)
        assert blocks.tolist() == [[0, 5], [0, 0]] and counts == [2]

    @pytest.mark.parametrize("c", [1, 2, 3, 4, 7])
    def test_no_token_is_lost_and_none_is_added(self, c):
        lengths = torch.randint(1, 12, (6,), generator=generator(1)).tolist()
        chains = [torch.randint(1, 90, (n,), generator=generator(2 + n)).tolist() for n in lengths]
        blocks, counts = lab.to_blocks(chains, c, 0)
        assert blocks.dtype == torch.long and blocks.shape == (sum(counts), c)
        assert counts == [math.ceil(n / c) for n in lengths]
        for chain, rows in zip(chains, blocks.split(counts)):
            assert rows.flatten().tolist() == chain + [0] * (len(rows) * c - len(chain))


def ragged(n, c, salt):
    """True for the first one to c places of a row; the first row is full, the last has one token."""
    count = torch.randint(1, c + 1, (n,), generator=generator(salt))
    count[0], count[-1] = c, 1
    return torch.arange(c) < count[:, None]


class Test_compress:
    @pytest.mark.parametrize("n, c, C", [(1, 1, 4), (3, 2, 4), (6, 5, 3), (4, 3, 1), (3, 12, 2)])
    @pytest.mark.parametrize("gaps", [False, True])
    def test_against_loops(self, n, c, C, gaps):
        embeds, real = randn(n, c, C, salt=3), ragged(n, c, 4)
        if gaps:
            real = real.flip(1) & (randn(n, c, salt=55) > 0)
            real[:, -1] |= ~real.any(1)
        z = lab.compress(embeds, real)
        assert z.shape == (n, C)
        for i in range(n):
            tokens = [embeds[i, j] for j in range(c) if real[i, j]]
            close(z[i], sum(tokens) / math.sqrt(len(tokens)))

    def test_numbers_by_hand(self):
        embeds = torch.tensor(
            [
                [[1.0, 0.0], [2.0, 2.0], [3.0, 4.0], [2.0, 2.0]],
                [[1.0, 0.0], [2.0, 2.0], [9.0, 9.0], [9.0, 9.0]],
            ],
            dtype=torch.float64,
        )
        real = torch.tensor([[True] * 4, [True, True, False, False]])
        close(
            lab.compress(embeds, real),
            torch.tensor([[4.0, 4.0], [3 / 2**0.5, 2 / 2**0.5]], dtype=torch.float64),
        )

    def test_a_block_of_one_token_is_its_embedding(self):
        embeds = randn(3, 4, 5, salt=5)
        close(lab.compress(embeds, torch.tensor([[True, False, False, False]] * 3)), embeds[:, 0])

    def test_the_spread_of_the_embeddings_is_kept_for_full_and_short_blocks(self):
        """This is the purpose of √c: a mean would be √c too small, a sum √c too large."""
        real = torch.arange(4) < torch.tensor([4] * 2000 + [2] * 2000)[:, None]
        z = lab.compress(randn(4000, 4, 8, salt=6), real)
        assert abs(z[:2000].std() - 1) < 0.03 and abs(z[2000:].std() - 1) < 0.03

    @pytest.mark.parametrize("padding", [float("nan"), float("inf")])
    def test_padding_has_no_influence_not_even_nan(self, padding):
        embeds, real = randn(5, 3, 4, salt=7), ragged(5, 3, 8)
        spoilt = torch.where(real[:, :, None], embeds, padding)
        close(lab.compress(spoilt, real), lab.compress(torch.where(real[:, :, None], embeds, 0.0), real))

    def test_the_gradient_reaches_all_real_tokens_equally_and_no_padding(self):
        embeds, real = randn(5, 3, 4, salt=9).requires_grad_(), ragged(5, 3, 10)
        direction = randn(5, 4, salt=11)
        (lab.compress(embeds, real) * direction).sum().backward()
        for i in range(5):
            for j in range(3):
                close(
                    embeds.grad[i, j],
                    direction[i] / math.sqrt(real[i].sum())
                    if real[i, j]
                    else torch.zeros(4, dtype=torch.float64),
                )

    def test_the_dtype_is_kept(self):
        for dtype in (torch.float32, torch.bfloat16):
            assert (
                lab.compress(torch.ones(2, 3, 4, dtype=dtype), torch.ones(2, 3, dtype=torch.bool)).dtype
                == dtype
            )


class Test_random_labels:
    def test_every_label_is_a_real_token_of_its_own_block(self):
        real = ragged(400, 4, 12)
        blocks = torch.where(real, torch.arange(1600).view(400, 4), -1)
        labels = lab.random_labels(blocks, real, generator(13))
        assert labels.shape == (400,) and labels.dtype == torch.long
        assert (labels >= 0).all() and torch.equal(labels // 4, torch.arange(400))

    @pytest.mark.parametrize("count", [1, 2, 3, 5])
    def test_every_real_token_is_equally_likely(self, count):
        n = 6000
        blocks, real = (
            torch.arange(5).expand(n, 5).contiguous(),
            (torch.arange(5) < count).expand(n, 5).contiguous(),
        )
        share = torch.bincount(lab.random_labels(blocks, real, generator(14 + count)), minlength=5) / n
        expected = torch.where(torch.arange(5) < count, 1 / count, 0.0)
        assert (share - expected).abs().max() < 0.03  # 4.5 standard deviations at least

    def test_short_and_long_blocks_side_by_side_are_each_sampled_evenly(self):
        n, count = 12_000, torch.tensor([2, 5]).repeat(6000)
        blocks, real = torch.arange(5).expand(n, 5).contiguous(), torch.arange(5) < count[:, None]
        labels = lab.random_labels(blocks, real, generator(53))
        for c in (2, 5):
            share = torch.bincount(labels[count == c], minlength=5) / 6000
            assert (share - torch.where(torch.arange(5) < c, 1 / c, 0.0)).abs().max() < 0.03

    def test_every_block_is_sampled_on_its_own(self):
        blocks, real = torch.arange(4).expand(64, 4).contiguous(), torch.ones(64, 4, dtype=torch.bool)
        labels = lab.random_labels(blocks, real, generator(20))
        assert len(labels.unique()) == 4 and (labels[1:] != labels[:-1]).float().mean() > 0.4

    def test_a_seed_repeats_it_and_every_call_samples_again(self):
        blocks, real = torch.arange(5).expand(50, 5).contiguous(), torch.ones(50, 5, dtype=torch.bool)
        g = generator(21)
        first, second = lab.random_labels(blocks, real, g), lab.random_labels(blocks, real, g)
        assert torch.equal(first, lab.random_labels(blocks, real, generator(21)))
        assert not torch.equal(first, second) and not torch.equal(
            first, lab.random_labels(blocks, real, generator(22))
        )

    def test_no_block_at_all(self):
        none = torch.zeros(0, 3, dtype=torch.long)
        assert lab.random_labels(none, none.bool(), generator(23)).shape == (0,)

    def test_one_block_of_one_token(self):
        assert lab.random_labels(torch.tensor([[7]]), torch.tensor([[True]]), generator(23)).tolist() == [7]


class Test_next_targets:
    def test_two_rows_by_hand(self):
        z = torch.tensor([[1.0], [2.0], [3.0]], dtype=torch.float64)
        end = torch.tensor([8.0], dtype=torch.float64)
        close(
            lab.next_targets(z, [2, 1], end, 2.0),
            torch.tensor([[0.5], [1.0], [4.0], [1.5], [4.0]], dtype=torch.float64),
        )

    @pytest.mark.parametrize("counts", [[1], [3], [2, 5, 1], [0, 2, 0], [0], [1] * 9], ids=str)
    def test_against_loops(self, counts):
        z, end = randn(sum(counts), 4, salt=24), randn(4, salt=25)
        rows, at = [], 0
        for n in counts:
            rows += [z[at + i] / 0.37 for i in range(n)] + [end / 0.37]
            at += n
        close(lab.next_targets(z, counts, end, 0.37), torch.stack(rows))

    def test_no_gradient_goes_back_through_a_target(self):
        """Otherwise training would make the chain easy to predict instead of predicting it."""
        z, end = randn(3, 4, salt=26).requires_grad_(), randn(4, salt=27).requires_grad_()
        assert not lab.next_targets(z, [2, 1], end, 0.5).requires_grad

    def test_the_dtype_is_kept(self):
        assert lab.next_targets(torch.ones(2, 3), [2], torch.ones(3), 0.5).dtype == torch.float32


class Test_gaussian_nll:
    @pytest.mark.parametrize("m, C", [(1, 1), (1, 5), (4, 3)])
    def test_it_is_minus_the_log_density_of_torch_distributions_without_its_constant(self, m, C):
        mu, log_sigma, target = randn(m, C, salt=28), randn(m, C, salt=29), randn(m, C, salt=30)
        density = Normal(mu, log_sigma.exp()).log_prob(target)
        close(lab.gaussian_nll(mu, log_sigma, target), -density.mean() - 0.5 * math.log(2 * math.pi))

    def test_numbers_by_hand(self):
        one = lambda x: torch.tensor([[x]], dtype=torch.float64)
        close(lab.gaussian_nll(one(1.0), one(0.0), one(3.0)), 2.0)  # (3 - 1)² / 2
        close(lab.gaussian_nll(one(1.0), one(math.log(2)), one(3.0)), 0.5 + math.log(2))

    def test_its_gradients_are_those_of_the_formula(self):
        mu, log_sigma, target = (
            randn(3, 4, salt=31).requires_grad_(),
            randn(3, 4, salt=32).requires_grad_(),
            randn(3, 4, salt=33),
        )
        lab.gaussian_nll(mu, log_sigma, target).backward()
        z = (target - mu.detach()) / log_sigma.detach().exp()
        close(mu.grad, -z / log_sigma.detach().exp() / 12)
        close(log_sigma.grad, (1 - z**2) / 12)

    def test_a_small_sigma_is_not_rounded_up_by_an_epsilon(self):
        """σ = 1e-5, and the target two σ away."""
        mu = torch.zeros(2, 3, dtype=torch.float64)
        log_sigma = torch.full_like(mu, math.log(1e-5))
        close(lab.gaussian_nll(mu, log_sigma, mu + 2e-5), 2 + math.log(1e-5))

    @pytest.mark.parametrize("s", [12.0, 30.0, -30.0])
    def test_no_sigma_is_clamped(self, s):
        mu = torch.zeros(2, 3, dtype=torch.float64)
        close(lab.gaussian_nll(mu, torch.full_like(mu, s), mu + 2 * math.exp(s)), 2 + s)

    def test_the_dtype_is_kept(self):
        assert lab.gaussian_nll(*[torch.ones(2, 3)] * 3).dtype == torch.float32


class Test_soft_mse:
    @pytest.mark.parametrize("alpha", [0.0, 0.3, 2.0])
    def test_against_loops_with_the_entropy_of_torch_distributions(self, alpha):
        mu, log_sigma, target = randn(4, 3, salt=34), 0.5 * randn(4, 3, salt=35), randn(4, 3, salt=36)
        total = 0.0
        for m, s, e in zip(mu.flatten().tolist(), log_sigma.flatten().tolist(), target.flatten().tolist()):
            entropy = (
                Normal(torch.tensor(m, dtype=torch.float64), torch.tensor(math.exp(s), dtype=torch.float64))
                .entropy()
                .item()
            )
            total += (m - e) ** 2 + math.exp(s) ** 2 - alpha * entropy
        close(lab.soft_mse(mu, log_sigma, target, alpha), total / 12)

    def test_it_is_the_mean_over_many_samples(self):
        mu, log_sigma, target = randn(2, 3, salt=37), 0.3 * randn(2, 3, salt=38), randn(2, 3, salt=39)
        noise = randn(40_000, 2, 3, salt=40)
        sampled = (mu + log_sigma.exp() * noise - target).square().mean()
        assert abs(lab.soft_mse(mu, log_sigma, target) / sampled - 1) < 0.03

    def test_numbers_by_hand(self):
        one = lambda x: torch.tensor([[x]], dtype=torch.float64)
        close(lab.soft_mse(one(1.0), one(math.log(2)), one(4.0)), 13.0)  # 3² + 2²
        close(lab.soft_mse(one(1.0), one(0.0), one(1.0), 2.0), 1 - math.log(2 * math.pi * math.e))
        close(lab.soft_mse(one(1.0), one(0.0), one(101.0)), 10_001.0)

    def test_no_sigma_is_too_wide_or_too_narrow(self):
        one = lambda x: torch.tensor([[x]], dtype=torch.float64)
        for s in (12.0, 30.0, -12.0, -30.0):
            expected = math.exp(2 * s) - 0.5 * math.log(2 * math.pi * math.e) - s
            close(lab.soft_mse(one(1.0), one(s), one(1.0), 1.0), expected)

    def test_a_deterministic_head_has_the_plain_squared_error(self):
        mu, target = randn(3, 4, salt=41), randn(3, 4, salt=42)
        log_sigma = torch.full_like(mu, float("-inf")).requires_grad_()
        loss = lab.soft_mse(mu, log_sigma, target)
        close(loss, (mu - target).square().mean())
        loss.backward()
        close(log_sigma.grad, torch.zeros_like(mu))

    def test_its_gradients_are_those_of_the_formula(self):
        mu, log_sigma, target = (
            randn(3, 4, salt=43).requires_grad_(),
            (0.5 * randn(3, 4, salt=44)).requires_grad_(),
            randn(3, 4, salt=45),
        )
        lab.soft_mse(mu, log_sigma, target, 0.7).backward()
        close(mu.grad, 2 * (mu.detach() - target) / 12)
        close(log_sigma.grad, (2 * (2 * log_sigma.detach()).exp() - 0.7) / 12)

    def test_the_dtype_is_kept(self):
        assert lab.soft_mse(*[torch.ones(2, 3)] * 3, 0.5).dtype == torch.float32


class Test_next_input:
    @pytest.mark.parametrize(
        "shape, temperature", [((1, 1), 1.0), ((3, 4), 2.0), ((3, 4), 0.5), ((3, 4), 0.01)]
    )
    def test_against_a_generator_in_the_same_state(self, shape, temperature):
        mu, log_sigma = randn(*shape, salt=46), 0.5 * randn(*shape, salt=47)
        noise = torch.randn(shape, generator=generator(48), dtype=torch.float64)
        expected = torch.tensor(
            [
                [(m + temperature * math.exp(s) * e) * 0.02 for m, s, e in zip(*rows)]
                for rows in zip(mu.tolist(), log_sigma.tolist(), noise.tolist())
            ],
            dtype=torch.float64,
        )
        close(lab.next_input(mu, log_sigma, 0.02, temperature, generator(48)) / 0.02, expected / 0.02)

    def test_at_temperature_0_it_is_the_mean_times_the_std_whatever_sigma(self):
        mu = randn(2, 3, salt=49)
        close(lab.next_input(mu, torch.full_like(mu, float("inf")), 3.0, 0.0, generator(50)), 3 * mu)
        close(lab.next_input(mu, torch.full_like(mu, float("-inf")), 3.0, 1.0, generator(50)), 3 * mu)

    def test_a_large_sigma_is_not_clamped(self):
        mu = torch.zeros(1, 3, dtype=torch.float64)
        noise = torch.randn(1, 3, generator=generator(54), dtype=torch.float64)
        close(lab.next_input(mu, torch.full_like(mu, 30.0), 1.0, 1.0, generator(54)), noise * math.exp(30))

    def test_every_call_has_new_noise(self):
        mu, g = torch.zeros(2, 3, dtype=torch.float64), generator(51)
        first = lab.next_input(mu, mu, 1.0, 1.0, g)
        assert not torch.equal(first, lab.next_input(mu, mu, 1.0, 1.0, g)) and not torch.equal(
            first[0], first[1]
        )

    def test_the_dtype_is_kept(self):
        assert (
            lab.next_input(torch.zeros(2, 3), torch.zeros(2, 3), 0.5, 1.0, generator(52)).dtype
            == torch.float32
        )
