"""Lab 1: masks and positions. README.md describes the problems.

A sequence is described by two integer tensors (B, T): `kind`, what a position contains, and `block`, which
latent it belongs to. B rows, T positions; rows shorter than T are padded on the right.
"""

import torch
from torch import Tensor

PAD, PREFIX, LATENT, TEXT, TAIL = -1, 0, 1, 2, 3  # PREFIX: question, <think>. TAIL: </think>, answer, <eos>


def decoder_layout(prefix: int, chain: int, ratio: int, tail: int, width: int) -> tuple[list[int], list[int]]:
    """Kind and block of `Q <think> Z_1 S_2 Z_2 S_3 .. S_N Z_N </think> answer <eos>`, padded to `width`.

    prefix   number of positions of Q and <think>; they belong to block 0
    chain    number of tokens of the chain, cut into N = ⌈chain / ratio⌉ segments S_1..S_N; the last may be
             shorter; S_1 is not shown
    tail     number of positions of </think>, answer and <eos>; they belong to block 0

    Z_i and S_{i+1} belong to block i. Padding has kind PAD and block PAD.
    """
    raise NotImplementedError


def causal(kind: Tensor) -> Tensor:
    """Each position sees itself and earlier positions; no position sees padding, and padding sees itself
    only. Here padding may also be on the left.
    kind (B, T) -> bool (B, T, T), [b, i, j] True = position i of row b attends to j."""
    raise NotImplementedError


def induction_mask(kind: Tensor) -> Tensor:
    """LTIM, for stage 1's encoder `Q <think> S_1 L_1 S_2 L_2 ..`: causal, but no position sees an earlier
    latent.
    kind (B, T) -> bool (B, T, T)."""
    raise NotImplementedError


def supervision_mask(kind: Tensor, block: Tensor) -> Tensor:
    """LTSuM, for stage 1's decoder: a segment sees its own latent and itself; latents and tail see no text.
    kind, block (B, T) -> bool (B, T, T)."""
    raise NotImplementedError


def dual_track_positions(kind: Tensor) -> Tensor:
    """Positions of the decoder's input: all but text is numbered along the main track, text counts on from
    its latent. kind (B, T) -> int64 (B, T). Padding may have any position in 0..T-1."""
    raise NotImplementedError


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """softmax(q kᵀ / √D) v over the keys that each row of the mask allows.
    q (B, T, D), k (B, S, D), v (B, S, E), mask bool (B, T, S) -> (B, T, E). Every row of the mask has a
    True."""
    raise NotImplementedError
