"""Whatever a file or the command line holds: it is taken, or refused in one line. Seeded: the same inputs."""

import dataclasses
import json
import random
import shutil
import time
from pathlib import Path

import pytest
import torch
from conftest import killed_at, script

from minilatent import checkpoint, run, tasks
from minilatent.backbones.pretrained import load_pretrained
from minilatent.batch import encode
from minilatent.config import PRESETS, UserError
from minilatent.methods import METHODS, build
from minilatent.model import ModelConfig, Transformer
from minilatent.optim import make_optimizers, train_only
from minilatent.run import parse_args, resolve
from minilatent.tools.export import export

INPUTS = 2000  # over all readers
SECONDS = 5  # more is a hang
WEIRD = [None, True, -1, 0, 1, 3, 10**9, 10**30, 0.5, -1e308, 1e999, float("nan"), "", "x", "²", "\ud800"]
WEIRD += ["a\nb", "/dev/zero", "float99", "none", [], {}, [[]], {"a": {}}, "x" * 10_000, list(range(99))]
DEEP = "[" * 100_000
WORDS = ["", "-1", "0", "1_000", "1e999", "nan", "²", "1" * 5000, "x\ny", "--", "-", "\ud800", "\x00", "none"]


def changed(data, rng: random.Random):
    """The data with one value, at any depth, replaced, left out or doubled."""
    if isinstance(data, dict) and data and rng.random() < 0.9:
        key, data = rng.choice(list(data)), dict(data)
        if rng.random() < 0.1:
            del data[key]
        elif rng.random() < 0.05:
            data[key + "2"] = data[key]
        else:
            data[key] = changed(data[key], rng)
        return data
    if isinstance(data, list) and data and rng.random() < 0.9:
        i, data = rng.randrange(len(data)), list(data)
        data[i] = changed(data[i], rng)
        return data
    return rng.choice(WEIRD)


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Cut, a few bytes replaced, something put between, or something else altogether."""
    at, kind = rng.randrange(len(content)), rng.randrange(6)
    if kind == 0:
        return content[:at]
    if kind == 1:
        return content[:at] + rng.randbytes(3) + content[at + 3 :]
    if kind == 2:
        return (
            content[:at] + rng.choice([b"\xff", b"{", b"[", b'"', b"\n", b"NaN", b"9" * 400]) + content[at:]
        )
    return rng.choice([b"", b"7", b"null", b"[]", b"\xff\xfe", DEEP.encode(), rng.randbytes(40), content * 2])


def change_json(path, rng: random.Random) -> None:
    if rng.random() < 0.25:
        path.write_bytes(damaged(path.read_bytes(), rng))
    else:
        path.write_text(
            json.dumps(changed(json.loads(path.read_text(encoding="utf-8")), rng)), encoding="ascii"
        )


def change_lines(path, rng: random.Random) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    if rng.random() < 0.5:
        i = rng.randrange(len(lines))
        lines[i] = json.dumps(changed(json.loads(lines[i]), rng))
        path.write_text("\n".join(lines), encoding="utf-8")
    else:
        path.write_bytes(damaged(path.read_bytes(), rng))


def change_tensors(path, rng: random.Random) -> None:
    """Bytes of the file; or tensors and meta, with a right checksum."""
    if rng.random() < 0.3:
        return path.write_bytes(damaged(path.read_bytes(), rng))
    tensors, meta = checkpoint.load_tensors(path)
    name = rng.choice(sorted(tensors))
    t, kind = tensors[name], rng.randrange(6)
    if kind == 0:
        tensors[name] = t.reshape(-1)[: rng.randrange(max(1, t.numel()))].clone()
    elif kind == 1:
        tensors[name] = t.to(rng.choice([torch.int64, torch.float16, torch.bool]))
    elif kind == 2:
        del tensors[name]
    elif kind == 3:
        tensors[rng.choice(["x", "optimizer.step", "optimizer.x.y", "method.", name + ".x"])] = t.clone()
    elif kind == 4:
        tensors[name] = torch.full_like(
            t, rng.choice([float("nan"), float("inf")]) if t.is_floating_point() else -9
        )
    else:
        meta = changed(meta, rng) if meta else rng.choice(WEIRD)
    checkpoint.save_tensors(path, tensors, meta)


def command(rng: random.Random, known: list[str], values: list[str]) -> list[str]:
    """Options that there are, most of them, with values that make no sense, most of them."""
    argv = []
    for _ in range(rng.randrange(1, 5)):
        key, value = rng.choice(known), rng.choice(values)
        key = key if rng.random() < 0.9 else key[:-1] + rng.choice("xé\n=")
        argv += rng.choice([[key, value], [f"{key}={value}"], [key], [value]])
    return argv


def taken_or_refused(call, rng: random.Random) -> None:
    """UserError in one line is fine, too, and so is --help."""
    before = time.monotonic()
    try:
        call(rng)
    except UserError as error:
        assert len(str(error).splitlines()) == 1
    except SystemExit as error:
        assert not error.code
    assert time.monotonic() - before < SECONDS


@pytest.fixture(scope="module")
def readers(tmp_path_factory, tok, uninterrupted):
    """Every reader: a function of a random generator, which gives it an input of its own."""
    root = tmp_path_factory.mktemp("fuzz")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "mini_tokenizer", lambda: tok)
        killed_at(root / "run", 3, 2, "latent_sft")
        killed_at(root / "muon", 0, 2, "cot_sft", "--optimizer", "muon")
    shutil.copytree(uninterrupted, root / "done")
    method = run.load_run(root / "done", torch.device("cpu"))
    export(method.model, method.tok, root / "hf")
    data = root / "data.jsonl"
    lines = [{"question": f"What is {i} + 1?", "answer": f"<<{i}+1={i + 1}>> #### {i + 1}"} for i in range(9)]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")

    def on(path: Path, change, read):
        whole = path.read_bytes()

        def call(rng: random.Random) -> None:
            try:
                change(path, rng)
                read()
            finally:
                path.write_bytes(whole)

        return call

    def use(folder: Path) -> None:
        found = run.load_run(folder, torch.device("cpu"))
        found.tok.decode(found.prompt("Ava has 12 apples. <think>"))

    def use_hf() -> None:
        model, tok = load_pretrained(root / "hf")
        ids = tok.encode("Ava has 12 apples. <think>")
        tok.decode(ids)
        model(torch.tensor([ids or [0]]))

    def go_on(folder: Path) -> None:
        given = {"method": json.loads(whole_config[folder])["method"], "out": str(folder), "resume": True}
        run.resume_config(resolve(given), given, folder)
        checkpoint.model_shape(folder)

    def restore(folder: Path) -> None:
        path = folder / "state" / "resume.safetensors"
        checkpoint.read_progress(path)
        method, trained, optimizers = live[folder]
        for optimizer in optimizers:
            optimizer.state.clear()
        checkpoint.load_training_state(path, method, trained, optimizers)
        for p in trained.values():
            p.grad = torch.zeros_like(p)
        for optimizer in optimizers:
            optimizer.step()

    live = {}
    whole_config = {}
    for folder in (root / "run", root / "muon"):
        whole_config[folder] = (folder / "config.json").read_text(encoding="utf-8")
        config = run.stored_settings(folder)
        built = build(config, tok, Transformer(ModelConfig(**checkpoint.read_run(folder)["model"])))
        trained = train_only(built, ["model"])
        live[folder] = built, trained, make_optimizers(trained, built, 0.1, config.optimizer, config)

    rows = encode(tasks.load("mini", limit=64), tok, 512)[0]
    labels = build(run.stored_settings(root / "run"), tok, live[root / "run"][0].model, root / "run")
    options = [f"--{f.name}" for cls in METHODS.values() for f in dataclasses.fields(cls.Settings)]
    values = [*WORDS, "3", "0.5", "mini", "auto", *METHODS, *PRESETS]
    eval_parse = script("eval").__globals__["parse"]
    return [
        on(root / "done/config.json", change_json, lambda: use(root / "done")),
        on(root / "done/minilatent_tokenizer.json", change_json, lambda: use(root / "done")),
        on(root / "done/model.safetensors", change_tensors, lambda: use(root / "done")),
        on(root / "run/config.json", change_json, lambda: go_on(root / "run")),
        on(root / "run/state/resume.safetensors", change_tensors, lambda: restore(root / "run")),
        on(root / "muon/state/resume.safetensors", change_tensors, lambda: restore(root / "muon")),
        on(root / "run/state/labels.safetensors", change_tensors, lambda: use_labels(labels, rows)),
        on(
            root / "run/metrics.jsonl",
            change_lines,
            lambda: checkpoint.shorten_log(root / "run/metrics.jsonl", 1, 2),
        ),
        on(data, change_lines, lambda: tasks.load(data, "train")),
        on(root / "hf/config.json", change_json, use_hf),
        on(root / "hf/tokenizer.json", change_json, use_hf),
        on(root / "hf/tokenizer_config.json", change_json, use_hf),
        on(root / "hf/model.safetensors", change_bytes, use_hf),
        lambda rng: resolve(parse_args(["--method", rng.choice([*METHODS]), *command(rng, options, values)])),
        lambda rng: resolve(parse_args(command(rng, options, values))),
        lambda rng: eval_parse(["--ckpt", "x", *command(rng, EVAL, values)]),
    ]


EVAL = ["--limit", "--batch", "--threads", "--speed", "--max_chain", "--sample_end", "--data", "--brief"]


def use_labels(method, rows) -> None:
    method.labels = method.soft_labels(rows)
    method.train_rows = rows
    method.given_latents(method.collate2(list(range(len(rows)))), None)


def change_bytes(path: Path, rng: random.Random) -> None:
    path.write_bytes(damaged(path.read_bytes(), rng))


@pytest.mark.parametrize("part", range(16))
def test_whatever_is_read_is_taken_or_refused_in_one_line(readers, part):
    """271 tracebacks and 19 hangs of 3,036 inputs there were."""
    rng = random.Random(part)
    for _ in range(INPUTS // len(readers)):
        taken_or_refused(readers[part], rng)
