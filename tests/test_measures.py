"""The measures of latent chains, against numbers worked out by hand and against loops."""

import math

import pytest
import torch
from conftest import drawn
from pytest import approx

from minilatent.evaluate import wilson
from minilatent.study.measures import (
    align,
    chain_weights,
    ecr,
    from_hex,
    mean_entropy,
    one_path,
    parallelism,
    partners,
    to_hex,
)


def random_case(seed: int, B=5, N=6, V=30, M=4, T=13):
    """Distributions and chains of ragged sizes, one row without any step."""
    g = torch.Generator().manual_seed(seed)
    integers = lambda low, high, *shape: torch.randint(low, high, shape, generator=g)
    steps = integers(1, N + 1, B)
    steps[0] = 0
    probs = torch.randn(B, N, V, generator=g).mul(2).softmax(-1)
    probs *= (torch.arange(N) < steps[:, None])[:, :, None]  # decode() leaves zeros behind
    return probs, steps, integers(0, V, B, M, T), integers(1, T + 1, B, M)


def segments(chain: list[int], steps: int, ratio: int) -> list[list[int]]:
    """The segment of each step, by slicing."""
    length = max(ratio, math.ceil(len(chain) / steps))
    return [chain[t * length : (t + 1) * length] for t in range(steps)]


def test_the_interval_is_wilsons():
    assert wilson(0, 0) == (0.0, 1.0)
    low, high = wilson(95, 100)
    assert (round(low, 3), round(high, 3)) == (0.888, 0.978)
    assert wilson(0, 10)[0] == 0 and wilson(10, 10)[1] == 1


@pytest.mark.parametrize("n", [1, 4, 5, 1000])
def test_bits_come_back(n):
    flags = drawn(0.5, n, n)
    assert from_hex(to_hex(flags), n) == flags and len(to_hex(flags)) == -(-n // 4)


@pytest.mark.parametrize(
    "tokens, steps, ratio, expected",
    [
        (7, 4, 2, [0, 0, 1, 1, 2, 2, 3]),  # as long as in training: r
        (5, 2, 4, [0, 0, 0, 0, 1]),  # ⌈5/2⌉ would be 3, but training cut after 4
        (7, 2, 2, [0, 0, 0, 0, 1, 1, 1]),  # a shorter chain holds more tokens a step
        (4, 9, 2, [0, 0, 1, 1]),  # a longer one has steps without a segment
        (3, 0, 2, [0, 0, 0]),
    ],
)
def test_a_chain_is_cut_as_in_training_unless_the_model_took_fewer_steps(tokens, steps, ratio, expected):
    step, real = align(10, torch.tensor([tokens]), torch.tensor([steps]), ratio)
    assert step[0, :tokens].tolist() == expected and real[0].tolist() == [i < tokens for i in range(10)]


def test_ecr_worked_out_by_hand():
    # r = 2; segments [5 6] [7 8] [9]; step 0 has 5 first and 6 third; step 1 neither; step 2 has 9 second.
    top = torch.tensor([[[5, 1, 6], [0, 1, 2], [4, 9, 3]]])
    found = ecr(top, torch.tensor([3]), torch.tensor([[5, 6, 7, 8, 9, 0]]), torch.tensor([5]), 2, (1, 2, 3))
    assert torch.allclose(found, torch.tensor([[1 / 3, 2 / 3, 3 / 3]]))


def test_ecr_exceeds_r_only_where_the_chain_is_shorter_than_the_reference():
    top = torch.arange(12).expand(1, 6, 12)
    chain, length = torch.arange(12)[None], torch.tensor([12])
    assert ecr(top, torch.tensor([2]), chain, length, 2, (12,)).item() == 6
    assert ecr(top, torch.tensor([6]), chain, length, 2, (12,)).item() == 2


@pytest.mark.parametrize("ratio", [1, 2, 4])
def test_ecr_agrees_with_a_loop(ratio):
    probs, steps, chains, lengths = random_case(ratio)
    chain, length, ks = chains[:, 0], lengths[:, 0], (1, 3, 10)
    found = ecr(probs.topk(10, dim=-1).indices, steps, chain, length, ratio, ks)
    for b in range(1, len(probs)):
        pieces = segments(chain[b, : length[b]].tolist(), int(steps[b]), ratio)
        for k, value in zip(ks, found[b].tolist()):
            count = 0
            for t, piece in enumerate(pieces):
                best = probs[b, t].topk(k).indices.tolist()
                count += sum(token in best for token in piece)
            assert value == approx(count / len(pieces))


def test_ecr_of_a_chain_against_itself_is_one():
    probs, steps, _, _ = random_case(7)
    own = probs.argmax(-1)  # (B, N)
    found = ecr(probs.topk(5, dim=-1).indices, steps, own, steps, 1, (1, 5))
    assert torch.equal(found[1:], torch.ones(len(probs) - 1, 2))


@pytest.mark.parametrize("distinct", [False, True])
@pytest.mark.parametrize("ratio", [1, 2, 4])
def test_chain_weights_agree_with_a_loop(ratio, distinct):
    probs, steps, chains, lengths = random_case(10 + ratio, V=6)  # few tokens: many repeats
    lengths[2, 3] = lengths[3, 2] = lengths[3, 3] = 0  # fewer chains
    weights = chain_weights(probs, steps, chains, lengths, ratio, distinct)
    assert torch.allclose(weights.sum(-1), torch.ones(len(probs)))
    M = chains.shape[1]
    for b in range(1, len(probs)):
        n, sets = int(steps[b]), {}
        for m in range(M):
            if lengths[b, m]:
                pieces = segments(chains[b, m, : lengths[b, m]].tolist(), n, ratio)
                sets[m] = [set(piece) for piece in pieces]
        scores = torch.zeros(M)
        for m in sets:
            scores[m] = 1e-12
            for t in range(n):
                shared = set.intersection(*(s[t] for s in sets.values())) if distinct else set()
                scores[m] += sum(probs[b, t, token] for token in sets[m][t] - shared) / n
        assert torch.allclose(weights[b], scores / scores.sum(), atol=1e-5)


def chains_without_a_common_token(M: int, T: int):
    return torch.arange(M * T).view(1, M, T), torch.full((1, M), T)


def test_n_eff_is_one_for_latents_that_follow_one_chain():
    chains, lengths = chains_without_a_common_token(3, 8)
    steps = torch.tensor([4])
    probs = one_path(torch.Size([1, 4, 24]), steps, chains[:, 1], lengths[:, 1], 2)
    assert torch.allclose(probs[0, 0, 8:10], torch.tensor([0.5, 0.5])) and probs.sum() == 4
    weights = chain_weights(probs, steps, chains, lengths, 2)
    assert torch.allclose(weights, torch.tensor([[0.0, 1, 0]]), atol=1e-6)
    found = {key: value.item() for key, value in parallelism(weights).items()}
    assert found == approx({"n_eff": 1, "top2": 0}, abs=1e-5)


@pytest.mark.parametrize("followed", [2, 3, 5])
def test_n_eff_counts_the_chains_of_an_even_mixture(followed):
    chains, lengths = chains_without_a_common_token(5, 6)
    steps, shape = torch.tensor([3]), torch.Size([1, 3, 30])
    paths = [one_path(shape, steps, chains[:, m], lengths[:, m], 2) for m in range(followed)]
    weights = chain_weights(torch.stack(paths).mean(0), steps, chains, lengths, 2)
    found = {key: value.item() for key, value in parallelism(weights).items()}
    assert found == approx({"n_eff": followed, "top2": 1}, rel=1e-4)


def test_tokens_that_all_chains_share_hide_a_single_path_unless_they_are_left_out():
    # Two orders of two steps, r = 2: << 3  = 4 and << 5  = 6, the one first or the other.
    chains = torch.tensor([[[0, 3, 1, 4, 0, 5, 1, 6], [0, 5, 1, 6, 0, 3, 1, 4]]])
    steps, lengths = torch.tensor([4]), torch.tensor([[8, 8]])
    probs = one_path(torch.Size([1, 4, 7]), steps, chains[:, 0], lengths[:, 0], 2)
    shared = chain_weights(probs, steps, chains, lengths, 2)  # scores 1 and 1/2
    assert torch.allclose(shared, torch.tensor([[2 / 3, 1 / 3]]))
    assert parallelism(shared)["n_eff"].item() == approx(1.8)
    distinct = chain_weights(probs, steps, chains, lengths, 2, distinct=True)
    assert parallelism(distinct)["n_eff"].item() == approx(1)


def test_n_eff_of_latents_that_know_nothing_is_the_number_of_chains():
    chains, lengths = chains_without_a_common_token(4, 6)
    for probs in (torch.full((1, 3, 24), 1 / 24), torch.zeros(1, 3, 24)):
        weights = chain_weights(probs, torch.tensor([3]), chains, lengths, 2)
        assert parallelism(weights)["n_eff"].item() == approx(4)


def test_the_mean_entropy_is_of_the_real_steps_only():
    probs = torch.zeros(2, 2, 4)
    probs[0] = 0.25
    probs[1, 0] = torch.tensor([0.5, 0.3, 0.2, 0.0])
    found = mean_entropy(probs, torch.tensor([2, 1])).tolist()
    assert found == approx([math.log(4), -sum(p * math.log(p) for p in (0.5, 0.3, 0.2))])


def test_a_partner_is_allowed_near_in_size_and_never_oneself():
    size = torch.tensor([4, 4, 9, 8, 4])
    assert partners(size, torch.ones(5, 5, dtype=torch.bool)).tolist() == [1, 4, 3, 2, 0]
    allowed = torch.zeros(5, 5, dtype=torch.bool)
    allowed[0, 2] = allowed[1, 1] = True
    assert partners(size, allowed).tolist() == [2, -1, -1, -1, -1]
    assert partners(size[:0], allowed[:0, :0]).tolist() == []
