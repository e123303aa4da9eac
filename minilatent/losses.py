"""The losses, in plain torch. Their inputs hold the labelled positions only: nothing is masked here."""

import torch
import torch.nn.functional as F
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """At least float32: a sum of exponentials in 16 bits is too inaccurate."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over n labels of -log q[y]. logits (n, V), labels (n,)."""
    return F.cross_entropy(wide(logits), labels)


def mean(values: Tensor) -> Tensor:
    """The mean of all values; 0 if there are none."""
    return values.sum() / max(values.numel(), 1)


def mean_by(values: Tensor, group: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """The mean of the values (n,) of each group, 0 for an empty one, and which groups have any.
    group (n,) in 0..groups-1 -> (groups,), (groups,)"""
    total = torch.zeros(groups, device=values.device, dtype=values.dtype).index_add(0, group, values)
    count = torch.zeros_like(total).index_add(0, group, torch.ones_like(values))
    return total / count.clamp(min=1), count > 0


def cross_entropy_by_block(logits: Tensor, labels: Tensor, block: Tensor, blocks: int) -> Tensor:
    """Cross-entropy averaged inside each target block, then over the blocks that have labels (Latent-SFT v1).
    logits (n, V), labels (n,), block (n,) in 0..blocks-1."""
    means, some = mean_by(F.cross_entropy(wide(logits), labels, reduction="none"), block, blocks)
    return means.sum() / some.sum()


def sparse_kl(logits: Tensor, probs: Tensor, ids: Tensor) -> Tensor:
    """Mean over n positions of KL(α ‖ q) = Σ_j α_j (log α_j - log q[id_j]), q = softmax(logits).

    logits (n, V); the teacher α is sparse: probs (n, K) summing to 1, and ids (n, K). α_j = 0 adds nothing.
    """
    log_q = wide(logits).log_softmax(-1).gather(-1, ids)  # (n, K)
    return mean((torch.special.xlogy(probs, probs) - probs * log_q).sum(-1))


def log_not(logits: Tensor, token: int) -> Tensor:
    """log(1 - softmax(logits)[token]), (..., V) -> (...,)"""
    index = torch.tensor(token, device=logits.device)
    logits = wide(logits)
    return logits.index_fill(-1, index, float("-inf")).logsumexp(-1) - logits.logsumexp(-1)
