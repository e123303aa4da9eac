"""Lab 2: superpositions and the losses that teach them. README.md tells the problems.

B rows, T positions, V vocabulary, C width, k entries kept, n positions that count.
"""

import torch
from torch import Tensor

PAD, PREFIX, LATENT, TEXT, TAIL = -1, 0, 1, 2, 3  # what a position holds: see lab 1


def top_k(logits: Tensor, k: int, never: list[int]) -> tuple[Tensor, Tensor]:
    """The k likeliest entries, the likeliest first, and their softmax among themselves. Ids in `never` are not among
    them; where fewer than k others exist, all others are kept. The gradient reaches the kept logits and no others.
    logits (..., V) -> probabilities (..., k), ids (..., k)."""
    raise NotImplementedError


def mix(probs: Tensor, ids: Tensor, table: Tensor) -> Tensor:
    """z = Σ_j α_j e_j. The gradient reaches the probabilities and never the table.
    probs, ids (..., k), table (V, C) -> (..., C)."""
    raise NotImplementedError


def gumbel(probs: Tensor, generator: torch.Generator, scale: float = 1.0, tau: float = 1.0) -> Tensor:
    """α̃ = softmax((log α + clamp(scale · g, -1.5, 3)) / τ) over the last dimension, g = -log(-log u), u ~ U(0, 1):
    one torch.rand of the shape and dtype of `probs`, from `generator`. An entry with α = 0 stays 0.
    probs (..., k) -> (..., k)."""
    raise NotImplementedError


def sparse_kl(logits: Tensor, probs: Tensor, ids: Tensor) -> Tensor:
    """Mean over n positions of KL(α ‖ q): q is the softmax of the logits over the whole vocabulary, α has the
    probabilities `probs` at `ids` (0..V-1) and 0 elsewhere. An entry with α_j = 0 counts nothing, whatever its id.
    logits (n, V), probs, ids (n, k) -> ()."""
    raise NotImplementedError


def segment_cross_entropy(logits: Tensor, ids: Tensor, kind: Tensor, block: Tensor) -> Tensor:
    """Stage 1's L_sup, of the decoder's input (lab 1). The label of a position is the next position's id, if that
    holds TEXT or TAIL; no other position has a label. Averaged inside each target block, a row's text with one block
    number or a row's tail, then over all these blocks of all rows.
    logits (B, T, V), ids, kind, block (B, T) -> ()."""
    raise NotImplementedError


def autonomous_loss(
    logits: Tensor,
    ids: Tensor,
    kind: Tensor,
    probs: Tensor,
    top: Tensor,
    kl_weight: float = 1.0,
    ce_weight: float = 1.0,
) -> Tensor:
    """Stage 2's L_auto, of `Q <think> z_1 .. z_N </think> answer <eos>`, ordinary causal input:
    kl_weight · mean over latents of KL(α_t ‖ q) + ce_weight · mean over TAIL ids of -log q[id], each q read at the
    position *before*. probs, top (n, k): the labels α of all latents of the batch, in reading order.
    logits (B, T, V), ids, kind (B, T) -> ()."""
    raise NotImplementedError
