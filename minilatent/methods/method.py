"""What a method is: settings, modules, the stages that train them, and how it thinks at inference."""

import random
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..batch import IGNORE, Batch, Row, encode_prompt, pad
from ..config import Config, UserError
from ..decode import Decoded, Thinker, decode
from ..evaluate import accuracy
from ..losses import cross_entropy
from ..machine import host, indices
from ..masks import LATENT, PAD, Layout
from ..model import Transformer
from ..tasks.answers import Example
from ..tokenizer import Tokenizer

# Mixed precision: a norm's weights stay in float32, also where its input is bfloat16.
warnings.filterwarnings("ignore", "Mismatch dtype between input and weight")


@dataclass
class Stage:
    """One optimisation: what is trained, on what, by which loss, and how its best moment is found."""

    name: str
    about: str  # in words, for the summary
    items: Sequence  # what `collate` makes batches of
    lengths: list[int]  # tokens of each item; items of about equal length go into one batch
    collate: Callable[[list, random.Random], Batch]  # items of a step, or a part of them; the step's numbers
    loss: Callable[[Batch, torch.Generator], tuple[Tensor, dict]]  # batch, noise -> loss, to log
    trained: list[str]  # the method's modules by name, as "model" or "model.blocks"; the rest is frozen
    steps: int
    lr: float
    validate: Callable[[list[Example]], dict[str, float]]  # the first value chooses the best checkpoint
    before: Callable[[], None] = lambda: None  # runs when the stage starts, from the best of the one before
    rollout: Callable[[list, random.Random], Batch] | None = None  # RL: instead of `collate`
    inner: int = 1  # updates on each batch (RL: on each rollout)
    optimizer: str = ""  # if another than --optimizer
    decay: bool = True  # False: the learning rate stays up to the end, as another stage goes on from there
    judge_start: bool = False  # the state before the first step may be the best, too


class Method(nn.Module):
    """Base class: each method is one subclass, which owns the model and every other trained module.

    To add a method, copy cot_sft.py. It needs stages(), collate() and thinker(), `Settings` if it has options
    of its own, and loss() if its loss is another than the cross-entropy of `labels` after `ids`. Then add it
    to METHODS (methods/__init__.py), to CORE in tests/test_layout.py, to ENTRIES of the comparison
    (results/comparison/entries.py), and write its test.
    """

    Settings: type[Config] = Config  # a subclass where the method has settings of its own
    PRESETS: dict[str, dict] = {}  # the method's part of config.PRESETS
    needs_chain = True  # False: it can also be trained on examples without a chain
    extra_latents = False  # training reads, besides the chain, one latent after every --ratio of its tokens
    explicit = False  # for measures: True if a step of its chain is an ordinary token
    mixed = False  # for measures: True if a step of its chain is a mixture of tokens

    def __init__(self, config: Config, tok: Tokenizer, model: Transformer, folder: Path | None = None):
        super().__init__()
        self.config, self.tok, self.model, self.folder = config, tok, model, folder

    # ------------------------------------------------------------------ what a method says of itself

    @property
    def ratio(self) -> int:
        """For measures: chain tokens per step of thinking, a lower bound."""
        return getattr(self.config, "ratio", 1)

    def stages(self, train: list[Row]) -> list[Stage]:
        """The stages in order."""
        raise NotImplementedError

    def stage(self, name: str, about: str, items: Sequence, lengths: list[int], **other) -> Stage:
        """A Stage with this method's defaults; `other` overrides them."""
        parts = {"loss": self.loss, "collate": self.collate, "validate": self.accuracy}
        parts |= {"trained": ["model"], "steps": self.config.steps, "lr": self.config.lr}
        return Stage(name, about, items, lengths, **(parts | other))

    def collate(self, rows: list, rng: random.Random | None = None) -> Batch:
        """What the loss reads, of these items. Tensors of token ids are called ids, decoder_ids or
        teacher_ids: the trainer counts their tokens."""
        raise NotImplementedError

    def thinker(self) -> Thinker | None:
        """How it thinks at inference; None: it does not."""
        raise NotImplementedError

    def prompt(self, question: str) -> list[int]:
        return encode_prompt(question, self.tok)

    def decoding(self) -> dict:
        """Options of decode(): how long chain and answer may be, and how a chain ends."""
        return {"max_chain": self.config.max_chain, "max_answer": self.config.max_answer}

    @classmethod
    def inherit(cls, config: Config, settings: dict) -> None:
        """Before the method is built: copy the settings that must match those of the --init run."""

    def adopt(self, tensors: dict[str, Tensor], settings: dict) -> None:
        """After it is built: take what the --init run has in addition to its model (CoLaR's latent head), or
        raise UserError if this method cannot start from it."""

    # ------------------------------------------------------------------ what all methods share

    @property
    def device(self) -> torch.device:
        return self.model.embed.weight.device

    def autocast(self) -> torch.autocast:
        """Mixed precision, where --dtype asks for it: the trainer's for every loss."""
        dtype = self.config.dtype
        return torch.autocast(self.device.type, getattr(torch, dtype), enabled=dtype != "float32")

    def accuracy(self, examples: list[Example]) -> dict[str, float]:
        return accuracy(self, examples)

    def all_but_embedding(self) -> list[str]:
        """The model's modules but the embedding table, and with it a tied language head. (With adapters the
        table is frozen anyway, except for the new tokens' rows.)"""
        names = [f"model.{name}" for name, _ in self.model.named_children()]
        return [name for name in names if name != "model.embed" or self.config.lora_rank]

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

    def loss(self, batch: Batch, noise: torch.Generator | None = None) -> tuple[Tensor, dict[str, float]]:
        """Cross-entropy of a plain causal pass, unless a method has its own. ids, labels (B, T)"""
        return self.words_loss(self.model(batch["ids"]), batch), {}

    def words_loss(self, hidden: Tensor, batch: Batch, labels: str = "labels") -> Tensor:
        """Cross-entropy of the language head, at the states (B, T, C) that have a label (B, T)."""
        labelled = indices(host(batch)[labels] != IGNORE, self.device)
        return cross_entropy(self.model.logits(hidden[labelled]), batch[labels][labelled])

    def solve(self, questions: list[str], **options) -> Decoded:
        """Think and answer, all questions side by side. options: of decode()."""
        prompts = [self.prompt(q) for q in questions]
        options = {**self.decoding(), **options}
        context = self.model.config.context
        room = context - max(map(len, prompts)) - options["max_answer"] - 1
        if room < max(1, options.get("min_chain", 0)):
            n, worst = max((len(p), q) for p, q in zip(prompts, questions))
            long = f"a question of {n} tokens leaves no room to think in a context of {context}"
            raise UserError(f"{long}: {worst[:60]!r}…")
        ids = pad(prompts, self.tok.pad).to(self.device)
        lengths = torch.tensor([len(p) for p in prompts], device=self.device)
        options["max_chain"] = min(options["max_chain"], room)
        return decode(self.model, self.tok, self.model.embed(ids), lengths, self.thinker(), **options)
