"""Training through a chain of latents: one pass after the other, with the gradient through all of them."""

from collections.abc import Callable

import torch
from torch import Tensor

from .masks import PAD, causal
from .model import Transformer


class GrowingCache:
    """Keys and values that grow by concatenation instead of being written in place, so that gradients flow
    through them: for training through one latent after another. Every row has the same length; the caller's
    mask and positions say what of it is padding."""

    def __init__(self, rows: int, device=None):
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}
        self.lengths = torch.zeros(rows, dtype=torch.long, device=device)

    def end(self, new: int) -> int:
        return new + (self.layers[0][0].shape[2] if self.layers else 0)

    def write(self, layer: int, k: Tensor, v: Tensor, slots: Tensor | None, end: int) -> tuple:
        """Append k, v (B, G, T, D); return all so far, (B, G, end, D)."""
        if layer in self.layers:
            k, v = (torch.cat([old, new], dim=2) for old, new in zip(self.layers[layer], (k, v)))
        self.layers[layer] = k, v
        return k, v


def think_through(
    model: Transformer, ids: Tensor, latent: int, pad: int, latent_of: Callable, states: list | None = None
) -> Tensor:
    """Hidden states (B, T, C) of rows that think in latents, each made from the one before: that in slot
    t is latent_of(hidden state at t - 1). One pass follows another, and the gradient goes back through all.

        ids    .  .  Q  Q  <think>  L  L  L  </think>  4  2  <eos>     padded on the left up to the latents:
               Q  Q  Q  Q  <think>  L  L  L  </think>  7  <eos>  .     same columns in every row
        pass   1  1  1  1  1        2  3  4  5         5  5  5

    ids (B, T) with `latent` in the slots and `pad` on both sides. No position attends to padding, and
    positions do not count it. states gets every block's output over what follows the latents.
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
        hidden.append(run(t, t + 1, embeds=latent_of(hidden[-1][:, -1:])))  # (B, 1, C)
    after = slots[-1] + 1
    hidden.append(run(after, ids.shape[1], ids=ids[:, after:], states=states))
    return torch.cat(hidden, dim=1)
