"""iCoT: a model that reasons in words forgets them one by one, from the left, until it answers at once.

Deng, Choi, Shieber, "From Explicit CoT to Implicit CoT: Learning to Internalize CoT Step by Step", arXiv 2405.14838.

    stage 0   Q <think> c_1 c_2 .. c_T </think> answer <eos>        CoT-SFT: --first_stage 0, or a model that has learned it
    stage s   Q <think> c_{r+1} .. c_T </think> answer <eos>        r = s · remove + o
    the last  Q <think> </think> answer <eos>                       nothing is left: #L = 0

    loss      cross-entropy on all that follows <think>
    o         removal smoothing: P(o) ∝ exp(-λ o), o = 0, 1, .., drawn for every example anew, so that the next
              stage's inputs have been seen before it begins

Every stage has an optimizer of its own: the moments of the last one belong to another task (the paper's reset).

    python train.py --method icot [--remove 4] [--smoothing 4]

Where we differ: the paper removes `remove` tokens an epoch, one at a time, and resets at every token; here a stage
removes them together, and has its own warm-up and best checkpoint. `curriculum` of the steps go to the stages in which
something is left of most chains (the last twentieth of them is not waited for); the paper counts in epochs.
"""

from collections.abc import Iterator

import torch

from ..batch import Row, cut, pad
from ..decode import explicit_thinker
from ..evaluate import accuracy
from ..losses import cross_entropy
from .method import Batch, Method, Stage


class ICoT(Method):
    removed: int | None = None  # chain tokens that this stage removes; None: all, as at inference

    def thinker(self):
        return None if self.removed is None else explicit_thinker(self.model)

    def prompt(self, question: str) -> list[int]:
        return super().prompt(question) + ([self.tok.end_think] if self.removed is None else [])

    def collate(self, rows: list[Row], rng=None) -> Batch:
        left = [[] if self.removed is None else row.chain[self.removed :] for row in rows]
        ids = [
            [*row.question, self.tok.think, *chain, self.tok.end_think, *row.answer]
            for row, chain in zip(rows, left)
        ]
        return {
            "ids": pad(ids, self.tok.pad),  # (B, T)
            "start": torch.tensor([len(row.question) + 1 for row in rows]),  # (B,) where the chain begins
            "left": torch.tensor([len(chain) for chain in left]),
        }  # (B,) tokens of it

    def loss(self, batch: Batch, noise: torch.Generator, progress: float):
        ids, start = batch["ids"], batch["start"]
        if self.config.smoothing:
            u = torch.rand(len(ids), generator=noise).clamp(min=1e-9)  # P(o >= n) = P(u <= exp(-λ n))
            o = (-u.log() / self.config.smoothing).long().to(ids.device)  # (B,)
            ids = cut(ids, start, torch.minimum(o, batch["left"]), self.tok.pad)
        hidden = self.model(ids[:, :-1])  # (B, T - 1, C)
        target = torch.arange(1, ids.shape[1], device=ids.device)
        counts = (target >= start[:, None]) & (ids[:, 1:] != self.tok.pad)  # (B, T - 1)
        return cross_entropy(self.model.logits(hidden[counts]), ids[:, 1:][counts]), {}

    def schedule(self, train: list[Row]) -> list[tuple[str, int | None, int]]:
        """Name, tokens removed (None: all) and optimizer steps of each stage."""
        most = sorted(len(row.chain) for row in train)[
            int(0.95 * len(train))
        ]  # a few long chains do not make stages
        partial = list(range(self.config.first_stage * self.config.remove, most, self.config.remove))
        share = round(self.config.steps * min(1.0, self.config.curriculum)) if partial else 0
        return [(f"icot-{r}", r, max(1, share // len(partial))) for r in partial] + [
            ("icot-all", None, max(1, self.config.steps - share))
        ]

    def lengths(self, train: list[Row], removed: int | None) -> list[int]:
        return [
            len(r.question) + (0 if removed is None else len(r.chain[removed:])) + len(r.answer) + 2
            for r in train
        ]

    def stages(self, train: list[Row], val) -> Iterator[Stage]:
        for name, self.removed, steps in self.schedule(train):
            yield Stage(
                name,
                train,
                self.lengths(train, self.removed),
                self.collate,
                self.loss,
                [self.model],
                steps,
                self.config.lr,
                lambda: accuracy(self, val),
            )

    def plan(self, train: list[Row]):
        return [
            (
                name,
                steps,
                sum(self.lengths(train, removed)) / len(train),
                "no chain is left: the answer at once"
                if removed is None
                else f"the chain without its first {removed} tokens",
            )
            for name, removed, steps in self.schedule(train)
        ]
