"""Pause tokens: more computing before the answer, and nothing in it. The control for every latent method.

Goyal et al., "Think before you speak: Training Language Models With Pause Tokens", arXiv 2310.02226 (and "pause as
thought", the ablation of Coconut, arXiv 2412.06769).

    Q <think> p p p p p p </think> answer <eos>         cross-entropy on the answer

p is one learned embedding, `num_latents` copies of it: the token <latent>'s. No label asks for it, and none is judged
at it: what the model computes there serves the answer only.

    python train.py --method pause [--num_latents 6]

Where we differ: the paper inserts pauses in pretraining, too; here the base has never seen one.
"""

from collections.abc import Iterator

from ..batch import IGNORE, Row, pad
from ..evaluate import accuracy
from ..losses import cross_entropy
from .method import Batch, Method, Stage


class Pause(Method):
    needs_chain = False
    ratio = 1

    def thinker(self):
        return lambda logits, hidden: self.model.embed.weight[self.tok.latent].expand_as(hidden)

    def decoding(self):
        return {
            **super().decoding(),
            "min_chain": self.config.num_latents,
            "max_chain": self.config.num_latents,
        }

    def length(self, row: Row) -> int:
        return len(row.question) + self.config.num_latents + len(row.answer) + 2

    def collate(self, rows: list[Row], rng=None) -> Batch:
        slots = [self.tok.latent] * self.config.num_latents
        prompts = [[*row.question, self.tok.think, *slots, self.tok.end_think] for row in rows]
        ids = pad([p + row.answer for p, row in zip(prompts, rows)], self.tok.pad)  # (B, T)
        labels = pad(
            [[IGNORE] * (len(p) - 1) + row.answer for p, row in zip(prompts, rows)], IGNORE
        )  # (B, T - 1)
        return {"ids": ids[:, :-1], "labels": labels}

    def loss(self, batch: Batch, noise, progress: float):
        hidden = self.model(batch["ids"])  # (B, T - 1, C)
        counts = batch["labels"] != IGNORE
        return cross_entropy(self.model.logits(hidden[counts]), batch["labels"][counts]), {}

    def stages(self, train: list[Row], val) -> Iterator[Stage]:
        yield Stage(
            "pause",
            train,
            [self.length(r) for r in train],
            self.collate,
            self.loss,
            [self.model],
            self.config.steps,
            self.config.lr,
            lambda: accuracy(self, val),
        )

    def plan(self, train: list[Row]):
        tokens = sum(map(self.length, train)) / max(1, len(train))
        return [
            (
                "pause",
                self.config.steps,
                tokens,
                f"cross-entropy on the answer after {self.config.num_latents} pauses",
            )
        ]
