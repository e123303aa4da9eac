"""CoT-SFT: explicit chain-of-thought, fine-tuned. Every other method starts from it and is held against it.

    Q <think> c_1 .. c_T </think> answer <eos>         cross-entropy on all that follows <think>

    python train.py --method cot_sft

Soft Thinking (Zhang et al., arXiv 2505.15778) is another way to decode such a model, without training: a step feeds back
the mixture of its likeliest tokens' embeddings, by their probabilities, instead of the likeliest one's. It has never
learned to read mixtures: where it is sure of its token, nothing changes. The chain ends where </think> is the likeliest,
or at a *cold stop*: the entropy of the full distribution was low for many steps in a row, so thinking has ended in effect.

    python eval.py --ckpt out/cot_sft --soft_thinking [--soft_k 10] [--soft_temperature 0.6] [--cold_steps 256]

Where we differ: the answer is decoded greedily, as everywhere here; the paper samples it. The default cold stop never comes on
mini, whose chains are short; a quicker one comes too early, because a model is sure of most tokens of an equation.
"""

from collections.abc import Iterator

import torch

from ..batch import IGNORE, Row, pad
from ..config import SoftThinking
from ..decode import explicit_thinker, superposition_thinker
from ..evaluate import accuracy
from ..losses import cross_entropy
from .method import Batch, Method, Stage


class CoTSFT(Method):
    ratio = 1
    soft: SoftThinking | None = None  # decode with mixtures

    @property
    def explicit(self) -> bool:
        return self.soft is None

    @property
    def mixed(self) -> bool:
        return self.soft is not None

    def thinker(self):
        if self.soft:
            return superposition_thinker(
                self.model, self.soft.soft_k, self.tok.never, self.soft.soft_temperature
            )
        return explicit_thinker(self.model)

    def decoding(self):
        cold = (self.soft.cold_entropy, self.soft.cold_steps) if self.soft and self.soft.cold_steps else None
        return {**super().decoding(), "cold": cold}

    def collate(self, rows: list[Row], rng=None) -> Batch:
        explicit = [row.explicit(self.tok) for row in rows]
        ids = pad([tokens for tokens, _ in explicit], self.tok.pad)  # (B, T)
        # The label of a position is the next token; positions of the question have none.
        labels = pad(
            [[IGNORE] * (start - 1) + tokens[start:] for tokens, start in explicit], IGNORE
        )  # (B, T - 1)
        return {"ids": ids[:, :-1], "labels": labels}

    def loss(self, batch: Batch, noise: torch.Generator, progress: float):
        hidden = self.model(batch["ids"])  # (B, T - 1, C)
        counts = batch["labels"] != IGNORE
        return cross_entropy(self.model.logits(hidden[counts]), batch["labels"][counts]), {}

    def stages(self, train: list[Row], val) -> Iterator[Stage]:
        yield Stage(
            "cot",
            train,
            [len(r.explicit(self.tok)[0]) for r in train],
            self.collate,
            self.loss,
            [self.model],
            self.config.steps,
            self.config.lr,
            lambda: accuracy(self, val),
        )

    def plan(self, train: list[Row]):
        tokens = sum(len(r.explicit(self.tok)[0]) for r in train) / max(1, len(train))
        return [("cot", self.config.steps, tokens, "cross-entropy on the chain and the answer")]
