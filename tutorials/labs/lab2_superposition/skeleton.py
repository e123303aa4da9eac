"""Lab 2: superpositions and the losses that train them. README.md describes the problems.

B rows, T positions, V vocabulary, C width, k entries kept, n positions that count.
"""

import torch
from torch import Tensor

PAD, PREFIX, LATENT, TEXT, TAIL = -1, 0, 1, 2, 3  # what a position contains: see lab 1


def top_k(logits: Tensor, k: int, never: list[int]) -> tuple[Tensor, Tensor]:
    """The k most likely entries in descending order, and the softmax over these k logits. Ids in `never` are
    excluded; if fewer than k others exist, all of them are kept. The gradient reaches the kept logits and no
    others.
    logits (..., V) -> probabilities (..., k), ids (..., k)."""
    raise NotImplementedError


def mix(probs: Tensor, ids: Tensor, table: Tensor) -> Tensor:
    """z = Σ_j α_j e_j. The gradient reaches the probabilities and never the table.
    probs, ids (..., k), table (V, C) -> (..., C)."""
    raise NotImplementedError


def gumbel(probs: Tensor, generator: torch.Generator, scale: float = 1.0, tau: float = 1.0) -> Tensor:
    """α̃ = softmax((log α + clamp(scale · g, -1.5, 3)) / τ) over the last dimension, g = -log(-log u), u ~
    U(0, 1): one torch.rand of the shape and dtype of `probs`, from `generator`. An entry with α = 0 stays 0.
    The gradient reaches every probability; that of an entry with α = 0 is 0.
    probs (..., k) -> (..., k)."""
    raise NotImplementedError


def sparse_kl(logits: Tensor, probs: Tensor, ids: Tensor) -> Tensor:
    """Mean over n positions of KL(α ‖ q): q is the softmax of the logits over the whole vocabulary; α has the
    probabilities `probs` at `ids` (0..V-1) and is 0 elsewhere. An entry with α_j = 0 adds nothing, whatever
    its id and its logit, even -∞. The gradient with respect to the logits is (q - α) / n. 0 if n = 0.
    logits (n, V), probs, ids (n, k) -> ()."""
    raise NotImplementedError


def segment_cross_entropy(logits: Tensor, ids: Tensor, kind: Tensor, block: Tensor) -> Tensor:
    """Stage 1's L_sup, for the decoder's input (lab 1). The label of a position is the next position's id if
    that position contains TEXT or TAIL; no other position has a label. The loss is averaged inside each
    target block (the text of one row with one block number, or the tail of one row), then over all these
    blocks of all rows. 0 if there are none.
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
    """Stage 2's L_auto, for `Q <think> z_1 .. z_N </think> answer <eos>`, ordinary causal input:
    kl_weight · mean over latents of KL(α_t ‖ q) + ce_weight · mean over TAIL ids of -log q[id], each q taken
    at the position *before*. A mean over nothing is 0. probs, top (n, k): the labels α of all latents
    of the batch, in reading order.
    logits (B, T, V), ids, kind (B, T) -> ()."""
    raise NotImplementedError
