"""Two processes are one: the same losses, the same labels, the same scores. And when one dies, the other says so."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT

from minilatent import checkpoint, parallel, run
from minilatent.config import UserError, parse_args

TINY = (
    "--init none --n_layer 1 --width 32 --n_head 2 --hidden 32 --train_size 17 --val_size 5 --steps 5 --stage1_steps 3,3,3 "
    "--batch_size 8 --save_every 1 --log_every 1 --eval_every 3 --eval_batch 4 --max_chain 6 --max_answer 4 --test_size 5 "
    "--device cpu --dtype float32 --optimizer adamw --latent_weight 1 --threads 1 --lr 0.01"
).split()
TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


def metrics(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


METHODS = [
    "cot_sft",
    "pause --num_latents 2",
    "latent_sft",
    "colar --c_max 1 --latent_loss mse",
    "colar --c_max 3 --latent_loss nll --no-compressed_labels",
    "coconut --num_latents 2 --latents_a_step 1 --curriculum 0.4",
    "codi --num_latents 2",
]
RL = [("colar", "colar_rl"), ("latent_sft", "latent_rl")]
ALL_IN_ONE_LAUNCH = """
import json, sys
from minilatent import parallel, setup
from minilatent.config import parse_args
finish, parallel.finish = parallel.finish, lambda: None                # the two stay together for the next run
for line in open(sys.argv[1]):
    run.train(parse_args(json.loads(line)))
finish()
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict[str, tuple[list[str], Path]]:
    """Name -> its settings, and what two processes made of them. One launch for all of them: it takes longer than a run."""
    folder = tmp_path_factory.mktemp("two")
    runs = {method: ["--method", *method.split(), *TINY, "--accumulate", "2"] for method in METHODS}
    for base, method in RL:
        runs[f"{base} for RL"] = ["--method", base, *TINY, "--latent_loss", "nll", "--max_steps", "1"]
        runs[method] = [
            "--method",
            method,
            *TINY,
            *"--train_size 5 --batch_size 2 --group 3 --inner 2 --lr 1e-4".split(),
            "--init",
            str(folder / f"{base}_for_RL"),
        ]
    runs = {name: (settings, folder / name.replace(" ", "_")) for name, settings in runs.items()}
    (folder / "all.py").write_text(ALL_IN_ONE_LAUNCH)
    (folder / "runs.txt").write_text(
        "".join(json.dumps([*settings, "--out", str(out)]) + "\n" for settings, out in runs.values())
    )
    done = subprocess.run(
        [*TWO, folder / "all.py", folder / "runs.txt"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("saved ") == done.stdout.count("next: ") == len(runs)  # one of the two speaks
    return runs


@pytest.mark.parametrize("method", METHODS)
def test_two_processes_take_the_steps_of_one(trained, tmp_path, tok, monkeypatch, method):
    """17 rows in batches of 8: the slices hold unequal numbers of tokens, and of the batch of one row a process has
    nothing. Means of means would be off by parts in a hundred; a process that waits for no gradient would hang. (Of
    CoLaR what draws nothing for a row: a block of one token has one label, and the ablation reads none.)"""
    monkeypatch.setattr(run, "mini_tokenizer", lambda: tok)
    settings, folder = trained[method]
    run.train(parse_args([*settings, "--out", str(tmp_path / "one")]))
    one, two = metrics(tmp_path / "one"), metrics(folder)
    assert [(e["index"], e["step"]) for e in one] == [(e["index"], e["step"]) for e in two]
    for a, b in zip(one, two):
        for key in a.keys() - {"seconds", "tokens"}:
            assert b[key] == (
                pytest.approx(a[key], rel=1e-5, abs=1e-6) if isinstance(a[key], float) else a[key]
            ), (key, a, b)
    a, b = (checkpoint.load_tensors(x / "model.safetensors")[0] for x in (tmp_path / "one", folder))
    assert a.keys() == b.keys() and all(
        torch.allclose(a[n], b[n], rtol=1e-3, atol=1e-3) for n in a
    )  # Adam divides small by small
    if method != "latent_sft":
        return
    a, b = (
        checkpoint.load_tensors(x / "state" / "labels.safetensors")[0] for x in (tmp_path / "one", folder)
    )
    assert torch.equal(a["start"], b["start"]) and (a["ids"] == b["ids"]).float().mean() > 0.99
    torch.testing.assert_close(a["probs"], b["probs"], rtol=0.01, atol=0.002)  # kept in half precision


@pytest.mark.parametrize("method", [method for _, method in RL])
def test_rl_rolls_out_each_question_in_one_process(trained, method):
    """5 rows in batches of 2, two updates on each: the last batch is nobody's but the first process's."""
    steps = [e for e in metrics(trained[method][1]) if "reward" in e]
    assert [e["step"] for e in steps] == [1, 2, 3, 4, 5] and all(1 <= e["len"] <= 6 for e in steps)


def worker(launcher: int, rank: int) -> int:
    """The process id of one rank, from the environment that torchrun gave it."""
    for pid in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        if f"RANK={rank}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            return int(pid)
    raise AssertionError(f"no process of rank {rank}")


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")
def test_when_one_process_dies_the_run_ends_in_words_and_its_checkpoint_goes_on(tmp_path, tok, monkeypatch):
    monkeypatch.setattr(run, "mini_tokenizer", lambda: tok)
    out = tmp_path / "run"
    args = ["--method", "cot_sft", *TINY, "--out", str(out)]
    args[args.index("--steps") + 1] = "1000"
    with open(tmp_path / "log", "w") as log:
        launcher = subprocess.Popen([*TWO, "train.py", *args], cwd=ROOT, stdout=log, stderr=log)
        try:
            deadline = time.time() + 120
            while not (out / "state" / "resume.safetensors").exists() and time.time() < deadline:
                time.sleep(0.05)
            os.kill(worker(launcher.pid, 1), signal.SIGKILL)
            assert launcher.wait(60) != 0
        finally:
            launcher.kill()
    said = (tmp_path / "log").read_text()
    assert "error: another process of this run has ended" in said or "error: stopped from outside" in said
    assert "--resume" in said and not (out / "model.safetensors").exists()
    _, meta = checkpoint.load_tensors(out / "state" / "resume.safetensors")
    assert 1 <= meta["step"] < 1000
    settings = json.loads((out / "config.json").read_text())
    settings["config"]["steps"] = meta["step"] + 2  # not all of the thousand
    (out / "config.json").write_text(json.dumps(settings))
    run.train(parse_args(["--method", "cot_sft", "--out", str(out), "--resume"]))
    steps = [e["step"] for e in metrics(out) if "loss" in e]
    assert steps == list(range(1, meta["step"] + 3)) and (out / "model.safetensors").exists()


# --- one process, and what several would see ---------------------------------------------------------------------


def test_one_process_alone_does_nothing_of_all_this():
    t = torch.ones(2)
    assert parallel.total(t) is t and (parallel.world(), parallel.rank(), parallel.weight(7)) == (1, 0, 1.0)
    assert parallel.shard([1, 2]) == parallel.take([1, 2]) == [1, 2] and parallel.average({"a": 2.0}, 5) == {
        "a": 2.0
    }
    assert parallel.start("cpu") == "cpu"


def test_a_mean_counts_by_its_number_of_labels(monkeypatch):
    """Two processes with 2 and 6 labels: the mean of the weighted means is the mean over all 8."""
    values = [torch.tensor([1.0, 3.0]), torch.arange(6.0)]
    monkeypatch.setattr(parallel, "world", lambda: 2)
    monkeypatch.setattr(parallel, "total", lambda t: torch.full_like(t, 8))
    monkeypatch.setattr(parallel, "idle", False)
    weighted = [v.mean() * parallel.weight(len(v)) for v in values]
    assert sum(weighted) / 2 == torch.cat(values).mean()
    monkeypatch.setattr(parallel, "rank", lambda: 1)
    assert parallel.take(["only"]) == ["only"] and parallel.idle and parallel.weight(3) == 0.0
    assert parallel.take(["a", "b", "c"]) == ["b"] and not parallel.idle


def test_the_standard_deviation_is_that_of_all_processes_values(monkeypatch):
    """The moments of two slices added up, by hand; an idle process adds nothing."""
    x = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0)) + 2
    seen = []
    monkeypatch.setattr(parallel, "world", lambda: 2), monkeypatch.setattr(parallel, "idle", False)
    monkeypatch.setattr(parallel, "total", lambda t: (seen.append(t), sum(seen))[1])
    parallel.std(x[:, :2])
    torch.testing.assert_close(parallel.std(x[:, 2:]), x.flatten(1).std(1))
    monkeypatch.setattr(parallel, "idle", True)
    torch.testing.assert_close(parallel.std(x), x.flatten(1).std(1))
    monkeypatch.setattr(parallel, "world", lambda: 1)
    assert torch.equal(parallel.std(x), x.flatten(1).std(1))


def test_more_processes_than_gpus_is_refused_in_one_line(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2"), monkeypatch.setenv("LOCAL_RANK", "1")
    (
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True),
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1),
    )
    with pytest.raises(UserError, match="process 1 has no GPU of its own: there are 1"):
        parallel.start("auto")
