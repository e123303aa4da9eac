r"""SIM-CoT: Coconut, and in training a decoder that has to tell each step of the chain from its latents.

Wei et al., "SIM-CoT: Supervised Implicit Chain-of-Thought", arXiv 2509.20317; InternLM/SIM-CoT.

    model     Q <think> z_1 z_2 z_3 z_4 </think> answer <eos>       Coconut, in each stage of its curriculum
                        \_____/ \_____/
    decoder      z_1 z_2 step_1   z_3 z_4 step_2                    a row of its own for each step

    L_step    cross-entropy of the decoder on the tokens of the steps that the stage has latents for
    loss      Coconut's + step_weight · L_step

The gradient of L_step goes through the latents into the model: each latent learns from its own step, and not
from the answer alone, which is several passes away. The decoder begins as a copy of the model and is trained
with it. At inference it is not used.

    python train.py --method sim_cot [--num_latents 6] [--latents_a_step 2] [--step_weight 1]

Where we differ:
  - The release trains Coconut first and adds the decoder in a second run; here it is there from the start.
    That run is `--method sim_cot --init COCONUT_RUN --curriculum 0`.
  - The latents of a problem with fewer steps than the stage have no step to tell and no loss of their own.
"""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from ..batch import IGNORE, Batch, Row, pad
from ..config import UserError, opt
from ..losses import cross_entropy
from ..machine import note
from . import coconut


@dataclass
class Settings(coconut.Settings):
    step_weight: float = opt(1.0, "weight of the decoder's loss on the steps")

    def check(self) -> None:
        super().check()
        if self.num_latents % self.latents_a_step:
            raise UserError("--num_latents must be a multiple of --latents_a_step: each step has its latents")


class SIMCoT(coconut.Coconut):
    Settings = Settings
    trained = ["model", "decoder"]

    def __init__(self, config, tok, model, folder=None):
        super().__init__(config, tok, model, folder)
        self.decoder = copy.deepcopy(model)

    def collate(self, rows: list[Row], rng=None) -> Batch:
        """Coconut's batch, and the R steps of all rows that have latents: whose, which one, its tokens."""
        told = self.latents(self.current_stage) // self.config.latents_a_step
        owner, number, steps = [], [], []
        for b, row in enumerate(rows):
            starts = [0, *row.ends[:-1]]
            for i, (start, end) in enumerate(zip(starts[:told], row.ends)):
                owner.append(b)
                number.append(i)
                steps.append(row.chain[start:end])
        more = {"step_owner": torch.tensor(owner), "step_number": torch.tensor(number)}  # (R,) each
        if steps:  # stage 0 has no latents
            more["step_labels"] = pad(steps, IGNORE)  # (R, S)
        return {**super().collate(rows), **more}

    def loss(self, batch: Batch, noise=None):
        hidden = self.states(batch)  # (B, T - 1, C)
        words = self.words_loss(hidden, batch)
        if "step_labels" not in batch:
            return words, {}
        steps = self.step_loss(hidden, batch)
        return words + self.config.step_weight * steps, {"words": note(words), "steps": note(steps)}

    def step_loss(self, hidden: Tensor, batch: Batch) -> Tensor:
        """L_step. hidden (B, T - 1, C)"""
        labels, c = batch["step_labels"], self.config.latents_a_step  # (R, S)
        first = int((batch["ids"][0] == self.tok.latent).nonzero()[0])  # the column of z_1 in every row
        column = first + c * batch["step_number"][:, None] + torch.arange(c, device=labels.device)  # (R, c)
        z = hidden[batch["step_owner"][:, None], column - 1]  # (R, c, C): z_t is the state at t - 1
        words = self.decoder.embed(labels[:, :-1].clamp(min=0))  # (R, S - 1, C), anything after the end
        told = self.decoder(embeds=torch.cat([z, words], dim=1))[:, c - 1 :]  # (R, S, C)
        labelled = labels != IGNORE
        return cross_entropy(self.decoder.logits(told[labelled]), labels[labelled])
