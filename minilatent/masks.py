"""The attention masks and the positions of Latent-SFT, computed by comparing index tensors. Only its stage 1
needs the two masks and the positions: the sequences of stage 2 and of inference hold no text of the chain.
(Layouts and the causal mask serve other methods, too.)

A sequence is described by two integer tensors (B, T): `kind`, what a position holds, and `block`, which
latent it belongs to. In stage 1's decoder block i holds Z_i and what follows it, S_{i+1}.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

PAD, PREFIX, LATENT, TEXT, TAIL = -1, 0, 1, 2, 3  # PREFIX: question, <think>. TAIL: </think>, answer, <eos>


@dataclass
class Layout:
    """A sequence: token ids, what each holds (`kind`), which block it belongs to."""

    ids: list[int]
    kind: list[int]
    block: list[int]

    @classmethod
    def of(cls, *pieces: tuple[list[int], int, int]) -> "Layout":
        """From (ids, kind, block) pieces in order."""
        return cls(
            [i for ids, _, _ in pieces for i in ids],
            [k for ids, k, _ in pieces for _ in ids],
            [b for ids, _, b in pieces for _ in ids],
        )


def causal(kind: Tensor) -> Tensor:
    """Each position sees itself and what comes before; nobody sees padding, padding sees itself (softmax
    needs at least one key per row). kind (B, T) -> (B, T, T), [b, i, j] True = i attends to j."""
    T = kind.shape[1]
    i = torch.arange(T, device=kind.device)
    real = kind != PAD
    return ((i[:, None] >= i) & real[:, :, None] & real[:, None, :]) | (i[:, None] == i)


def induction_mask(kind: Tensor) -> Tensor:
    """The latent token induction mask (LTIM) of stage 1's encoder: causal, but no position sees an *earlier*
    latent: each L_i is computed from text alone, and no information passes from one latent to the next.

                 Q <t> a  b L1  c  d L2 </t>        r = 2: S_1 = a b, S_2 = c d
            Q    x
            <t>  x  x
            a    x  x  x
            b    x  x  x  x
            L1   x  x  x  x  x
            c    x  x  x  x  .  x
            d    x  x  x  x  .  x  x
            L2   x  x  x  x  .  x  x  x             itself, but not L1
            </t> x  x  x  x  .  x  x  .  x

    kind (B, T) -> (B, T, T).
    """
    T = kind.shape[1]
    itself = torch.eye(T, dtype=torch.bool, device=kind.device)
    return causal(kind) & ((kind != LATENT)[:, None, :] | itself)


def supervision_mask(kind: Tensor, block: Tensor) -> Tensor:
    """The latent token supervision mask (LTSuM) of stage 1's decoder: S_{i+1} sees Z_i and itself, and the
    answer sees no text of the chain, only the question and the latents.

                 Q <t> Z1  c  d Z2 </t> A           S_1 is never shown; c d = S_2
            Q    x
            <t>  x  x
            Z1   x  x  x
            c    .  .  x  x                         S_2 sees the question only through Z1's states
            d    .  .  x  x  x
            Z2   x  x  x  .  .  x
            </t> x  x  x  .  .  x  x                the collapse: question and latents
            A    x  x  x  .  .  x  x  x

    This is the released code's mask, and the paper's figure; v1's text lets S_{i+1} see Q and Z_1..Z_i too.
    kind, block (B, T) -> (B, T, T).
    """
    same_block = block[:, :, None] == block[:, None, :]
    row_is_text, key_is_text = (kind == TEXT)[:, :, None], (kind == TEXT)[:, None, :]
    return causal(kind) & torch.where(row_is_text, same_block, ~key_is_text)


def dual_track_positions(kind: Tensor) -> Tensor:
    """Positions of the decoder's input: the text of the chain counts on from its latent and takes no place on
    the main track, so that Z, </think> and the answer stand where they will at inference. (B, T) -> (B, T)

            input  Q0 Q1 <t> Z1 s3 s4 Z2 s5 s6 Z3 </t> A1 A2
            pos     0  1   2  3  4  5  4  5  6  5    6  7  8
    """
    index = torch.arange(kind.shape[1], device=kind.device).expand_as(kind)
    main = kind != TEXT
    track = main.long().cumsum(1) - 1  # place on the main track
    last = torch.where(main, index, 0).cummax(1).values  # where the track was left
    return track + index - last
