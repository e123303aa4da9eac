"""Lab 4: the latent decoding loop, batched and with a KV cache. README.md describes the problems; toy.py has
the model.

B rows, T new positions, S places in the cache, C width, V vocabulary.
"""

import torch
from torch import Tensor
from toy import Toy, superpose


def write(cache: Tensor, new: Tensor, lengths: Tensor) -> None:
    """Put the T new vectors of row b at places lengths[b] .. lengths[b] + T - 1 of its cache, in place;
    nothing else changes. cache (B, S, C), new (B, T, C), lengths (B,)."""
    raise NotImplementedError


def cache_mask(lengths: Tensor, T: int, S: int) -> Tensor:
    """What T new positions, written after the lengths[b] entries of row b, may attend to: the row's own
    places up to and including themselves. lengths (B,) -> bool (B, T, S)."""
    raise NotImplementedError


def decide(token: Tensor, thinking: Tensor, steps: Tensor, end: int, max_chain: int) -> tuple[Tensor, Tensor]:
    """Which rows collapse now and which continue to think; a row that no longer thinks does neither. A row
    collapses when its most likely token is `end`, or when it has taken max_chain steps.
    token, steps (B,), thinking bool (B,) -> collapse, goes_on, bool (B,) each."""
    raise NotImplementedError


def next_input(
    logits: Tensor, collapse: Tensor, goes_on: Tensor, table: Tensor, k: int, end: int, never: list[int]
) -> tuple[Tensor, Tensor]:
    """What is fed next, (B, C), and the token that stands for it, (B,). A row that continues is fed the
    superposition of its k most likely tokens, and its token is the most likely one; a row that collapses is
    fed `end`; any other row is fed its most likely token. Tokens of `never` are neither chosen nor mixed in.
    logits (B, V), collapse, goes_on bool (B,), table (V, C)."""
    raise NotImplementedError


@torch.no_grad()
def decode(
    model: Toy,
    prefix: Tensor,
    lengths: Tensor,
    k: int,
    end: int,
    eos: int,
    pad: int,
    never: list[int],
    max_chain: int,
    max_answer: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Every row thinks in latents until it collapses, is fed `end`, and generates its answer until `eos` or
    until it has max_answer tokens. Rows do this side by side, each at its own pace, and equal `naive_decode`
    of each alone. The prefix goes through the model once; then every pass is over one new position per row.

    prefix (B, T, C) embeddings of `Q <think>`, lengths[b] of them real, the rest padding on the right
    -> steps (B,), the number of latents; answers (B, max_answer), `pad` after their end; latents (B,
    max_chain, C), zeros after a row's last.
    """
    raise NotImplementedError
