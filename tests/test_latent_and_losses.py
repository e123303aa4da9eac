"""Mixtures, noise and losses against closed forms and against plain loops."""

import math

import pytest
import torch
import torch.nn.functional as F

from minilatent.latent import entropy, gumbel_noise, mix, superpose, top_k
from minilatent.losses import cross_entropy, cross_entropy_by_block, sparse_kl

CLOSE = dict(rtol=0, atol=1e-5)  # float32, values of order one


def rand(*shape, seed=0, **options):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), **options)


# ------------------------------------------------------------------ mixtures


def test_the_latent_marker_and_padding_are_never_mixed_in_however_likely():
    logits = rand(5, 20)
    logits[:, 3], logits[:, 7] = 50.0, 40.0
    probs, ids = top_k(logits, 6, never=[3, 7])
    assert not torch.isin(ids, torch.tensor([3, 7])).any()
    for row, p, i in zip(logits, probs, ids):
        order = [j for j in row.argsort(descending=True).tolist() if j not in (3, 7)][:6]
        assert i.tolist() == order  # the most likely first
        torch.testing.assert_close(p, row[order].softmax(0), **CLOSE)


def test_the_banned_stay_out_when_k_is_the_whole_vocabulary():
    """topk over -inf would return a banned id with probability 0, which prints and counts as an entry."""
    probs, ids = top_k(rand(4, 8), k=100, never=[0, 5])
    assert ids.shape == (4, 6) and not torch.isin(ids, torch.tensor([0, 5])).any()
    torch.testing.assert_close(probs.sum(-1), torch.ones(4), **CLOSE)


def test_a_latent_is_the_weighted_sum_of_its_tokens_embeddings():
    table, logits = rand(20, 6), rand(2, 3, 20, seed=1)
    z, probs, ids = superpose(logits, table, 4, [19])
    assert z.shape == (2, 3, 6) and probs.shape == ids.shape == (2, 3, 4)
    for b in range(2):
        for t in range(3):
            by_hand = sum(p * table[i] for p, i in zip(probs[b, t], ids[b, t]))
            torch.testing.assert_close(z[b, t], by_hand, **CLOSE)
    one_hot = mix(torch.tensor([[1.0, 0.0]]), torch.tensor([[4, 9]]), table)
    assert torch.equal(one_hot[0], table[4])


def test_gradient_reaches_the_probabilities_and_never_the_table():
    """Otherwise the embeddings would move towards what the encoder can produce most easily."""
    table, logits = rand(20, 6).requires_grad_(), rand(3, 20, seed=1).requires_grad_()
    z, probs, ids = superpose(logits, table, 4, [])
    (z * rand(3, 6, seed=2)).sum().backward()
    assert table.grad is None
    chosen = torch.zeros(3, 20, dtype=torch.bool).scatter(1, ids, True)
    assert (logits.grad[chosen].abs() > 1e-6).all() and (logits.grad[~chosen] == 0).all()


def test_entropy_is_in_nats_and_takes_zeros():
    assert entropy(torch.full((4,), 0.25)) == pytest.approx(math.log(4))
    assert entropy(torch.tensor([1.0, 0.0])) == 0.0
    assert entropy(torch.tensor([[0.9, 0.1]]))[0] == pytest.approx(-0.9 * math.log(0.9) - 0.1 * math.log(0.1))


# ------------------------------------------------------------------ noise

END = 11


def labels(n=40, k=5, end_at=None, peak=2.0):
    """Sparse labels of n latents, the likeliest first; end_at: the place of `</think>` among the entries."""
    probs = (peak * rand(n, k, seed=3)).softmax(-1).sort(descending=True).values
    ids = torch.arange(k).expand(n, k).clone()
    if end_at is not None:
        ids[:, end_at] = END
    return probs, ids


def noise(probs, ids, chain=None, seed=0, **options):
    chain = torch.arange(len(probs)) if chain is None else chain
    return gumbel_noise(probs, ids, chain, END, torch.Generator().manual_seed(seed), **options)


def test_noisy_labels_sum_to_one_and_a_seed_repeats_them():
    probs, ids = labels()
    a = noise(probs, ids)
    torch.testing.assert_close(a.sum(-1), torch.ones(40), **CLOSE)
    assert torch.equal(a, noise(probs, ids)) and not torch.equal(a, noise(probs, ids, seed=1))
    assert ((a - probs).abs().amax(-1) > 1e-3).all()  # every latent is moved


def test_no_noise_is_no_change():
    probs, ids = labels()
    torch.testing.assert_close(noise(probs, ids, scale=0.0), probs, **CLOSE)
    cold = noise(probs, ids, scale=0.0, tau=0.5)
    torch.testing.assert_close(cold, probs**2 / (probs**2).sum(-1, keepdim=True), **CLOSE)


def test_noise_is_gumbels_clamped_on_both_sides():
    """log α̃_i/α̃_j - log α_i/α_j is a difference of two noises: within ±4.5, and of the right spread."""
    probs = torch.full((4000, 2), 0.5)
    out = noise(probs, torch.zeros(4000, 2, dtype=torch.long))
    difference = (out[:, 0] / out[:, 1]).log()
    assert difference.abs().max() <= 4.5 + 1e-4
    wild = noise(probs, torch.zeros(4000, 2, dtype=torch.long), scale=1e6)
    jumps = (wild[:, 0] / wild[:, 1]).log()
    jumps = jumps[jumps.abs() > 0.1]
    torch.testing.assert_close(jumps.abs(), torch.full_like(jumps, 4.5), rtol=0, atol=1e-3)  # -1.5 against 3
    # Unclamped, the difference has the variance π²/3 = 3.29. The clamped one, by a Gumbel's quantiles:
    quantile = -(-((torch.arange(100_000) + 0.5) / 100_000).log()).log()
    expected = 2 * quantile.clamp(-1.5, 3).var().item()
    assert difference.var().item() == pytest.approx(expected, rel=0.1) and abs(difference.mean()) < 0.12


def test_end_of_thinking_comes_out_on_top_of_no_latent_and_the_whole_chain_is_sampled_again():
    """A label that says </think> in the middle of a chain teaches the model to stop there."""
    probs, ids = labels(n=300, end_at=1, peak=0.5)
    chain = torch.arange(300) // 3
    first = noise(probs, ids, chain, tries=1)
    unguarded = noise(probs, ids.where(ids != END, 99), chain, tries=1)
    ends = (ids.gather(1, unguarded.argmax(-1, keepdim=True))[:, 0] == END).view(-1, 3).any(1)
    assert 0.2 < ends.float().mean() < 0.9  # or this test would show nothing
    kept = (first == probs).all(-1).view(-1, 3)
    assert torch.equal(kept.all(1), ends) and torch.equal(kept.any(1), ends)  # chains fail as wholes
    assert torch.equal(first[~kept.view(-1)], unguarded[~kept.view(-1)])  # and the others are left alone
    out = noise(probs, ids, chain)
    assert not (ids.gather(1, out.argmax(-1, keepdim=True)) == END).any()
    assert not (out == probs).all(-1).any()  # every chain found noise in the end
    passed = ~kept.view(-1)
    assert torch.equal(out[passed], first[passed])  # what passed at once was not sampled again


def test_a_chain_that_cannot_pass_the_guard_keeps_its_labels_without_noise():
    probs, ids = torch.tensor([[0.999, 0.001], [0.6, 0.4]]), torch.tensor([[END, 1], [1, 2]])
    assert torch.equal(noise(probs, ids, torch.tensor([0, 0]), tries=5), probs)
    apart = noise(probs, ids, torch.tensor([0, 1]), tries=5)
    assert torch.equal(apart[0], probs[0]) and not torch.equal(apart[1], probs[1])


# ------------------------------------------------------------------ losses


def test_cross_entropy_is_minus_log_q_of_the_label():
    logits, y = rand(6, 9), torch.tensor([0, 3, 3, 8, 1, 2])
    by_hand = -sum(float(logits[i].softmax(0)[y[i]].log()) for i in range(6)) / 6
    assert cross_entropy(logits, y).item() == pytest.approx(by_hand, abs=1e-5)


def test_cross_entropy_by_block_is_a_mean_of_means():
    """In a mean over all tokens, one-token segments and the answer would count less than the paper says."""
    logits, y = rand(9, 7), torch.arange(9) % 7
    block = torch.tensor([5, 0, 0, 2, 2, 2, 2, 0, 5])  # 1, 3 and 4 have no label and count nothing
    means = []
    for b in (0, 2, 5):
        nll = [-float(logits[i].log_softmax(0)[y[i]]) for i in range(9) if block[i] == b]
        means.append(sum(nll) / len(nll))
    assert cross_entropy_by_block(logits, y, block, 6).item() == pytest.approx(sum(means) / 3, abs=1e-5)
    assert abs(sum(means) / 3 - cross_entropy(logits, y).item()) > 1e-3


def test_sparse_kl_is_the_dense_kl_that_torch_computes():
    logits, probs = rand(6, 12), rand(6, 4, seed=5).softmax(-1)
    ids = rand(6, 12, seed=7).argsort(-1)[:, :4]
    dense = torch.zeros(6, 12).scatter(1, ids, probs)
    expected = F.kl_div(logits.log_softmax(-1), dense, reduction="batchmean")
    assert sparse_kl(logits, probs, ids).item() == pytest.approx(expected.item(), abs=1e-5)
    full = torch.arange(12).expand(6, 12)
    teacher, student = (torch.distributions.Categorical(logits=x) for x in (rand(6, 12, seed=6), logits))
    expected = torch.distributions.kl_divergence(teacher, student).mean()
    assert sparse_kl(logits, teacher.probs, full).item() == pytest.approx(expected.item(), abs=1e-5)


def test_the_student_is_measured_over_the_full_vocabulary_not_over_the_teachers_entries():
    """Mass outside the k entries must cost: it distinguishes a latent from "anything else"."""
    probs, ids = torch.tensor([[0.5, 0.5]]), torch.tensor([[0, 1]])
    inside = torch.tensor([[0.0, 0.0, -30.0, -30.0]])
    outside = torch.tensor([[0.0, 0.0, 5.0, 5.0]])
    assert sparse_kl(inside, probs, ids).item() == pytest.approx(0.0, abs=1e-5)
    assert sparse_kl(outside, probs, ids).item() > 4


def test_an_entry_of_probability_zero_counts_nothing_and_makes_no_nan():
    logits = rand(3, 8).requires_grad_()
    with_zero = sparse_kl(logits, torch.tensor([[0.7, 0.3, 0.0]] * 3), torch.tensor([[1, 2, 5]] * 3))
    without = sparse_kl(logits, torch.tensor([[0.7, 0.3]] * 3), torch.tensor([[1, 2]] * 3))
    assert with_zero.item() == pytest.approx(without.item(), abs=1e-6)
    with_zero.backward()
    assert logits.grad.isfinite().all() and logits.grad.abs().sum() > 0


def test_kl_is_zero_exactly_at_the_teacher_and_its_gradient_is_q_minus_alpha():
    logits = rand(1, 6).requires_grad_()
    alpha = rand(1, 6, seed=8).softmax(-1)
    sparse_kl(logits, alpha, torch.arange(6)[None]).backward()
    torch.testing.assert_close(logits.grad, logits.detach().softmax(-1) - alpha, **CLOSE)
    assert sparse_kl(alpha.log(), alpha, torch.arange(6)[None]).item() == pytest.approx(0.0, abs=1e-6)
