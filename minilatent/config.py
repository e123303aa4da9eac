"""Every setting, its default and its help; the command line and the presets are made from them."""

import argparse
import contextlib
import dataclasses
import difflib
import os
import sys
import typing
from dataclasses import dataclass, field

METHODS = (
    "cot_sft",
    "no_cot",
    "pause",
    "icot",
    "coconut",
    "codi",
    "latent_sft",
    "latent_rl",
    "colar",
    "colar_rl",
)


class UserError(Exception):
    """Something that the user can put right. Scripts print it as one line on stderr and exit with code 2."""


def opt(default, help: str, **metadata):
    """A dataclass field with the help text that `--help` shows."""
    return field(default=default, metadata={"help": help, **metadata})


@dataclass
class Config:
    # what
    method: str = opt("", "what to train", choices=METHODS)
    preset: str = opt("mini", "a named set of defaults")
    init: str = opt(
        "", "start from a run folder, a Hugging Face folder, a hub name, or none (default: mini-base on mini)"
    )
    out: str = opt("", "run folder (default: out/METHOD)")
    seed: int = opt(0, "of the data's order, the noise and (with --init none) the weights")
    resume: bool = opt(False, "go on with the run in --out")
    # data
    data: str = opt("mini", "mini | mini_prosqa | gsm8k | gsm8k_aug | math | a file")
    val_data: str = opt("", "file to validate on (default: the validation split of --data)")
    train_size: int = opt(60_000, "examples to train on, at most")
    val_size: int = opt(256, "examples to validate on, at most")
    test_size: int = opt(1000, "test examples to judge the final model on, at most")
    revision: str = opt("", "of a data set on the hub: a commit or tag, for a run that can be repeated")
    chain_style: str = opt(
        "equations", "chains as <<16-3=13>> or as the text's sentences", choices=("equations", "text")
    )
    chain_order: str = opt(
        "text",
        "order of a mini problem's steps: the text's, or a random valid one",
        choices=("text", "random"),
    )
    max_tokens: int = opt(
        0, "longest training example; longer ones are skipped and counted (default: the model's context)"
    )
    too_long: str = opt(
        "skip", "examples over --max_tokens: skip them, or stop with an error", choices=("skip", "error")
    )
    chat: bool = opt(
        True, "ask a chat model in the format that its folder names, if we know it (chatml, llama3)"
    )
    # model, with --init none
    n_layer: int = opt(5, "layers")
    n_head: int = opt(4, "attention heads")
    width: int = opt(128, "width of the residual stream")
    hidden: int = opt(352, "width of the MLP's inner layer")
    # adapters: train these instead of all weights
    lora_rank: int = opt(0, "rank of LoRA's adapters (0: none, all weights are trained)")
    lora_alpha: float = opt(0.0, "α: the adapters count α / rank (default: 2 · rank)")
    lora_dropout: float = opt(0.0, "dropout in front of the adapters")
    lora_targets: str = opt("q,k,v,o,up,gate,down", "which matrices get one")
    # optimisation
    steps: int = opt(1000, "optimizer steps of the method's main stage")
    max_steps: int = opt(0, "stop every stage after this many steps (0: no limit)")
    batch_size: int = opt(64, "examples a step")
    accumulate: int = opt(1, "split each batch into this many forward passes")
    optimizer: str = opt(
        "adamw", "adamw, or muon for the layers' matrices and adamw for the rest", choices=("adamw", "muon")
    )
    lr: float = opt(1e-3, "peak learning rate")
    min_lr: float = opt(0.0, "the cosine's end, as a share of lr")
    warmup: float = opt(0.05, "share of the steps to warm up")
    weight_decay: float = opt(0.01, "on matrices, not on norms and biases")
    beta2: float = opt(0.99, "AdamW's second momentum")
    clip: float = opt(1.0, "largest gradient norm")
    eval_every: int = opt(0, "steps between validations (0: a quarter of the stage)")
    save_every: int = opt(200, "steps between checkpoints to resume from")
    log_every: int = opt(20, "steps between lines of metrics.jsonl")
    # machine
    device: str = opt("auto", "auto | cpu | cuda | cuda:N")
    dtype: str = opt(
        "auto",
        "the forward pass's precision; auto: bfloat16 if the hardware multiplies it, else float32",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    grad_checkpoint: bool = opt(
        False,
        "keep one activation a layer and compute the rest anew going back: less memory, a third slower "
        "(not where a cache carries the gradient: the latent passes of coconut and codi)",
    )
    threads: int = opt(0, "CPU threads (0: PyTorch's choice)")
    compile: bool = opt(False, "torch.compile the model")
    # latent_sft
    ratio: int = opt(2, "compression ratio r: chain tokens a latent")
    segmentation: str = opt(
        "fixed",
        "a latent for every --ratio tokens, for every step of the chain, or for about the same information, "
        "as many as fixed",
        choices=("fixed", "step", "adaptive"),
    )
    k: int = opt(10, "vocabulary entries kept in a superposition")
    labels: str = opt(
        "encoder",
        "what stage 2 learns: stage 1's latents, or uniform mixtures of a segment's tokens (no stage 1)",
        choices=("encoder", "uniform"),
    )
    stage1_steps: str = opt("40,30,200", "steps of stage 1's phases: encoder, decoder, both")
    stage1_lr: float = opt(0.0, "learning rate of stage 1 (default: lr)")
    pull: float = opt(
        1.0,
        "weight that pulls a latent towards its segment's tokens, at the start of stage 1 (0, and 0 at the end: the paper's plain recipe)",
    )
    pull_end: float = opt(1.0, "the same at the end of stage 1")
    kl_weight: float = opt(1.0, "λ, of the KL between the latent labels and the model's distribution")
    ce_weight: float = opt(1.0, "β, of the cross-entropy on </think>, answer and end")
    gumbel: bool = opt(False, "Gumbel noise on the latent labels in stage 2 (v2 of the paper)")
    gumbel_scale: float = opt(1.0, "s, the noise's scale (latent_sft with --gumbel, latent_rl)")
    gumbel_tau: float = opt(1.0, "τ, the noisy mixture's temperature")
    ltim: bool = opt(True, "latent token induction mask in stage 1's encoder (off: causal)")
    ltsum: bool = opt(True, "latent token supervision mask in stage 1's decoder (off: causal)")
    latent: str = opt("superposition", "what a latent is", choices=("superposition", "hidden"))
    # colar
    speed: str = opt("2", "compression factor asked for at inference: a number, or auto")
    c_max: int = opt(5, "in training the factor of a step is drawn from 1..c_max")
    auto: float = opt(0.0, "share of the steps whose prompt says auto instead of the factor")
    pooling: str = opt(
        "sqrt", "a block of embeddings becomes its sum / √c, or its mean", choices=("sqrt", "mean")
    )
    head_width: int = opt(0, "width of the latent head (0: the model's)")
    latent_loss: str = opt(
        "soft_mse", "of the latent head; mse: a deterministic head", choices=("soft_mse", "nll", "mse")
    )
    entropy_weight: float = opt(0.0, "α of soft_mse")
    sigma_floor: float = opt(
        0.0, "what the latent head's σ never falls below, in units of the embeddings' std"
    )
    latent_weight: float = opt(1.0, "weight of the latent head's loss")
    compressed_labels: bool = opt(
        True, "cross-entropy on a block's tokens (off: only on whether the chain goes on)"
    )
    own_latents: float = opt(
        0.0, "weight of a second forward pass, on the model's own latents, that supervises the answer"
    )
    latent_temperature: float = opt(0.0, "of the latents at inference (0: the mean)")
    sample_end: bool = opt(False, "draw the end of the chain at inference instead of taking the likelier")
    # colar_rl, latent_rl
    group: int = opt(8, "G, chains and answers sampled for each question")
    inner: int = opt(1, "updates on each batch of samples")
    end_temperature: float = opt(1.0, "of the decision to go on or to end, in RL's samples", least=1e-3)
    clip_ratio: float = opt(0.2, "ε of the clipped surrogate")
    average: bool = opt(
        True, "average a sample's terms over its length (off: every latent and token counts the same)"
    )
    log_density: str = opt(
        "mean",
        "a latent's log-density: its mean over the width, or the sum (colar_rl)",
        choices=("mean", "sum"),
    )
    one_sided: bool = opt(True, "shift the Gumbel noise that draws a latent to 0 and above (latent_rl)")
    mirror: bool = opt(True, "bound the gradient where a negative advantage meets negative noise (latent_rl)")
    best_first: bool = opt(
        True, "at the first latent only the likeliest right sample of a group has an advantage (latent_rl)"
    )
    # pause, icot, coconut, codi
    num_latents: int = opt(6, "latents or pause tokens, always as many (pause, coconut, codi)", least=0)
    latents_a_step: int = opt(
        2,
        "c, latents for each step of the chain; num_latents / c are the curriculum's stages (coconut)",
        least=1,
    )
    remove: int = opt(4, "chain tokens that each stage removes from the left (icot)", least=1)
    smoothing: float = opt(4.0, "λ: o more tokens are removed with P(o) ∝ exp(-λ o) (icot; 0: none)", least=0)
    curriculum: float = opt(0.5, "share of the steps before the whole chain is gone (icot, coconut)", least=0)
    first_stage: int = opt(
        1, "stage to begin with: 1 from a CoT-SFT model, 0 from any other (icot, coconut)", least=0
    )
    distill_weight: float = opt(
        1.0, "weight of the distance between teacher's and student's hidden states (codi)", least=0
    )
    last_step: bool = opt(
        False, "keep the chain's last step, which says the answer, in the teacher's pass (codi)"
    )
    # decoding
    max_chain: int = opt(64, "longest chain: latents, or chain tokens for explicit CoT")
    max_answer: int = opt(16, "longest answer in tokens")
    eval_batch: int = opt(256, "questions decoded side by side")


@dataclass
class SoftThinking:
    """How eval.py and sample.py can decode an explicit CoT model without any training (arXiv 2505.15778)."""

    soft_thinking: bool = opt(
        False, "a CoT-SFT model feeds back mixtures of its likeliest tokens instead of words"
    )
    soft_k: int = opt(10, "tokens in such a mixture", least=1)
    soft_temperature: float = opt(0.6, "temperature of the mixture's probabilities", least=1e-3)
    cold_entropy: float = opt(0.1, "a step whose entropy (nats) is below is sure", least=0)
    cold_steps: int = opt(
        256, "cold stop: the chain ends after so many sure steps in a row (0: never)", least=0
    )

    @classmethod
    def of(cls, given: dict) -> "SoftThinking | None":
        """From what the user gave; None if it was not asked for."""
        mine = {f.name: given[f.name] for f in dataclasses.fields(cls) if f.name in given}
        if not mine.get("soft_thinking"):
            if others := sorted(mine.keys() - {"soft_thinking"}):
                raise UserError(f"--{others[0]} means something with --soft_thinking only")
            return None
        return check(cls(**mine))


LORA = {
    "lora_rank": 64,
    "lora_alpha": 128.0,
    "lora_dropout": 0.1,
    "grad_checkpoint": True,
}  # Latent-SFT's release


def on_gpu(init: str, **more) -> dict:
    """The papers' settings for a pretrained model on one GPU; README has the memory. GSM8K-Aug; Latent-SFT's learning
    rate, schedule and epochs (10 a phase of stage 1, 70 of stage 2), CoLaR's batch of 256 and at most 50 epochs (an
    epoch of the 385,620 examples is 1,507 steps), its factors up to 5, a latent head as wide as the model and adapters of
    rank 128, and its RL's learning rate and groups of 8; CODI's rank, weight and, on GPT-2, learning rate and 40 epochs. Our
    choice: for the others 10 epochs; chains of at most 256 tokens, which a number of several tokens can take; for RL 3,000 steps of 32 questions, which
    are as many rows a pass as elsewhere, and no dropout, which would change the probabilities that it compares."""
    return {
        "init": init,
        "data": "gsm8k_aug",
        "train_size": 400_000,
        "val_size": 500,
        "test_size": 1319,
        "dtype": "bfloat16",
        "batch_size": 256,
        "accumulate": 4,
        "lr": 3e-4,
        "warmup": 0.05,
        "weight_decay": 0.01,
        "beta2": 0.999,
        "steps": 15_000,
        "eval_every": 1500,
        "save_every": 500,
        "stage1_steps": "15000,15000,15000",
        "pull": 0.0,
        "pull_end": 0.0,
        "eval_batch": 128,
        "max_chain": 256,
        **more,
        "latent_sft": {"steps": 105_000},
        "icot": {"first_stage": 0},
        "coconut": {"first_stage": 0},  # such a model has not learnt the chain yet
        "codi": {"lora_rank": 128, "lr": 3e-3, "steps": 60_000}
        if init == "gpt2"
        else {"lora_rank": 128, "distill_weight": 20.0},
        "colar": {
            "steps": 75_000,
            "lr": 1e-4,
            "c_max": 5,
            "head_width": 0,
            **({"lora_rank": 128} if more else {}),
        },
        **dict.fromkeys(
            ("colar_rl", "latent_rl"),
            {"steps": 3000, "lr": 1e-6, "group": 8, "batch_size": 32, "eval_every": 250, "lora_dropout": 0.0},
        ),
    }


# A preset is a dict of defaults; "METHOD" inside it adds what holds for that method only.
PRESETS: dict[str, dict] = {
    "mini": {
        "optimizer": "muon",
        "cot_sft": {"steps": 1500},
        **dict.fromkeys(("no_cot", "pause", "icot", "coconut", "codi"), {"steps": 1500, "lr": 3e-3}),
        "latent_sft": {
            "accumulate": 2,
            "steps": 5000,
            "lr": 4e-3,
            "stage1_steps": "60,40,150",
            "stage1_lr": 1e-3,
        },
        "colar": {"steps": 2200, "lr": 3e-3, "head_width": 512, "latent_weight": 10.0},
        "latent_rl": {"optimizer": "adamw", "steps": 200, "lr": 1e-4, "batch_size": 32},
        "colar_rl": {"optimizer": "adamw", "steps": 180, "lr": 3e-5, "batch_size": 64, "latent_loss": "nll"},
    },
    # mini-base, from nothing: see minilatent/rebuild_base.py
    "base": {
        "init": "none",
        "train_size": 300_000,
        "optimizer": "muon",
        "steps": 4000,
        "lr": 4e-3,
        "eval_every": 500,
        "save_every": 500,
    },
    "smollm2-135m": on_gpu("HuggingFaceTB/SmolLM2-135M-Instruct"),
    "gpt2": on_gpu("gpt2"),
    "qwen2.5-0.5b": on_gpu("Qwen/Qwen2.5-0.5B-Instruct", **LORA),
    "qwen3-0.6b": on_gpu("Qwen/Qwen3-0.6B", **LORA),
    "llama-3.2-1b": on_gpu("meta-llama/Llama-3.2-1B-Instruct", **LORA),
    "smoke": {
        "colar_rl": {"group": 4, "max_chain": 24},
        "latent_rl": {"group": 4},
        "train_size": 512,
        "val_size": 16,
        "steps": 6,
        "stage1_steps": "3,3,3",
        "batch_size": 16,
        "max_chain": 24,
    },
}


def resolve(given: dict) -> Config:
    """Defaults < preset < preset's lines for the method < `given`."""
    name = given.get("preset", "mini")
    if name not in PRESETS:
        raise UserError(f"unknown preset '{name}'{nearest(name, PRESETS)}")
    method = given.get("method", "")
    if method not in METHODS:
        raise UserError(
            f"unknown method '{method}'{nearest(method, METHODS)}"
            if method
            else f"--method is required: {', '.join(METHODS)}"
        )
    preset = dict(PRESETS[name])
    special = {m: preset.pop(m, {}) for m in METHODS}
    config = check(Config(**{**preset, **special[method], **given}))
    check_speed(config.speed)
    steps = config.stage1_steps.split(",")
    if len(steps) != 3 or not all(s.strip().isdigit() and int(s) for s in steps):
        raise UserError(
            f"--stage1_steps {config.stage1_steps}: three whole numbers from 1 on, with commas between them"
        )
    for option, given in (("--labels uniform", config.labels == "uniform"), ("--gumbel", config.gumbel)):
        if given and config.latent == "hidden":
            raise UserError(f"{option} is about mixtures, and --latent hidden has none: drop one of them")
    return config


def check(settings):
    """The settings themselves; UserError if one is not among its choices or out of its range."""
    for f in dataclasses.fields(settings):
        value, choices = getattr(settings, f.name), f.metadata.get("choices")
        if choices and value not in choices:
            raise UserError(f"--{f.name} {value!r} is not one of {', '.join(choices)}")
        # A number whose default is 0 means something by it; of the others a count is 1 or more.
        least = f.metadata.get("least", 1 if isinstance(f.default, int) and f.default > 0 else 0)
        if not isinstance(value, (str, bool)) and not least <= value < float("inf"):  # a NaN, too
            raise UserError(f"--{f.name} {value} is out of range: {least} or more")
    return settings


def check_speed(speed: str) -> None:
    if speed != "auto" and not (speed.isdigit() and int(speed)):
        raise UserError(f"--speed {speed} is neither a whole number from 1 on nor auto")


def nearest(word: str, known, otherwise: str = "") -> str:
    """`: did you mean 'x'?`, or the list of what there is, or something shorter."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f": did you mean '{close[0]}'?" if close else otherwise or f": there is {', '.join(known)}"


class Parser(argparse.ArgumentParser):
    """argparse that says one line about a wrong call, naming the nearest key it knows."""

    def __init__(self, **kwargs):
        super().__init__(allow_abbrev=False, formatter_class=argparse.ArgumentDefaultsHelpFormatter, **kwargs)

    def error(self, message: str):
        raise UserError(message)

    def parse_args(self, args=None, namespace=None):
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            known = [
                name for action in self._actions for name in action.option_strings if name.startswith("--")
            ]
            raise UserError(
                f"unknown argument '{unknown[0]}'{nearest(unknown[0].split('=')[0], known, ': see --help')}"
            )
        return parsed


def add_fields(parser: argparse.ArgumentParser, cls: type, only: tuple[str, ...] | None = None) -> None:
    """One `--key` for every field of a dataclass; a bool becomes `--key / --no-key`."""
    types = typing.get_type_hints(cls)
    for f in dataclasses.fields(cls):
        if only and f.name not in only:
            continue
        kind = types[f.name]
        how = (
            {"action": argparse.BooleanOptionalAction}
            if kind is bool
            else {"type": kind, "metavar": kind.__name__}
        )
        shown = f.metadata["help"]
        if f.metadata.get("choices"):
            shown += f" ({' | '.join(f.metadata['choices'])})"
        default = "" if f.default == "" else f" [{f.default}]"
        parser.add_argument(
            f"--{f.name}", help=(shown + default).replace("%", "%%"), default=argparse.SUPPRESS, **how
        )


def parse_args(argv: list[str]) -> dict:
    """The command line of train.py: what the user gave, by key."""
    parser = Parser(prog="train.py", description="Train a method: python train.py --method latent_sft")
    add_fields(parser, Config)
    return vars(parser.parse_args(argv))


def run_script(main) -> typing.NoReturn:
    """Call a script's main(argv) with the exit codes that others rely on: 0, 2 for a wrong call or bad input with
    one line on stderr or where nobody reads what is written, 130 after Ctrl-C."""
    code = 0
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(
            AttributeError
        ):  # a terminal or pipe that is not UTF-8: `?` for what it has not
            stream.reconfigure(errors="replace")
    try:
        main(sys.argv[1:])
        sys.stdout.flush()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        code = 130
    except OSError as error:  # stdout's, as a rule: a pipe's reader is gone, the disk is full
        if not isinstance(error, BrokenPipeError):
            print(f"error: {error}", file=sys.stderr)
        code = 2
        with contextlib.suppress(OSError):  # nothing more goes there, the interpreter's last words neither
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if (
        "TORCHELASTIC_RUN_ID" in os.environ
    ):  # under torchrun: gloo's threads can abort an interpreter on its way out
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)
    raise SystemExit(code)
