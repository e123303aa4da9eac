"""Coconut: the last hidden state is fed back as the next input embedding, a continuous thought.

Hao et al., "Training Large Language Models to Reason in a Continuous Latent Space", arXiv 2412.06769;
facebookresearch/coconut. The curriculum puts c latents in place of each of the chain's first steps:

    stage 0   Q <think> step_1 step_2 .. step_M </think> answer <eos>      CoT-SFT: --first_stage 0, or a model that has learned it
    stage s   Q <think> z_1 .. z_{s·c} step_{s+1} .. step_M </think> answer <eos>      s = 1 .. S
    the last  Q <think> z_1 .. z_{S·c} </think> answer <eos>                           S · c = num_latents

    z_t  = h_{t-1}                       the last layer's hidden state, after the final norm, of the position before
    loss   cross-entropy on all that follows the latents, back-propagated through all of them: N + 2 passes one after
           the other, with a cache of keys and values that keeps the graph (latent.think_through)

A problem with fewer than s steps has none left, and as many latents as the others. Every stage has an optimizer of its
own. At inference: num_latents latents, then </think>.

    python train.py --method coconut [--num_latents 6] [--latents_a_step 2]

Where we differ:
  - The words that are left stay inside <think> .. </think>, behind the latents, so that </think> means the same as
    in every other method; the release closes the latents with <eot> and marks the answer by "###".
  - `curriculum` of the steps go, in equal parts, to the stages before the last; the release counts in epochs.
  - The optimizer is reset at a stage change; the release can also do it at every epoch.
"""

from collections.abc import Iterator
from itertools import count

import torch

from ..batch import IGNORE, Row, pad
from ..config import UserError
from ..decode import explicit_thinker
from ..evaluate import accuracy
from ..latent import think_through
from ..losses import cross_entropy
from .method import Batch, Method, Stage


class Coconut(Method):
    ratio = 1

    def __init__(self, config, tok, model, folder=None):
        super().__init__(config, tok, model, folder)
        if config.num_latents % config.latents_a_step:
            raise UserError(
                f"--num_latents {config.num_latents} is not a multiple of --latents_a_step {config.latents_a_step}"
            )
        self.last = config.num_latents // config.latents_a_step + 1  # S + 1
        self.stage = self.last

    @property
    def latents(self) -> int:
        """How many of them in this stage."""
        return min(self.stage * self.config.latents_a_step, self.config.num_latents)

    def thinker(self):
        """Hidden states; before the last stage, words after the stage's latents. (Every row thinks from the first
        step on, so that the calls count the steps.)"""
        words, step = explicit_thinker(self.model), count()
        return lambda logits, hidden: hidden if next(step) < self.latents else words(logits, hidden)

    def decoding(self):
        free = super().decoding()
        return {
            **free,
            "min_chain": self.latents,
            "max_chain": self.latents + (0 if self.stage == self.last else free["max_chain"]),
        }

    def words(self, row: Row) -> list[int]:
        """What is left of the chain in this stage."""
        if self.stage == 0:
            return row.chain
        return [] if self.stage >= min(self.last, len(row.ends)) else row.chain[row.ends[self.stage - 1] :]

    def collate(self, rows: list[Row], rng=None) -> Batch:
        prompts = pad(
            [[*row.question, self.tok.think] + [self.tok.latent] * self.latents for row in rows],
            self.tok.pad,
            "left",
        )
        tails = pad([[*self.words(row), self.tok.end_think, *row.answer] for row in rows], self.tok.pad)
        ids = torch.cat([prompts, tails], dim=1)  # (B, T)
        labels = torch.cat(
            [torch.full_like(prompts[:, 1:], IGNORE), tails.masked_fill(tails == self.tok.pad, IGNORE)], dim=1
        )
        return {"ids": ids[:, :-1], "labels": labels}  # (B, T - 1) each

    def loss(self, batch: Batch, noise, progress: float):
        hidden = think_through(
            self.model, batch["ids"], self.tok.latent, self.tok.pad, lambda h: h
        )  # (B, T - 1, C)
        counts = batch["labels"] != IGNORE
        return cross_entropy(self.model.logits(hidden[counts]), batch["labels"][counts]), {}

    def schedule(self) -> list[tuple[int, int]]:
        """(stage, its optimizer steps)"""
        early = range(min(self.config.first_stage, self.last), self.last)
        share = round(self.config.steps * min(1.0, self.config.curriculum)) if early else 0
        return [(s, max(1, share // len(early))) for s in early] + [
            (self.last, max(1, self.config.steps - share))
        ]

    def lengths(self, train: list[Row]) -> list[int]:
        return [len(r.question) + self.latents + len(self.words(r)) + len(r.answer) + 2 for r in train]

    def stages(self, train: list[Row], val) -> Iterator[Stage]:
        for self.stage, steps in self.schedule():
            yield Stage(
                f"coconut-{self.stage}",
                train,
                self.lengths(train),
                self.collate,
                self.loss,
                [self.model],
                steps,
                self.config.lr,
                lambda: accuracy(self, val),
            )

    def plan(self, train: list[Row]):
        told = []
        for self.stage, steps in self.schedule():
            about = "and no words" if self.stage == self.last else f"in place of the first {self.stage} steps"
            told.append(
                (
                    f"coconut-{self.stage}",
                    steps,
                    sum(self.lengths(train)) / len(train),
                    f"{self.latents} latents {about}",
                )
            )
        return told
