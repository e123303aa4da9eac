"""CoT-SFT: explicit chain-of-thought, fine-tuned. Every other method starts from it and is held against it.

    Q <think> c_1 .. c_T </think> answer <eos>         cross-entropy on all that follows <think>

    python train.py --method cot_sft
"""
from typing import Iterator

import torch

from ..batch import IGNORE, Row, pad
from ..decode import explicit_thinker
from ..evaluate import accuracy
from ..losses import cross_entropy
from .method import Batch, Method, Stage


class CoTSFT(Method):
    explicit = True
    ratio = 1

    def thinker(self):
        return explicit_thinker(self.model)

    def collate(self, rows: list[Row]) -> Batch:
        explicit = [row.explicit(self.tok) for row in rows]
        ids = pad([tokens for tokens, _ in explicit], self.tok.pad)                # (B, T)
        # The label of a position is the next token; positions of the question have none.
        labels = pad([[IGNORE] * (start - 1) + tokens[start:] for tokens, start in explicit], IGNORE)   # (B, T - 1)
        return {"ids": ids[:, :-1], "labels": labels}

    def loss(self, batch: Batch, noise: torch.Generator, progress: float):
        hidden = self.model(batch["ids"])                                          # (B, T - 1, C)
        counts = batch["labels"] != IGNORE
        return cross_entropy(self.model.logits(hidden[counts]), batch["labels"][counts]), {}

    def stages(self, train: list[Row], val) -> Iterator[Stage]:
        yield Stage("cot", train, [len(r.explicit(self.tok)[0]) for r in train], self.collate, self.loss, [self.model],
                    self.config.steps, self.config.lr, lambda: accuracy(self, val))

    def plan(self, train: list[Row]):
        tokens = sum(len(r.explicit(self.tok)[0]) for r in train) / max(1, len(train))
        return [("cot", self.config.steps, tokens, "cross-entropy on the chain and the answer")]
