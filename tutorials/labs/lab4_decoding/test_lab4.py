"""Tests of lab 4, against loops and against decoding one question at a time without a cache."""

import pytest
import torch
from labkit import SEED, close, generator, load, randn
from toy import Toy, naive_decode, superpose

lab = load(__file__, in_place=("write",))
POINTS = {"write": 3, "cache_mask": 3, "decide": 3, "next_input": 3, "decode": 8}
PAD, LATENT, END, EOS = 0, 1, 2, 3  # tokens; the others are words
NEVER = [PAD, LATENT]


def lengths_below(high, B, salt):
    return torch.randint(0, high, (B,), generator=generator(salt))


class Test_write:
    @pytest.mark.parametrize(
        "B, T, S, C", [(1, 1, 1, 3), (1, 3, 5, 2), (4, 1, 6, 3), (5, 3, 7, 4), (3, 2, 90, 1)]
    )
    def test_each_row_is_written_after_its_own_length_and_nothing_else_changes(self, B, T, S, C):
        cache, new, lengths = randn(B, S, C, salt=1), randn(B, T, C, salt=2), lengths_below(S - T + 1, B, 3)
        before = cache.clone()
        kept = new.clone(), lengths.clone()
        lab.write(cache, new, lengths)
        for b in range(B):
            for s in range(S):
                at = s - int(lengths[b])
                close(cache[b, s], new[b, at] if 0 <= at < T else before[b, s], 0)
        assert torch.equal(new, kept[0]) and torch.equal(lengths, kept[1])

    def test_rows_of_different_lengths_by_hand(self):
        cache = torch.zeros(2, 3, 1)
        lab.write(cache, torch.tensor([[[5.0]], [[6.0]]]), torch.tensor([2, 0]))
        assert cache[:, :, 0].tolist() == [[0, 0, 5], [6, 0, 0]]

    def test_writing_again_overwrites_padding(self):
        cache = torch.zeros(1, 4, 1)
        lab.write(cache, torch.tensor([[[1.0], [2.0], [9.0]]]), torch.tensor([0]))
        lab.write(cache, torch.tensor([[[3.0]]]), torch.tensor([2]))
        assert cache[0, :, 0].tolist() == [1, 2, 3, 0]

    def test_padding_may_be_anything_even_nan(self):
        cache = torch.full((1, 2, 1), float("nan"))
        lab.write(cache, torch.tensor([[[1.0], [2.0]]]), torch.tensor([0]))
        assert cache[0, :, 0].tolist() == [1, 2]


class Test_cache_mask:
    def test_two_rows_by_hand(self):
        assert lab.cache_mask(torch.tensor([2, 0]), 1, 4).int().tolist() == [[[1, 1, 1, 0]], [[1, 0, 0, 0]]]

    @pytest.mark.parametrize("B, T, S", [(1, 1, 1), (1, 4, 4), (3, 1, 6), (4, 3, 9), (3, 2, 90)])
    def test_a_new_position_sees_the_entries_of_its_row_and_itself(self, B, T, S):
        lengths = lengths_below(S - T + 1, B, 4)
        mask = lab.cache_mask(lengths, T, S)
        assert mask.dtype == torch.bool and mask.shape == (B, T, S)
        for b in range(B):
            for t in range(T):
                assert mask[b, t].tolist() == [s <= int(lengths[b]) + t for s in range(S)]

    def test_an_empty_cache_gives_the_causal_mask(self):
        assert torch.equal(
            lab.cache_mask(torch.tensor([0]), 3, 3)[0], torch.ones(3, 3, dtype=torch.bool).tril()
        )


class Test_decide:
    def test_each_row_by_its_own_token_state_and_count(self):
        """Every combination, against the rule in words."""
        cases = [
            (token, thinking, steps)
            for token in (END, 5)
            for thinking in (True, False)
            for steps in (0, 3, 4)
        ]
        token, thinking, steps = (torch.tensor(x) for x in zip(*cases))
        collapse, goes_on = lab.decide(token, thinking, steps, END, 4)
        assert collapse.dtype == goes_on.dtype == torch.bool
        for i, (t, on, n) in enumerate(cases):
            assert bool(collapse[i]) == (on and (t == END or n == 4)), cases[i]
            assert bool(goes_on[i]) == (on and t != END and n < 4), cases[i]

    def test_one_row_that_ends_does_not_end_the_others(self):
        collapse, goes_on = lab.decide(
            torch.tensor([END, 5, 6]), torch.tensor([True] * 3), torch.tensor([1, 1, 1]), END, 9
        )
        assert collapse.tolist() == [True, False, False] and goes_on.tolist() == [False, True, True]

    def test_the_number_of_the_end_token_is_taken_from_the_argument(self):
        collapse, _ = lab.decide(
            torch.tensor([7, END]), torch.tensor([True, True]), torch.tensor([0, 0]), 7, 3
        )
        assert collapse.tolist() == [True, False]

    def test_a_limit_of_0_collapses_at_once(self):
        collapse, goes_on = lab.decide(torch.tensor([5]), torch.tensor([True]), torch.tensor([0]), END, 0)
        assert collapse.tolist() == [True] and goes_on.tolist() == [False]

    def test_a_limit_may_be_large(self):
        steps = torch.tensor([8, 99, 499, 500])
        _, goes_on = lab.decide(torch.full((4,), 5), torch.tensor([True] * 4), steps, END, 500)
        assert goes_on.tolist() == [True, True, True, False]


class Test_next_input:
    def inputs(self, B, V=9, C=5):
        logits, table = 3 * randn(B, V, salt=5), randn(V, C, salt=6)
        logits[:, LATENT], logits[:, PAD] = 50.0, 40.0  # would win if they were allowed
        state = torch.randint(0, 3, (B,), generator=generator(7))
        return logits, state == 0, state == 1, table

    @pytest.mark.parametrize("B, k", [(1, 1), (1, 3), (12, 1), (12, 3), (12, 50)])
    def test_every_row_is_fed_according_to_its_state(self, B, k):
        logits, collapse, goes_on, table = self.inputs(B)
        fed, token = lab.next_input(logits, collapse, goes_on, table, k, END, NEVER)
        assert fed.shape == (B, 5) and token.shape == (B,)
        for b in range(B):
            best = max((v for v in range(9) if v not in NEVER), key=lambda v: logits[b, v].item())
            if goes_on[b]:
                assert token[b] == best
                close(fed[b], superpose(logits[b], table, k, NEVER))
            else:
                assert token[b] == (END if collapse[b] else best)
                close(fed[b], table[int(token[b])])

    def test_forbidden_tokens_do_not_win_where_all_other_logits_are_very_low(self):
        """No number means "never": -1e9 would win here."""
        logits, table = torch.arange(9.0, dtype=torch.float64).expand(3, 9) - 1e12, randn(9, 5, salt=10)
        given = logits, torch.tensor([True, False, False]), torch.tensor([False, True, False]), table
        fed, token = lab.next_input(*given, 3, END, [8, 0])
        assert token.tolist() == [END, 7, 7]
        close(fed[1], superpose(logits[1], table, 3, [8, 0]))

    def test_the_dtype_is_kept_and_tokens_are_whole_numbers(self):
        logits, collapse, goes_on, table = self.inputs(3)
        fed, token = lab.next_input(logits.float(), collapse, goes_on, table.float(), 2, END, NEVER)
        assert fed.dtype == torch.float32 and token.dtype == torch.long

    def test_an_answer_token_is_fed_as_it_is_not_mixed(self):
        logits, none = torch.zeros(2, 9, dtype=torch.float64), torch.tensor([False, False])
        logits[0, 4], logits[1, 6] = 0.1, 0.1
        table = randn(9, 5, salt=8)
        fed, token = lab.next_input(logits, none, none, table, 4, END, NEVER)
        assert token.tolist() == [4, 6]
        close(fed, table[[4, 6]])


def rows_of(model, lengths, salt):
    """Prefixes (B, T, C) of random words; padding is large and random."""
    ids = torch.randint(4, len(model.table), (len(lengths), max(lengths)), generator=generator(salt))
    prefix, garbage = (
        model.table[ids],
        100 * randn(len(lengths), max(lengths), model.table.shape[1], salt=salt + 1),
    )
    real = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return torch.where(real[:, :, None], prefix, garbage)


class LowLogits(Toy):
    """Logits around -1e12, in steps that double precision keeps there, and no two of them equal."""

    def logits(self, hidden):
        return (8 * super().logits(hidden)).round() / 8 + torch.arange(len(self.table)) / 1024 - 1e12


def compare(model, lengths, salt, k, max_chain, max_answer, words=(END, EOS), pad=PAD):
    end, eos = words
    prefix = rows_of(model, lengths, salt)
    steps, answers, latents = lab.decode(
        model, prefix, torch.tensor(lengths), k, end, eos, pad, NEVER, max_chain, max_answer
    )
    B, C = len(lengths), prefix.shape[-1]
    assert steps.dtype == answers.dtype == torch.long
    assert steps.shape == (B,) and answers.shape == (B, max_answer) and latents.shape == (B, max_chain, C)
    expected = []
    for b, n in enumerate(lengths):
        count, answer, chain = naive_decode(model, prefix[b, :n], k, end, eos, NEVER, max_chain, max_answer)
        assert steps[b] == count, f"row {b}: {steps[b]} latents, alone {count}"
        assert answers[b].tolist() == answer + [pad] * (max_answer - len(answer)), f"row {b}"
        close(latents[b, :count], chain)
        assert not latents[b, count:].any()
        expected.append((count, len(answer)))
    return expected


class Test_decode:
    def model(self, number, **options):
        return Toy(seed=1000 * SEED + number, **options)

    def test_one_row(self):
        for number in range(3):
            compare(self.model(10 + number, vocab=6), [4], 40 + number, 3, 7, 4)

    def test_the_prefix_goes_through_the_model_once_and_then_one_position_at_a_time(self):
        """With the cache. Rows share their passes: no more passes than the longest row needs."""
        model = self.model(33, vocab=7)
        lengths = [3, 5, 2]
        prefix = rows_of(model, lengths, 63)
        model.calls.clear()
        lab.decode(model, prefix, torch.tensor(lengths), 3, END, EOS, PAD, NEVER, 8, 5)
        calls = list(model.calls)
        needed = []
        for b, n in enumerate(lengths):
            count, answer, _ = naive_decode(model, prefix[b, :n], 3, END, EOS, NEVER, 8, 5)
            needed.append(1 + count + 1 + len(answer) - 1)
        assert calls[0] == (3, 5) and all(T == 1 for _, T in calls[1:])
        assert len(calls) <= max(needed) + 1

    @pytest.mark.parametrize("max_chain, max_answer", [(0, 3), (1, 1), (12, 1), (3, 8)])
    def test_the_limits_of_chain_and_answer_are_kept(self, max_chain, max_answer):
        compare(self.model(30, vocab=9), [2, 4, 3], 60, 3, max_chain, max_answer)

    def test_other_numbers_for_the_end_tokens(self):
        compare(self.model(31, vocab=7), [3, 2, 4, 4], 61, 3, 6, 5, words=(5, 6))

    def test_deeper_models_have_a_cache_for_each_layer(self):
        compare(self.model(34, vocab=7, layers=3, width=8), [2, 4, 1], 64, 3, 6, 4)
        compare(self.model(35, vocab=7, layers=1), [2, 4, 1], 65, 3, 6, 4)

    def test_a_row_does_not_depend_on_the_other_rows(self):
        model = self.model(32, vocab=7)
        prefix, lengths = rows_of(model, [4, 2, 5, 3], 62), torch.tensor([4, 2, 5, 3])
        options = dict(k=3, end=END, eos=EOS, pad=PAD, never=NEVER, max_chain=6, max_answer=4)
        together = lab.decode(model, prefix, lengths, **options)
        order = torch.tensor([2, 0, 3, 1])
        for a, b in zip(together, lab.decode(model, prefix[order], lengths[order], **options)):
            close(b, a[order])
        for a, b in zip(together, lab.decode(model, prefix[1:3], lengths[1:3], **options)):
            close(b, a[1:3])

    def test_forbidden_tokens_do_not_decide_where_all_other_logits_are_very_low(self):
        """No number means "never": -1e9 would win here."""
        for number in range(3):
            compare(LowLogits(seed=1000 * SEED + 500 + number, vocab=6), [3, 2, 4, 4], 800 + number, 3, 8, 5)

    def test_long_chains_and_long_answers(self):
        """Where </think> and <eos> never come."""
        model = self.model(36, vocab=9, context=160, layers=1)
        ends = torch.isin(torch.arange(9), torch.tensor([END, EOS]))
        model.logits = lambda hidden: Toy.logits(model, hidden).masked_fill(ends, -1e6)
        assert compare(model, [5, 2], 66, 3, 100, 40) == [(100, 40)] * 2

    @pytest.mark.parametrize("number", range(4))
    @pytest.mark.parametrize("k", [1, 3, 20])
    def test_ragged_rows_side_by_side_equal_each_row_alone_without_a_cache(self, number, k):
        compare(self.model(number, vocab=7), [3, 6, 1, 4, 6, 2], 20 + number, k, 8, 5)

    def test_many_rows_end_at_different_times_and_any_number_may_be_the_padding_after_them(self):
        """Three models, and more if all rows of these happen to end together, which would show nothing."""
        found, varied = set(), False
        for number in range(12):
            if number < 3 or not varied:
                found |= set(
                    compare(
                        self.model(300 + number, vocab=6),
                        [2, 5, 3, 3, 4, 1, 5, 2],
                        500 + number,
                        2,
                        9,
                        6,
                        pad=-7,
                    )
                )
                varied = len({steps for steps, _ in found}) >= 3 and len({n for _, n in found}) >= 2
        assert varied, "this seed gives no variety: use another"

    def test_forbidden_tokens_do_not_decide_either(self):
        """Here one of them is more likely than `end` wherever `end` should win."""
        for number in range(16):
            model = self.model(400 + number, vocab=5)
            factor = (2, 0.5)[number // 2 % 2]  # for scores above 0, and for those below
            model.table[NEVER[number % 2]] = factor * model.table[END]
            compare(model, [3, 2, 4, 4], 700 + number, 3, 8, 5)
