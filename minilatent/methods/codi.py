"""CODI: a model that reasons in words teaches itself to reason in latents, at one position.

Shen et al., "CODI: Compressing Chain-of-Thought into Continuous Space via Self-Distillation",
arXiv 2502.21074.

    teacher   Q <think> step_1 .. step_{M-1} </think> answer <eos>   cross-entropy on all after <think>
    student   Q <think> z_1 z_2 .. z_N </think> answer <eos>          cross-entropy on the answer
                                          |
                        here the student's hidden states, of every layer, are pulled to the teacher's

    z_t   = projection(h_{t-1})       Linear, GELU, Linear, LayerNorm of the last layer's hidden state
    D     = mean over layers l of smooth-L1(h^l_student, h^l_teacher) / std(h^l_teacher)
    loss  = CE(teacher) + CE(student) + distill_weight · D

Both passes go through the same weights; D has no gradient to the teacher. </think> stands right before the
answer in both, so what the teacher holds there has all that the answer needs: the student's latents have to
bring it. The teacher's last step is left out: it says the answer, and the teacher would hold a copy of it
instead of the reasoning (the paper's remark). The gradient goes through all N latents,
one pass after the other. At inference: N latents, then </think>.

    python train.py --method codi [--num_latents 6] [--distill_weight 1]

Where we differ:
  - The whole model is trained unless --lora_rank says otherwise; the release trains a LoRA.
  - The projection's LayerNorm begins with the embedding table's std as its gain, so that latents begin at the
    scale of what the model is used to read; the release begins with 1.
  - A layer's state is its output before the final norm, for the last layer too.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..batch import IGNORE, Batch, Row, causal_batch, pad
from ..config import Config, opt
from ..losses import wide
from ..machine import note
from ..unroll import think_through
from .method import Method, Stage


@dataclass
class Settings(Config):
    num_latents: int = opt(6, "latents, the same number for every question", least=0)
    distill_weight: float = opt(1.0, "weight of the distance between teacher's and student's hidden states")


class CODI(Method):
    Settings = Settings
    PRESETS = {
        "mini": {"steps": 1500, "lr": 3e-3},
        "gpu": {"lora_rank": 128, "distill_weight": 20.0},
        "gpt2": {"distill_weight": 1.0, "lr": 3e-3, "steps": 60_000},
    }

    def __init__(self, config, tok, model, folder=None):
        super().__init__(config, tok, model, folder)
        C = model.config.width
        layers = nn.Linear(C, C), nn.GELU(), nn.Linear(C, C), nn.LayerNorm(C)
        self.projection = nn.Sequential(*layers).to(model.embed.weight)
        generator = torch.Generator().manual_seed(config.seed)
        for layer in (self.projection[0], self.projection[2]):
            nn.init.normal_(layer.weight, 0.0, C**-0.5, generator=generator)
            nn.init.zeros_(layer.bias)
        nn.init.constant_(self.projection[3].weight, model.embed.weight.std().item())

    def stages(self, train: list[Row]) -> list[Stage]:
        about = f"teacher in words and student in {self.config.num_latents} latents together"
        n = self.config.num_latents
        # Tokens of both passes
        lengths = [2 * (len(r.prompt) + len(r.tail)) + len(self.teacher_chain(r)) + n for r in train]
        return [self.stage("codi", about, train, lengths, trained=["model", "projection"])]

    def teacher_chain(self, row: Row) -> list[int]:
        return row.chain[: row.ends[-2]] if len(row.ends) > 1 else []

    def collate(self, rows: list[Row], rng=None) -> Batch:
        tok, chains = self.tok, [self.teacher_chain(row) for row in rows]
        targets = [chain + row.tail for chain, row in zip(chains, rows)]
        teacher = causal_batch([row.prompt for row in rows], targets, tok.pad)  # (B, T' - 1)
        slots = [tok.latent] * self.config.num_latents
        thoughts = pad([row.prompt + slots for row in rows], tok.pad, "left")
        tails = pad([row.tail for row in rows], tok.pad)  # (B, E)
        return {
            "ids": torch.cat([thoughts, tails], dim=1)[:, :-1],  # (B, T)
            "labels": pad([row.answer for row in rows], IGNORE),  # (B, E - 1)
            "teacher_ids": teacher["ids"],
            "teacher_labels": teacher["labels"],
            "end": torch.tensor([len(row.prompt) + len(chain) for row, chain in zip(rows, chains)]),  # (B,)
        }

    def loss(self, batch: Batch, noise=None):
        teacher_states, states, labels = [], [], batch["labels"]
        h = self.model(batch["teacher_ids"], states=teacher_states)  # (B, T' - 1, C)
        teacher, tok = self.words_loss(h, batch, "teacher_labels"), self.tok

        h = think_through(self.model, batch["ids"], tok.latent, tok.pad, self.projection, states)
        student = self.words_loss(h[:, -labels.shape[1] :], batch)  # (B, E - 1) from </think> on

        here = torch.full_like(batch["end"], states[0].shape[1] - labels.shape[1])  # the column of </think>
        distill = layer_distance(at_column(states, here), at_column(teacher_states, batch["end"]))
        loss = teacher + student + self.config.distill_weight * distill
        return loss, {"teacher": note(teacher), "student": note(student), "distill": note(distill)}

    # ------------------------------------------------------------------ inference

    def thinker(self):
        return lambda logits, hidden: self.projection(hidden)

    def decoding(self):
        n = self.config.num_latents
        return {**super().decoding(), "min_chain": n, "max_chain": n}


def at_column(states: list[Tensor], column: Tensor) -> Tensor:
    """The states of all layers, (B, T, C) each, at one column (B,) of each row: (L, B, C)."""
    return torch.stack([h[torch.arange(len(h), device=h.device), column] for h in states])


def layer_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """D: smooth-L1 between the hidden states of each layer, divided by the standard deviation of the
    teacher's, averaged over layers. Both (L, B, C); no gradient reaches the teacher."""
    teacher = wide(teacher.detach())
    distance = F.smooth_l1_loss(wide(student), teacher, reduction="none").mean((1, 2))  # (L,)
    return (distance / teacher.flatten(1).std(1)).mean()
