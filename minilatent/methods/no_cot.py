"""No-CoT: the answer at once. What a model can do in one forward pass: the floor under every latent method.

Q <think> </think> answer <eos>                     cross-entropy on the answer

python train.py --method no_cot
"""

from collections.abc import Iterator

from ..batch import IGNORE, Row, pad
from ..evaluate import accuracy
from ..losses import cross_entropy
from .method import Batch, Method, Stage


class NoCoT(Method):
    needs_chain = False

    def thinker(self):
        return None

    def prompt(self, question: str) -> list[int]:
        return [*super().prompt(question), self.tok.end_think]

    def collate(self, rows: list[Row], rng=None) -> Batch:
        prompts = [[*row.question, self.tok.think, self.tok.end_think] for row in rows]
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
            "no_cot",
            train,
            [len(r.question) + len(r.answer) + 2 for r in train],
            self.collate,
            self.loss,
            [self.model],
            self.config.steps,
            self.config.lr,
            lambda: accuracy(self, val),
        )

    def plan(self, train: list[Row]):
        tokens = sum(len(r.question) + len(r.answer) + 2 for r in train) / max(1, len(train))
        return [("no_cot", self.config.steps, tokens, "cross-entropy on the answer")]
