"""Two processes on equal slices train as one does; when one dies, the run ends and can go on."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, metrics

from minilatent import checkpoint, parallel, run
from minilatent.config import UserError
from minilatent.run import parse_args

pytestmark = pytest.mark.usefixtures("one_tokenizer")

TINY = (
    "--init none --n_layer 1 --width 32 --n_head 2 --hidden 32 --train_size 17 --val_size 5 --steps 5 "
    "--batch_size 8 --save_every 1 --log_every 1 --eval_every 3 --eval_batch 4 --max_chain 6 --max_answer 4 "
    "--test_size 5 --device cpu --dtype float32 --optimizer adamw --threads 1 --lr 0.01"
).split()
TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
METHODS = {
    "cot_sft": [],
    "latent_sft": ["--stage1_steps", "3,3,3"],
    "colar": ["--latent_loss", "mse", "--c_max", "3", "--no-compressed_labels"],
}
ALL_IN_ONE_LAUNCH = """
import json, os, signal, sys
from minilatent import config, parallel, run
from minilatent.trainer import Trainer

parallel.finish = lambda: None  # the two stay together for the next run
tok, save_state = run.mini_tokenizer(), Trainer.save_state
run.mini_tokenizer = lambda: tok

def save_and_die(self):
    save_state(self)
    parallel.wait()
    if self.at["step"] == 3 and parallel.rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)

def main(argv):
    for line in open(argv[0], encoding="utf-8"):
        settings = json.loads(line)
        if settings[-1].endswith("one_dies"):
            Trainer.save_state = save_and_die
        run.train(run.parse_args(settings))

config.run_script(main)
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict[str, tuple[list[str], Path]]:
    """Name of a run -> its settings, and the folder in which two processes trained it. One launch for all of
    them, because it takes longer than a run; in the last run, one of the two dies."""
    folder = tmp_path_factory.mktemp("two processes")
    lines = []
    for i in range(10, 40):  # all of them have as many tokens, so that all slices have as many labels
        lines.append({"question": f"What is {i} + 50?", "answer": f"<<{i}+50={i + 50}>> #### {i + 50}"})
    data, settings = folder / "sums.jsonl", {}
    data.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    for method, own in METHODS.items():
        settings[method] = ["--method", method, *TINY, *own, "--data", str(data), "--accumulate", "2"]
    rl = "--train_size 5 --batch_size 2 --group 3 --inner 2 --lr 1e-4".split()
    settings["latent_rl"] = ["--method", "latent_rl", *TINY, *rl, "--init", str(folder / "latent_sft")]
    settings["one_dies"] = settings["cot_sft"]
    with open(folder / "runs.txt", "w", encoding="utf-8") as f:
        for method, arguments in settings.items():
            f.write(json.dumps([*arguments, "--out", str(folder / method)]) + "\n")
    (folder / "all.py").write_text(ALL_IN_ONE_LAUNCH, encoding="utf-8")
    command = [*TWO, folder / "all.py", folder / "runs.txt"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=environment, encoding="utf-8"
    )
    assert done.returncode != 0  # the last run dies
    assert done.stdout.count("saved ") == done.stdout.count("next: ") == len(settings) - 1, done.stderr
    (folder / "stderr").write_text(done.stderr, encoding="utf-8")
    return {method: (arguments, folder / method) for method, arguments in settings.items()}


def files(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob("*")}


@pytest.mark.parametrize("method", METHODS)
def test_two_processes_take_the_steps_of_one_where_their_slices_have_as_many_labels(
    trained, tmp_path, method
):
    """17 rows in batches of 8: of the batch of one row, both take this row. The sum of the gradients, or one
    of them, would be far off; a process that skips a step would leave the other waiting."""
    settings, folder = trained[method]
    run.train(parse_args([*settings, "--out", str(tmp_path / "one")]))
    assert files(folder) == files(tmp_path / "one")
    one, two = metrics(tmp_path / "one"), metrics(folder)
    assert [(e["index"], e["step"]) for e in one] == [(e["index"], e["step"]) for e in two]  # logged once
    for a, b in zip(one, two):
        for key in a.keys() - {"seconds", "tokens"}:
            expected = pytest.approx(a[key], rel=1e-5, abs=1e-6) if isinstance(a[key], float) else a[key]
            assert b[key] == expected, (key, a, b)
    assert one[-1]["tokens"] < two[-1]["tokens"] < 1.2 * one[-1]["tokens"]  # a row is read once, but that one
    a, b = (checkpoint.load_tensors(x / "model.safetensors")[0] for x in (tmp_path / "one", folder))
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=1e-3)  # Adam divides small by small
    if method == "latent_sft":  # labels
        labels = [x / "state" / "labels.safetensors" for x in (tmp_path / "one", folder)]
        a, b = (checkpoint.load_tensors(path)[0] for path in labels)
        assert torch.equal(a["start"], b["start"]) and (a["ids"] == b["ids"]).float().mean() > 0.99
        torch.testing.assert_close(a["probs"], b["probs"], rtol=0.01, atol=0.002)  # kept in half precision


def test_rl_takes_all_steps_with_rollouts_of_both_processes(trained):
    """5 rows in batches of 2, two updates on each: of the last batch, both processes roll out the one row."""
    steps = [e for e in metrics(trained["latent_rl"][1]) if "reward" in e]
    assert [e["step"] for e in steps] == [1, 2, 3, 4, 5] and all(1 <= e["len"] <= 6 for e in steps)


def test_when_one_process_dies_the_run_ends_and_its_checkpoint_goes_on(trained):
    _, out = trained["one_dies"]
    assert not (out / "model.safetensors").exists()
    _, meta = checkpoint.load_tensors(out / "state" / "resume.safetensors")
    assert meta["step"] == 3
    run.train(parse_args(["--method", "cot_sft", "--out", str(out), "--resume"]))
    steps = [e["step"] for e in metrics(out) if "loss" in e]
    assert steps == [1, 2, 3, 4, 5] and (out / "model.safetensors").exists()


ONE_STOPS = """
import os, signal, sys, time
from pathlib import Path
from minilatent import config, parallel

def main(argv):
    kind, folder = argv
    Path(folder, os.environ["RANK"]).touch()
    while len(os.listdir(folder)) < 2:  # imports take long
        time.sleep(0.1)
    parallel.start("cpu", minutes=0.05)
    parallel.wait()
    if parallel.rank() == 1:
        os.kill(os.getpid(), getattr(signal, kind))
    print("together", flush=True)
    parallel.wait()

config.run_script(main)
"""


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize("kind", ["SIGSTOP", "SIGKILL"])
def test_when_one_process_is_stopped_or_dies_the_other_ends_with_the_same_line(tmp_path, kind):
    """It waited for a stopped one for ever, and ended with a traceback after a dead one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
        place["TORCHELASTIC_RUN_ID"] = "as under torchrun"
    command = [sys.executable, "-c", ONE_STOPS, kind, str(tmp_path)]
    environment, processes, pipe = {**os.environ, **place, "PYTHONPATH": str(ROOT)}, [], subprocess.PIPE
    try:
        for rank in ("0", "1"):
            own = {**environment, "RANK": rank, "LOCAL_RANK": rank}
            processes.append(subprocess.Popen(command, stdout=pipe, stderr=pipe, encoding="utf-8", env=own))
        out, error = processes[0].communicate(timeout=120)
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert processes[0].returncode == 2 and out == "together\n" and "Traceback" not in error
    assert "error: another process of this run has died or hangs" in error


# --- one process, and what several would do -----------------------------------------------------------------


def test_one_process_alone_does_nothing_of_all_this():
    t = torch.nn.Parameter(torch.ones(2))
    t.grad = torch.ones(2)
    parallel.average_gradients([t])
    assert parallel.start("cpu", 1) == "cpu" and (parallel.world(), parallel.rank()) == (1, 0)
    assert parallel.total(t) is t and torch.equal(t.grad, torch.ones(2))
    assert parallel.shard([1, 2]) == [1, 2] and parallel.average({"a": 2.0}, 5) == {"a": 2.0}


@pytest.fixture
def second_of_two(monkeypatch):
    """This process is the second of two; returns where the first one puts what it would send."""
    sent: list[torch.Tensor] = []
    monkeypatch.setattr(parallel, "world", lambda: 2)
    monkeypatch.setattr(parallel, "rank", lambda: 1)
    monkeypatch.setattr(parallel, "total", lambda t: t + sent.pop(0))
    return sent


def test_gradients_are_averaged_and_each_slices_mean_counts_alike(second_of_two):
    """Whatever the number of labels. A gradient that one process does not have is 0."""
    a, b = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(1))
    a.grad = torch.tensor([1.0, 3.0])
    second_of_two[:] = [torch.tensor([2.0, -3.0]), torch.tensor([5.0])]
    parallel.average_gradients([a, b])
    assert a.grad.tolist() == [1.5, 0.0] and b.grad.tolist() == [2.5]


def test_scores_are_averaged_by_the_number_of_examples(second_of_two):
    second_of_two.append(torch.tensor([3.0, 3 * 0.5, 3 * 8.0], dtype=torch.float64))
    assert parallel.average({"accuracy": 1.0, "mean_len": 4.0}, 1) == {"accuracy": 0.625, "mean_len": 7.0}
    second_of_two.append(torch.tensor([0.0, 0.0], dtype=torch.float64))  # of no example, here or there
    assert parallel.average({"accuracy": 1.0}, 0) == {"accuracy": 0.0}
    assert parallel.shard(["a", "b", "c"]) == ["b"] and parallel.shard(["a"]) == []


def test_more_processes_than_gpus_is_refused_in_one_line(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match="process 1 has no GPU of its own: there are 1"):
        parallel.start("auto", 1)
