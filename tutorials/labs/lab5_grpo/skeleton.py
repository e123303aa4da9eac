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
    raise NotImplementedError


def latent_log_density(z: Tensor, mu: Tensor, log_sigma: Tensor, std: float, reduce: str) -> Tensor:
    """log N(z / std; μ, σ) of each latent, summed over the width ("sum": the log-density) or averaged
    ("mean": the release). With the constant. The gradient reaches μ and log σ, and never z, which was
    sampled.
    z, mu, log_sigma (n, C) -> (n,)."""
    raise NotImplementedError


def decision_log_prob(logits: Tensor, ended: Tensor, end: int) -> Tensor:
    """The log-probability of each decision that was sampled at a latent: log p(end) where the chain ended
    there, else log(1 - p(end)), finite even where p(end) rounds to 1.
    logits (n, V), ended bool (n,) -> (n,)."""
    raise NotImplementedError


def clipped_surrogate(new: Tensor, old: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """min(ρA, clip(ρ, 1 - clip, 1 + clip) A) with ρ = exp(new - old), to be maximised. The gradient reaches
    `new` only.
    new, old log-probabilities, advantage (n,) -> (n,)."""
    raise NotImplementedError


def sample_means(values: Tensor, sample: Tensor, samples: int) -> Tensor:
    """The mean of each rollout's values, 0 for a rollout without any.
    values (n,), sample (n,) the rollout of each value, in any order -> (samples,)."""
    raise NotImplementedError


def objective(parts: dict[str, tuple[Tensor, Tensor, Tensor]], advantage: Tensor, clip: float) -> Tensor:
    """J: for each rollout the mean of the clipped surrogate over its latents, plus that over its decisions,
    plus that over its answer's tokens; then the mean over all rollouts. To be maximised.
    The gradient reaches each `new` only.
    parts: name -> (new, old, sample), (n,) each, with a different n for each part. advantage (R,): of each
    rollout -> ()."""
    raise NotImplementedError
