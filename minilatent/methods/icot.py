"""iCoT: a model that reasons in words forgets them one by one, from the left, until it answers at once.

Deng, Choi, Shieber, "From Explicit CoT to Implicit CoT: Learning to Internalize CoT Step by Step",
arXiv 2405.14838.

    stage 0   Q <think> c_1 c_2 .. c_T </think> answer <eos>     CoT-SFT
    stage s   Q <think> c_{n+1} .. c_T </think> answer <eos>     n = s · remove + o tokens are removed
    the last  Q <think> </think> answer <eos>                    nothing is left: #L = 0

    loss      cross-entropy on all that follows <think>
    o         removal smoothing: P(o) ∝ exp(-λ o), o = 0, 1, .., sampled for every example anew, so that the
              next stage's inputs have been seen before it begins

Stage 0 is left out when the model comes from CoT-SFT. Every stage has its own optimizer: the old moments
belong to another task (the paper's reset). Only in the last stage the learning rate falls.

    python train.py --method icot [--remove 4] [--smoothing 4]

Where we differ: the paper removes `remove` tokens an epoch, one at a time, and resets at every token; here a
stage removes them together, and has its own warm-up and best checkpoint. `curriculum` of the steps go to the
stages in which something is left of most chains (the longest 5 % of the chains get no stages of their
own); the paper counts in epochs.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..batch import Batch, Row, pad, tail
from ..config import Config, opt
from ..decode import explicit_thinker
from ..losses import cross_entropy
from .method import Method, Stage


@dataclass
class Settings(Config):
    remove: int = opt(4, "chain tokens that each stage removes from the left", least=1)
    smoothing: float = opt(4.0, "λ: o more tokens are removed with P(o) ∝ exp(-λ o) (0: none)")
    curriculum: float = opt(0.5, "share of the steps before the whole chain is gone")
    first_stage: int = opt(1, "first stage: 1 from a CoT-SFT model, 0 from any other", least=0)


class ICoT(Method):
    Settings = Settings
    PRESETS = {"mini": {"steps": 1500, "lr": 3e-3, "curriculum": 0.75}, "gpu": {"first_stage": 0}}
    removed: int | None = None  # chain tokens that this stage removes; None: all, as at inference

    def stages(self, train: list[Row]) -> list[Stage]:
        config = self.config
        lengths = sorted(len(row.chain) for row in train)
        most = lengths[int(0.95 * len(train))]  # a few long chains make no stages of their own
        early = range(config.first_stage * config.remove, most, config.remove) if config.curriculum else ()
        share = round(config.steps * min(1.0, config.curriculum)) if early else 0
        stages = [self.curriculum_stage(train, r, max(1, share // len(early))) for r in early]
        return [*stages, self.curriculum_stage(train, None, max(1, config.steps - share))]

    def curriculum_stage(self, train: list[Row], removed: int | None, steps: int) -> Stage:
        """The stage that trains without the first `removed` tokens of the chain."""
        start = partial(setattr, self, "removed", removed)
        name, about = f"icot-{removed}", f"the chain without its first {removed} tokens"
        if removed is None:
            name, about = "icot-all", "no chain is left: the answer at once"
        lengths = [len(r.prompt) + len(self.kept(r, removed)) + len(r.tail) for r in train]
        own = {"steps": steps, "before": start, "decay": removed is None}
        return self.stage(name, about, train, lengths, **own)

    @staticmethod
    def kept(row: Row, removed: int | None) -> list[int]:
        return [] if removed is None else row.chain[removed:]

    def collate(self, rows: list[Row], rng=None) -> Batch:
        chains = [self.kept(row, self.removed) for row in rows]
        ids = [row.prompt + chain + row.tail for row, chain in zip(rows, chains)]
        return {
            "ids": pad(ids, self.tok.pad),  # (B, T)
            "start": torch.tensor([len(row.prompt) for row in rows]),  # (B,) where the chain begins
            "left": torch.tensor([len(chain) for chain in chains]),  # (B,) tokens of it
        }

    def loss(self, batch: Batch, noise: torch.Generator):
        ids, start = batch["ids"], batch["start"]
        if self.config.smoothing:
            u = torch.rand(len(ids), generator=noise).clamp(min=1e-9)  # P(o >= n) = P(u <= exp(-λ n))
            o = (-u.log() / self.config.smoothing).long().to(ids.device)  # (B,)
            ids = remove_tokens(ids, start, torch.minimum(o, batch["left"]), self.tok.pad)
        hidden = self.model(ids[:, :-1])  # (B, T - 1, C)
        target = torch.arange(1, ids.shape[1], device=ids.device)
        labelled = (target >= start[:, None]) & (ids[:, 1:] != self.tok.pad)  # (B, T - 1)
        return cross_entropy(self.model.logits(hidden[labelled]), ids[:, 1:][labelled]), {}

    # ------------------------------------------------------------------ inference

    def prompt(self, question: str) -> list[int]:
        return super().prompt(question) + (tail([], self.tok) if self.removed is None else [])

    def thinker(self):
        return None if self.removed is None else explicit_thinker(self.model)


def remove_tokens(ids: Tensor, start: Tensor, count: Tensor, value: int) -> Tensor:
    """ids (B, T) without the count[b] tokens from start[b] on: the rest moves up, `value` fills the end."""
    column = torch.arange(ids.shape[1], device=ids.device)
    source = column + torch.where(column >= start[:, None], count[:, None], 0)  # (B, T)
    moved = ids.gather(1, source.clamp(max=ids.shape[1] - 1))
    return torch.where(source < ids.shape[1], moved, value)
