"""Lab 3: compression and the latent head. README.md describes the problems.

B rows, C width, c compression factor, n blocks: those of all rows of a batch, in reading order.
"""

import math

import torch
from torch import Tensor


def to_blocks(chains: list[list[int]], c: int, pad: int) -> tuple[Tensor, list[int]]:
    """The chains cut into blocks of c tokens, one block per row; the last block of a chain may be shorter and
    is filled with `pad`. An empty chain has no block.
    -> int64 (n, c), and the number of blocks of each chain."""
    # BEGIN SOLUTION
    blocks = [[chain[at : at + c] for at in range(0, len(chain), c)] for chain in chains]
    rows = [block + [pad] * (c - len(block)) for chain in blocks for block in chain]
    return torch.tensor(rows, dtype=torch.long).view(-1, c), [len(chain) for chain in blocks]
    # END SOLUTION


def compress(embeds: Tensor, real: Tensor) -> Tensor:
    """One latent per block: the sum of its tokens' embeddings / √(number of real tokens). The gradient
    reaches the embeddings.
    embeds (n, c, C), real (n, c) True = a token, at least one per row -> (n, C)."""
    # BEGIN SOLUTION
    count = real.sum(1, keepdim=True)  # (n, 1)
    total = torch.where(real[:, :, None], embeds, 0).sum(1)  # (n, C)
    return total / count.to(embeds.dtype).sqrt()
    # END SOLUTION


def random_labels(blocks: Tensor, real: Tensor, generator: torch.Generator) -> Tensor:
    """One of each block's real tokens, all equally likely, sampled from `generator`.
    blocks (n, c), real (n, c): True for the first one to c places of a row -> (n,)."""
    # BEGIN SOLUTION
    count = real.sum(1)  # (n,)
    chosen = (torch.rand(len(blocks), generator=generator, dtype=torch.float64) * count).long()
    return blocks.gather(1, chosen[:, None])[:, 0]
    # END SOLUTION


def next_targets(z: Tensor, counts: list[int], end: Tensor, std: float) -> Tensor:
    """What the latent head has to predict, row after row: at <think> and at z_1 .. z_N of each row the *next*
    one of z_1 .. z_N, end. Divided by `std`; no gradient flows through a target.
    z (n, C) the latents of all rows, counts[b] of row b; end (C,) the embedding of </think> -> (n + B, C)."""
    # BEGIN SOLUTION
    rows = [torch.cat([row, end[None]]) for row in z.split(counts)]
    return (torch.cat(rows) / std).detach()
    # END SOLUTION


def gaussian_nll(mu: Tensor, log_sigma: Tensor, target: Tensor) -> Tensor:
    """Mean over positions and width of (e - μ)² / 2σ² + log σ: the constant ½ log 2π is left out.
    mu, log_sigma, target (m, C) -> ()."""
    # BEGIN SOLUTION
    return ((target - mu).square() / (2 * (2 * log_sigma).exp()) + log_sigma).mean()
    # END SOLUTION


def soft_mse(mu: Tensor, log_sigma: Tensor, target: Tensor, alpha: float = 0.0) -> Tensor:
    """Mean over positions and width of E_ε[(μ + σε - e)²] - α · H, in closed form; ε ~ N(0, 1), H = ½ log(2πe
    σ²).
    With α = 0 it is finite at σ = 0, too, and so is its gradient. mu, log_sigma, target (m, C) -> ()."""
    # BEGIN SOLUTION
    squared = (target - mu).square() + (2 * log_sigma).exp()
    if alpha:
        squared = squared - alpha * (0.5 * math.log(2 * math.pi * math.e) + log_sigma)
    return squared.mean()
    # END SOLUTION


def next_input(
    mu: Tensor, log_sigma: Tensor, std: float, temperature: float, generator: torch.Generator
) -> Tensor:
    """What is fed back at inference: (μ + temperature · σ · ε) · std, ε one torch.randn of μ's shape and
    dtype from `generator`. With temperature 0 it is μ · std, and σ may be anything.
    mu, log_sigma (b, C) -> (b, C)."""
    # BEGIN SOLUTION
    if temperature > 0:
        mu = mu + temperature * log_sigma.exp() * torch.randn(mu.shape, generator=generator, dtype=mu.dtype)
    return mu * std
    # END SOLUTION
