"""The loop: nothing is dropped, nothing is lost when it is killed, and a resumed run is the same run bit for bit."""
import errno
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, tiny_model

from minilatent import checkpoint, config, mini, setup, trainer
from minilatent.batch import encode
from minilatent.config import UserError, parse_args, resolve
from minilatent.methods import METHODS
from minilatent.methods.cot_sft import CoTSFT
from minilatent.model import Transformer
from minilatent.trainer import Trainer, batches, learning_rate, make_optimizers, padding

TINY = ("--init none --n_layer 1 --width 32 --n_head 2 --hidden 32 --train_size 64 --val_size 8 --steps 4 --stage1_steps 3,3,3 "
        "--batch_size 8 --save_every 1 --log_every 1 --eval_every 2 --max_chain 8 --max_answer 4 --test_size 8 --device cpu "
        "--threads 1 --dtype float32").split()


@pytest.fixture(autouse=True)
def one_tokenizer(monkeypatch, tok):
    monkeypatch.setattr(setup, "mini_tokenizer", lambda: tok)         # the same, made once


def train(out: Path, method: str = "latent_sft", *more) -> None:
    setup.train(parse_args(["--method", method, *TINY, "--out", str(out), *map(str, more)]))


def metrics(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


# --- batches and the learning rate -----------------------------------------------------------------------------------

@pytest.mark.parametrize("n, size", [(10, 4), (64, 8), (1000, 7), (3, 8), (5000, 32)])
def test_an_epoch_holds_every_index_once_and_is_another_every_time(n, size):
    """The last short batch included: `drop_last` loses up to a batch of examples an epoch."""
    lengths = [(i * 7919) % 50 for i in range(n)]
    cut = batches(lengths, size, "0 0 0")
    assert sorted(i for b in cut for i in b) == list(range(n))
    assert all(len(b) <= size for b in cut) and len(cut) == math.ceil(n / size)
    assert cut == batches(lengths, size, "0 0 0")
    if n > 10:
        assert cut != batches(lengths, size, "0 0 1")
        assert [lengths[b[0]] for b in cut] != sorted(lengths[b[0]] for b in cut)     # long ones are not kept for the end


def test_less_than_a_tenth_of_a_mini_epoch_is_padding(tok):
    rows, _ = encode(mini.load("mini", "train", 4000), tok, 512)
    lengths = [len(r.explicit(tok)[0]) for r in rows]
    cut = batches(lengths, 32, "0")
    padded = sum(max(lengths[i] for i in b) * len(b) for b in cut)
    assert padding(lengths, cut) == pytest.approx(1 - sum(lengths) / padded)
    assert 0 <= padding(lengths, cut) < 0.10 < padding(lengths, [list(range(i, min(i + 32, 4000))) for i in range(0, 4000, 32)])


def test_the_learning_rate_rises_in_a_line_and_falls_in_a_cosine():
    lr = [learning_rate(s, 100, 2.0, 0.1, 0.25) for s in range(100)]
    assert lr[:10] == pytest.approx([0.2 * (s + 1) for s in range(10)])
    assert lr[10] == pytest.approx(2.0) and lr[55] == pytest.approx(0.5 + 1.5 / 2)       # half way: half of the fall
    assert lr[10:] == sorted(lr[10:], reverse=True) and 0.5 < lr[99] < 0.502
    assert [learning_rate(s, 3, 1.0, 0.0, 0.0) for s in range(3)] == pytest.approx([1.0, 1.0, 0.5])
    assert learning_rate(0, 1, 1.0, 0.05, 0.0) == 1.0                                    # a one-step run learns


# --- the loop --------------------------------------------------------------------------------------------------------

class Spied(CoTSFT):
    """CoT-SFT that notes which rows each step saw."""
    def collate(self, rows, rng):
        self.seen.append(rows)
        return super().collate(rows, rng)


def spied(tok, tmp_path, n=10, **changes):
    cfg = resolve({"method": "cot_sft", "batch_size": 4, "steps": 6, "val_size": 2, "max_chain": 4, "max_answer": 2,
                   "log_every": 1, **changes})
    method = Spied(cfg, tok, tiny_model(tok.vocab_size, n_layer=1, context=512, width=16))
    method.seen = []
    (tmp_path / "state").mkdir(exist_ok=True)
    rows = encode(mini.load("mini", "train", n), tok, 512)[0]
    Trainer(cfg, method, tmp_path).fit(rows, mini.load("mini", "val", 2))
    return method, rows


def test_every_row_is_trained_on_in_every_epoch(tok, tmp_path):
    method, rows = spied(tok, tmp_path)                      # 10 rows, 4 a batch: 3 steps an epoch, two epochs
    for epoch in (method.seen[:3], method.seen[3:]):
        assert sorted(id(r) for b in epoch for r in b) == sorted(map(id, rows))
    assert sorted(len(b) for b in method.seen) == [2, 2, 4, 4, 4, 4]


def test_accumulation_sees_the_same_rows_and_takes_nearly_the_same_steps(tok, tmp_path):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    whole, _ = spied(tok, tmp_path / "a", steps=3)
    parts, _ = spied(tok, tmp_path / "b", steps=3, accumulate=2)
    assert [len(b) for b in parts.seen] == [n for b in whole.seen for n in (len(b) - len(b) // 2, len(b) // 2)]
    a, b = (metrics(tmp_path / x) for x in "ab")
    # Means of halves weigh tokens a little differently than the mean over the whole batch.
    assert a[0]["loss"] == pytest.approx(b[0]["loss"], rel=0.01) and a[0]["grad_norm"] == pytest.approx(b[0]["grad_norm"], rel=0.1)
    assert a[0]["loss"] != b[0]["loss"]


def test_training_learns_and_the_log_tells_how(tok, tmp_path):
    spied(tok, tmp_path, steps=40, lr=1e-2, eval_every=20)
    logged = metrics(tmp_path)
    losses = [e["loss"] for e in logged if "loss" in e]
    assert losses[0] > 5.0 and losses[-1] < 0.75 * losses[0]
    assert [e["step"] for e in logged if "val_accuracy" in e] == [20, 40]
    assert {"stage", "index", "step", "loss", "lr", "grad_norm", "tokens", "seconds"} <= logged[0].keys()


def test_a_test_split_is_never_asked_for_before_the_model_is_final(tmp_path, monkeypatch):
    """GSM8K-Aug's test set is GSM8K's: selecting on it was the commonest way to a good number."""
    real, asked = setup.data.load, []
    monkeypatch.setattr(setup.data, "load", lambda data, split, **k: (asked.append(split), real(data, split, **k))[1])
    saved = []
    real_fit = Trainer.fit
    monkeypatch.setattr(Trainer, "fit", lambda self, *a: (real_fit(self, *a), saved.append(list(asked)))[0])
    train(tmp_path / "run", "cot_sft")
    assert saved == [["train", "val"]] and asked == ["train", "val", "test"]


def test_a_named_validation_set_gives_its_validation_split(tmp_path, monkeypatch):
    real, asked = setup.data.load, []
    monkeypatch.setattr(setup.data, "load", lambda data, split, **k: (asked.append((data, split)), real(data, split, **k))[1])
    config = resolve({"method": "cot_sft", "val_data": "mini_prosqa", "train_size": 8, "val_size": 4})
    setup.load_data(config, setup.mini_tokenizer(), 512)
    assert asked == [("mini", "train"), ("mini_prosqa", "val")]


def test_stage_1_is_judged_by_what_it_is_called(uninterrupted):
    """The gold chain holds the answer: that a decoder finds it there is no accuracy."""
    told = {(e["stage"], key) for e in metrics(uninterrupted) for key in e if key in ("val_accuracy", "val_compression")}
    assert told == {*((f"stage1-{phase}", "val_compression") for phase in ("encoder", "decoder", "both")), ("stage2", "val_accuracy")}


def test_the_bar_tells_loss_speed_and_validation(tmp_path, monkeypatch):
    told = []

    class Bar:
        def __init__(self, **_): pass
        def update(self): pass
        def close(self): pass
        def set_postfix(self, values, refresh): told.append(dict(values))
    monkeypatch.setattr(trainer, "tqdm", Bar)
    train(tmp_path / "run", "cot_sft")
    assert list(told[0]) == ["loss", "tok/s"] and list(told[-1]) == ["loss", "tok/s", "val"]
    assert float(told[0]["loss"]) > 1 and int(told[0]["tok/s"]) > 10


def test_the_summary_tells_parameters_tokens_stages_and_minutes(tmp_path, capsys):
    train(tmp_path / "run", "latent_sft", "--max_chain", 4)
    first, cut_off, *stages = capsys.readouterr().out.splitlines()[:6]
    method = setup.load_run(tmp_path / "run", torch.device("cpu"))
    assert f"{method.model.num_parameters() / 1e6:.2f} M parameters" in first and "64 training examples" in first and "M tokens" in first
    assert "longer than --max_chain" in cut_off                     # 4 latents of 2 tokens: one step
    assert [line.split()[0] for line in stages] == ["stage1-encoder", "stage1-decoder", "stage1-both", "stage2"]
    assert all(f"{n} steps, about" in line and " min " in line for line, n in zip(stages, (3, 3, 3, 4)))


def test_a_compiled_run_is_the_same_run(tmp_path, monkeypatch):
    """Traced, not made faster: the backend that writes code needs a compiler, and time."""
    real, calls = Transformer.compile, []
    monkeypatch.setattr(Transformer, "compile", lambda self, **options: (calls.append(options), real(self, backend="eager", **options)))
    train(tmp_path / "plain", "cot_sft", "--steps", 2)
    train(tmp_path / "compiled", "cot_sft", "--steps", 2, "--compile")
    assert calls == [{"dynamic": True}]
    plain, compiled = ([e["loss"] for e in metrics(tmp_path / name) if "loss" in e] for name in ("plain", "compiled"))
    assert len(plain) == 2 and plain == pytest.approx(compiled, rel=1e-5)


def test_max_steps_stops_every_stage(tmp_path):
    train(tmp_path / "run", "latent_sft", "--max_steps", 1)
    assert sorted({(e["index"], e["step"]) for e in metrics(tmp_path / "run")}) == [(0, 1), (1, 1), (2, 1), (3, 1)]


def test_muon_moves_the_matrices_between_embeddings_and_head_and_adamw_the_rest(tok):
    for tied in (True, False):
        cfg = resolve({"method": "colar", "optimizer": "muon"})
        method = METHODS["colar"](cfg, tok, tiny_model(tok.vocab_size, tied=tied, bias=True))
        named = dict(method.named_parameters())
        adamw, muon = make_optimizers(named, method, 1e-3, "muon", cfg)
        of = lambda o: {n for n, p in named.items() if any(p is q for group in o.param_groups for q in group["params"])}
        assert not of(adamw) & of(muon) and of(adamw) | of(muon) == named.keys()
        assert of(muon) == {n for n, p in named.items() if p.dim() == 2 and n not in ("model.embed.weight", "model.head.weight")}
        assert {n for n in of(muon) if "latent_head" in n} and len(make_optimizers(named, method, 1e-3, "adamw", cfg)) == 1


# --- killed and resumed ----------------------------------------------------------------------------------------------

class Killed(BaseException):
    """As sudden as a program can do to itself: no handler of Exception sees it."""


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, tok):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setup, "mini_tokenizer", lambda: tok)
        out = tmp_path_factory.mktemp("whole") / "run"
        train(out)
    return out


def same_run(out: Path, whole: Path) -> None:
    """The same weights to the last bit, and a log with each (stage, step) as often as a run of one piece has it."""
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    told = lambda folder: [{k: v for k, v in e.items() if k != "seconds"} for e in metrics(folder)]
    assert told(out) == told(whole)


def kill_when(monkeypatch, name: str, moment) -> None:
    """Trainer.`name` does its work; then, when moment(its arguments), the run is dead."""
    real = getattr(Trainer, name)

    def method(self, *args, **kwargs):
        real(self, *args, **kwargs)
        if moment(*args):
            raise Killed
    monkeypatch.setattr(Trainer, name, method)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("step", [2, "last"])
def test_a_run_killed_in_or_right_after_any_stage_resumes_bit_for_bit(tmp_path, uninterrupted, stage, step):
    step = (4 if stage == 3 else 3) if step == "last" else step
    with pytest.MonkeyPatch.context() as patch:
        kill_when(patch, "save", lambda index, done, *_: (index, done) == (stage, step))
        with pytest.raises(Killed):
            train(tmp_path / "run")
    assert not (tmp_path / "run" / "model.safetensors").exists()
    train(tmp_path / "run", "latent_sft", "--resume")
    same_run(tmp_path / "run", uninterrupted)


@pytest.mark.parametrize("method", ["colar", "colar_rl", "latent_rl", "latent_sft"])
def test_colar_the_rl_methods_adaptive_segments_and_muon_resume_bit_for_bit(tmp_path, method, monkeypatch):
    """Factors, labels, samples and rewards are drawn anew from (seed, step): nothing of them is in the checkpoint."""
    args = ["--latent_loss", "nll", "--group", 3, "--inner", 2, "--segmentation", "adaptive", "--optimizer", "muon"]
    if method.endswith("_rl"):
        monkeypatch.setattr("minilatent.rl.is_correct", lambda answer, gold: len(answer) % 2 == 0)      # random weights are never right,
        judge = METHODS[method].judge                                                                   # and never come to an end
        monkeypatch.setattr(METHODS[method], "judge", lambda self, b, rewards: judge(self, {**b, "whole": torch.ones_like(b["whole"])}, rewards))
        train(tmp_path / "start", {"colar_rl": "colar", "latent_rl": "latent_sft"}[method], *args)
        args += ["--init", tmp_path / "start"]
    train(tmp_path / "whole", method, *args)
    with pytest.MonkeyPatch.context() as patch:
        kill_when(patch, "save", lambda index, done, *_: done == 2)
        with pytest.raises(Killed):
            train(tmp_path / "run", method, *args)
    train(tmp_path / "run", method, *args, "--resume")
    same_run(tmp_path / "run", tmp_path / "whole")
    if method.endswith("_rl"):
        assert any(e.get("grad_norm", 0) > 0 for e in metrics(tmp_path / "run")) and metrics(tmp_path / "run")[0]["step"] == 0


def test_rl_that_only_gets_worse_leaves_the_model_as_it_was(tmp_path, monkeypatch):
    """Where it begins is judged, too."""
    train(tmp_path / "start", "latent_sft")
    scores = iter([0.9, 0.5, 0.4, 0.3])
    monkeypatch.setattr(METHODS["latent_rl"], "validate", lambda self, val: {"accuracy": next(scores), "mean_len": 3.0})
    monkeypatch.setattr("minilatent.rl.is_correct", lambda answer, gold: len(answer) % 2 == 0)
    train(tmp_path / "run", "latent_rl", "--init", tmp_path / "start", "--group", 3)
    told = [(e["step"], e["val_accuracy"]) for e in metrics(tmp_path / "run") if "val_accuracy" in e]
    assert told == [(0, 0.9), (2, 0.5), (4, 0.4)]
    scores = iter([0.9, 0.9, 0.5, 0.4])
    with pytest.MonkeyPatch.context() as patch:                      # killed right after it was judged, before any checkpoint
        kill_when(patch, "log", lambda index, _, done: done == 0)
        with pytest.raises(Killed):
            train(tmp_path / "killed", "latent_rl", "--init", tmp_path / "start", "--group", 3)
    train(tmp_path / "killed", "latent_rl", "--init", tmp_path / "start", "--group", 3, "--resume")
    same_run(tmp_path / "killed", tmp_path / "run")
    a, b = (checkpoint.load_tensors(tmp_path / name / "model.safetensors")[0] for name in ("start", "run"))
    assert a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


@pytest.mark.parametrize("stage, step", [(0, 1), (0, 3), (1, 1), (3, 3)])
def test_what_was_done_after_the_last_checkpoint_is_done_again_and_logged_once(tmp_path, stage, step):
    """Killed between two checkpoints, the log is ahead of the weights; before the first, there are none at all."""
    often = ["--save_every", 2]
    train(tmp_path / "whole", "latent_sft", *often)
    with pytest.MonkeyPatch.context() as patch:
        kill_when(patch, "log", lambda index, _, done: (index, done) == (stage, step))
        with pytest.raises(Killed):
            train(tmp_path / "run", "latent_sft", *often)
    with open(tmp_path / "run" / "metrics.jsonl", "a") as f:
        f.write('{"stage": "stage1-enc')                              # a line that was never finished
    train(tmp_path / "run", "latent_sft", *often, "--resume")
    same_run(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize("stage, file", [("stage1-encoder", "resume"), ("stage1-decoder", "resume"), ("stage1-both", "resume"),
                                         ("stage1-both", "labels"), ("stage2", "resume")])
def test_kill_9_in_the_middle_of_a_stage_loses_nothing(tmp_path, uninterrupted, stage, file):
    """The real thing: another process, killed by a signal that nobody can catch, while it writes a checkpoint or the labels."""
    program = f"""
import os, signal, sys
import torch
torch.set_num_threads(1)
from minilatent import config, files, setup
real = files.os.replace
def replace(source, target):
    if str(target).endswith("{file}.safetensors") and open(os.path.join({str(tmp_path / 'run')!r}, "metrics.jsonl")).read().count("{stage}") >= 2:
        os.kill(os.getpid(), signal.SIGKILL)          # the new file is written, the old one still stands
    real(source, target)
files.os.replace = replace
setup.train(config.parse_args(sys.argv[1:]))
"""
    done = subprocess.run([sys.executable, "-c", program, "--method", "latent_sft", *TINY, "--out", str(tmp_path / "run")],
                          cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert metrics(tmp_path / "run")[-1]["stage"] == stage
    train(tmp_path / "run", "latent_sft", "--resume")
    same_run(tmp_path / "run", uninterrupted)


def test_a_seed_repeats_a_run_and_another_seed_does_not(tmp_path, uninterrupted):
    train(tmp_path / "again")
    same_run(tmp_path / "again", uninterrupted)
    train(tmp_path / "other", "latent_sft", "--seed", 1)
    assert (tmp_path / "other" / "model.safetensors").read_bytes() != (uninterrupted / "model.safetensors").read_bytes()


def test_a_finished_run_folder_holds_what_is_promised(uninterrupted):
    assert [p.name for p in uninterrupted.rglob("model.safetensors")] == ["model.safetensors"]
    assert {p.name for p in uninterrupted.iterdir()} >= {"config.json", "model.safetensors", "metrics.jsonl", "state"}
    assert not list(uninterrupted.rglob("*.tmp"))
    method = setup.load_run(uninterrupted, torch.device("cpu"))
    assert method.config.method == "latent_sft" and not any(n.startswith("encoder.") for n in method.state_dict())
    assert len(method.solve(["Ava has 3 eggs. How many eggs does Ava have?"]).answers) == 1


def test_ctrl_c_saves_and_exits_with_130_and_the_run_goes_on_from_there(tmp_path, uninterrupted, monkeypatch, capsys):
    before = signal.getsignal(signal.SIGINT)
    with pytest.MonkeyPatch.context() as patch:
        real = Trainer.log

        def log(self, index, stage, step, **values):
            real(self, index, stage, step, **values)
            if (index, step) == (1, 2) and "loss" in values:
                os.kill(os.getpid(), signal.SIGINT)
        patch.setattr(Trainer, "log", log)
        patch.setattr(sys, "argv", ["train.py", "--method", "latent_sft", *TINY, "--out", str(tmp_path / "run"), "--save_every", "100"])
        with pytest.raises(SystemExit) as caught:
            config.run(lambda argv: setup.train(parse_args(argv)))
    assert caught.value.code == 130 and signal.getsignal(signal.SIGINT) == before
    assert "--resume" in capsys.readouterr().out
    setup.train(parse_args(["--method", "latent_sft", "--out", str(tmp_path / "run"), "--resume"]))
    same_run(tmp_path / "run", uninterrupted)


def test_in_bfloat16_all_stages_train_and_resume_bit_for_bit(tmp_path, uninterrupted):
    """What --dtype auto takes on a CPU that multiplies it: nearly the same losses, and not the same."""
    half = ["--dtype", "bfloat16"]
    train(tmp_path / "whole", "latent_sft", *half)
    for a, b in zip(metrics(tmp_path / "whole"), metrics(uninterrupted), strict=True):
        if "loss" in a:
            assert a["loss"] == pytest.approx(b["loss"], rel=0.02) and a["loss"] != b["loss"]
    with pytest.MonkeyPatch.context() as patch:
        kill_when(patch, "save", lambda index, done, *_: (index, done) == (3, 2))
        with pytest.raises(Killed):
            train(tmp_path / "run", "latent_sft", *half)
    train(tmp_path / "run", "latent_sft", *half, "--resume")
    same_run(tmp_path / "run", tmp_path / "whole")


# --- what goes wrong -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_a_loss_or_gradient_that_is_no_number_stops_the_run_and_the_last_checkpoint_is_good(tmp_path, monkeypatch, kind):
    """A NaN gradient behind a finite loss would be stepped on, saved, and noticed one step too late."""
    real, calls = CoTSFT.loss, []

    def loss(self, *args):
        value, extra = real(self, *args)
        calls.append(0)
        if len(calls) == 3:
            zero = self.model.embed.weight.sum() * 0
            value = value * float("nan") if kind == "loss" else value + (zero * zero).sqrt()   # 0, with a slope of 0/0
        return value, extra
    monkeypatch.setattr(CoTSFT, "loss", loss)
    with pytest.raises(UserError) as caught:
        train(tmp_path / "run", "cot_sft")
    assert "nan" in str(caught.value) and "lr" in str(caught.value) and "\n" not in str(caught.value)
    tensors, meta = checkpoint.load_tensors(tmp_path / "run" / "state" / "resume.safetensors")
    assert meta["step"] == 2 and all(t.isfinite().all() for t in tensors.values())
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_a_full_disk_keeps_the_last_good_checkpoint(tmp_path, monkeypatch):
    path, old = tmp_path / "a.safetensors", {"w": torch.arange(4.0)}
    checkpoint.save_tensors(path, old, {"step": 1})
    before = path.read_bytes()

    def full(tensors, file, header):
        Path(file).write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(UserError, match="No space left"):
        checkpoint.save_tensors(path, {"w": torch.zeros(4)})
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["a.safetensors"]
    with pytest.raises(UserError, match="No space left"):
        train(tmp_path / "run", "cot_sft")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_disk_that_is_full_when_the_log_is_written_is_one_line(tmp_path, monkeypatch):
    """Steps are logged more often than saved: the log meets the full disk first."""
    real = setup.prepare_folder

    def prepared(config, folder):
        real(config, folder)
        (folder / "metrics.jsonl").symlink_to("/dev/full")
        return folder
    monkeypatch.setattr(setup, "prepare_folder", prepared)
    with pytest.raises(UserError, match="metrics.jsonl: No space left") as caught:
        train(tmp_path / "run", "cot_sft")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage, said", [
    (lambda run: (run / "model.safetensors").write_bytes((run / "model.safetensors").read_bytes()[:-100]), "truncated"),
    (lambda run: (run / "config.json").write_text("{"), "damaged"),
    (lambda run: (run / "config.json").write_text("{}"), "not of a minilatent run"),
    (lambda run: (run / "config.json").unlink(), "no config.json"),
    (lambda run: (run / "config.json").write_text((run / "config.json").read_text().replace('"hidden": 32', '"hidden": 40')), "shape"),
    (lambda run: (run / "minilatent_tokenizer.json").unlink(), "minilatent_tokenizer.json"),
])
def test_a_damaged_run_folder_is_refused_in_one_line(tmp_path, uninterrupted, damage, said):
    run = tmp_path / "run"
    run.mkdir()
    for name in ("config.json", "model.safetensors", "minilatent_tokenizer.json"):
        (run / name).write_bytes((uninterrupted / name).read_bytes())
    assert setup.load_run(run, torch.device("cpu")).config.method in METHODS
    damage(run)
    with pytest.raises(UserError, match=said) as caught:
        setup.load_run(run, torch.device("cpu"))
    assert "\n" not in str(caught.value)


def test_a_damaged_checkpoint_stops_resuming_with_one_line_and_nothing_is_changed(tmp_path):
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        kill_when(patch, "save", lambda index, done, *_: (index, done) == (0, 2))
        with pytest.raises(Killed):
            train(run, "cot_sft")
    path = run / "state" / "resume.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:])
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    with pytest.raises(UserError, match="damaged"):
        train(run, "cot_sft", "--resume")
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before


def test_freed_memory_is_given_back_where_the_c_library_can(monkeypatch):
    """malloc_trim is glibc's: macOS has a library without it, Windows opens none (TypeError)."""
    asked = []
    monkeypatch.setattr(trainer.ctypes, "CDLL", lambda name: SimpleNamespace(malloc_trim=asked.append))
    trainer.trim_memory()
    assert asked == [0]
    for library in (lambda name: object(), lambda name: len(name)):
        monkeypatch.setattr(trainer.ctypes, "CDLL", library)
        trainer.trim_memory()                            # does not raise
