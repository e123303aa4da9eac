"""The settings that every method has, their help, the presets, and what makes a command line of them.

A method adds `class Settings(Config)` at the top of its file, and its part of the presets beside it.
"""

import argparse
import contextlib
import dataclasses
import difflib
import os
import re
import sys
import textwrap
import typing
from dataclasses import dataclass, field
from functools import partial


class UserError(Exception):
    """Something that the user can put right. Scripts print it on stderr (`wrapped`) and exit with code 2."""

    def __init__(self, message: str):
        super().__init__(" ".join(message.splitlines()))  # an argument or a file may hold new lines


def opt(default, help: str, **metadata):
    """A dataclass field with the text that `--help` shows. Metadata: `choices`, bounds `least` and `most`."""
    return field(default=default, metadata={"help": help, **metadata})


def is_a(value, kind: type) -> bool:
    """Whether a value from JSON has the type of a setting: 1 is a float, too, and True is no number."""
    return type(value) is kind or kind is float and type(value) is int


def check_fields(settings, where: str) -> None:
    """UserError if a field of a dataclass is of another type, not among its choices or out of its range.
    where: what stands before its name."""
    types = typing.get_type_hints(type(settings))
    for f in dataclasses.fields(settings):
        value, kind, choices = getattr(settings, f.name), types[f.name], f.metadata.get("choices")
        if isinstance(kind, type) and not is_a(value, kind):  # from a file: the command line has types
            raise UserError(f"{where}{f.name} {value!r:.60} is not of type {kind.__name__}")
        if choices and value not in choices:
            raise UserError(f"{where}{f.name} {value!r} is not one of {', '.join(choices)}")
        # A number whose default is 0 has a meaning for 0; other counts start at 1.
        counts = kind is int and (f.default is dataclasses.MISSING or f.default > 0)
        least, most = f.metadata.get("least", 1 if counts else 0), f.metadata.get("most")
        if kind in (int, float) and not least <= value <= (most or 2**62):  # NaN fails too
            allowed = f"{least} to {most}" if most else f"{least} or more"
            raise UserError(f"{where}{f.name} {value!r:.40} is out of range: {allowed}")


@dataclass
class Config:
    """The common settings. In `--help` a new group begins at each key of GROUPS."""

    method: str = opt("", "method to train")
    preset: str = opt("mini", "named set of defaults")
    init: str = opt("", "run or Hugging Face folder, hub name, or none (default on mini: mini-base)")
    number_tokens: bool = opt(False, "a token for each number of 2 or 3 digits (Hugging Face --init)")
    out: str = opt("", "run folder (default: out/METHOD)")
    seed: int = opt(0, "seed of the data order, the noise and all new weights")
    resume: bool = opt(False, "continue the run in --out")

    data: str = opt("mini", "mini, mini_prosqa, gsm8k, gsm8k_aug, gsm8k_redrawn, math, or a file")
    train_size: int = opt(60_000, "training examples, at most")
    val_size: int = opt(256, "validation examples, at most")
    test_size: int = opt(1000, "test examples for the final model, at most")
    chain_style: str = opt("equations", "chains of <<16-3=13>> or sentences", choices=("equations", "text"))
    chain_order: str = opt("text", "steps in the text's order or any valid one", choices=("text", "random"))
    max_tokens: int = opt(0, "longest example, longer ones are skipped (default: the context)")

    n_layer: int = opt(3, "layers", most=1000)
    n_head: int = opt(4, "attention heads", most=1000)
    width: int = opt(128, "width of the residual stream", most=100_000)
    hidden: int = opt(352, "width of the MLP", most=1_000_000)
    lora_rank: int = opt(0, "rank of LoRA adapters (0: train all weights)")
    lora_alpha: float = opt(0.0, "LoRA's α, adapters are scaled by α / rank (default: 2 · rank)")
    lora_dropout: float = opt(0.0, "dropout before the adapters", most=1.0)

    steps: int = opt(1000, "optimizer steps of the main stage")
    max_steps: int = opt(0, "stop every stage after this many steps (0: no limit)")
    batch_size: int = opt(64, "examples per optimizer step")
    accumulate: int = opt(1, "forward passes that a batch is split into")
    optimizer: str = opt("adamw", "adamw, or muon for the layers' matrices", choices=("adamw", "muon"))
    lr: float = opt(1e-3, "peak learning rate")
    warmup: float = opt(0.05, "share of the steps to warm up", most=1.0)
    weight_decay: float = opt(0.01, "weight decay, on matrices only")
    beta2: float = opt(0.99, "AdamW's β2, the decay of its second moment", most=0.9999)
    clip: float = opt(1.0, "largest gradient norm (0: no clipping)")
    eval_every: int = opt(0, "steps between validations (default: a quarter of the stage)")
    save_every: int = opt(200, "steps between checkpoints")
    log_every: int = opt(20, "steps between lines of metrics.jsonl")

    device: str = opt("auto", "cpu, cuda, cuda:N or mps; auto: cuda if there is any, else cpu")
    dtype: str = opt("auto", "forward pass's precision", choices=("auto", "float32", "bfloat16", "float16"))
    threads: int = opt(0, "CPU threads (0: PyTorch's choice)", most=1024)
    timeout: float = opt(10.0, "minutes that processes of torchrun wait for one that hangs", most=10_000)
    compile: bool = opt(False, "torch.compile for training, CUDA graphs for decoding (not yet run on a GPU)")
    attention: str = opt("sdpa", "kernel of masked attention", choices=("sdpa", "naive", "flex"))
    grad_checkpoint: bool = opt(
        False, "recompute activations, not in passes with a cache: less memory, slower"
    )

    max_chain: int = opt(64, "longest chain: latents, or tokens of an explicit chain")
    max_answer: int = opt(16, "longest answer in tokens")
    eval_batch: int = opt(256, "questions decoded side by side")

    def check(self) -> None:
        """UserError if a setting makes no sense. A subclass adds its own rules."""
        check_fields(self, "--")


GROUPS = {
    "method": "run",
    "data": "data",
    "n_layer": "model (with --init none) and adapters",
    "steps": "optimisation",
    "device": "machine",
    "max_chain": "decoding",
}


# ------------------------------------------------------------------ presets

# The common part; each method file has the method's own part. A preset of a pretrained model extends "gpu":
# the papers' settings for one GPU on GSM8K-Aug (an epoch of its 385,620 examples is 1,507 steps). "lora":
# Latent-SFT's release. Ours: 10 epochs where a paper names no number; 256 tokens a chain (numbers are long).
PRESETS: dict[str, dict] = {
    "mini": {"optimizer": "muon"},
    "base": {  # mini-base: python train.py --method cot_sft --preset base --dtype float32 --threads 1
        "init": "none",
        "train_size": 220_000,
        "val_size": 500,
        "optimizer": "muon",
        "steps": 3500,
        "lr": 4e-3,
        "eval_every": 500,
        "save_every": 500,
    },
    "smoke": {"train_size": 512, "val_size": 16, "steps": 6, "batch_size": 16, "max_chain": 24},
    "gpu": {
        "data": "gsm8k_aug",
        "train_size": 400_000,
        "val_size": 500,
        "test_size": 1319,
        "dtype": "bfloat16",
        "batch_size": 256,
        "accumulate": 4,
        "lr": 3e-4,
        "beta2": 0.999,
        "steps": 15_000,
        "eval_every": 1500,
        "save_every": 500,
        "eval_batch": 128,
        "max_chain": 256,
    },
    "lora": {"lora_rank": 64, "lora_alpha": 128.0, "lora_dropout": 0.1, "grad_checkpoint": True},
    "smollm2-135m": {"init": "HuggingFaceTB/SmolLM2-135M-Instruct"},
    "gpt2": {"init": "gpt2"},
    "qwen2.5-0.5b": {"init": "Qwen/Qwen2.5-0.5B-Instruct"},
    "qwen3-0.6b": {"init": "Qwen/Qwen3-0.6B"},
    "llama-3.2-1b": {"init": "meta-llama/Llama-3.2-1B-Instruct"},
}
EXTENDS = {
    "smollm2-135m": ("gpu",),
    "gpt2": ("gpu",),
    "qwen2.5-0.5b": ("gpu", "lora"),
    "qwen3-0.6b": ("gpu", "lora"),
    "llama-3.2-1b": ("gpu", "lora"),
}


def preset(name: str, presets: dict[str, dict]) -> dict:
    """What a preset sets in `presets` (the common ones above or a method's), with what it extends."""
    settings: dict = {}
    for layer in (*EXTENDS.get(name, ()), name):
        settings.update(presets.get(layer, {}))
    return settings


# ------------------------------------------------------------------ command line

# Commands, options with their values, and paths, which may hold blanks.
PASTED = re.compile(r"(?:python|pip) [^;,()]*|--\w+ \S+|(?<!\S)(?:[A-Z]:)?[/\\]\w(?:(?!  )[^:;,()])*[/\\]\S*")


def wrapped(message: str, indent: int = 2) -> str:
    """A message on lines of at most 100 columns, all but the first indented. What can be pasted stays whole,
    and so does a name that the user gave: it may hold blanks. A \\0 is a blank that is not broken at."""
    given = [part.strip() for argument in sys.argv[1:] for part in argument.split("=")]
    for whole in [*PASTED.findall(message), *(part for part in given if len(part) < 80)]:
        message = message.replace(whole, whole.replace(" ", "\0"))
    shape = {"break_long_words": False, "break_on_hyphens": False, "subsequent_indent": " " * indent}
    return textwrap.fill(message, 100, **shape).replace("\0", " ")


def nearest(word: str, known, otherwise: str = "") -> str:
    """`: did you mean 'x'?`, or the list of what is known, or something shorter."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f": did you mean '{close[0]}'?" if close else otherwise or f": choose from {', '.join(known)}"


def number(kind: type, text: str) -> float:
    """Python's int and float would take 1_000, and digits of any script."""
    if "_" in text or not text.isascii():
        raise ValueError
    return kind(text)


class Parser(argparse.ArgumentParser):
    """argparse that reports a wrong call as UserError and names the nearest key it knows."""

    def __init__(self, **kwargs):
        shape = partial(argparse.HelpFormatter, max_help_position=26, width=100)
        super().__init__(allow_abbrev=False, formatter_class=shape, **kwargs)
        for kind in (int, float):
            self.register("type", kind, partial(number, kind))
        self.owners = lambda name: ""  # of an option that only other methods have: these methods

    def error(self, message: str):
        raise UserError(message)

    def parse_args(self, args=None, namespace=None):
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            key = unknown[0].split("=")[0]
            if methods := self.owners(key.removeprefix("--").removeprefix("no-")):
                raise UserError(f"{key} belongs to {methods}")
            known = [name for action in self._actions for name in action.option_strings]
            raise UserError(f"unknown argument '{unknown[0]}'{nearest(key, known, ': see --help')}")
        return parsed


def add_fields(parser: Parser, cls: type, only=(), title="", shown: dict | None = None) -> None:
    """One `--key` for every field of a dataclass (or `only` these); a bool becomes `--key` and `--no-key`.
    Config's fields are grouped by GROUPS, others stand under `title`. shown: a preset's defaults."""
    types, group, shown = typing.get_type_hints(cls), parser, shown or {}
    common = {f.name for f in dataclasses.fields(Config)}
    for f in dataclasses.fields(cls):
        if only and f.name not in only:
            continue
        if not only and f.name in GROUPS:
            group = parser.add_argument_group(GROUPS[f.name])
        elif title and f.name not in common:
            group, title = parser.add_argument_group(title), ""
        kind, text, default = types[f.name], f.metadata["help"], shown.get(f.name, f.default)
        how = {"action": argparse.BooleanOptionalAction} if kind is bool else {"type": kind}
        if kind is not bool:
            how["metavar"] = kind.__name__
        if f.metadata.get("choices"):
            text += f" ({' | '.join(f.metadata['choices'])})"
        if default != "" and (f.name in shown or "(default" not in text):
            text += f" [{default}]"
        group.add_argument(f"--{f.name}", help=text.replace("%", "%%"), default=argparse.SUPPRESS, **how)


def run_script(main) -> typing.NoReturn:
    """Call a script's main(argv) with the exit codes that others rely on: 0; 2 for a wrong call or bad
    input, with one message on stderr, or when nobody reads the output; 130 after Ctrl-C."""
    code = 0
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # a terminal that is not UTF-8 shows `?` for what it lacks
            stream.reconfigure(errors="replace")
    try:
        main(sys.argv[1:])
        sys.stdout.flush()
    except UserError as error:
        print(wrapped(f"error: {error}"), file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        code = 130
    except OSError as error:  # usually stdout's: the pipe's reader has gone, or the disk is full
        if not isinstance(error, BrokenPipeError):
            print(wrapped(f"error: {error}"), file=sys.stderr)
        code = 2
        with contextlib.suppress(OSError):  # nothing more goes there, not even the interpreter's last flush
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if "TORCHELASTIC_RUN_ID" in os.environ:  # under torchrun: gloo's threads can abort an exiting interpreter
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    raise SystemExit(code)
