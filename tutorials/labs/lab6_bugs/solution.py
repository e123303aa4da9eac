"""Lab 6: find the bug. Each function below has one defect that a public implementation of these methods had.

The docstring says what the function should do. Repair the function; do not rewrite it.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

IGNORE = -100  # a label that the loss ignores


def stage_of(step: int, steps_per_epoch: int, epochs_per_stage: int) -> int:
    """The curriculum's stage at a training step, starting with 0; it grows by one every `epochs_per_stage`
    epochs.
    step counts from 0."""
    # BEGIN SOLUTION
    epoch = step // steps_per_epoch
    return math.ceil((epoch + 1) / epochs_per_stage) - 1
    # INSTEAD
    #: epoch = step // steps_per_epoch
    #: return math.ceil(epoch + 1 / epochs_per_stage) - 1
    # END SOLUTION


def flag(text: str) -> bool:
    """A switch from the command line, as in `--add_gumbel_noise False`: true, yes, on, 1 or false, no, off, 0
    in upper or lower case; ValueError for anything else."""
    # BEGIN SOLUTION
    word = text.strip().lower()
    if word in ("true", "yes", "on", "1"):
        return True
    if word in ("false", "no", "off", "0"):
        return False
    raise ValueError(f"{text!r} is neither true nor false")
    # INSTEAD
    #: word = text.strip().lower()
    #: return bool(word)
    # END SOLUTION


def labels_of(ids: Tensor, prompt: Tensor, lengths: Tensor, latent: int) -> Tensor:
    """Labels for the cross-entropy: labels[b, t] is the id that position t has to predict, that is ids[b, t +
    1], or IGNORE where t + 1 is in the prompt, is the latent marker, or is padding. Row b has prompt[b] ids
    of prompt and lengths[b] ids in all, followed by padding, *whose id is that of <eos>*.
    ids (B, T), prompt, lengths (B,) -> (B, T)."""
    # BEGIN SOLUTION
    labels = torch.full_like(ids, IGNORE)
    labels[:, :-1] = ids[:, 1:]
    following = torch.arange(1, ids.shape[1] + 1)  # (T,) the predicted position
    hidden = (following < prompt[:, None]) | (following >= lengths[:, None])  # (B, T)
    return labels.masked_fill(hidden | (labels == latent), IGNORE)
    # INSTEAD
    #: labels = torch.full_like(ids, IGNORE)
    #: labels[:, :-1] = ids[:, 1:]
    #: following = torch.arange(1, ids.shape[1] + 1)  # (T,) the predicted position
    #: hidden = following < prompt[:, None]  # (B, T)
    #: return labels.masked_fill(hidden, IGNORE)
    # END SOLUTION


def think(step: Callable[[Tensor, list], tuple[Tensor, list]], prefix: Tensor, n: int) -> Tensor:
    """n latents, each the hidden state of the position before it: the first is that of the prefix's last
    position.
    step(x, past) runs the model over the new positions x (B, T, C) after `past`, a list that is [] at the
    start, and returns their hidden states (B, T, C) and the new past.
    prefix (B, T, C) -> (B, n, C)."""
    # BEGIN SOLUTION
    hidden, past = step(prefix, [])
    latents = []
    for _ in range(n):
        latents.append(hidden[:, -1:])
        hidden, past = step(latents[-1], past)
    return torch.cat(latents, dim=1)
    # INSTEAD
    #: hidden, past = step(prefix, [])
    #: latents = []
    #: for _ in range(n):
    #:     latents.append(hidden[:, -1:])
    #:     hidden, past = step(latents[-1], [])
    #: return torch.cat(latents, dim=1)
    # END SOLUTION


def positions_of(real: Tensor) -> Tensor:
    """Positions of a padded batch; padding is on the left as for decoding, or on the right as for training. A
    row's first real token has position 0 in either case. Padding has 0 on the left, and any number from 0 up
    on the right.
    real bool (B, T) -> int64 (B, T)."""
    # BEGIN SOLUTION
    return (real.long().cumsum(1) - 1).clamp(min=0)
    # INSTEAD
    #: return torch.arange(real.shape[1]).expand(real.shape)
    # END SOLUTION


def next_logits(logits: Tensor, lengths: Tensor) -> Tensor:
    """The logits at each row's last real position; row b has lengths[b] of them, padding is on the right.
    logits (B, T, V), lengths (B,) -> (B, V)."""
    # BEGIN SOLUTION
    return logits[torch.arange(len(logits)), lengths - 1]
    # INSTEAD
    #: return logits[:, -1]
    # END SOLUTION


def load_embedding(table: Tensor, saved: Tensor) -> Tensor:
    """The saved embedding table (V_saved, C) put into one that has grown by some markers, (V, C) with V ≥
    V_saved: the saved rows, followed by the new table's own. ValueError if that is impossible: another width,
    or more saved rows than there are places."""
    # BEGIN SOLUTION
    if table.shape[1] != saved.shape[1] or len(saved) > len(table):
        raise ValueError(f"{tuple(saved.shape)} does not go into {tuple(table.shape)}")
    return torch.cat([saved, table[len(saved) :]])
    # INSTEAD
    #: if saved.shape == table.shape:
    #:     return saved.clone()
    #: return table.clone()  # strict=False: what does not fit is left out
    # END SOLUTION


def best_checkpoint(history: list[dict]) -> int:
    """The step of the checkpoint to keep: the one with the highest accuracy, the earliest if several are
    equal. Each entry has "step", "val" and "test", accuracies in 0..1."""
    # BEGIN SOLUTION
    best = max(history, key=lambda entry: (entry["val"], -entry["step"]))
    return best["step"]
    # INSTEAD
    #: best = max(history, key=lambda entry: (entry["test"], -entry["step"]))
    #: return best["step"]
    # END SOLUTION


def normalise_targets(targets: Tensor, table: Tensor) -> Tensor:
    """CoLaR's targets, divided by the standard deviation of all entries of the model's embedding table, for
    any model. No gradient reaches the table. targets (m, C), table (V, C) -> (m, C)."""
    # BEGIN SOLUTION
    return targets / table.detach().std()
    # INSTEAD
    #: return targets / 0.018  # Llama-3.2-1B
    # END SOLUTION


def accumulation_weights(losses: Tensor, counts: Tensor, accumulate: int) -> list[float]:
    """Weights for gradient accumulation. A batch is split into `accumulate` micro-batches; part i has
    counts[i] labels and the mean loss losses[i] over them. Returns the factor of each part's loss, such that
    the sum is the mean over all labels of the batch. A part without labels has the factor 0, even if no part
    has labels. Python floats, in double precision. losses, counts (accumulate,)."""
    # BEGIN SOLUTION
    total = max(1, int(counts.sum()))
    return [int(n) / total for n in counts]
    # INSTEAD
    #: return [1 / accumulate for _ in counts]
    # END SOLUTION
