"""Masks and dual-track positions against loops written from the paper's rules, on ragged batches."""

import itertools

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
    """kind and block of Q <think> S_1 L .. S_N L </think>, from the lengths of Q (with <think>) and the S."""
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


def test_the_decoder_predicts_a_segment_from_its_latent_and_the_answer_from_all_latents():
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
    """So Q, Z, </think> and the answer have the positions in stage 1 that they have in stage 2 and later."""
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


def test_the_worked_example_of_the_docstring():
    """input  Q0 Q1 <t> Z1 s3 s4 Z2 s5 s6 Z3 </t> A1 A2"""
    kind, block = decoder_row(3, [2, 2, 2], 3)
    kind, block = torch.tensor([kind]), torch.tensor([block])
    assert dual_track_positions(kind)[0].tolist() == [0, 1, 2, 3, 4, 5, 4, 5, 6, 5, 6, 7, 8]
    assert picture(supervision_mask(kind, block)) == [
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


def picture(mask: torch.Tensor) -> list[str]:
    return ["".join("x" if seen else "." for seen in row) for row in mask[0].tolist()]


def picture_in_docstring(function, labels: list[str]) -> list[str]:
    """The rows of the drawing, each after its label; blanks on the right are dots."""
    rows, lines = [], [line.split() for line in function.__doc__.splitlines()]
    for words in lines:
        cells = "".join(itertools.takewhile(lambda word: word in ("x", "."), words[1:]))
        if cells and words[0] == labels[len(rows)]:
            rows.append(cells)
    return [row.ljust(len(labels), ".") for row in rows]


def test_the_drawings_in_the_docstrings_are_the_masks():
    kind, _ = encoder_row(2, [2, 2])
    labels = ["Q", "<t>", "a", "b", "L1", "c", "d", "L2", "</t>"]
    drawing = picture_in_docstring(induction_mask, labels)
    assert drawing == picture(induction_mask(torch.tensor([kind])))
    kind, block = decoder_row(2, [2, 2], 2)
    labels = ["Q", "<t>", "Z1", "c", "d", "Z2", "</t>", "A"]
    drawing = picture_in_docstring(supervision_mask, labels)
    assert drawing == picture(supervision_mask(torch.tensor([kind]), torch.tensor([block])))


@pytest.mark.parametrize("make", [causal, induction_mask, lambda k: supervision_mask(k, k.clamp(max=0))])
def test_every_row_of_a_mask_attends_to_something(make):
    """Softmax over nothing is NaN, and one NaN in padding reaches every weight."""
    kind = torch.tensor([[PAD] * 4, [PREFIX, PAD, PAD, PAD]])
    assert make(kind).any(-1).all()
