"""What is measured. Accuracy with its interval, the length of reasoning, and what a latent chain holds.

Symbols: B questions, N steps of thinking, V vocabulary, T tokens of a reference chain, M chains of one question.
Rows are padded on the right; `steps` (B,) and `chain_len` say how much of a row is real.
"""


import torch
from torch import Tensor

from ..latent import entropy


def to_hex(flags: list[bool]) -> str:
    """Flags as hexadecimal digits, four in each, the first flag its highest bit; the last digit is filled with 0."""
    bits = "".join("01"[bool(f)] for f in flags)
    return "".join(f"{int(bits[at : at + 4].ljust(4, '0'), 2):x}" for at in range(0, len(bits), 4))


def from_hex(digits: str, n: int) -> list[bool]:
    """The n flags that to_hex wrote."""
    return [bit == "1" for digit in digits for bit in f"{int(digit, 16):04b}"][:n]


def align(width: int, chain_len: Tensor, steps: Tensor, ratio: int) -> tuple[Tensor, Tensor]:
    """Which step of thinking each of a chain's tokens belongs to, (..., width), and which of them are real.

    The chain is cut into segments of r' = max(r, ⌈T / N⌉) tokens and segment t goes with step t. A model that took
    as many steps as it was trained to (⌈T / r⌉) or more is judged by the very segments of training, steps beyond
    the last having none; one that took fewer has to hold more tokens in a step. That is our reading of "fixed-length
    segmentation": with r' = r throughout, no step could hold more than r tokens, but the paper sees that it can.
    """
    length = (-(-chain_len // steps.clamp(min=1))).clamp(min=ratio)  # (...,) r'
    token = torch.arange(width, device=chain_len.device)
    step = token // length[..., None]  # (..., width)
    real = token < chain_len[..., None]
    return step.masked_fill(~real, 0), real


def ecr(
    top: Tensor, steps: Tensor, chain: Tensor, chain_len: Tensor, ratio: int, ks: tuple[int, ...]
) -> Tensor:
    """ECR@K, the effective compression rate: how many tokens of segment S_t are among the K likeliest entries of
    step t's full softmax, averaged over a question's steps. (B, len(ks))

    top     (B, N, max K) ids, the likeliest first. For the control, the most frequent tokens of the training
            chains at every step: what is found without having understood anything. ECR@K grows with K by definition.
    steps   (B,); chain (B, T) and chain_len (B,) the reference

    A token that a segment repeats counts each time. Explicit CoT is judged against its own chain, where each token
    was its step's likeliest: 1 by construction, for every K.
    """
    step, real = align(chain.shape[1], chain_len, steps, ratio)  # (B, T)
    offered = top[torch.arange(len(top))[:, None], step]  # (B, T, K)
    found = (offered == chain[:, :, None]) & real[:, :, None]
    by_rank = found.sum(1).cumsum(-1)  # (B, K) among the first 1, 2, ..
    return by_rank[:, [k - 1 for k in ks]] / steps.clamp(min=1)[:, None]


def chain_weights(
    probs: Tensor, steps: Tensor, chains: Tensor, chain_len: Tensor, ratio: int, distinct: bool = False
) -> Tensor:
    """How much of a latent chain's mass goes to each of the question's valid chains: w (B, M), each row summing to 1.

    A chain's score is the mean over steps of the mass that the step's distribution gives to the tokens of the
    chain's segment, a token that the segment repeats counted once; w is the score by plain normalisation.
    The paper's exact formulas are not at hand: this is our reading of its text.

    probs (B, N, V), steps (B,), chains (B, M, T), chain_len (B, M) with 0 where a question has fewer chains
    distinct: leave out the tokens that all chains of the question have in the same step (<<, =, >>, an operator):
              they raise every score alike and cannot tell which chain is followed
    """
    step, real = align(chains.shape[2], chain_len, steps[:, None], ratio)  # (B, M, T)
    row = torch.arange(len(probs))[:, None, None].expand_as(step)
    same = (chains[..., :, None] == chains[..., None, :]) & (step[..., :, None] == step[..., None, :])
    counts = real & ~same.tril(-1).any(-1)  # (B, M, T) not seen before in its segment
    if distinct:
        having = torch.zeros(probs.shape, dtype=torch.int).index_put(
            (row, step, chains), counts.int(), accumulate=True
        )
        counts &= having[row, step, chains] < (chain_len > 0).sum(1)[:, None, None]
    score = (probs[row, step, chains] * counts).sum(-1) / steps.clamp(min=1)[:, None]  # (B, M)
    score = torch.where(chain_len > 0, score + 1e-12, 0)  # no mass at all: even weights
    return score / score.sum(-1, keepdim=True)


def parallelism(weights: Tensor) -> dict[str, Tensor]:
    """From weights (B, M): N_eff = 1 / Σ w² and exp(entropy), two effective numbers of chains followed at once, and
    the Top-2 Score w_(2) / w_(1). The paper calls a question parallel from N_eff 1.7 on.

    Never read N_eff alone: the chains of a question share many tokens, so that a model which knows nothing comes
    near M, and so does one that follows a single chain. Hence `distinct` above, and the two controls of evaluate.py:
    the same latents against another question's chains, and latents that hold one chain and nothing else.
    """
    first, second = weights.topk(2, dim=-1).values.unbind(-1)
    return {
        "n_eff": 1 / weights.pow(2).sum(-1),
        "n_eff_entropy": entropy(weights).exp(),
        "top2": second / first,
    }


def one_path(shape: torch.Size, steps: Tensor, chain: Tensor, chain_len: Tensor, ratio: int) -> Tensor:
    """The distributions (B, N, V) of latents that hold one chain and nothing else: at each step the uniform mixture
    of its segment's tokens. A control for N_eff. chain (B, T), chain_len (B,)"""
    step, real = align(chain.shape[1], chain_len, steps, ratio)  # (B, T)
    row = torch.arange(len(chain))[:, None].expand_as(step)
    held = torch.zeros(shape)
    held[row[real], step[real], chain[real]] = 1.0
    return held / held.sum(-1, keepdim=True).clamp(min=1)


def concentration(probs: Tensor, steps: Tensor, k: int) -> dict[str, Tensor]:
    """How mixed the latents are, means over a question's steps, (B,) each: entropy of the full softmax, entropy of
    the k-mixture (what Latent-SFT feeds), and the share of the mixture's largest entry. probs (B, N, V)"""
    best = probs.topk(min(k, probs.shape[-1]), dim=-1).values  # (B, N, k)
    mixture = best / best.sum(-1, keepdim=True).clamp(min=1e-30)  # rows behind `steps` are all 0
    per_step = {"entropy": entropy(probs), "entropy_mixture": entropy(mixture), "top1": mixture[..., 0]}
    real = torch.arange(probs.shape[1]) < steps[:, None]  # (B, N)
    return {name: (value * real).sum(1) / steps.clamp(min=1) for name, value in per_step.items()}


def partners(size: Tensor, allowed: Tensor) -> Tensor:
    """Another question for each of n: one that is allowed[i, j] (n, n), of the nearest size (n,), the next in
    order among those. (n,) indices, -1 where there is none."""
    n = len(size)
    index = torch.arange(n)
    away = (index - index[:, None]) % max(n, 1)  # (n, n) 0 = itself
    cost = (size[:, None] - size).abs() * n + away
    cost = cost.masked_fill(~allowed | (away == 0), torch.iinfo(torch.long).max)
    best = cost.min(1) if n else None
    return torch.where(best.values < torch.iinfo(torch.long).max, best.indices, -1) if n else index
