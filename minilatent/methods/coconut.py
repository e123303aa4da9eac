"""Coconut: the last hidden state is fed back as the next input embedding, a continuous thought.

Hao et al., "Training Large Language Models to Reason in a Continuous Latent Space", arXiv 2412.06769;
facebookresearch/coconut. The curriculum replaces the chain's first steps, one per stage, by c latents each:

    stage 0   Q <think> step_1 step_2 .. step_M </think> answer <eos>                 CoT-SFT, M steps
    stage s   Q <think> z_1 .. z_{s·c} step_{s+1} .. step_M </think> answer <eos>     s = 1 .. S
    the last  Q <think> z_1 .. z_{S·c} </think> answer <eos>                        S · c = num_latents

    z_t  = h_{t-1}     the last layer's hidden state, after the final norm, of the position before
    loss               cross-entropy on all that follows the latents, back-propagated through all of them:
                       S · c + 2 passes, one after the other (unroll.py)

Stage 0 is left out when the model comes from CoT-SFT. A problem with fewer than s steps has no words left,
but gets all latents of the stage. Every stage has its own optimizer and keeps its learning rate to the end;
only in the last it falls. At inference: num_latents latents.

    python train.py --method coconut [--num_latents 6] [--latents_a_step 2]

Where we differ:
  - The words that are left stay inside <think> .. </think>, after the latents, so that </think> means the
    same as in every other method; the release closes the latents with <eot> and marks the answer by "###".
  - `curriculum` of the steps go, in equal parts, to the stages before the last; the release counts epochs.
  - The optimizer is reset at a stage change; the release can also do it at every epoch. Its
    learning rate is constant throughout, without warm-up.
"""

from dataclasses import dataclass
from functools import partial
from itertools import count

import torch
from torch import Tensor

from ..batch import IGNORE, Batch, Row, pad
from ..config import Config, opt
from ..decode import explicit_thinker
from ..unroll import think_through
from .method import Method, Stage


@dataclass
class Settings(Config):
    num_latents: int = opt(6, "latents, the same number for every question", least=0)
    latents_a_step: int = opt(2, "c, latents per step of the chain", least=1)
    curriculum: float = opt(0.5, "share of the steps before the whole chain is gone")
    first_stage: int = opt(1, "first stage: 1 from a CoT-SFT model, 0 from any other", least=0)


class Coconut(Method):
    Settings = Settings
    trained = ["model"]
    PRESETS = {"mini": {"steps": 1500, "lr": 3e-3, "curriculum": 0.75}, "gpu": {"first_stage": 0}}

    def __init__(self, config, tok, model, folder=None):
        super().__init__(config, tok, model, folder)
        self.final_stage = -(-config.num_latents // config.latents_a_step) + 1  # S + 1: no words left
        self.current_stage = self.final_stage

    def stages(self, train: list[Row]) -> list[Stage]:
        config = self.config
        early = range(config.first_stage, self.final_stage) if config.curriculum else ()
        share = round(config.steps * min(1.0, config.curriculum)) if early else 0
        stages = [self.curriculum_stage(train, s, max(1, share // len(early))) for s in early]
        return [*stages, self.curriculum_stage(train, self.final_stage, max(1, config.steps - share))]

    def curriculum_stage(self, train: list[Row], s: int, steps: int) -> Stage:
        """Stage s of the curriculum."""
        start, n = partial(setattr, self, "current_stage", s), self.latents(s)
        rest = "and no words" if s == self.final_stage else f"in place of steps 1 to {s}"
        lengths = [len(r.prompt) + n + len(self.words(r, s)) + len(r.tail) for r in train]
        own = {"steps": steps, "before": start, "trained": self.trained, "decay": s == self.final_stage}
        return self.stage(f"coconut-{s}", f"{n} latents {rest}", train, lengths, **own)

    def latents(self, s: int) -> int:
        """The number of latents in stage s."""
        return min(s * self.config.latents_a_step, self.config.num_latents)

    def words(self, row: Row, s: int) -> list[int]:
        """What is left of the chain in stage s."""
        if s == 0:
            return row.chain
        return [] if s >= min(self.final_stage, len(row.ends)) else row.chain[row.ends[s - 1] :]

    def collate(self, rows: list[Row], rng=None) -> Batch:
        slots = [self.tok.latent] * self.latents(self.current_stage)
        thoughts = pad([r.prompt + slots for r in rows], self.tok.pad, "left")
        rest = pad([self.words(r, self.current_stage) + r.tail for r in rows], self.tok.pad)
        ids = torch.cat([thoughts, rest], dim=1)  # (B, T)
        unlabelled = torch.full_like(thoughts[:, 1:], IGNORE)
        labels = torch.cat([unlabelled, rest.masked_fill(rest == self.tok.pad, IGNORE)], dim=1)
        return {"ids": ids[:, :-1], "labels": labels}  # (B, T - 1) each

    def loss(self, batch: Batch, noise=None):
        return self.words_loss(self.states(batch), batch), {}

    def states(self, batch: Batch) -> Tensor:
        """Hidden states (B, T - 1, C): z_t is the one at t - 1."""
        return think_through(self.model, batch["ids"], self.tok.latent, self.tok.pad, lambda h: h)

    # ------------------------------------------------------------------ inference

    def thinker(self):
        """Hidden states; before the last stage, words after the stage's latents. (Every row thinks from the
        first step on, so that the calls count the steps.)"""
        words, step, n = explicit_thinker(self.model), count(), self.latents(self.current_stage)
        return lambda logits, hidden: hidden if next(step) < n else words(logits, hidden)

    def decoding(self):
        free, n = super().decoding(), self.latents(self.current_stage)
        longest = n if self.current_stage == self.final_stage else n + free["max_chain"]
        return {**free, "min_chain": n, "max_chain": longest}
