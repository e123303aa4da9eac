"""The losses. Their inputs hold the labelled positions only: nothing is masked here.

A mean is one over the labels of all processes that train together: see parallel.weight.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .parallel import std, weight


def wide(x: Tensor) -> Tensor:
    """At least float32: a sum of exponentials in 16 bits is worth little."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over n labels of -log q[y]. logits (n, V), labels (n,)."""
    return F.cross_entropy(wide(logits), labels) * weight(len(labels))


def mean(values: Tensor) -> Tensor:
    """The mean of all values, (n, ..) of n labels; 0 of none."""
    return values.sum() / max(values.numel(), 1) * weight(len(values))


def mean_by(values: Tensor, group: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """The mean of the values (n,) of each group, 0 for an empty one, and which have any. group (n,) in
    0..groups-1 -> (groups,), (groups,)"""
    total = torch.zeros(groups, device=values.device, dtype=values.dtype).index_add(0, group, values)
    count = torch.zeros_like(total).index_add(0, group, torch.ones_like(values))
    return total / count.clamp(min=1), count > 0


def cross_entropy_by_block(logits: Tensor, labels: Tensor, block: Tensor, blocks: int) -> Tensor:
    """Cross-entropy averaged inside each target block, then over the blocks that have labels (v1 of Latent-SFT).
    logits (n, V), labels (n,), block (n,) in 0..blocks-1."""
    means, some = mean_by(F.cross_entropy(wide(logits), labels, reduction="none"), block, blocks)
    return means.sum() / some.sum() * weight(some.sum())


def sparse_kl(logits: Tensor, probs: Tensor, ids: Tensor) -> Tensor:
    """Mean over n positions of KL(α ‖ q) = Σ_j α_j (log α_j - log q[id_j]), q the softmax over the full vocabulary.

    logits (n, V); the teacher α is sparse: probs (n, K) summing to 1 and their ids (n, K). An entry with α_j = 0
    counts nothing.
    """
    log_q = wide(logits).log_softmax(-1).gather(-1, ids)  # (n, K)
    return mean((torch.special.xlogy(probs, probs) - probs * log_q).sum(-1))


def gaussian_nll(mu: Tensor, log_sigma: Tensor, target: Tensor) -> Tensor:
    """-log N(target; μ, σ) without its constant ½ log 2π, averaged over positions and width, (n, C) each:
    (e - μ)² / 2σ² + log σ (CoLaR, eq. 5)."""
    return mean((target - mu).pow(2) / (2 * (2 * log_sigma).exp()) + log_sigma)


def soft_mse(mu: Tensor, log_sigma: Tensor, target: Tensor, alpha: float = 0.0) -> Tensor:
    """E_ε[(μ + σε - e)²] - α · entropy, in closed form: (μ - e)² + σ² - α · ½ log(2πe σ²), averaged over positions and
    width (CoLaR, eq. 6; the release draws one ε). With α = 0 nothing holds σ up. A σ of 0 is the plain squared error."""
    squared = (target - mu).pow(2) + (2 * log_sigma).exp()
    return mean(squared - alpha * (log_sigma + 0.5 * math.log(2 * math.pi * math.e)) if alpha else squared)


def log_not(logits: Tensor, token: int) -> Tensor:
    """log(1 - softmax(logits)[token]), (..., V) -> (...,)"""
    others = logits.float().index_fill(-1, torch.tensor(token, device=logits.device), float("-inf"))
    return others.logsumexp(-1) - logits.float().logsumexp(-1)


def advantages(rewards: Tensor, counts: Tensor | None = None, eps: float = 1e-6) -> Tensor:
    """GRPO: a reward against its group's, (questions, G) -> (r - mean) / (std + ε) of each row. Equal rewards: 0.
    counts (questions, G): which samples the group's mean and std are of; the others get 0."""
    counts = torch.ones_like(rewards) if counts is None else counts.to(rewards.dtype)
    n = counts.sum(1, keepdim=True).clamp(min=1)
    spread = (rewards - (rewards * counts).sum(1, keepdim=True) / n) * counts
    return spread / ((spread.pow(2).sum(1, keepdim=True) / n).sqrt() + eps)


def clipped_surrogate(new: Tensor, old: Tensor, advantage: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """PPO's min(ρA, clip(ρ, 1 ± clip) A) with ρ = exp(new - old), to be made large, and where the clip took over the
    gradient. (n,) each."""
    ratio = (new - old).exp()
    plain, clipped = ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage
    return torch.minimum(plain, clipped), clipped < plain


def gumbel_log_density(score: Tensor, log_p: Tensor, mirrored: Tensor | None = None) -> Tensor:
    """Scores y = log p_old + noise as Gumbel variables around log p: the mean over k entries of -d - e^-d with
    d = y - log p, (n, k) each -> (n,). Where `mirrored` (n, 1) and d < 0, the value stays and the gradient is that of
    d - e^d, the density mirrored at its peak: straight-through."""
    d = score - log_p
    density = -d - (-d).exp()
    if mirrored is not None:
        proxy = d.clamp(max=0) - d.clamp(max=0).exp()
        density = torch.where(mirrored & (d < 0), density.detach() + (proxy - proxy.detach()), density)
    return density.mean(-1)


def layer_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """CODI's distillation: smooth-L1 between the hidden states of each layer, divided by the standard deviation of
    the teacher's, averaged over layers. Both (L, B, C); no gradient reaches the teacher."""
    teacher = wide(teacher.detach())
    distance = F.smooth_l1_loss(wide(student), teacher, reduction="none").mean((1, 2))  # (L,)
    return (distance / std(teacher)).mean() * weight(teacher.shape[1])
