"""What is measured on latent chains: how many tokens a step holds, and how many chains are followed at once.

Symbols: B questions, N steps of thinking, V vocabulary, T tokens of a reference chain, M valid chains of one
question. Rows are padded on the right; `steps` (B,) and `chain_len` give the lengths without padding.
"""

import torch
from torch import Tensor

from ..latent import entropy


def to_hex(flags: list[bool]) -> str:
    """Flags as hexadecimal digits, four a digit, the first in the highest bit; padded with 0."""
    bits = "".join("1" if flag else "0" for flag in flags)
    bits += "0" * (-len(bits) % 4)
    return "".join(f"{int(bits[at : at + 4], 2):x}" for at in range(0, len(bits), 4))


def from_hex(digits: str, n: int) -> list[bool]:
    """The n flags that `to_hex` wrote."""
    return [bit == "1" for digit in digits for bit in f"{int(digit, 16):04b}"][:n]


def align(width: int, chain_len: Tensor, steps: Tensor, ratio: int) -> tuple[Tensor, Tensor]:
    """The step of thinking that each token of a chain belongs to, (..., width), and which tokens are real.

    The chain is cut into segments of r' = max(r, ⌈T / N⌉) tokens, and segment t belongs to step t. A model
    that takes as many steps as in training (⌈T / r⌉) or more is judged by the segments of training; steps
    beyond the last have none. A model that takes fewer steps has to hold more tokens in each. This is our
    reading of the paper's "fixed-length segmentation": with r' = r throughout no step could hold more than r
    tokens, but the paper finds more.
    """
    length = (-(-chain_len // steps.clamp(min=1))).clamp(min=ratio)  # (...,) r'
    token = torch.arange(width, device=chain_len.device)
    step = token // length[..., None]  # (..., width)
    real = token < chain_len[..., None]
    return step.masked_fill(~real, 0), real


def ecr(top: Tensor, steps: Tensor, chain: Tensor, chain_len: Tensor, ratio: int, ks: list[int]) -> Tensor:
    """ECR@K, the effective compression rate (B, len(ks)): how many tokens of segment S_t are among the K
    most likely entries of step t's distribution, averaged over the question's steps.

    top (B, N, max K) token ids, the most likely first; steps (B,); reference chain (B, T), chain_len (B,)

    ECR@K grows with K for a model that has understood nothing, too. The control offers the most frequent
    tokens of the training chains at every step. A token that a segment repeats counts each time. Explicit CoT
    is judged against its own chain, where each token was the most likely of its step: 1 for every K.
    """
    step, real = align(chain.shape[1], chain_len, steps, ratio)  # (B, T)
    offered = top[torch.arange(len(top))[:, None], step]  # (B, T, K)
    found = (offered == chain[:, :, None]) & real[:, :, None]
    by_rank = found.sum(1).cumsum(-1)  # (B, K) among the first 1, 2, ..
    return by_rank[:, [k - 1 for k in ks]] / steps.clamp(min=1)[:, None]


def chain_weights(
    probs: Tensor, steps: Tensor, chains: Tensor, chain_len: Tensor, ratio: int, distinct: bool = False
) -> Tensor:
    """The share of a latent chain's mass that goes to each valid chain of the question, w (B, M).

    The score of a chain is the probability that step t gives to the tokens of the chain's segment t, averaged
    over the steps; a token that a segment repeats counts once. w is the score, normalised to sum 1. The paper
    describes this in words; the formula is our reading. `distinct` leaves out the tokens that all chains of a
    question have in the same step (<<, =, >>, an operator): they raise every score alike.

    probs (B, N, V), steps (B,), chains (B, M, T), chain_len (B, M) with 0 where a question has fewer chains
    """
    step, real = align(chains.shape[2], chain_len, steps[:, None], ratio)  # (B, M, T)
    row = torch.arange(len(probs))[:, None, None].expand_as(step)
    same = (chains[..., :, None] == chains[..., None, :]) & (step[..., :, None] == step[..., None, :])
    counts = real & ~same.tril(-1).any(-1)  # (B, M, T) the token's first occurrence in its segment
    if distinct:
        having = torch.zeros(probs.shape, dtype=torch.int)  # (B, N, V) chains with this token in this step
        having.index_put_((row, step, chains), counts.int(), accumulate=True)
        counts &= having[row, step, chains] < (chain_len > 0).sum(1)[:, None, None]
    score = (probs[row, step, chains] * counts).sum(-1) / steps.clamp(min=1)[:, None]  # (B, M)
    score = torch.where(chain_len > 0, score + 1e-12, 0)  # without any mass: equal weights
    return score / score.sum(-1, keepdim=True)


def parallelism(weights: Tensor) -> dict[str, Tensor]:
    """From weights (B, M): the effective number of chains followed at once, N_eff = 1 / Σ w², and the Top-2
    Score w_(2) / w_(1). The paper calls a question parallel from N_eff 1.7 on.

    Never read N_eff alone. The chains of a question share many tokens, so a model that knows nothing comes
    near M, and so does one that follows a single chain. Hence `distinct` above, and the two controls of
    evaluation.py: the same latents against another question's chains, and latents that hold a single chain.
    """
    first, second = weights.topk(2, dim=-1).values.unbind(-1)
    return {"n_eff": 1 / weights.pow(2).sum(-1), "top2": second / first}


def one_path(shape: torch.Size, steps: Tensor, chain: Tensor, chain_len: Tensor, ratio: int) -> Tensor:
    """The distributions (B, N, V) of latents that hold a single chain: each step is the uniform mixture of
    its segment's tokens. A control for N_eff. chain (B, T), chain_len (B,)"""
    step, real = align(chain.shape[1], chain_len, steps, ratio)  # (B, T)
    row = torch.arange(len(chain))[:, None].expand_as(step)
    held = torch.zeros(shape)
    held[row[real], step[real], chain[real]] = 1.0
    return held / held.sum(-1, keepdim=True).clamp(min=1)


def mean_entropy(probs: Tensor, steps: Tensor) -> Tensor:
    """The entropy of the steps' distributions (B, N, V), averaged over the steps of each question, (B,)."""
    real = torch.arange(probs.shape[1]) < steps[:, None]  # (B, N)
    return (entropy(probs) * real).sum(1) / steps.clamp(min=1)


def partners(size: Tensor, allowed: Tensor) -> Tensor:
    """Another question for each of n questions: an allowed one, allowed[i, j] (n, n), of the nearest size
    (n,); of several the next in order. Returns (n,) indices, -1 where none is allowed."""
    n = len(size)
    index = torch.arange(n)
    if n == 0:
        return index
    distance = (index - index[:, None]) % n  # (n, n) in order; 0 is the question itself
    cost = (size[:, None] - size).abs() * n + distance
    impossible = torch.iinfo(torch.long).max
    best = cost.masked_fill(~allowed | (distance == 0), impossible).min(1)
    return torch.where(best.values < impossible, best.indices, -1)
