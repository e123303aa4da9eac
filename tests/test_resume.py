"""Nothing is lost when a run is killed, and a resumed run is the same run bit for bit."""

import os
import signal
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, Killed, kill_when, metrics, same_run, tiny, train

from minilatent import checkpoint, config, run
from minilatent.config import UserError
from minilatent.methods import METHODS
from minilatent.run import parse_args
from minilatent.trainer import Trainer

pytestmark = pytest.mark.usefixtures("one_tokenizer")


def train_and_kill(name: str, moment, out, *args) -> None:
    """A run that dies when Trainer.`name` (save_state, log) is done at moment(index of the stage, step)."""
    with pytest.MonkeyPatch.context() as patch:
        kill_when(patch, name, moment)
        with pytest.raises(Killed):
            train(out, *args)
    assert not (out / "model.safetensors").exists()


@pytest.mark.parametrize("stage, step", [(0, 2), (0, 3), (1, 3), (2, 3), (3, 2), (3, 4)])
def test_a_run_killed_in_or_right_after_any_stage_resumes_bit_for_bit(tmp_path, uninterrupted, stage, step):
    out = tmp_path / "run"
    train_and_kill("save_state", lambda *at: at == (stage, step), out)
    train(out, "latent_sft", "--resume")
    same_run(out, uninterrupted)


@pytest.fixture
def some_rewards(monkeypatch):
    """Random weights are never right, and their chains and answers never end: here some count as right."""
    monkeypatch.setattr("minilatent.methods.grpo.is_correct", lambda answer, gold: len(answer) % 2 == 0)
    cls = METHODS["latent_rl"]
    real = cls.with_advantages

    def with_advantages(self, batch, rewards):
        return real(self, {**batch, "whole": torch.ones_like(batch["whole"])}, rewards)

    monkeypatch.setattr(cls, "with_advantages", with_advantages)


RL = ["--group", 3, "--inner", 2]


@pytest.mark.parametrize(
    "method, args", [("colar", ["--latent_loss", "nll"]), ("colar_rl", RL), ("latent_rl", RL)]
)
def test_factors_samples_rewards_and_muon_resume_bit_for_bit(
    tmp_path, uninterrupted, some_rewards, method, args
):
    """All that is random is made from (seed, stage, step): nothing of it is in the checkpoint."""
    args = [method, "--optimizer", "muon", *args]
    if method == "latent_rl":
        args += ["--init", uninterrupted]
    if method == "colar_rl":
        train(tmp_path / "start", "colar", "--latent_loss", "nll", "--max_steps", 1)
        args += ["--init", tmp_path / "start"]
    train(tmp_path / "whole", *args)
    train_and_kill("save_state", lambda stage, step: step == 2, tmp_path / "run", *args)
    train(tmp_path / "run", *args, "--resume")
    same_run(tmp_path / "run", tmp_path / "whole")
    logged = metrics(tmp_path / "run")
    assert any(e.get("grad_norm", 0) > 0 for e in logged)
    assert logged[0]["step"] == (0 if method.endswith("_rl") else 1)  # RL's start is judged, too


def test_rl_that_only_gets_worse_leaves_the_model_as_it_was(
    tmp_path, uninterrupted, some_rewards, monkeypatch
):
    """Where it begins is judged, too."""
    scores: list[float] = []

    def judge(self, val):
        return {"accuracy": scores.pop(0) if scores else 0.0, "mean_len": 3.0}  # at last the test set

    monkeypatch.setattr(METHODS["latent_rl"], "accuracy", judge)
    args = ["latent_rl", "--init", uninterrupted, "--group", 3]
    scores[:] = [0.9, 0.5, 0.4]
    train(tmp_path / "run", *args)
    judged = [(e["step"], e["val_accuracy"]) for e in metrics(tmp_path / "run") if "val_accuracy" in e]
    assert judged == [(0, 0.9), (2, 0.5), (4, 0.4)]
    scores[:] = [0.9]  # killed right after it was judged, before any checkpoint
    train_and_kill("log", lambda stage, step: step == 0, tmp_path / "killed", *args)
    scores[:] = [0.9, 0.5, 0.4]
    train(tmp_path / "killed", *args, "--resume")
    same_run(tmp_path / "killed", tmp_path / "run")
    start, end = (
        checkpoint.load_tensors(x / "model.safetensors")[0] for x in (uninterrupted, tmp_path / "run")
    )
    assert start.keys() == end.keys() and all(torch.equal(start[n], end[n]) for n in start)


@pytest.mark.parametrize("stage, step", [(0, 1), (0, 3), (3, 3)])
def test_what_was_done_after_the_last_checkpoint_is_done_again_and_logged_once(
    tmp_path, uninterrupted, stage, step
):
    """Killed between two checkpoints, the log is ahead of the weights; before the first there are none."""
    out = tmp_path / "run"
    train_and_kill("log", lambda *at: at == (stage, step), out, "latent_sft", "--save_every", 2)
    with open(out / "metrics.jsonl", "a", encoding="utf-8") as f:
        f.write('{"stage": "stage1-enc')  # a line that was never finished
    train(out, "latent_sft", "--save_every", 2, "--resume")
    same_run(out, uninterrupted)


KILL_9 = """
import os, signal, sys
import torch
torch.set_num_threads(1)
from minilatent import files, run
real, (file, stage, log, *argv) = files.os.replace, sys.argv[1:]
def replace(source, target):
    if str(target).endswith(file) and open(log, encoding="utf-8").read().count(stage) >= 2:
        os.kill(os.getpid(), signal.SIGKILL)  # the new file is written, the old one still stands
    real(source, target)
files.os.replace = replace
run.train(run.parse_args(argv))
"""


@pytest.mark.parametrize("file, stage", [("labels", "stage1-both"), ("resume", "stage2")])
def test_kill_9_while_a_file_is_written_loses_nothing(tmp_path, uninterrupted, file, stage):
    """The real thing: another process, killed by a signal that nobody can catch."""
    out = tmp_path / "run"
    arguments = [f"{file}.safetensors", stage, out / "metrics.jsonl", *tiny(), "--out", out]
    command = [sys.executable, "-c", KILL_9, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert metrics(out)[-1]["stage"] == stage and list(out.rglob("*.tmp"))
    train(out, "latent_sft", "--resume")
    same_run(out, uninterrupted)
    assert not list(out.rglob("*.tmp"))


def test_another_seed_is_another_run(tmp_path, uninterrupted):
    """(That the same seed repeats a run is what all tests above compare.)"""
    train(tmp_path / "other", "latent_sft", "--seed", 1, "--max_steps", 1)
    files = [folder / "model.safetensors" for folder in (tmp_path / "other", uninterrupted)]
    assert files[0].read_bytes() != files[1].read_bytes()


def test_a_finished_run_folder_holds_what_is_promised(uninterrupted):
    assert [p.name for p in uninterrupted.rglob("model.safetensors")] == ["model.safetensors"]
    promised = {"config.json", "model.safetensors", "minilatent_tokenizer.json", "metrics.jsonl", "state"}
    assert {p.name for p in uninterrupted.iterdir()} == promised
    assert not list(uninterrupted.rglob("*.tmp"))
    method = run.load_run(uninterrupted, torch.device("cpu"))
    assert method.config.method == "latent_sft"
    assert not any(name.startswith("encoder.") for name in method.state_dict())
    assert len(method.solve(["Ava has 3 eggs. How many eggs does Ava have?"]).answers) == 1


def test_ctrl_c_saves_and_exits_with_130_and_the_run_goes_on_from_there(
    tmp_path, uninterrupted, monkeypatch, capsys
):
    before, out = signal.getsignal(signal.SIGINT), tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        real = Trainer.log

        def log(self, stage, **values):
            real(self, stage, **values)
            if (self.at["stage"], self.at["step"]) == (1, 2) and "loss" in values:
                os.kill(os.getpid(), signal.SIGINT)

        patch.setattr(Trainer, "log", log)
        patch.setattr(sys, "argv", ["train.py", *tiny(), "--out", str(out), "--save_every", "100"])
        with pytest.raises(SystemExit) as caught:
            config.run_script(lambda argv: run.train(parse_args(argv)))
    assert caught.value.code == 130 and signal.getsignal(signal.SIGINT) == before
    assert "--resume" in capsys.readouterr().out
    run.train(parse_args(["--method", "latent_sft", "--out", str(out), "--resume"]))
    same_run(out, uninterrupted)


def test_in_bfloat16_all_stages_train_and_resume_bit_for_bit(tmp_path, uninterrupted):
    """What --dtype auto takes on a CPU that multiplies it: nearly the same losses, and not the same."""
    args = ["latent_sft", "--dtype", "bfloat16"]
    train(tmp_path / "whole", *args)
    for a, b in zip(metrics(tmp_path / "whole"), metrics(uninterrupted), strict=True):
        if "loss" in a:
            assert a["loss"] == pytest.approx(b["loss"], rel=0.02) and a["loss"] != b["loss"]
    train_and_kill("save_state", lambda *at: at == (3, 2), tmp_path / "run", *args)
    train(tmp_path / "run", *args, "--resume")
    same_run(tmp_path / "run", tmp_path / "whole")


def test_a_damaged_checkpoint_stops_resuming_with_one_line_and_nothing_is_changed(tmp_path):
    out = tmp_path / "run"
    train_and_kill("save_state", lambda *at: at == (0, 2), out, "cot_sft")
    path = out / "state" / "resume.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:])
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    with pytest.raises(UserError, match="damaged"):
        train(out, "cot_sft", "--resume")
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before
