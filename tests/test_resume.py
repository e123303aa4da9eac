"""Nothing is lost when a run is killed, and a resumed run is the same run bit for bit."""

import os
import signal
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, TINY, Killed, kill_when, metrics, same_run, train

from minilatent import checkpoint, config, run
from minilatent.config import UserError, parse_args
from minilatent.methods import METHODS
from minilatent.trainer import Trainer

pytestmark = pytest.mark.usefixtures("one_tokenizer")


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
    args = [
        "--latent_loss",
        "nll",
        "--group",
        3,
        "--inner",
        2,
        "--segmentation",
        "adaptive",
        "--optimizer",
        "muon",
    ]
    if method.endswith("_rl"):
        monkeypatch.setattr(
            "minilatent.rl.is_correct", lambda answer, gold: len(answer) % 2 == 0
        )  # random weights are never right,
        judge = METHODS[method].judge  # and never come to an end
        monkeypatch.setattr(
            METHODS[method],
            "judge",
            lambda self, b, rewards: judge(self, {**b, "whole": torch.ones_like(b["whole"])}, rewards),
        )
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
        assert (
            any(e.get("grad_norm", 0) > 0 for e in metrics(tmp_path / "run"))
            and metrics(tmp_path / "run")[0]["step"] == 0
        )


def test_rl_that_only_gets_worse_leaves_the_model_as_it_was(tmp_path, monkeypatch):
    """Where it begins is judged, too."""
    train(tmp_path / "start", "latent_sft")
    scores = iter([0.9, 0.5, 0.4, 0.3])
    monkeypatch.setattr(
        METHODS["latent_rl"], "validate", lambda self, val: {"accuracy": next(scores), "mean_len": 3.0}
    )
    monkeypatch.setattr("minilatent.rl.is_correct", lambda answer, gold: len(answer) % 2 == 0)
    train(tmp_path / "run", "latent_rl", "--init", tmp_path / "start", "--group", 3)
    told = [(e["step"], e["val_accuracy"]) for e in metrics(tmp_path / "run") if "val_accuracy" in e]
    assert told == [(0, 0.9), (2, 0.5), (4, 0.4)]
    scores = iter([0.9, 0.9, 0.5, 0.4])
    with pytest.MonkeyPatch.context() as patch:  # killed right after it was judged, before any checkpoint
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
        f.write('{"stage": "stage1-enc')  # a line that was never finished
    train(tmp_path / "run", "latent_sft", *often, "--resume")
    same_run(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize(
    "stage, file",
    [
        ("stage1-encoder", "resume"),
        ("stage1-decoder", "resume"),
        ("stage1-both", "resume"),
        ("stage1-both", "labels"),
        ("stage2", "resume"),
    ],
)
def test_kill_9_in_the_middle_of_a_stage_loses_nothing(tmp_path, uninterrupted, stage, file):
    """The real thing: another process, killed by a signal that nobody can catch, while it writes a checkpoint or the labels."""
    program = f"""
import os, signal, sys
import torch
torch.set_num_threads(1)
from minilatent import config, files, setup
real = files.os.replace
def replace(source, target):
    if str(target).endswith("{file}.safetensors") and open(os.path.join({str(tmp_path / "run")!r}, "metrics.jsonl")).read().count("{stage}") >= 2:
        os.kill(os.getpid(), signal.SIGKILL)          # the new file is written, the old one still stands
    real(source, target)
files.os.replace = replace
run.train(config.parse_args(sys.argv[1:]))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, "--method", "latent_sft", *TINY, "--out", str(tmp_path / "run")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert metrics(tmp_path / "run")[-1]["stage"] == stage
    train(tmp_path / "run", "latent_sft", "--resume")
    same_run(tmp_path / "run", uninterrupted)


def test_a_seed_repeats_a_run_and_another_seed_does_not(tmp_path, uninterrupted):
    train(tmp_path / "again")
    same_run(tmp_path / "again", uninterrupted)
    train(tmp_path / "other", "latent_sft", "--seed", 1)
    assert (tmp_path / "other" / "model.safetensors").read_bytes() != (
        uninterrupted / "model.safetensors"
    ).read_bytes()


def test_a_finished_run_folder_holds_what_is_promised(uninterrupted):
    assert [p.name for p in uninterrupted.rglob("model.safetensors")] == ["model.safetensors"]
    assert {p.name for p in uninterrupted.iterdir()} >= {
        "config.json",
        "model.safetensors",
        "metrics.jsonl",
        "state",
    }
    assert not list(uninterrupted.rglob("*.tmp"))
    method = run.load_run(uninterrupted, torch.device("cpu"))
    assert method.config.method == "latent_sft" and not any(
        n.startswith("encoder.") for n in method.state_dict()
    )
    assert len(method.solve(["Ava has 3 eggs. How many eggs does Ava have?"]).answers) == 1


def test_ctrl_c_saves_and_exits_with_130_and_the_run_goes_on_from_there(
    tmp_path, uninterrupted, monkeypatch, capsys
):
    before = signal.getsignal(signal.SIGINT)
    with pytest.MonkeyPatch.context() as patch:
        real = Trainer.log

        def log(self, index, stage, step, **values):
            real(self, index, stage, step, **values)
            if (index, step) == (1, 2) and "loss" in values:
                os.kill(os.getpid(), signal.SIGINT)

        patch.setattr(Trainer, "log", log)
        patch.setattr(
            sys,
            "argv",
            [
                "train.py",
                "--method",
                "latent_sft",
                *TINY,
                "--out",
                str(tmp_path / "run"),
                "--save_every",
                "100",
            ],
        )
        with pytest.raises(SystemExit) as caught:
            config.run_script(lambda argv: run.train(parse_args(argv)))
    assert caught.value.code == 130 and signal.getsignal(signal.SIGINT) == before
    assert "--resume" in capsys.readouterr().out
    run.train(parse_args(["--method", "latent_sft", "--out", str(tmp_path / "run"), "--resume"]))
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
