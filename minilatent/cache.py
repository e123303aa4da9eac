"""Keys and values of earlier positions, for decoding row by row of different lengths."""

from copy import copy

import torch
from torch import Tensor

from .model import ModelConfig, Transformer

PREFILL_ROWS = 32  # questions that are read side by side: few, so that little is padding


class KVCache:
    """Preallocated keys and values with a length per row, so that ragged rows decode side by side.

    Row b holds lengths[b] valid positions; what comes after is garbage that the next write overwrites
    and that no mask ever shows.
    """

    def __init__(self, config: ModelConfig, rows: int, capacity: int, device=None, dtype=None):
        self.capacity, self.fixed = capacity, False  # fixed: all places count as used (fast.py)
        shape = (config.n_layer * config.loops, rows, config.n_kv_head, capacity, config.head_dim)
        self.k = torch.zeros(shape, device=device, dtype=dtype)
        self.v = torch.zeros(shape, device=device, dtype=dtype)
        self.lengths = torch.zeros(rows, dtype=torch.long, device=device)

    def end(self, new: int) -> int:
        """The places in use when `new` more positions are written. ValueError if there are not as many."""
        end = self.capacity if self.fixed else int(self.lengths.max()) + new
        if end > self.capacity:
            raise ValueError(f"the cache holds {self.capacity} positions, {end} are needed")
        return end

    def write(self, layer: int, k: Tensor, v: Tensor, slots: Tensor | None, end: int) -> tuple:
        """Put k, v (B, G, T, D) at slots (B, T); return all keys and values up to `end`, (B, G, end, D).
        Without slots they are the first."""
        if slots is None:
            self.k[layer, :, :, :end], self.v[layer, :, :, :end] = k, v
            return k, v
        rows = torch.arange(len(slots), device=slots.device)[:, None]
        self.k[layer][rows, :, slots] = k.transpose(1, 2)  # (B, T, G, D)
        self.v[layer][rows, :, slots] = v.transpose(1, 2)
        return self.k[layer, :, :, :end], self.v[layer, :, :, :end]

    def part(self, first: int, last: int) -> "KVCache":
        """Rows first to last - 1 as a cache, an empty one, that writes to the same memory."""
        part = copy(self)
        part.k, part.v = self.k[:, first:last], self.v[:, first:last]
        part.lengths = torch.zeros_like(self.lengths[first:last])
        return part

    def select(self, rows: Tensor) -> None:
        """Reorder the rows: the new row i is the old row rows[i]. Rows may be dropped or repeated. Only rows
        that move are copied."""
        n, end = len(rows), int(self.lengths.max())
        self.lengths = self.lengths[rows]
        if n > self.k.shape[1]:
            self.k, self.v = self.k[:, rows], self.v[:, rows]
            return
        moved = (rows != torch.arange(n, device=rows.device)).nonzero()[:, 0]
        for x in (self.k, self.v):
            x[:, moved, :, :end] = x[:, rows[moved], :, :end]
        self.k, self.v = self.k[:, :n], self.v[:, :n]

    def drop(self, done: Tensor) -> Tensor:
        """Finished rows (b,) go, of a fixed cache when they are more than half. Returns which stay."""
        few = self.fixed and 2 * int(done.sum()) <= len(done)
        alive = without(torch.zeros_like(done) if few else done)
        if len(alive) < len(done):
            self.select(alive)
        return alive


def prefill(model: Transformer, prefix: Tensor, lengths: Tensor, cache: KVCache) -> tuple[Tensor, Tensor]:
    """Read the questions into an empty cache, sorted by length: rows of similar length share a batch, so that
    little of it is padding. Returns the hidden state at the end of each question (Q, C), and the order (Q,):
    row i of these states and of the cache belongs to question order[i]."""
    order = lengths.argsort(stable=True)
    hidden = torch.empty_like(prefix[:, 0])
    for first in range(0, len(order), PREFILL_ROWS):
        chosen = order[first : first + PREFILL_ROWS]
        n, last = lengths[chosen], first + len(chosen)
        part = prefix[chosen, : int(n.max())]
        read = model(embeds=part, cache=cache.part(first, last))
        hidden[first:last] = read[torch.arange(len(chosen), device=prefix.device), n - 1]
    cache.lengths = lengths[order]
    return hidden, order


def without(done: Tensor) -> Tensor:
    """Indices of the rows that go on. The last ones fill the gaps that finished ones leave and all others
    stay where they are, so that little of the cache is moved."""
    alive = (~done).nonzero()[:, 0]
    gaps = done[: len(alive)].nonzero()[:, 0]  # as many as there are living rows behind
    order = torch.arange(len(alive), device=done.device)
    order[gaps] = alive[len(alive) - len(gaps) :]
    return order
