"""Latents: points in the space of the input embeddings that are no single token's."""

import torch
from torch import Tensor


def top_k(logits: Tensor, k: int, never: list[int] | Tensor) -> tuple[Tensor, Tensor]:
    """The k most likely entries, renormalised by a softmax over these k: α (..., k) and ids (..., k), the
    most likely first. `never`: token ids that may not be mixed in (the latent marker, padding)."""
    banned = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
    banned[never] = True
    best, ids = logits.masked_fill(banned, float("-inf")).topk(min(k, logits.shape[-1] - len(never)), dim=-1)
    return best.softmax(-1), ids


def mix(probs: Tensor, ids: Tensor, embedding: Tensor) -> Tensor:
    """z = Σ_j α_j e_j: (..., k) probabilities and ids, (V, C) embeddings -> (..., C). The gradient flows to α
    only: the table that a mixture reads is never trained through it."""
    return torch.einsum("...k,...kc->...c", probs.to(embedding.dtype), embedding.detach()[ids])


def superpose(
    logits: Tensor, embedding: Tensor, k: int, never: list[int] | Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (..., V) -> z (..., C), α (..., k), ids (..., k)."""
    probs, ids = top_k(logits, k, never)
    return mix(probs, ids, embedding), probs, ids


NOISE_FLOOR = -1.5


def gumbel(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Gumbel(0, 1) noise. generator on the CPU, so that a seed means the same noise on every device."""
    uniform = torch.rand(shape, generator=generator).clamp(1e-10, 1 - 1e-7)
    return -torch.log(-torch.log(uniform))


def clamped_gumbel(shape: tuple[int, ...], generator: torch.Generator, scale: float = 1.0) -> Tensor:
    """clamp(s·g, -1.5, 3), g ~ Gumbel(0, 1)."""
    return (scale * gumbel(shape, generator)).clamp(NOISE_FLOOR, 3)


def gumbel_noise(
    probs: Tensor,
    ids: Tensor,
    owner: Tensor,
    end: int,
    generator: torch.Generator,
    scale: float = 1.0,
    tau: float = 1.0,
    tries: int = 100,
) -> Tensor:
    """α̃ = softmax((log α + clamp(s·g, -1.5, 3)) / τ), g ~ Gumbel(0, 1). Latent-SFT v2; the clamp is the
    release's.

    probs, ids  (n, k) of all the latents of a batch; owner (n,): the question of each
    end         `</think>`: where it would come out on top anywhere in a chain, the whole chain is sampled
                again, at most `tries` times; a chain that never passes keeps its noiseless α
    """
    out, todo = probs.clone(), torch.ones_like(owner, dtype=torch.bool)
    for _ in range(tries):
        if not todo.any():
            break
        noise = clamped_gumbel(probs.shape, generator, scale).to(probs.device)
        noisy = ((probs.clamp(min=1e-30).log() + noise) / tau).softmax(-1)  # (n, k)
        ends = ids.gather(1, noisy.argmax(-1, keepdim=True))[:, 0] == end  # (n,) the guard
        ending = torch.zeros(int(owner.max()) + 1, device=owner.device).index_add(0, owner, ends.float())
        again = ending[owner] > 0  # (n,)
        out = torch.where((todo & ~again)[:, None], noisy, out)
        todo = todo & again
    return out


def compress(embeds: Tensor, real: Tensor, pooling: str = "sqrt") -> Tensor:
    """One latent per block of c consecutive token embeddings: their sum / √c (CoLaR, eq. 2). c counts the
    block's real tokens: a shorter last block is divided by its own root.

    The sum of c independent vectors of variance v has variance c · v: the sum / √c looks like an embedding
    to the model that reads it, the mean (pooling="mean", the ablation) is √c too small.
    embeds (n, c, C), real (n, c) True = a token, False = padding -> (n, C)
    """
    count = real.sum(1, keepdim=True)  # (n, 1)
    total = (embeds * real[:, :, None]).sum(1)  # (n, C)
    return total / (count.to(embeds.dtype).sqrt() if pooling == "sqrt" else count)  # eq. 2


def entropy(probs: Tensor) -> Tensor:
    """In nats, over the last dimension."""
    return -torch.special.xlogy(probs, probs).sum(-1)
