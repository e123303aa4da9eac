"""The losses. Each takes logits at the positions that count, and no others.

A mean is one over the labels of all processes that train together: see parallel.weight.
"""
import torch
import torch.nn.functional as F
from torch import Tensor

from .parallel import weight


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over n labels of -log q[y]. logits (n, V), labels (n,)."""
    return F.cross_entropy(logits.float(), labels) * weight(len(labels))


def cross_entropy_by_block(logits: Tensor, labels: Tensor, block: Tensor, blocks: int) -> Tensor:
    """Cross-entropy averaged inside each target block, then over the blocks that have labels (v1 of Latent-SFT).
    logits (n, V), labels (n,), block (n,) in 0..blocks-1."""
    nll = F.cross_entropy(logits.float(), labels, reduction="none")                # (n,)
    total = torch.zeros(blocks, device=nll.device).index_add(0, block, nll)
    count = torch.zeros(blocks, device=nll.device).index_add(0, block, torch.ones_like(nll))
    n = (count > 0).sum()
    return (total / count.clamp(min=1)).sum() / n * weight(n)


def sparse_kl(logits: Tensor, probs: Tensor, ids: Tensor) -> Tensor:
    """Mean over n positions of KL(α ‖ q) = Σ_j α_j (log α_j - log q[id_j]), q the softmax over the full vocabulary.

    logits (n, V); the teacher α is sparse: probs (n, K) summing to 1 and their ids (n, K). An entry with α_j = 0
    counts nothing.
    """
    log_q = logits.float().log_softmax(-1).gather(-1, ids)                         # (n, K)
    return (torch.special.xlogy(probs, probs) - probs * log_q).sum(-1).mean() * weight(len(ids))
