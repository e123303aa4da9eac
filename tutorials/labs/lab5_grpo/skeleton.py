"""Lab 5: GRPO on latents. README.md tells the problems.

Q questions, G samples of each, R = Q · G samples, n latents (or decisions, or tokens) of all samples, C width.
"""


from torch import Tensor


def group_advantage(rewards: Tensor, eps: float = 1e-6) -> Tensor:
    """(r - mean) / (std + ε) of each question's group; std divides by G, not by G - 1.
    rewards (Q, G) -> (Q, G)."""
    raise NotImplementedError


def latent_log_density(z: Tensor, mu: Tensor, log_sigma: Tensor, std: float, reduce: str) -> Tensor:
    """log N(z / std; μ, σ) of each latent, over its width summed ("sum": the log of the density) or averaged ("mean": the
    release). With the constant. The gradient reaches μ and log σ, and never z, which was drawn.
    z, mu, log_sigma (n, C) -> (n,)."""
    raise NotImplementedError


def decision_log_prob(logits: Tensor, ended: Tensor, end: int) -> Tensor:
    """How likely each decision was that was drawn at a latent: log p(end) where the chain ended there, else
    log(1 - p(end)), finite even where p(end) rounds to 1.
    logits (n, V), ended bool (n,) -> (n,)."""
    raise NotImplementedError


def clipped_surrogate(new: Tensor, old: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """min(ρA, clip(ρ, 1 - clip, 1 + clip) A) with ρ = exp(new - old), to be made large. The gradient reaches `new` only.
    new, old log-probabilities, advantage (n,) -> (n,)."""
    raise NotImplementedError


def sample_means(values: Tensor, sample: Tensor, samples: int) -> Tensor:
    """The mean of each sample's values, 0 of a sample without any.
    values (n,), sample (n,) which sample each belongs to, in any order -> (samples,)."""
    raise NotImplementedError


def objective(parts: dict[str, tuple[Tensor, Tensor, Tensor]], advantage: Tensor, clip: float) -> Tensor:
    """J: for each sample the mean of the clipped surrogate over its latents, plus that over its decisions, plus that over
    its answer's tokens; of this the mean over all samples. To be made large.
    parts: name -> (new, old, sample), (n,) each, n another for each part. advantage (R,): of each sample -> ()."""
    raise NotImplementedError
