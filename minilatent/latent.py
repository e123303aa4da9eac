"""Latents: points in the space of the input embeddings that are no single token's."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from .masks import PAD, causal
from .model import GrowingCache, Transformer


def top_k(logits: Tensor, k: int, never: list[int]) -> tuple[Tensor, Tensor]:
    """The k likeliest entries, renormalised by a softmax over these k: α (..., k) and ids (..., k), the likeliest first.
    `never`: token ids that may not be mixed in (the latent marker, padding)."""
    banned = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
    banned[never] = True
    best, ids = logits.masked_fill(banned, float("-inf")).topk(min(k, logits.shape[-1] - len(never)), dim=-1)
    return best.softmax(-1), ids


def mix(probs: Tensor, ids: Tensor, embedding: Tensor) -> Tensor:
    """z = Σ_j α_j e_j: (..., k) probabilities and ids, (V, C) embeddings -> (..., C). The gradient flows to α
    only: the table that a mixture reads is never trained through it."""
    return torch.einsum("...k,...kc->...c", probs.to(embedding.dtype), embedding.detach()[ids])


def superpose(logits: Tensor, embedding: Tensor, k: int, never: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (..., V) -> z (..., C), α (..., k), ids (..., k)."""
    probs, ids = top_k(logits, k, never)
    return mix(probs, ids, embedding), probs, ids


NOISE_FLOOR = -1.5


def clamped_gumbel(shape: tuple[int, ...], generator: torch.Generator, scale: float = 1.0) -> Tensor:
    """clamp(s·g, -1.5, 3), g ~ Gumbel(0, 1). generator on the CPU, so that a seed means the same noise on every device."""
    uniform = torch.rand(shape, generator=generator).clamp(1e-10, 1 - 1e-7)
    return (scale * -torch.log(-torch.log(uniform))).clamp(NOISE_FLOOR, 3)


def gumbel_noise(
    probs: Tensor,
    ids: Tensor,
    chain: Tensor,
    end: int,
    generator: torch.Generator,
    scale: float = 1.0,
    tau: float = 1.0,
    tries: int = 100,
) -> Tensor:
    """α̃ = softmax((log α + clamp(s·g, -1.5, 3)) / τ), g ~ Gumbel(0, 1) (Latent-SFT v2; the clamp is the release's).

    probs, ids  (n, k) of all the latents of a batch; chain (n,) says which question each belongs to
    end         `</think>`: where it would come out on top anywhere in a chain, the whole chain is drawn again, at
                most `tries` times; a chain that never passes keeps its noiseless α
    generator   see clamped_gumbel
    """
    out, todo = probs.clone(), torch.ones_like(chain, dtype=torch.bool)
    for _ in range(tries):
        if not todo.any():
            break
        noise = clamped_gumbel(probs.shape, generator, scale).to(probs.device)
        noisy = ((probs.clamp(min=1e-30).log() + noise) / tau).softmax(-1)  # (n, k)
        ends = ids.gather(1, noisy.argmax(-1, keepdim=True))[:, 0] == end  # (n,) the guard
        again = (
            torch.zeros(int(chain.max()) + 1, device=chain.device).index_add(0, chain, ends.float())[chain]
            > 0
        )
        out = torch.where((todo & ~again)[:, None], noisy, out)
        todo = todo & again
    return out


def compress(embeds: Tensor, real: Tensor, pooling: str = "sqrt") -> Tensor:
    """One latent a block of c consecutive token embeddings: their sum / √c, c counting the real ones (CoLaR, eq. 2).

    The sum of c independent vectors of variance v has variance c · v: the sum / √c looks like an embedding to the
    model that reads it, the mean (pooling="mean", the ablation) is √c too small.
    embeds (n, c, C), real (n, c) True = a token, False = padding -> (n, C)
    """
    count = real.sum(1, keepdim=True)  # (n, 1)
    total = (embeds * real[:, :, None]).sum(1)  # (n, C)
    return total / (count.to(embeds.dtype).sqrt() if pooling == "sqrt" else count)


class LatentHead(nn.Module):
    """From a hidden state to a diagonal Gaussian over the next latent: μ and log σ, (..., C) each (CoLaR, section 3.2).
    deterministic: μ alone, σ = 0 (the ablation). floor: what σ never falls below. In full precision: a density is sensitive."""

    def __init__(self, width: int, hidden: int, deterministic: bool = False, floor: float = 0.0):
        super().__init__()
        self.floor = floor
        self.body = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.LayerNorm(hidden)
        )
        self.mu = nn.Linear(hidden, width)
        self.log_sigma = None if deterministic else nn.Linear(hidden, width)

    def init_weights(self, generator: torch.Generator) -> None:
        for name, p in self.named_parameters():
            if p.dim() > 1:
                nn.init.normal_(p, 0.0, p.shape[1] ** -0.5, generator=generator)
            elif name.endswith("bias"):
                nn.init.zeros_(p)
        if self.log_sigma is not None:
            nn.init.zeros_(
                self.log_sigma.weight
            )  # σ = 1, the targets' own: small ones by chance would rule the first steps of the NLL

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(hidden.device.type, enabled=False):
            x = self.body(hidden.to(self.mu.weight.dtype))
            mu = self.mu(x)
            log_sigma = torch.full_like(mu, float("-inf")) if self.log_sigma is None else self.log_sigma(x)
            if self.floor and self.log_sigma is not None:
                log_sigma = torch.logaddexp(log_sigma, torch.full_like(mu, math.log(self.floor)))  # σ + floor
            return mu, log_sigma


def think_through(
    model: Transformer,
    ids: Tensor,
    latent: int,
    pad: int,
    feed: Callable[[Tensor], Tensor],
    states: list[Tensor] | None = None,
) -> Tensor:
    """Hidden states (B, T, C) of rows that think in latents, each made from the one before: the latent in slot t is
    feed(hidden state at t - 1). So it takes one pass after the other, and the gradient goes back through all of them.

        ids    .  .  Q  Q  <think>  L  L  L  </think>  4  2  <eos>     padded on the left up to the latents, so that
               Q  Q  Q  Q  <think>  L  L  L  </think>  7  <eos>  .     their slots are the same columns in every row
        pass   1  1  1  1  1        2  3  4  5         5  5  5

    ids (B, T) with `latent` in the slots and `pad` on both sides. Nobody sees padding, and positions do not count it.
    states gets every block's output over what follows the latents.
    """
    real = ids != pad
    mask = causal(torch.where(real, 0, PAD))  # (B, T, T)
    positions = (real.cumsum(1) - 1).clamp(min=0)  # (B, T)
    slots = (ids[0] == latent).nonzero()[:, 0].tolist()
    cache = GrowingCache(len(ids), ids.device)

    def run(start: int, end: int, **x) -> Tensor:
        return model(**x, mask=mask[:, start:end, :end], positions=positions[:, start:end], cache=cache)

    if not slots:
        return run(0, ids.shape[1], ids=ids, states=states)
    hidden = [run(0, slots[0], ids=ids[:, : slots[0]])]  # the question sees no latent
    for t in slots:
        hidden.append(run(t, t + 1, embeds=feed(hidden[-1][:, -1:])))  # (B, 1, C)
    hidden.append(run(t + 1, ids.shape[1], ids=ids[:, t + 1 :], states=states))
    return torch.cat(hidden, dim=1)


def entropy(probs: Tensor) -> Tensor:
    """In nats, over the last dimension."""
    return -torch.special.xlogy(probs, probs).sum(-1)
