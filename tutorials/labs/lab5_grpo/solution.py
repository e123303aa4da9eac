"""Lab 5: GRPO on latents. README.md describes the problems.

Q questions, G rollouts of each, R = Q · G rollouts, n latents (or decisions, or tokens) of all rollouts, C
width.
"""

import math

import torch
from torch import Tensor


def group_advantage(rewards: Tensor, eps: float = 1e-6) -> Tensor:
    """(r - mean) / (std + ε) within each question's group; std divides by G, not by G - 1.
    rewards (Q, G) -> (Q, G)."""
    # BEGIN SOLUTION
    centred = rewards - rewards.mean(1, keepdim=True)
    return centred / (centred.square().mean(1, keepdim=True).sqrt() + eps)
    # END SOLUTION


def latent_log_density(z: Tensor, mu: Tensor, log_sigma: Tensor, std: float, reduce: str) -> Tensor:
    """log N(z / std; μ, σ) of each latent, summed over the width ("sum": the log-density) or averaged
    ("mean": the release). With the constant. The gradient reaches μ and log σ, and never z, which was
    sampled.
    z, mu, log_sigma (n, C) -> (n,)."""
    # BEGIN SOLUTION
    distance = (z.detach() / std - mu) / log_sigma.exp()
    density = -0.5 * distance.square() - log_sigma - 0.5 * math.log(2 * math.pi)  # (n, C)
    return density.sum(-1) if reduce == "sum" else density.mean(-1)
    # END SOLUTION


def decision_log_prob(logits: Tensor, ended: Tensor, end: int) -> Tensor:
    """The log-probability of each decision that was sampled at a latent: log p(end) where the chain ended
    there, else log(1 - p(end)), finite even where p(end) rounds to 1.
    logits (n, V), ended bool (n,) -> (n,)."""
    # BEGIN SOLUTION
    others = logits.index_fill(-1, torch.tensor(end), float("-inf")).logsumexp(-1)
    return torch.where(ended, logits[:, end], others) - logits.logsumexp(-1)
    # END SOLUTION


def clipped_surrogate(new: Tensor, old: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """min(ρA, clip(ρ, 1 - clip, 1 + clip) A) with ρ = exp(new - old), to be maximised. The gradient reaches
    `new` only.
    new, old log-probabilities, advantage (n,) -> (n,)."""
    # BEGIN SOLUTION
    ratio, advantage = (new - old.detach()).exp(), advantage.detach()
    return torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)
    # END SOLUTION


def sample_means(values: Tensor, sample: Tensor, samples: int) -> Tensor:
    """The mean of each rollout's values, 0 for a rollout without any.
    values (n,), sample (n,) the rollout of each value, in any order -> (samples,)."""
    # BEGIN SOLUTION
    total = torch.zeros(samples, dtype=values.dtype).index_add(0, sample, values)
    count = torch.zeros(samples, dtype=values.dtype).index_add(0, sample, torch.ones_like(values))
    return total / count.clamp(min=1)
    # END SOLUTION


def objective(parts: dict[str, tuple[Tensor, Tensor, Tensor]], advantage: Tensor, clip: float) -> Tensor:
    """J: for each rollout the mean of the clipped surrogate over its latents, plus that over its decisions,
    plus that over its answer's tokens; then the mean over all rollouts. To be maximised.
    The gradient reaches each `new` only.
    parts: name -> (new, old, sample), (n,) each, with a different n for each part. advantage (R,): of each
    rollout -> ()."""
    # BEGIN SOLUTION
    total = torch.zeros_like(advantage)
    for new, old, sample in parts.values():
        gains = clipped_surrogate(new, old, advantage[sample], clip)
        total = total + sample_means(gains, sample, len(advantage))
    return total.mean()
    # END SOLUTION
