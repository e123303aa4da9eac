"""CODI: a model that reasons in words teaches itself to reason in latents, at one position.

Shen et al., "CODI: Compressing Chain-of-Thought into Continuous Space via Self-Distillation", arXiv 2502.21074.

    teacher   Q <think> step_1 .. step_{M-1} </think> answer <eos>        cross-entropy on all that follows <think>
    student   Q <think> z_1 z_2 .. z_N </think> answer <eos>              cross-entropy on the answer
                                          |
                        here the student's hidden states, of every layer, are drawn to the teacher's

    z_t   = projection(h_{t-1})           Linear, GELU, Linear, LayerNorm of the last layer's hidden state
    D     = mean over layers l of smooth-L1(h^l_student, h^l_teacher) / std(h^l_teacher)       teacher without gradient
    loss  = CE(teacher) + CE(student) + distill_weight · D

Both passes go through the same weights. </think> stands right before the answer in both, so what the teacher holds
there has all that the answer needs, and the student's latents have to bring it. The teacher's last step is left out: it
says the answer, and the teacher would hold a copy of it instead of the reasoning (the paper's remark; --last_step keeps
it). The gradient goes through all N latents, one pass after the other. At inference: N latents, then </think>.

    python train.py --method codi [--num_latents 6] [--distill_weight 1]

Where we differ:
  - The whole model is trained unless --lora_rank says otherwise; the release trains a LoRA.
  - The projection's LayerNorm begins with the embedding table's std as its gain, so that latents begin at the scale of
    what the model is used to read; the release begins with 1.
  - A layer's state is its output before the final norm, for the last layer too.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ..batch import IGNORE, Row, pad
from ..evaluate import accuracy
from ..latent import think_through
from ..losses import cross_entropy, layer_distance
from .method import Batch, Method, Stage


class CODI(Method):
    ratio = 1

    def __init__(self, config, tok, model, folder=None):
        super().__init__(config, tok, model, folder)
        C = model.config.width
        self.projection = nn.Sequential(nn.Linear(C, C), nn.GELU(), nn.Linear(C, C), nn.LayerNorm(C)).to(
            model.embed.weight
        )
        generator = torch.Generator().manual_seed(config.seed)
        for layer in (self.projection[0], self.projection[2]):
            nn.init.normal_(layer.weight, 0.0, C**-0.5, generator=generator)
            nn.init.zeros_(layer.bias)
        nn.init.constant_(self.projection[3].weight, model.embed.weight.std().item())

    def thinker(self):
        return lambda logits, hidden: self.projection(hidden)

    def decoding(self):
        return {
            **super().decoding(),
            "min_chain": self.config.num_latents,
            "max_chain": self.config.num_latents,
        }

    def teacher_chain(self, row: Row) -> list[int]:
        if self.config.last_step:
            return row.chain
        return row.chain[: row.ends[-2]] if len(row.ends) > 1 else []

    def collate(self, rows: list[Row], rng=None) -> Batch:
        tok, chains = self.tok, [self.teacher_chain(row) for row in rows]
        tails = [[*chain, tok.end_think, *row.answer] for chain, row in zip(chains, rows)]
        teacher = pad(
            [[*row.question, tok.think, *tail] for row, tail in zip(rows, tails)], tok.pad
        )  # (B, T')
        teacher_labels = pad(
            [[IGNORE] * len(row.question) + tail for row, tail in zip(rows, tails)], IGNORE
        )  # (B, T' - 1)
        prompts = pad(
            [[*row.question, tok.think] + [tok.latent] * self.config.num_latents for row in rows],
            tok.pad,
            "left",
        )
        ends = pad([[tok.end_think, *row.answer] for row in rows], tok.pad)  # (B, E)
        return {
            "ids": torch.cat([prompts, ends], dim=1)[:, :-1],  # (B, T)
            "labels": pad([row.answer for row in rows], IGNORE),  # (B, E - 1)
            "teacher_ids": teacher[:, :-1],
            "teacher_labels": teacher_labels,
            "end": torch.tensor([len(row.question) + 1 + len(chain) for row, chain in zip(rows, chains)]),
        }  # (B,)

    def at_end(self, states: list[Tensor], column: Tensor) -> Tensor:
        """The states of all layers, (B, T, C) each, at one column of each row: (L, B, C)."""
        return torch.stack([h[torch.arange(len(h), device=h.device), column] for h in states])

    def loss(self, batch: Batch, noise, progress: float):
        teacher_states, states, labels = [], [], batch["labels"]
        h = self.model(batch["teacher_ids"], states=teacher_states)  # (B, T' - 1, C)
        counts = batch["teacher_labels"] != IGNORE
        teacher = cross_entropy(self.model.logits(h[counts]), batch["teacher_labels"][counts])

        h = think_through(self.model, batch["ids"], self.tok.latent, self.tok.pad, self.projection, states)
        h = h[:, -labels.shape[1] :]  # (B, E - 1, C) from </think> on
        student = cross_entropy(self.model.logits(h[labels != IGNORE]), labels[labels != IGNORE])

        here = torch.full_like(batch["end"], states[0].shape[1] - labels.shape[1])  # the column of </think>
        distill = layer_distance(self.at_end(states, here), self.at_end(teacher_states, batch["end"]))
        loss = teacher + student + self.config.distill_weight * distill
        return loss, {"teacher": teacher.item(), "student": student.item(), "distill": distill.item()}

    def length(self, row: Row) -> int:
        """Tokens of both passes."""
        return (
            2 * (len(row.question) + len(row.answer) + 2)
            + len(self.teacher_chain(row))
            + self.config.num_latents
        )

    def stages(self, train: list[Row], val) -> Iterator[Stage]:
        yield Stage(
            "codi",
            train,
            [self.length(r) for r in train],
            self.collate,
            self.loss,
            [self.model, self.projection],
            self.config.steps,
            self.config.lr,
            lambda: accuracy(self, val),
        )

    def plan(self, train: list[Row]):
        tokens = sum(map(self.length, train)) / max(1, len(train))
        return [
            (
                "codi",
                self.config.steps,
                tokens,
                f"teacher in words and student in {self.config.num_latents} latents together",
            )
        ]
