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
    # BEGIN SOLUTION
    slots = lengths[:, None] + torch.arange(new.shape[1])  # (B, T)
    cache.scatter_(1, slots[:, :, None].expand_as(new), new)
    # END SOLUTION


def cache_mask(lengths: Tensor, T: int, S: int) -> Tensor:
    """What T new positions, written after the lengths[b] entries of row b, may attend to: the row's own
    places up to and including themselves. lengths (B,) -> bool (B, T, S)."""
    # BEGIN SOLUTION
    slots = lengths[:, None] + torch.arange(T)  # (B, T)
    return torch.arange(S) <= slots[:, :, None]
    # END SOLUTION


def decide(token: Tensor, thinking: Tensor, steps: Tensor, end: int, max_chain: int) -> tuple[Tensor, Tensor]:
    """Which rows collapse now and which continue to think; a row that no longer thinks does neither. A row
    collapses when its most likely token is `end`, or when it has taken max_chain steps.
    token, steps (B,), thinking bool (B,) -> collapse, goes_on, bool (B,) each."""
    # BEGIN SOLUTION
    collapse = thinking & ((token == end) | (steps >= max_chain))
    return collapse, thinking & ~collapse
    # END SOLUTION


def next_input(
    logits: Tensor, collapse: Tensor, goes_on: Tensor, table: Tensor, k: int, end: int, never: list[int]
) -> tuple[Tensor, Tensor]:
    """What is fed next, (B, C), and the token that stands for it, (B,). A row that continues is fed the
    superposition of its k most likely tokens, and its token is the most likely one; a row that collapses is
    fed `end`; any other row is fed its most likely token. Tokens of `never` are neither chosen nor mixed in.
    logits (B, V), collapse, goes_on bool (B,), table (V, C)."""
    # BEGIN SOLUTION
    best = logits.index_fill(-1, torch.tensor(never, dtype=torch.long), float("-inf")).argmax(-1)
    token = torch.where(collapse, end, best)  # (B,)
    mixed = superpose(logits, table, k, never)  # (B, C)
    return torch.where(goes_on[:, None], mixed, table[token]), token
    # END SOLUTION


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
    # BEGIN SOLUTION
    B, T, C = prefix.shape
    S = T + max_chain + 1 + max_answer
    keys = [prefix.new_zeros(B, S, C) for _ in range(model.layers)]
    values = [prefix.new_zeros(B, S, C) for _ in range(model.layers)]

    def run(x: Tensor, filled: Tensor) -> Tensor:
        def store(layer, k, v):
            write(keys[layer], k, filled)
            write(values[layer], v, filled)
            return keys[layer], values[layer]

        positions = filled[:, None] + torch.arange(x.shape[1])  # (B, T)
        return model(x, positions, cache_mask(filled, x.shape[1], S), store)

    # What padding leaves in the cache is beyond a row's length: no mask shows it before it is overwritten.
    hidden = run(prefix, torch.zeros_like(lengths))[torch.arange(B), lengths - 1]  # (B, C)
    steps, written = torch.zeros_like(lengths), torch.zeros_like(lengths)
    answers, latents = torch.full((B, max_answer), pad), prefix.new_zeros(B, max_chain, C)
    thinking, alive = torch.ones(B, dtype=torch.bool), torch.ones(B, dtype=torch.bool)
    while True:
        logits = model.logits(hidden)
        token = logits.index_fill(-1, torch.tensor(never, dtype=torch.long), float("-inf")).argmax(-1)
        collapse, goes_on = decide(token, thinking, steps, end, max_chain)
        fed, token = next_input(logits, collapse, goes_on, model.table, k, end, never)
        latents[goes_on, steps[goes_on]] = fed[goes_on]
        steps = steps + goes_on
        answering = alive & ~thinking
        answers[answering, written[answering]] = token[answering]
        written = written + answering
        alive = alive & ~(answering & ((token == eos) | (written == max_answer)))
        thinking = goes_on
        if not alive.any():
            return steps, answers, latents
        hidden = run(fed[:, None], lengths)[:, 0]
        lengths = lengths + alive  # finished rows do not advance
    # END SOLUTION
