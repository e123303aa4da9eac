"""What all tests share: one thread, the mini tokenizer, and tiny models."""

import importlib.util
import json
import random
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
PNG = b"\x89PNG"
sys.path.insert(0, str(ROOT))  # so that a bare `pytest` finds the package

from minilatent import checkpoint, run, tasks  # noqa: E402
from minilatent.batch import Row  # noqa: E402
from minilatent.config import PRESETS  # noqa: E402
from minilatent.methods import METHODS, build  # noqa: E402
from minilatent.model import ModelConfig, Transformer  # noqa: E402
from minilatent.study.measures import to_hex  # noqa: E402
from minilatent.tokenizer import mini_tokenizer  # noqa: E402
from minilatent.trainer import Trainer  # noqa: E402

torch.set_num_threads(1)
for name in ("mini", "smoke"):  # tests compare at 1e-5; `--dtype auto` has tests of its own
    PRESETS[name]["dtype"] = "float32"

GPT2 = {"position": "learned", "norm": "layernorm", "mlp": "gelu", "bias": True, "qkv_bias": True}
QWEN = {"n_kv_head": 1, "qkv_bias": True, "qk_norm": True, "rope_theta": 1e6, "norm_eps": 1e-6}
LLAMA = {"n_kv_head": 1, "tied": False}
FAMILIES = {"mini": {}, "gpt2": GPT2, "qwen": QWEN, "llama": LLAMA}


def tiny_model(vocab: int = 40, seed: int = 0, scale: float = 1.0, **changes) -> Transformer:
    """A random model. `scale` 1 is the usual small initialisation; larger weights make sharp, varied outputs,
    so that a wrong mask or position changes an argmax and not only the seventh digit."""
    shape = {"n_layer": 2, "n_head": 2, "n_kv_head": 2, "width": 16, "head_dim": 8, "hidden": 24}
    model = Transformer(ModelConfig(vocab, **{**shape, "context": 96, **changes}))
    generator = torch.Generator().manual_seed(seed)
    model.init_weights(generator)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "norm" in name or name.endswith("bias"):  # ones and zeros would hide a forgotten one
                p.add_(0.3 * torch.randn(p.shape, generator=generator))
            p.mul_(scale)
    return model.eval()


@pytest.fixture(scope="session")
def tok():
    return mini_tokenizer()


@pytest.fixture(scope="session")
def examples():
    return tasks.load("mini", "test", limit=40)


def new_method(name: str, tok, model: Transformer, folder: Path | None = None, **settings):
    """A method of these settings around a model, ready to decode."""
    return build(METHODS[name].Settings(method=name, **settings), tok, model, folder).eval()


def small_row(
    tok, question: list[int], chain: list[int], answer: list[int], ends: tuple[int, ...] = ()
) -> Row:
    return Row([*question, tok.think], chain, [tok.end_think, *answer], list(ends))


def chatty(tok, name: str, seed: int = 0, **settings):
    """A method with random weights, so large that the question matters: its chains end at different lengths
    and its answers are often numbers. (With a tied head, a random model repeats its last token for ever.)"""
    shape = {"n_layer": 1, "n_head": 2, "n_kv_head": 2, "width": 32, "head_dim": 16, "hidden": 32}
    model = Transformer(ModelConfig(tok.vocab_size, **shape, context=256, tied=False))
    model.init_weights(torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p.mul_(12)
        model.head.weight[[tok.end_think, tok.eos]] *= 2
        model.head.weight[tok.encode(" ".join(map(str, range(100))))[::2]] *= 1.5
    options = {"max_chain": 12, "max_answer": 4, "eval_batch": 8, **settings}
    return new_method(name, tok, model, **options)


def save(method, folder: Path) -> Path:
    folder.mkdir(parents=True)
    checkpoint.write_config(folder, method.config, method.model.config)
    method.tok.save(folder)
    checkpoint.save_tensors(folder / "model.safetensors", method.state_dict())
    return folder


@pytest.fixture(scope="session")
def runs(tok, tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    return {
        name: save(chatty(tok, name), root / name)
        for name in ("latent_sft", "latent_rl", "cot_sft", "no_cot", "colar")
    }


def script(name: str):
    spec = importlib.util.spec_from_file_location(f"{name}_script", ROOT / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def the_message(err: str) -> str:
    """The one message that a program has printed on stderr before it exits with 2, as one line. It is printed
    on lines of at most 100 columns, wider only for a path or a command, and all but the first are
    indented."""
    assert err.startswith("error: ") and err.endswith("\n") and "Traceback" not in err, err
    first, *more = err[:-1].split("\n")
    assert all(line[:2] == "  " != line[1:3] for line in more), err
    for line in (first, *more):
        words = line.removeprefix("error: ").split()
        assert len(line) <= 100 or max(map(len, words)) > 60 or words[0] in ("python", "pip"), err
    return " ".join(line.strip() for line in (first, *more))


def made_line(row="a", seed=0, name="mini", correct=(True,), **more) -> dict:
    """A line of rows.jsonl about len(correct) questions, without any training."""
    correct, n = list(correct), len(correct)
    return {
        "row": row,
        "run": row,
        "title": row,
        "group": "main",
        "seed": seed,
        "budget": 1.0,
        "limit": n,
        "dtype": "float32",
        "method": "latent_sft",
        "data": name,
        "n": n,
        "skipped": 0,
        "accuracy": sum(correct) / n,
        "mean_len": 5.0,
        "questions_per_second": 100.0,
        "train_seconds": 60.0,
        "train_tokens": 2_000_000,
        "flops": 1e12,
        "hardware": "a CPU",
        "val_accuracy": 0.5,
        "gain": 0.0,
        "questions": {"correct": to_hex(correct), "len": [5] * n},
        **more,
    }


def drawn(p: float, n: int, seed: int) -> list[bool]:
    rng = random.Random(seed)
    return [rng.random() < p for _ in range(n)]


# ------------------------------------------------------------------ whole runs, in a second each

TINY = (
    "--init none --n_layer 1 --width 32 --n_head 2 --hidden 32 --train_size 64 --val_size 8 --steps 4 "
    "--batch_size 8 --save_every 1 --log_every 1 --eval_every 2 --max_chain 8 --max_answer 4 --test_size 8 "
    "--device cpu --threads 1 --dtype float32"
).split()
TINY_OWN = {"latent_sft": ["--stage1_steps", "3,3,3"]}


def tiny(method: str = "latent_sft") -> list[str]:
    """train.py's arguments for a run of a second."""
    return ["--method", method, *TINY, *TINY_OWN.get(method, [])]


@pytest.fixture
def one_tokenizer(monkeypatch, tok):
    monkeypatch.setattr(run, "mini_tokenizer", lambda: tok)  # the same, made once


def train(out: Path, method: str = "latent_sft", *more) -> None:
    run.train(run.parse_args([*tiny(method), "--out", str(out), *map(str, more)]))


def metrics(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory, tok):
    """A finished run of Latent-SFT, to be looked at and not to be changed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "mini_tokenizer", lambda: tok)
        out = tmp_path_factory.mktemp("whole") / "run"
        train(out)
    return out


class Killed(BaseException):
    """As sudden as a program can end itself: no handler of Exception catches it."""


def same_run(out: Path, whole: Path) -> None:
    """The same weights to the last bit, and the same lines in the log, each as often."""
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    logged = lambda folder: [{k: v for k, v in e.items() if k != "seconds"} for e in metrics(folder)]
    assert logged(out) == logged(whole)


def kill_when(monkeypatch, name: str, moment) -> None:
    """Trainer.`name` (save_state, log) does its work; then, if moment(index of the stage, step), the run is
    dead."""
    real = getattr(Trainer, name)

    def method(self, *args, **kwargs):
        real(self, *args, **kwargs)
        if moment(self.at["stage"], self.at["step"]):
            raise Killed

    monkeypatch.setattr(Trainer, name, method)


def killed_at(out: Path, index: int, step: int, *args, name="save_state") -> None:
    """A run that dies right after Trainer.`name` at a step of a stage."""
    with pytest.MonkeyPatch.context() as patch:
        kill_when(patch, name, lambda *at: at == (index, step))
        with pytest.raises(Killed):
            train(out, *args)
