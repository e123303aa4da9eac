"""The two masks and the dual-track positions against loops written from the paper's rules, on ragged batches."""

import pytest
import torch

from minilatent.batch import pad
from minilatent.masks import (
    LATENT,
    PAD,
    PREFIX,
    TAIL,
    TEXT,
    causal,
    dual_track_positions,
    induction_mask,
    supervision_mask,
)


def encoder_row(question: int, segments: list[int]) -> tuple[list[int], list[int]]:
    """kind and block of Q <think> S_1 L S_2 L .. S_N L </think>, given the lengths of Q (with <think>) and the S."""
    kind, block = [PREFIX] * question, [0] * question
    for i, n in enumerate(segments, 1):
        kind += [TEXT] * n + [LATENT]
        block += [i] * (n + 1)
    return kind + [TAIL], block + [0]


def decoder_row(question: int, segments: list[int], answer: int) -> tuple[list[int], list[int]]:
    """Q <think> Z_1 S_2 Z_2 .. S_N Z_N </think> answer"""
    kind, block = [PREFIX] * question, [0] * question
    for i, n in enumerate(segments[1:] + [0], 1):
        kind += [LATENT] + [TEXT] * n
        block += [i] * (n + 1)
    return kind + [TAIL] * answer, block + [0] * answer


ENCODER = [
    encoder_row(3, [2, 2, 1]),
    encoder_row(1, [2]),
    encoder_row(5, [4, 4]),
    encoder_row(2, [1, 1, 1, 1]),
]
DECODER = [
    decoder_row(3, [2, 2, 1], 4),
    decoder_row(1, [2], 3),
    decoder_row(5, [4, 4], 2),
    decoder_row(2, [1] * 5, 5),
]


def batch(rows):
    return pad([kind for kind, _ in rows], PAD), pad([block for _, block in rows], PAD)


def compare(mask: torch.Tensor, rows, may_attend) -> None:
    """Every entry, in words where it differs. Padding sees itself, and nothing else touches it."""
    T = mask.shape[1]
    assert mask.dtype == torch.bool and mask.shape == (len(rows), T, T)
    for b, (kind, block) in enumerate(rows):
        for i in range(T):
            for j in range(T):
                padded = i >= len(kind) or j >= len(kind)
                expected = i == j if padded else may_attend(kind, block, i, j)
                assert bool(mask[b, i, j]) == expected, f"row {b}: {i} -> {j} should be {expected}"


def test_the_causal_mask_ends_at_padding():
    compare(causal(batch(ENCODER)[0]), ENCODER, lambda kind, block, i, j: j <= i)


def test_no_position_of_the_encoder_sees_an_earlier_latent():
    """LTIM. Without it L_2 can copy L_1, and the chain is no longer made from text."""

    def rule(kind, block, i, j):
        if j > i:
            return False
        return j == i or kind[j] != LATENT

    compare(induction_mask(batch(ENCODER)[0]), ENCODER, rule)


def test_the_decoder_tells_a_segment_from_its_latent_and_the_answer_from_all_latents():
    """LTSuM. Row by row from the table: padding that is attended to was a defect of more than one release."""

    def rule(kind, block, i, j):
        if j > i:
            return False
        row, key = kind[i], kind[j]
        if row == PREFIX:
            return key == PREFIX
        if row == LATENT:  # Q, <think>, Z_1..Z_i
            return key in (PREFIX, LATENT)
        if row == TEXT:  # its latent, and the same segment's earlier tokens
            return key in (LATENT, TEXT) and block[i] == block[j]
        return key in (PREFIX, LATENT, TAIL)  # </think> and the answer: never the chain's text

    compare(supervision_mask(*batch(DECODER)), DECODER, rule)


def test_the_text_of_the_chain_takes_no_place_on_the_main_track():
    """So that Q, Z, </think> and the answer stand in stage 1 where they will stand in stage 2 and at inference."""
    kind, _ = batch(DECODER)
    positions = dual_track_positions(kind)
    for b, (kinds, _) in enumerate(DECODER):
        main = at = -1
        for i, k in enumerate(kinds):
            if k == TEXT:
                at += 1  # counts on from where it is
            else:
                main += 1
                at = main
            assert positions[b, i] == at, (b, i)
        student = [p for p, k in zip(positions[b].tolist(), kinds) if k != TEXT]
        assert student == list(range(len(student)))


def test_the_worked_example_of_the_notes():
    """input  Q0 Q1 <t> Z1 s3 s4 Z2 s5 s6 Z3 </t> A1 A2"""
    kind, block = decoder_row(3, [2, 2, 2], 3)
    kind, block = torch.tensor([kind]), torch.tensor([block])
    assert dual_track_positions(kind)[0].tolist() == [0, 1, 2, 3, 4, 5, 4, 5, 6, 5, 6, 7, 8]
    drawn = [
        "".join("x" if seen else "." for seen in row) for row in supervision_mask(kind, block)[0].tolist()
    ]
    assert drawn == [
        "x............",
        "xx...........",
        "xxx..........",
        "xxxx.........",  # Z1
        "...xx........",  # s3
        "...xxx.......",  # s4
        "xxxx..x......",  # Z2
        "......xx.....",  # s5
        "......xxx....",  # s6
        "xxxx..x..x...",  # Z3
        "xxxx..x..xx..",  # </t>
        "xxxx..x..xxx.",
        "xxxx..x..xxxx",
    ]


def test_the_drawing_in_the_induction_masks_docstring_is_the_mask():
    kind, _ = encoder_row(2, [2, 2])
    drawn = [
        "".join("x" if seen else "." for seen in row)
        for row in induction_mask(torch.tensor([kind]))[0].tolist()
    ]
    picture = [
        line
        for line in induction_mask.__doc__.splitlines()
        if line.strip().startswith(("Q  ", "<t> ", "a ", "b ", "L1 ", "c ", "d ", "L2 ", "</t>"))
        and "<t> a" not in line
    ]
    cells = ["".join(line.split("itself")[0].split()[1:]).ljust(9, ".") for line in picture]
    assert cells == drawn


def test_the_drawing_in_the_supervision_masks_docstring_is_the_mask():
    kind, block = decoder_row(2, [2, 2], 2)
    drawn = [
        "".join("x" if seen else "." for seen in row)
        for row in supervision_mask(torch.tensor([kind]), torch.tensor([block]))[0].tolist()
    ]
    picture = [
        line
        for line in supervision_mask.__doc__.splitlines()
        if line.strip().startswith(("Q  ", "<t> ", "Z1 ", "c ", "d ", "Z2 ", "</t>", "A "))
        and "<t> Z1" not in line
    ]
    cells = ["".join(c for c in line.split()[1:] if c in "x.").ljust(8, ".") for line in picture]
    assert cells == drawn


@pytest.mark.parametrize("make", [causal, induction_mask, lambda k: supervision_mask(k, k.clamp(max=0))])
def test_every_row_of_a_mask_attends_to_something(make):
    """Softmax over nothing is NaN, and one NaN in padding reaches every weight."""
    kind = torch.tensor([[PAD] * 4, [PREFIX, PAD, PAD, PAD]])
    assert make(kind).any(-1).all()
