"""Tests of lab 2, against plain loops, closed forms and torch.distributions."""

import math

import pytest
import torch
from labkit import close, generator, load, randn
from torch.distributions import Categorical, kl_divergence

lab = load(__file__)
POINTS = {"top_k": 3, "mix": 3, "gumbel": 4, "sparse_kl": 4, "segment_cross_entropy": 6, "autonomous_loss": 4}
PAD, PREFIX, LATENT, TEXT, TAIL = -1, 0, 1, 2, 3


def randint(high, shape, salt):
    return torch.randint(0, high, shape, generator=generator(salt))


def distinct_ids(n, V, k, salt):
    return randn(n, V, salt=salt).argsort(-1)[:, :k]


class Test_top_k:
    @pytest.mark.parametrize(
        "shape, k", [((7,), 1), ((1, 7), 3), ((4, 9), 4), ((2, 3, 12), 5), ((2, 40), 16)]
    )
    def test_the_most_likely_come_first_with_the_softmax_over_the_k(self, shape, k):
        logits = randn(*shape, salt=1)
        probs, ids = lab.top_k(logits, k, [])
        assert probs.shape == ids.shape == (*shape[:-1], k) and ids.dtype == torch.long
        for row, p, i in zip(logits.view(-1, shape[-1]), probs.view(-1, k), ids.view(-1, k)):
            order = sorted(range(shape[-1]), key=lambda j: -row[j].item())[:k]
            assert i.tolist() == order
            weight = [math.exp(row[j].item()) for j in order]
            close(p, torch.tensor([w / sum(weight) for w in weight], dtype=torch.float64))

    def test_numbers_by_hand(self):
        logits = torch.tensor([0.0, math.log(3.0), math.log(6.0), math.log(2.0)], dtype=torch.float64)
        probs, ids = lab.top_k(logits, 2, [])
        assert ids.tolist() == [2, 1]
        close(probs, torch.tensor([2 / 3, 1 / 3], dtype=torch.float64))

    def test_forbidden_ids_are_never_kept_however_likely(self):
        logits = randn(5, 10, salt=2)
        logits[:, 3], logits[:, 8] = 40.0, 50.0
        probs, ids = lab.top_k(logits, 4, [8, 3])
        assert not torch.isin(ids, torch.tensor([3, 8])).any()
        close(probs.sum(-1), torch.ones(5, dtype=torch.float64))
        rest = [j for j in range(10) if j not in (3, 8)]
        close(probs, logits[:, rest].sort(descending=True).values[:, :4].softmax(-1))

    def test_forbidden_ids_are_not_kept_where_all_other_logits_are_very_low(self):
        """No number means "never": -1e9 would win here."""
        logits = torch.tensor([[0.0, 5.0, 3.0, 4.0]], dtype=torch.float64) - 1e12
        probs, ids = lab.top_k(logits, 2, [1])
        assert ids.tolist() == [[3, 2]]
        close(probs, torch.tensor([[1.0, 0.0]], dtype=torch.float64).softmax(-1))

    def test_a_k_beyond_the_vocabulary_keeps_all_that_may_be_kept(self):
        probs, ids = lab.top_k(randn(3, 6, salt=3), 50, [1, 4])
        assert ids.shape == (3, 4) and sorted(ids[0].tolist()) == [0, 2, 3, 5]
        assert (probs > 0).all()

    def test_the_gradient_reaches_the_kept_logits_and_no_others(self):
        logits = randn(4, 9, salt=4).requires_grad_()
        probs, ids = lab.top_k(logits, 3, [0])
        (probs * randn(4, 3, salt=5)).sum().backward()
        kept = torch.zeros(4, 9, dtype=torch.bool).scatter(1, ids, True)
        assert (logits.grad[kept].abs() > 1e-9).all() and (logits.grad[~kept] == 0).all()

    def test_large_logits_do_not_overflow_and_the_dtype_is_kept(self):
        probs, _ = lab.top_k(torch.tensor([[1e4, 1e4, 0.0]]), 2, [])
        assert probs.dtype == torch.float32 and probs.tolist() == [[0.5, 0.5]]
        probs, _ = lab.top_k(torch.tensor([[1e4 - 1, 1e4, 0.0]]), 2, [])
        assert probs[0].tolist() == pytest.approx([math.e / (math.e + 1), 1 / (math.e + 1)])


class Test_mix:
    @pytest.mark.parametrize("shape, C", [((3,), 4), ((1, 1), 4), ((4, 3), 2), ((2, 3, 4), 5), ((2, 16), 3)])
    def test_it_is_the_weighted_sum_of_the_entries_embeddings(self, shape, C):
        table, probs, ids = randn(9, C, salt=6), randn(*shape, salt=7).softmax(-1), randint(9, shape, 8)
        z = lab.mix(probs, ids, table)
        assert z.shape == (*shape[:-1], C)
        k = shape[-1]
        for p, i, got in zip(probs.view(-1, k), ids.view(-1, k), z.view(-1, C)):
            by_hand = torch.zeros(C, dtype=torch.float64)
            for j in range(k):
                by_hand = by_hand + p[j] * table[i[j]]
            close(got, by_hand)

    def test_all_on_one_entry_is_that_embedding(self):
        table = randn(9, 4, salt=9)
        close(
            lab.mix(torch.tensor([[1.0, 0.0]], dtype=torch.float64), torch.tensor([[5, 2]]), table),
            table[5:6],
        )

    def test_a_small_weight_counts(self):
        table = randn(9, 4, salt=51)
        probs = torch.tensor([[1 - 1e-6, 1e-6]], dtype=torch.float64)
        close(lab.mix(probs, torch.tensor([[5, 2]]), table)[0] - table[5], 1e-6 * (table[2] - table[5]))

    def test_weights_are_used_as_they_are(self):
        """Not normalised again: half the weight is half the vector."""
        table, ids = randn(9, 4, salt=10), torch.tensor([[1, 7, 3]])
        probs = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64)
        close(lab.mix(probs / 2, ids, table), lab.mix(probs, ids, table) / 2)

    def test_the_gradient_reaches_the_weights_and_never_the_table(self):
        table, probs = (
            randn(9, 4, salt=11).requires_grad_(),
            randn(3, 2, salt=12).softmax(-1).requires_grad_(),
        )
        ids, direction = randint(9, (3, 2), 13), randn(3, 4, salt=14)
        (lab.mix(probs, ids, table) * direction).sum().backward()
        assert table.grad is None or not table.grad.any()
        close(
            probs.grad,
            torch.stack([(table.detach()[ids[:, j]] * direction).sum(-1) for j in range(2)], dim=1),
        )

    def test_the_dtype_is_kept(self):
        assert (
            lab.mix(torch.ones(2, 1), torch.zeros(2, 1, dtype=torch.long), torch.ones(3, 4)).dtype
            == torch.float32
        )


def gumbel_by_hand(probs, g, scale, tau):
    """Entry by entry, from a generator in the same state."""
    u = torch.rand(probs.shape, generator=g, dtype=probs.dtype)
    out = torch.zeros_like(probs)
    flat, noise, result = (
        probs.reshape(-1, probs.shape[-1]),
        u.reshape(-1, probs.shape[-1]),
        out.view(-1, probs.shape[-1]),
    )
    for row in range(len(flat)):
        weight = []
        for a, x in zip(flat[row].tolist(), noise[row].tolist()):
            g_ = -math.log(-math.log(x))
            weight.append(0.0 if a == 0 else math.exp((math.log(a) + min(3.0, max(-1.5, scale * g_))) / tau))
        result[row] = torch.tensor(weight, dtype=probs.dtype) / sum(weight)
    return out


class Test_gumbel:
    @pytest.mark.parametrize(
        "shape, scale, tau",
        [
            ((4,), 1.0, 1.0),
            ((1, 1), 1.0, 1.0),
            ((30, 5), 1.0, 1.0),
            ((30, 5), 2.0, 0.5),
            ((2, 3, 4), 0.5, 2.0),
            ((300, 5), 0.1, 1.0),
        ],
    )
    def test_against_loops_from_a_generator_in_the_same_state(self, shape, scale, tau):
        probs = randn(*shape, salt=15).softmax(-1)
        close(lab.gumbel(probs, generator(16), scale, tau), gumbel_by_hand(probs, generator(16), scale, tau))

    def test_the_noise_is_clamped_at_both_sides_after_scaling(self):
        probs = torch.full((4000, 2), 0.5, dtype=torch.float64)
        out = lab.gumbel(probs, generator(17), 1e6)
        jump = (out[:, 0] / out[:, 1]).log().abs()
        assert jump.max() <= 4.5 + 1e-9 and (jump - 4.5).abs().min() < 1e-9

    def test_its_noise_spreads_as_clamped_gumbels_do(self):
        probs = torch.full((20_000, 2), 0.5, dtype=torch.float64)
        out = lab.gumbel(probs, generator(18))
        difference = (out[:, 0] / out[:, 1]).log()
        quantile = -(-((torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000).log()).log()
        expected = 2 * quantile.clamp(-1.5, 3).var()
        assert abs(difference.var() / expected - 1) < 0.06 and abs(difference.mean()) < 0.06

    def test_a_seed_repeats_it_and_every_call_has_new_noise(self):
        probs = randn(6, 4, salt=19).softmax(-1)
        g = generator(20)
        first, second = lab.gumbel(probs, g), lab.gumbel(probs, g)
        assert torch.equal(first, lab.gumbel(probs, generator(20))) and not torch.equal(first, second)
        assert not torch.equal(first, lab.gumbel(probs, generator(21)))

    def test_every_row_has_noise_of_its_own(self):
        out = lab.gumbel(torch.full((5, 3), 1 / 3, dtype=torch.float64), generator(22))
        assert all(not torch.equal(out[0], out[i]) for i in range(1, 5))

    def test_no_noise_and_no_temperature_is_no_change(self):
        probs = randn(6, 4, salt=23).softmax(-1)
        close(lab.gumbel(probs, generator(24), scale=0.0), probs)
        close(
            lab.gumbel(probs, generator(24), scale=0.0, tau=0.5), probs**2 / (probs**2).sum(-1, keepdim=True)
        )

    @pytest.mark.parametrize("tau", [1.0, 100.0])
    def test_a_zero_stays_zero_without_nan(self, tau):
        out = lab.gumbel(torch.tensor([[0.7, 0.3, 0.0]], dtype=torch.float64), generator(25), 1.0, tau)
        assert out[0, 2] == 0 and out.isfinite().all()
        close(out.sum(-1), torch.ones(1, dtype=torch.float64))

    def test_a_small_probability_is_not_zero(self):
        probs = torch.tensor([[1 - 1e-12, 1e-12], [1e-5, 1 - 1e-5]], dtype=torch.float64)
        out, expected = lab.gumbel(probs, generator(52)), gumbel_by_hand(probs, generator(52), 1.0, 1.0)
        close(out.log(), expected.log())

    def test_the_gradient_reaches_every_probability_and_is_0_at_a_zero(self):
        probs = torch.tensor([[0.6, 0.4, 0.0], [0.1, 0.2, 0.7]], dtype=torch.float64).requires_grad_()
        direction = randn(2, 3, salt=53)
        out = lab.gumbel(probs, generator(54), 1.0, 0.5)
        (out * direction).sum().backward()
        out, p = out.detach(), probs.detach()
        expected = out * (direction - (out * direction).sum(-1, keepdim=True)) / (0.5 * p)
        close(probs.grad, torch.where(p > 0, expected, 0.0))

    def test_the_dtype_is_kept(self):
        assert lab.gumbel(torch.tensor([[0.5, 0.5]]), generator(26)).dtype == torch.float32


class Test_sparse_kl:
    @pytest.mark.parametrize("n, V, k", [(1, 5, 1), (3, 8, 4), (6, 8, 8)])
    def test_against_loops(self, n, V, k):
        logits, ids, probs = randn(n, V, salt=27), distinct_ids(n, V, k, 28), randn(n, k, salt=29).softmax(-1)
        total = 0.0
        for i in range(n):
            norm = math.log(sum(math.exp(x) for x in logits[i].tolist()))
            for a, j in zip(probs[i].tolist(), ids[i].tolist()):
                total += a * (math.log(a) - (logits[i, j].item() - norm))
        close(lab.sparse_kl(logits, probs, ids), total / n)

    def test_with_every_entry_it_is_the_kl_of_torch_distributions(self):
        teacher, logits = Categorical(logits=randn(5, 7, salt=30)), randn(5, 7, salt=31)
        ids = torch.arange(7).expand(5, 7)
        close(
            lab.sparse_kl(logits, teacher.probs, ids),
            kl_divergence(teacher, Categorical(logits=logits)).mean(),
        )

    def test_numbers_by_hand(self):
        """α = (½, ½) against a uniform q over four: log 4 - log 2."""
        close(
            lab.sparse_kl(
                torch.zeros(1, 4, dtype=torch.float64),
                torch.tensor([[0.5, 0.5]], dtype=torch.float64),
                torch.tensor([[3, 1]]),
            ),
            math.log(2),
        )

    def test_probability_outside_the_teachers_entries_increases_the_loss(self):
        probs, ids = torch.tensor([[0.5, 0.5]], dtype=torch.float64), torch.tensor([[0, 1]])
        outside = torch.tensor([[0.0, 0.0, 5.0, 5.0]], dtype=torch.float64)
        close(lab.sparse_kl(outside, probs, ids), math.log((2 + 2 * math.exp(5)) / 2))

    def test_an_entry_of_probability_zero_adds_nothing_and_makes_no_nan(self):
        logits = randn(3, 8, salt=32).requires_grad_()
        with_zero = lab.sparse_kl(
            logits, torch.tensor([[0.7, 0.3, 0.0]] * 3, dtype=torch.float64), torch.tensor([[1, 2, 5]] * 3)
        )
        without = lab.sparse_kl(
            logits, torch.tensor([[0.7, 0.3]] * 3, dtype=torch.float64), torch.tensor([[1, 2]] * 3)
        )
        close(with_zero, without)
        with_zero.backward()
        assert logits.grad.isfinite().all()

    def test_an_entry_of_probability_zero_may_have_a_logit_of_minus_infinity(self):
        """0 · ∞ is NaN, and its gradient, too."""
        logits = randn(3, 8, salt=55)
        logits[:, 5] = float("-inf")
        logits.requires_grad_()
        probs, ids = torch.tensor([[0.7, 0.3, 0.0]] * 3, dtype=torch.float64), torch.tensor([[1, 2, 5]] * 3)
        loss = lab.sparse_kl(logits, probs, ids)
        close(loss, lab.sparse_kl(logits, probs[:, :2], ids[:, :2]))
        loss.backward()
        dense = torch.zeros(3, 8, dtype=torch.float64).scatter(1, ids, probs)
        close(logits.grad, (logits.detach().softmax(-1) - dense) / 3)

    @pytest.mark.parametrize("small", [1e-5, 1e-7])
    def test_a_small_probability_is_not_zero(self, small):
        probs = torch.tensor([[1 - small, small]], dtype=torch.float64)
        loss = lab.sparse_kl(torch.zeros(1, 4, dtype=torch.float64), probs, torch.tensor([[2, 1]]))
        close(loss, sum(p * math.log(p) for p in probs[0].tolist()) + math.log(4))

    def test_without_positions_it_is_0(self):
        empty = torch.zeros(0, 3, dtype=torch.float64)
        close(lab.sparse_kl(empty, empty[:, :2], torch.zeros(0, 2, dtype=torch.long)), 0.0)

    def test_the_gradient_is_q_minus_alpha_over_n(self):
        logits, ids, probs = (
            randn(4, 6, salt=33).requires_grad_(),
            distinct_ids(4, 6, 3, 34),
            randn(4, 3, salt=35).softmax(-1),
        )
        lab.sparse_kl(logits, probs, ids).backward()
        dense = torch.zeros(4, 6, dtype=torch.float64).scatter(1, ids, probs)
        close(logits.grad, (logits.detach().softmax(-1) - dense) / 4)

    def test_large_logits_do_not_overflow_and_the_dtype_is_kept(self):
        loss = lab.sparse_kl(torch.tensor([[1e6, 0.0]]), torch.tensor([[1.0]]), torch.tensor([[1]]))
        assert loss.dtype == torch.float32 and loss.item() == pytest.approx(1e6)


# prefix, lengths of S_2 .. S_N and 0 after the last latent, tail
ROWS = [(3, [2, 2, 0], 3), (2, [3, 1, 0], 2), (1, [0], 4), (2, [1, 1, 1, 0], 1), (2, [], 2)]


def decoder_rows(rows, extra=1):
    built = []
    for prefix, texts, tail in rows:
        row = [(PREFIX, 0)] * prefix
        for i, n in enumerate(texts, 1):
            row += [(LATENT, i)] + [(TEXT, i)] * n
        built.append(row + [(TAIL, 0)] * tail)
    width = max(map(len, built)) + extra
    both = torch.tensor([r + [(PAD, PAD)] * (width - len(r)) for r in built])
    return both[:, :, 0].contiguous(), both[:, :, 1].contiguous()


def segment_loops(logits, ids, kind, block):
    log_q, groups = logits.log_softmax(-1), {}
    for b in range(len(ids)):
        for t in range(1, ids.shape[1]):
            if kind[b, t] in (TEXT, TAIL):
                groups.setdefault((b, int(kind[b, t]), int(block[b, t])), []).append(
                    -log_q[b, t - 1, ids[b, t]]
                )
    return sum(sum(g) / len(g) for g in groups.values()) / len(groups), groups


class Test_segment_cross_entropy:
    @pytest.mark.parametrize("rows", [ROWS, ROWS[:1], ROWS[1:3], ROWS[4:], ROWS[::-1]], ids=str)
    @pytest.mark.parametrize("extra", [0, 2])
    def test_against_loops_over_target_blocks(self, rows, extra):
        kind, block = decoder_rows(rows, extra)
        ids, logits = randint(11, kind.shape, 36), 2 * randn(*kind.shape, 11, salt=37)
        close(lab.segment_cross_entropy(logits, ids, kind, block), segment_loops(logits, ids, kind, block)[0])

    def test_predicting_the_next_token_costs_nothing_and_predicting_the_same_token_costs(self):
        kind, block = decoder_rows(ROWS, 0)
        ids = randint(11, kind.shape, 38)
        ids[:, 1::2] = (ids[:, 0::2][:, : ids[:, 1::2].shape[1]] + 5) % 11  # neighbours differ
        right = torch.zeros(*kind.shape, 11, dtype=torch.float64)
        right[:, :-1].scatter_(2, ids[:, 1:, None], 100.0)
        assert lab.segment_cross_entropy(right, ids, kind, block) < 1e-9
        same = torch.zeros(*kind.shape, 11, dtype=torch.float64).scatter_(2, ids[:, :, None], 100.0)
        assert lab.segment_cross_entropy(same, ids, kind, block) > 10

    def test_uniform_logits_cost_log_v(self):
        kind, block = decoder_rows(ROWS)
        close(
            lab.segment_cross_entropy(
                torch.zeros(*kind.shape, 11, dtype=torch.float64), randint(11, kind.shape, 39), kind, block
            ),
            math.log(11),
        )

    def test_ids_at_padding_and_latents_do_not_count(self):
        kind, block = decoder_rows(ROWS, 2)
        ids, logits = randint(11, kind.shape, 40), randn(*kind.shape, 11, salt=41)
        unlabelled = (kind == PAD) | (kind == LATENT) | (kind == PREFIX)
        other = torch.where(unlabelled, (ids + 3) % 11, ids)
        close(
            lab.segment_cross_entropy(logits, other, kind, block),
            lab.segment_cross_entropy(logits, ids, kind, block),
        )

    def test_the_gradient_is_at_the_predicting_positions_and_nowhere_else(self):
        kind, block = decoder_rows(ROWS, 2)
        ids, logits = randint(11, kind.shape, 42), randn(*kind.shape, 11, salt=43).requires_grad_()
        lab.segment_cross_entropy(logits, ids, kind, block).backward()
        predicts = torch.zeros(kind.shape, dtype=torch.bool)
        predicts[:, :-1] = (kind[:, 1:] == TEXT) | (kind[:, 1:] == TAIL)
        assert (logits.grad[predicts].abs() > 1e-9).all() and (logits.grad[~predicts] == 0).all()

    def test_a_token_of_a_long_segment_counts_less_than_one_of_a_short_segment(self):
        kind, block = decoder_rows([(1, [4, 1, 0], 2)], 0)
        ids, logits = (
            randint(5, kind.shape, 44),
            torch.zeros(*kind.shape, 5, dtype=torch.float64).requires_grad_(),
        )
        lab.segment_cross_entropy(logits, ids, kind, block).backward()
        weight = -logits.grad[0, :-1].gather(-1, ids[0, 1:, None])[:, 0] / (1 - 1 / 5)
        labelled = (kind[0, 1:] == TEXT) | (kind[0, 1:] == TAIL)
        close(
            weight[labelled], torch.tensor([1 / 12] * 4 + [1 / 3] + [1 / 6] * 2, dtype=torch.float64)
        )  # 3 blocks

    def test_large_logits_do_not_overflow_and_the_dtype_is_kept(self):
        kind, block = decoder_rows(ROWS[:1], 0)
        logits = 1e4 * randn(*kind.shape, 11, salt=45, dtype=torch.float32)
        ids = randint(11, kind.shape, 46)
        loss = lab.segment_cross_entropy(logits, ids, kind, block)
        close(loss, segment_loops(logits, ids, kind, block)[0], 1e-5)

    @pytest.mark.parametrize("rows, blocks", [(2, 1001), (1001, 2)])
    def test_no_two_blocks_are_one_however_many_there_are(self, rows, blocks):
        """Each block has one label, so the mean over blocks is the mean over labels. A number made of row and
        block, like 10 · row + block, is the same for two blocks sooner or later."""
        kind, block = decoder_rows([(1, [1] * blocks, 1)], 0)
        kind, block = kind.expand(rows, -1).contiguous(), block.expand(rows, -1).contiguous()
        ids, logits = randint(3, kind.shape, 56), randn(*kind.shape, 3, salt=57)
        nll = -logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[:, :, 0]
        labelled = (kind[:, 1:] == TEXT) | (kind[:, 1:] == TAIL)
        close(lab.segment_cross_entropy(logits, ids, kind, block), nll[labelled].mean())

    def test_without_labels_it_is_0(self):
        kind, block = torch.tensor([[PREFIX, LATENT, PAD]] * 2), torch.tensor([[0, 1, PAD]] * 2)
        logits = randn(2, 3, 4, salt=58)
        close(lab.segment_cross_entropy(logits, torch.zeros_like(kind), kind, block), 0.0)


def student_rows(rows, extra=1):
    """(prefix, latents, tail) for each row."""
    built = [[PREFIX] * p + [LATENT] * n + [TAIL] * t for p, n, t in rows]
    width = max(map(len, built)) + extra
    return torch.tensor([r + [PAD] * (width - len(r)) for r in built])


STUDENTS = [(3, 2, 3), (1, 4, 1), (2, 1, 2), (4, 0, 2)]


def auto_loops(logits, ids, kind, probs, top, kl_weight, ce_weight):
    log_q, kls, ces, n = logits.log_softmax(-1), [], [], 0
    for b in range(len(ids)):
        for t in range(1, ids.shape[1]):
            if kind[b, t] == LATENT:
                kls.append(sum(a * (a.log() - log_q[b, t - 1, j]) for a, j in zip(probs[n], top[n])))
                n += 1
            elif kind[b, t] == TAIL:
                ces.append(-log_q[b, t - 1, ids[b, t]])
    return kl_weight * sum(kls) / len(kls) + ce_weight * sum(ces) / len(ces)


class Test_autonomous_loss:
    def inputs(self, rows, k=3, V=11):
        kind = student_rows(rows)
        n = int((kind == LATENT).sum())
        return (
            2 * randn(*kind.shape, V, salt=47),
            randint(V, kind.shape, 48),
            kind,
            randn(n, k, salt=49).softmax(-1),
            distinct_ids(n, V, k, 50),
        )

    @pytest.mark.parametrize("weights", [(1.0, 1.0), (0.3, 2.0), (0.0, 1.0), (1.0, 0.0)])
    @pytest.mark.parametrize("rows", [STUDENTS, STUDENTS[:1], STUDENTS[1:2]], ids=str)
    def test_against_loops(self, rows, weights):
        given = self.inputs(rows)
        close(lab.autonomous_loss(*given, *weights), auto_loops(*given, *weights))

    def test_with_one_entry_per_latent_it_is_cross_entropy(self):
        logits, ids, kind, probs, top = self.inputs(STUDENTS, k=1)
        labelled = ids.masked_scatter(kind == LATENT, top[:, 0])
        log_q = logits[:, :-1].log_softmax(-1).gather(-1, labelled[:, 1:, None])[..., 0]
        expected = -log_q[kind[:, 1:] == LATENT].mean() - log_q[kind[:, 1:] == TAIL].mean()
        close(lab.autonomous_loss(logits, ids, kind, torch.ones_like(probs), top), expected)

    def test_the_ids_in_latent_slots_prefix_and_padding_do_not_count(self):
        logits, ids, kind, probs, top = self.inputs(STUDENTS)
        other = torch.where(kind == TAIL, ids, (ids + 4) % 11)
        close(
            lab.autonomous_loss(logits, other, kind, probs, top),
            lab.autonomous_loss(logits, ids, kind, probs, top),
        )

    def test_the_gradient_is_before_every_latent_and_tail_token_and_nowhere_else(self):
        logits, ids, kind, probs, top = self.inputs(STUDENTS)
        logits.requires_grad_()
        lab.autonomous_loss(logits, ids, kind, probs, top).backward()
        predicts = torch.zeros(kind.shape, dtype=torch.bool)
        predicts[:, :-1] = (kind[:, 1:] == LATENT) | (kind[:, 1:] == TAIL)
        assert (logits.grad[predicts].abs().amax(-1) > 1e-9).all() and (logits.grad[~predicts] == 0).all()

    @pytest.mark.parametrize("rows", [[(3, 0, 2), (1, 0, 4)], [(2, 3, 0), (1, 1, 0)], [(3, 0, 0)]], ids=str)
    def test_a_mean_over_no_latents_or_no_tail_is_0(self, rows):
        logits, ids, kind, probs, top = self.inputs(rows)
        following, zero = kind[:, 1:], torch.zeros((), dtype=torch.float64)
        log_q = logits[:, :-1].log_softmax(-1)
        at, tail = log_q[following == LATENT], ids[:, 1:][following == TAIL]
        kl = (probs * (probs.log() - at.gather(-1, top))).sum() / len(top) if len(top) else zero
        ce = -log_q[following == TAIL].gather(-1, tail[:, None]).mean() if len(tail) else zero
        close(lab.autonomous_loss(logits, ids, kind, probs, top, 0.3, 2.0), 0.3 * kl + 2 * ce)

    def test_large_logits_do_not_overflow_and_the_dtype_is_kept(self):
        logits, ids, kind, probs, top = self.inputs(STUDENTS)
        given = 1e4 * logits.float(), ids, kind, probs.float(), top
        close(lab.autonomous_loss(*given), auto_loops(*given, 1.0, 1.0), 1e-5)
