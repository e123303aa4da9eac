"""What a method is: modules, the stages that train them, and how it thinks at inference."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..batch import Row, encode_question, pad
from ..config import Config, UserError
from ..decode import Decoded, Thinker, decode
from ..masks import LATENT, PAD, Layout
from ..model import Transformer
from ..tasks.answers import Example
from ..tokenizer import Tokenizer

Batch = dict[str, Tensor]


@dataclass
class Stage:
    """One optimisation: what is trained, on what, by which loss, and how its best moment is known."""

    name: str
    items: Sequence  # what `collate` makes batches of
    lengths: list[int]  # tokens per item, to put equal lengths side by side
    collate: Callable[[list, random.Random], Batch]  # items of one step, and that step's random numbers
    loss: Callable[
        [Batch, torch.Generator, float], tuple[Tensor, dict[str, float]]
    ]  # batch, noise, progress in 0..1
    trained: list[nn.Module]  # everything else is frozen
    steps: int
    lr: float
    validate: Callable[[], dict[str, float]]  # the first of these chooses the best checkpoint
    optimizer: str = ""  # another than --optimizer
    inner: int = 1  # updates on each batch (RL: on each rollout)
    judge_start: bool = False  # where it begins is a candidate for the best, too


class Method(nn.Module):
    """One subclass a method. It owns the model and all that is trained beside it."""

    explicit = False  # True: a step of its chain is an ordinary token
    mixed = False  # True: a step of its chain is a mixture of tokens
    needs_chain = True  # False: examples without a chain can be trained on, too

    def __init__(self, config: Config, tok: Tokenizer, model: Transformer, folder: Path | None = None):
        super().__init__()
        self.config, self.tok, self.model, self.folder = config, tok, model, folder

    def stages(self, train: list[Row], val: list[Example]) -> Iterator[Stage]:
        """The stages in order. What stands between two `yield`s runs when the first is over and its best
        checkpoint is loaded."""
        raise NotImplementedError

    def plan(self, train: list[Row]) -> list[tuple[str, int, float, str]]:
        """What `stages` will do, told before it starts: name, steps, tokens an example goes through, in words."""
        raise NotImplementedError

    def thinker(self) -> Thinker | None:
        """How it thinks at inference; None: it does not."""
        raise NotImplementedError

    @classmethod
    def inherit(cls, config: Config, settings: dict) -> None:
        """Take over what must be as in the run named by --init, whose settings these are."""

    def adopt(self, tensors: dict[str, Tensor], settings: dict) -> None:
        """What the run named by --init holds beside its model (CoLaR's latent head), and that run's settings."""

    def decoding(self) -> dict:
        """Options of decode(): how long chain and answer may be, and how a chain ends."""
        return {"max_chain": self.config.max_chain, "max_answer": self.config.max_answer}

    @property
    def ratio(self) -> int:
        """Chain tokens that a step of thinking stands for, at least. (One latent for a step of the chain has no such
        number: ECR then cuts the reference evenly into as many segments as there were latents.)"""
        return 1 if self.config.segmentation == "step" else self.config.ratio

    def prompt(self, question: str) -> list[int]:
        return [*encode_question(question, self.tok), self.tok.think]

    @property
    def device(self) -> torch.device:
        return self.model.embed.weight.device

    def autocast(self) -> torch.autocast:
        """Mixed precision, where --dtype asks for it: the trainer's for every loss."""
        return torch.autocast(
            self.device.type, getattr(torch, self.config.dtype), enabled=self.config.dtype != "float32"
        )

    def tensors(self, layouts: list[Layout], prefix: str = "") -> Batch:
        return {
            prefix + "ids": pad([x.ids for x in layouts], self.tok.pad),  # (B, T) each
            prefix + "kind": pad([x.kind for x in layouts], PAD),
            prefix + "block": pad([x.block for x in layouts], PAD),
        }

    def embed_with(self, ids: Tensor, kind: Tensor, z: Tensor) -> Tensor:
        """Token embeddings, with the latents z (n, C) in their slots, in reading order. (B, T, C)"""
        x = self.model.embed(ids)
        return x.masked_scatter((kind == LATENT)[:, :, None], z.to(x.dtype))

    def solve(self, questions: list[str], **options) -> Decoded:
        """Think and answer, all questions side by side. options: of decode()."""
        prompts = [self.prompt(q) for q in questions]
        options = {**self.decoding(), **options}
        room = self.model.config.context - max(map(len, prompts)) - options["max_answer"] - 1
        if room < max(1, options.get("min_chain", 0)):
            worst = max(range(len(prompts)), key=lambda i: len(prompts[i]))
            raise UserError(
                f"a question of {len(prompts[worst])} tokens leaves no room to think in a context of "
                f"{self.model.config.context}: {questions[worst][:60]!r}…"
            )
        ids = pad(prompts, self.tok.pad).to(self.device)
        lengths = torch.tensor([len(p) for p in prompts], device=self.device)
        options["max_chain"] = min(options["max_chain"], room)
        return decode(self.model, self.tok, self.model.embed(ids), lengths, self.thinker(), **options)
