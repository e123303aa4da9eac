"""Tests of lab 1, against loops over pairs of positions and sequences worked out by hand."""

import math

import pytest
import torch
from labkit import close, generator, load, randn

lab = load(__file__)
POINTS = {
    "decoder_layout": 3,
    "causal": 3,
    "induction_mask": 3,
    "supervision_mask": 5,
    "dual_track_positions": 4,
    "attend": 2,
}
PAD, PREFIX, LATENT, TEXT, TAIL = -1, 0, 1, 2, 3

# prefix, lengths of the segments S_1 .. S_N, tail. N = 0, one-token segments, a shorter last one, and a row
# that is longer than any window.
LONG = (2, [3, 20, 1, 9, *[1] * 9], 5)
SHAPES = [(3, [2, 2, 2], 3), (2, [3, 3, 1], 2), (1, [], 4), (4, [1, 1, 1, 1], 1), (2, [4], 2), LONG]


def decoder_row(prefix, segments, tail):
    """(kind, block) pairs, written out piece by piece."""
    row = [(PREFIX, 0)] * prefix
    for i in range(len(segments)):
        row.append((LATENT, i + 1))
        if i + 1 < len(segments):
            row.extend([(TEXT, i + 1)] * segments[i + 1])
    return row + [(TAIL, 0)] * tail


def encoder_row(prefix, segments, tail):
    row = [(PREFIX, 0)] * prefix
    for i, n in enumerate(segments):
        row.extend([(TEXT, i + 1)] * n + [(LATENT, i + 1)])
    return row + [(TAIL, 0)] * tail


def random_rows(make, rows, salt):
    """Rows of random lengths."""
    g = generator(salt)
    draw = lambda low, high: int(torch.randint(low, high + 1, (), generator=g))
    out = []
    for _ in range(rows):
        ratio, chain = draw(1, 4), draw(0, 9)
        out.append(make(draw(1, 4), [min(ratio, chain - at) for at in range(0, chain, ratio)], draw(1, 3)))
    return out


def tensors(rows, extra=0):
    width = max(map(len, rows)) + extra
    padded = torch.tensor([row + [(PAD, PAD)] * (width - len(row)) for row in rows])  # (B, T, 2)
    return padded[:, :, 0].contiguous(), padded[:, :, 1].contiguous()


def check_mask(mask, rows, may_attend):
    """Check every entry against a rule for pairs of real positions; padding attends only to itself."""
    T = mask.shape[1]
    assert mask.dtype == torch.bool, f"a mask is bool, got {mask.dtype}"
    assert mask.shape == (len(rows), T, T), f"expected shape {(len(rows), T, T)}, got {tuple(mask.shape)}"
    expected = torch.eye(T, dtype=torch.bool).repeat(len(rows), 1, 1)  # padding
    for b, row in enumerate(rows):
        for i in range(len(row)):
            expected[b, i, : i + 1] = torch.tensor([may_attend(row, i, j) for j in range(i + 1)])
    for b, i, j in (mask != expected).nonzero().tolist()[:1]:
        kinds = ["PREFIX", "LATENT", "TEXT", "TAIL", "PAD"]  # PAD is -1
        what = [f"{kinds[k]} of block {n}" for k, n in rows[b] + [(PAD, PAD)] * (T - len(rows[b]))]
        raise AssertionError(
            f"row {b}: may position {i} ({what[i]}) attend to position {j} ({what[j]})? "
            f"expected {bool(expected[b, i, j])}, got {bool(mask[b, i, j])}"
        )


class Test_decoder_layout:
    def test_the_worked_example_with_ratio_2(self):
        kind, block = lab.decoder_layout(3, 6, 2, 3, 13)
        assert kind == [0, 0, 0, 1, 2, 2, 1, 2, 2, 1, 3, 3, 3]
        assert block == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 0, 0, 0]

    def test_a_last_segment_may_be_shorter_and_keeps_its_latent(self):
        kind, block = lab.decoder_layout(2, 7, 3, 2, 11)  # S_1 3 tokens, S_2 3, S_3 1
        assert kind == [0, 0, 1, 2, 2, 2, 1, 2, 1, 3, 3]
        assert block == [0, 0, 1, 1, 1, 1, 2, 2, 3, 0, 0]

    def test_a_chain_shorter_than_the_ratio_is_one_latent_and_no_text(self):
        assert lab.decoder_layout(1, 3, 5, 2, 4) == ([0, 1, 3, 3], [0, 1, 0, 0])

    def test_an_empty_chain_has_no_latent(self):
        assert lab.decoder_layout(2, 0, 2, 1, 3) == ([0, 0, 3], [0, 0, 0])

    def test_the_rest_of_the_width_is_padding(self):
        assert lab.decoder_layout(1, 2, 1, 1, 7) == ([0, 1, 2, 1, 3, -1, -1], [0, 1, 1, 2, 0, -1, -1])

    def test_without_a_question_or_without_a_tail_there_is_none(self):
        assert lab.decoder_layout(0, 1, 2, 2, 3) == ([1, 3, 3], [1, 0, 0])
        assert lab.decoder_layout(1, 1, 2, 0, 2) == ([0, 1], [0, 1])

    @pytest.mark.parametrize("ratio", [1, 2, 3, 4, 5, 9])
    @pytest.mark.parametrize("chain", [1, 4, 5, 9, 23])
    def test_every_length_and_ratio_against_rows_built_piece_by_piece(self, ratio, chain):
        segments = [len(range(chain)[at : at + ratio]) for at in range(0, chain, ratio)]
        row = decoder_row(2, segments, 3)
        kind, block = lab.decoder_layout(2, chain, ratio, 3, len(row) + 2)
        assert list(zip(kind, block)) == row + [(PAD, PAD)] * 2


class Test_causal:
    def test_four_positions_by_hand(self):
        kind = torch.tensor([[PREFIX, LATENT, TAIL, PAD]])
        assert lab.causal(kind)[0].int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 0, 1]]

    @pytest.mark.parametrize("extra", [0, 3])
    def test_each_position_sees_itself_and_earlier_ones_and_none_sees_padding(self, extra):
        rows = [decoder_row(*s) for s in SHAPES]
        check_mask(lab.causal(tensors(rows, extra)[0]), rows, lambda row, i, j: True)

    def test_padding_on_the_left_is_not_seen_either(self):
        kind = torch.tensor([[PAD, PAD, PREFIX, TAIL], [PAD, PREFIX, LATENT, PAD]])
        assert lab.causal(kind).int().tolist() == [
            [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]],
            [[1, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 1]],
        ]

    def test_one_row_of_one_position(self):
        assert lab.causal(torch.tensor([[PREFIX]])).tolist() == [[[True]]]

    def test_a_row_of_nothing_but_padding_still_has_a_key_for_every_query(self):
        """A softmax over nothing is NaN, and one NaN reaches every weight."""
        assert torch.equal(
            lab.causal(torch.full((2, 3), PAD)), torch.eye(3, dtype=torch.bool).expand(2, 3, 3)
        )

    def test_random_rows(self):
        rows = random_rows(decoder_row, 6, salt=1)
        check_mask(lab.causal(tensors(rows, 1)[0]), rows, lambda row, i, j: True)


class Test_induction_mask:
    def test_the_picture_of_the_handout(self):
        kind = torch.tensor([[PREFIX, PREFIX, TEXT, TEXT, LATENT, TEXT, TEXT, LATENT, TAIL]])
        picture = ["".join("x" if x else "." for x in row) for row in lab.induction_mask(kind)[0].tolist()]
        assert picture == [
            "x........",
            "xx.......",
            "xxx......",
            "xxxx.....",
            "xxxxx....",  # L1 sees the text of S_1 and itself
            "xxxx.x...",
            "xxxx.xx..",
            "xxxx.xxx.",  # L2: S_1 and S_2 and itself, not L1
            "xxxx.xx.x",
        ]

    @pytest.mark.parametrize("extra", [0, 2])
    def test_no_position_sees_an_earlier_latent(self, extra):
        rows = [encoder_row(*s) for s in SHAPES]
        check_mask(
            lab.induction_mask(tensors(rows, extra)[0]), rows, lambda row, i, j: j == i or row[j][0] != LATENT
        )

    def test_one_row(self):
        rows = [encoder_row(1, [1], 1)]
        check_mask(
            lab.induction_mask(tensors(rows)[0]), rows, lambda row, i, j: j == i or row[j][0] != LATENT
        )

    def test_random_rows(self):
        rows = random_rows(encoder_row, 6, salt=2)
        check_mask(
            lab.induction_mask(tensors(rows, 1)[0]), rows, lambda row, i, j: j == i or row[j][0] != LATENT
        )

    def test_rows_of_a_batch_are_independent(self):
        kind = tensors(random_rows(encoder_row, 5, salt=3))[0]
        together = lab.induction_mask(kind)
        for b in range(5):
            assert torch.equal(together[b], lab.induction_mask(kind[b : b + 1])[0])


def supervision_rule(row, i, j):
    """The table of the handout, line by line."""
    (kind, block), (key, key_block) = row[i], row[j]
    if kind == PREFIX:
        return key == PREFIX
    if kind == LATENT:
        return key in (PREFIX, LATENT)
    if kind == TEXT:
        return key in (LATENT, TEXT) and block == key_block
    return key in (PREFIX, LATENT, TAIL)


class Test_supervision_mask:
    def test_the_picture_of_the_handout(self):
        kind, block = tensors([decoder_row(3, [2, 2, 2], 3)])
        picture = [
            "".join("x" if x else "." for x in row) for row in lab.supervision_mask(kind, block)[0].tolist()
        ]
        assert picture == [
            "x............",
            "xx...........",
            "xxx..........",
            "xxxx.........",  # Z1
            "...xx........",  # s3: its latent and itself
            "...xxx.......",
            "xxxx..x......",  # Z2: no text of the chain
            "......xx.....",
            "......xxx....",
            "xxxx..x..x...",
            "xxxx..x..xx..",  # </think>: the question and the latents
            "xxxx..x..xxx.",
            "xxxx..x..xxxx",
        ]

    @pytest.mark.parametrize("extra", [0, 2])
    def test_the_table_of_the_handout_for_every_pair(self, extra):
        rows = [decoder_row(*s) for s in SHAPES]
        check_mask(lab.supervision_mask(*tensors(rows, extra)), rows, supervision_rule)

    def test_random_rows(self):
        rows = random_rows(decoder_row, 6, salt=4)
        check_mask(lab.supervision_mask(*tensors(rows, 1)), rows, supervision_rule)

    def test_one_row(self):
        rows = [decoder_row(1, [1, 1], 1)]
        check_mask(lab.supervision_mask(*tensors(rows)), rows, supervision_rule)

    def test_the_content_of_a_hidden_segment_does_not_reach_the_answer_through_one_layer(self):
        """Changing the values at S_2 and S_3 changes nothing at the latents and at the tail."""
        kind, block = tensors([decoder_row(3, [2, 2, 2], 3)])
        weights = lab.supervision_mask(kind, block).double()
        x = randn(1, kind.shape[1], 4, salt=5)
        y = torch.where((kind == TEXT)[:, :, None], x + 1, x)
        outside = kind[0] != TEXT
        assert torch.equal((weights @ x)[0, outside], (weights @ y)[0, outside])


class Test_dual_track_positions:
    def test_the_worked_example(self):
        kind, _ = tensors([decoder_row(3, [2, 2, 2], 3)])
        assert lab.dual_track_positions(kind).tolist() == [[0, 1, 2, 3, 4, 5, 4, 5, 6, 5, 6, 7, 8]]

    @pytest.mark.parametrize("extra", [0, 3])
    def test_the_main_track_is_numbered_as_if_there_were_no_text(self, extra):
        rows = [decoder_row(*s) for s in SHAPES] + random_rows(decoder_row, 5, salt=6)
        kind, _ = tensors(rows, extra)
        positions = lab.dual_track_positions(kind)
        assert positions.dtype == torch.long and positions.shape == kind.shape
        assert (positions >= 0).all() and (positions < kind.shape[1]).all()
        positions = positions.tolist()
        for b, row in enumerate(rows):
            main = at = -1
            for i, (k, _) in enumerate(row):
                if k != TEXT:
                    main += 1
                    at = main
                else:
                    at += 1
                assert positions[b][i] == at, f"row {b}, position {i}"

    def test_text_may_have_higher_positions_than_the_main_track(self):
        kind, _ = tensors([decoder_row(1, [5, 5, 5], 1)])
        assert lab.dual_track_positions(kind).tolist() == [[0, 1, 2, 3, 4, 5, 6, 2, 3, 4, 5, 6, 7, 3, 4]]

    def test_without_a_chain_the_positions_are_the_ordinary_ones(self):
        kind, _ = tensors([decoder_row(2, [], 3)])
        assert lab.dual_track_positions(kind).tolist() == [[0, 1, 2, 3, 4]]

    def test_rows_of_a_batch_are_independent(self):
        rows = random_rows(decoder_row, 5, salt=7)
        kind, _ = tensors(rows)
        together = lab.dual_track_positions(kind)
        for b, row in enumerate(rows):
            assert torch.equal(
                together[b, : len(row)], lab.dual_track_positions(kind[b : b + 1, : len(row)])[0]
            )


def attend_by_loops(q, k, v, mask):
    B, T, D = q.shape
    out = torch.zeros(B, T, v.shape[2], dtype=q.dtype)
    for b in range(B):
        for i in range(T):
            seen = [j for j in range(k.shape[1]) if mask[b, i, j]]
            weight = [
                math.exp(sum(float(q[b, i, d]) * float(k[b, j, d]) for d in range(D)) / math.sqrt(D))
                for j in seen
            ]
            out[b, i] = sum(w / sum(weight) * v[b, j] for w, j in zip(weight, seen))
    return out


class Test_attend:
    @pytest.mark.parametrize("B, T, S, D, E", [(1, 1, 1, 4, 4), (2, 3, 5, 4, 6), (3, 4, 4, 7, 2)])
    def test_against_loops(self, B, T, S, D, E):
        q, k, v = randn(B, T, D, salt=8), randn(B, S, D, salt=9), randn(B, S, E, salt=10)
        mask = randn(B, T, S, salt=11) > 0
        mask[:, :, 0] |= ~mask.any(-1)
        close(lab.attend(q, k, v, mask), attend_by_loops(q, k, v, mask))

    def test_equal_keys_get_equal_weights(self):
        v = randn(1, 4, 3, salt=12)
        mask = torch.tensor([[[True, False, True, False], [False, True, True, True]]])
        out = lab.attend(randn(1, 2, 5, salt=13), torch.zeros(1, 4, 5, dtype=torch.float64), v, mask)
        close(out[0, 0], (v[0, 0] + v[0, 2]) / 2)
        close(out[0, 1], (v[0, 1] + v[0, 2] + v[0, 3]) / 3)

    def test_a_hidden_value_has_no_influence_however_large_and_no_gradient(self):
        q, k = randn(1, 3, 4, salt=14), randn(1, 3, 4, salt=15)
        k[:, 2] = (
            1e6 * q[:, 0]
        )  # a key that would take all the weight if masking only lowered its score by 10 000
        v = randn(1, 3, 2, salt=16)
        v[:, 2] = 1e12
        q, k, v = q.requires_grad_(), k.requires_grad_(), v.requires_grad_()
        mask = torch.tensor([[[True, True, False]] * 3])
        out = lab.attend(q, k, v, mask)
        assert out.abs().max() < 100
        out.square().sum().backward()
        for grad in (q.grad, k.grad, v.grad):
            assert grad is not None and (grad[:, :2] != 0).all(), "q, k and v must each have a gradient"
        assert (v.grad[:, 2] == 0).all() and (k.grad[:, 2] == 0).all()

    def test_a_hidden_key_stays_hidden_where_all_other_scores_are_very_low(self):
        """No number means "never": -1e9 would win here."""
        q = torch.full((1, 1, 1), 1e6, dtype=torch.float64)
        k = torch.tensor([[[-1e6], [0.0], [-1e6]]], dtype=torch.float64)  # scores -1e12, 0, -1e12
        v = torch.tensor([[[1.0], [100.0], [3.0]]], dtype=torch.float64)
        mask = torch.tensor([[[True, False, True]]])
        close(lab.attend(q, k, v, mask), torch.tensor([[[2.0]]], dtype=torch.float64))

    def test_large_scores_do_not_overflow(self):
        q = torch.full((1, 1, 4), 200.0, dtype=torch.float64)
        k = torch.full((1, 2, 4), 200.0, dtype=torch.float64)
        v = torch.tensor([[[1.0], [3.0]]], dtype=torch.float64)
        close(
            lab.attend(q, k, v, torch.ones(1, 1, 2, dtype=torch.bool)),
            torch.tensor([[[2.0]]], dtype=torch.float64),
        )

    def test_the_dtype_is_kept(self):
        q = randn(1, 2, 4, salt=17, dtype=torch.float32)
        assert lab.attend(q, q, q, torch.ones(1, 2, 2, dtype=torch.bool)).dtype == torch.float32
