"""Lab 7's runner, with a fake training: which split is read when, what an entry contains, and who is on the
board."""

import dataclasses
import importlib.util
import json
import subprocess
import sys

import pytest
from conftest import ROOT, the_message

from minilatent.methods import METHODS

FOLDER = ROOT / "tutorials" / "labs" / "lab7_experiment"


def loaded(name):
    spec = importlib.util.spec_from_file_location(f"lab7_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


experiment, solution = loaded("experiment"), loaded("solution")

# A small repository: its train.py writes its arguments to a log, and `steps` decides how it ends.
TRAIN = """
import os, sys
from pathlib import Path
given = dict(a[2:].split("=", 1) for a in sys.argv[1:] if "=" in a)
with open("log", "a", encoding="utf-8") as file:
    file.write("train " + " ".join(sys.argv[1:]) + chr(10))
if given["steps"] == "666":
    raise SystemExit("a warning" + chr(10) + "error: bad luck, which is told" + chr(10) + "  on two lines")
while given["steps"] == "999":
    pass
Path(given["out"]).mkdir(parents=True)
(Path(given["out"]) / "seed").write_text(given["seed"])
"""
TASKS = """
def load(name, split, limit):
    with open("log", "a", encoding="utf-8") as file:
        file.write(f"read {name} {split} {limit}" + chr(10))
    return [split] * limit
"""
RUN = """
def load_run(folder, device):
    return int(open(folder + "/seed", encoding="utf-8").read())
"""
EVALUATE = """
def solve_all(seed, examples):
    n, right = len(examples), len(examples) // 2 + seed
    return {"correct": [1] * right + [0] * (n - right), "n": n, "mean_len": 4.0 + seed}
"""
PACKAGE = {"__init__": "", "tasks": TASKS, "run": RUN, "evaluate": EVALUATE}


@pytest.fixture
def bench(tmp_path):
    """run(..) calls experiment.py in a temporary folder; log() returns the new lines of the log."""
    repo, work = tmp_path / "repo", tmp_path / "work"
    (repo / "minilatent").mkdir(parents=True)
    work.mkdir()
    (repo / "train.py").write_text(TRAIN, encoding="utf-8")
    for name, source in PACKAGE.items():
        (repo / "minilatent" / f"{name}.py").write_text(source, encoding="utf-8")

    class Bench:
        folder = work

        def run(self, *args):
            command = [sys.executable, str(FOLDER / "experiment.py"), *map(str, args)]
            return subprocess.run(command, cwd=work, capture_output=True, text=True, encoding="utf-8")

        def train(self, what, *args, **config):
            (work / "config.json").write_text(
                json.dumps({"method": "latent_sft", "steps": 5, **config}), encoding="utf-8"
            )
            return self.run(what, "config.json", "--repo", repo, *args)

        def log(self):
            lines = (repo / "log").read_text(encoding="utf-8").splitlines() if (repo / "log").exists() else []
            (repo / "log").unlink(missing_ok=True)
            return lines

    return Bench()


def refused(done):
    return done.returncode == 2 and the_message(done.stderr)


def entry(name="ada", seed=0, right=250, **changes):
    return {
        "name": name,
        "seed": seed,
        "config": {"method": "no_cot"},
        "accuracy": right / 500,
        "right": right,
        "n": 500,
        "mean_len": 4.0,
        "cpu_seconds": 500.0,
        "latents_limit": 8.0,
        "seconds_limit": 600.0,
        "package": "0",
        "split": "test",
        **changes,
    }


def test_a_trial_reads_validation_only_and_writes_a_line_to_choose_from(bench):
    for seed in (0, 2):
        done = bench.train("trial", "--questions", 10, "--seed", seed, ltim=False, ratio=4)
        assert done.returncode == 0 and done.stdout.startswith("val: "), done.stderr
    trained, read = bench.log()[:2]
    assert {"--method=latent_sft", "--no-ltim", "--ratio=4", "--seed=0"} <= set(trained.split())
    assert read == "read mini val 10"
    trials = [
        json.loads(line) for line in (bench.folder / "trials.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    found = [(t["val_accuracy"], t["val_mean_len"], t["seed"]) for t in trials]
    assert found == [(0.5, 4.0, 0), (0.7, 6.0, 2)]
    assert solution.choose(trials, 8, 600) is trials[1] and solution.choose(trials, 5, 600) is trials[0]
    assert not list(bench.folder.glob("*-seed*.json"))


def test_an_entry_reads_test_once_after_training_and_passes_its_check(bench):
    done = bench.train("enter", "--name", "ada", "--seed", 1, "--questions", 10)
    assert done.returncode == 0 and "complete and within the limits" in done.stdout, done.stderr
    trained, read = bench.log()
    assert trained.startswith("train ") and "--seed=1" in trained and read == "read mini test 10"
    written = json.loads((bench.folder / "ada-seed1.json").read_text(encoding="utf-8"))
    expected = {"accuracy": 0.6, "right": 6, "n": 10, "mean_len": 5.0, "split": "test"}
    assert {key: written[key] for key in expected} == expected
    assert written["config"] == {"method": "latent_sft", "steps": 5} and 0 < written["cpu_seconds"] < 600
    assert solution.admissible(written, 8, 600) and bench.run("check", "ada-seed1.json").returncode == 0

    again = bench.train("enter", "--name", "ada", "--seed", 1)  # a second try at the test set
    assert refused(again) and "once" in again.stderr and bench.log() == []
    assert not (bench.folder / "trials.jsonl").exists()


def test_a_training_that_takes_too_long_or_fails_writes_no_entry_and_reads_nothing(bench):
    done = bench.train("enter", "--name", "ada", "--seconds", 1, steps=999)
    assert refused(done) and "more than 1 CPU seconds" in done.stderr
    done = bench.train("enter", "--name", "ada", steps=666)
    assert the_message(done.stderr) == "error: training failed: error: bad luck, which is told on two lines"
    assert [line.split()[0] for line in bench.log()] == ["train", "train"]
    assert not list(bench.folder.glob("ada*"))


@pytest.mark.parametrize(
    "config, word",
    [
        ({"data": "gsm8k"}, "'data'"),
        ({"seed": 5}, "'seed'"),
        ({"init": "other"}, "'init'"),
        ({"out": "x"}, "'out'"),
        ({"method": "magic"}, "method"),
        ({"lr": [1, 2]}, "'lr'"),
        ({"lr": float("nan")}, "'lr'"),
        ({"questions": 5}, "'questions'"),
    ],
)
def test_what_a_configuration_may_not_set_is_an_error_before_any_training(config, word):
    with pytest.raises(experiment.Bad, match=word):
        experiment.check_config({"method": "colar", **config})


def test_an_entry_needs_a_name_questions_and_seconds(bench):
    for args in (
        ["--name", "../ada"],
        ["--name", "ada", "--questions", 0],
        ["--name", "ada", "--seconds", "nan"],
    ):
        assert refused(bench.train("enter", *args))
    assert bench.log() == []


def test_every_allowed_setting_is_an_option_of_train_py():
    """Otherwise a renamed option would be noticed in the middle of a course."""
    known = {
        field.name for name in experiment.METHODS for field in dataclasses.fields(METHODS[name].Settings)
    }
    assert experiment.KEYS <= known, experiment.KEYS - known


@pytest.mark.parametrize(
    "changes, word",
    [
        ({"mean_len": 8.5}, "#L is 8.50"),
        ({"cpu_seconds": 601}, "601 CPU seconds"),
        ({"accuracy": 0.6}, "right / n"),
        ({"right": 501}, "right / n"),
        ({"n": 0}, "right / n"),
        ({"split": "val"}, "measured on test"),
        ({"mean_len": float("nan")}, "not finite"),
        ({"right": -1}, "negative"),
        ({"config": {"method": "no_cot", "data": "x"}}, "'data'"),
        ({"accuracy": None}, "'accuracy'"),
        ({"seed": True}, "'seed'"),
    ],
)
def test_check_says_what_is_wrong_with_an_entry(changes, word):
    assert experiment.check(entry()) == []
    assert word in "; ".join(experiment.check(entry(**changes)))


def test_check_reports_each_file_and_fails_if_one_is_wrong(bench):
    (bench.folder / "good.json").write_text(json.dumps(entry()), encoding="utf-8")
    (bench.folder / "bad.json").write_text(json.dumps({"name": "bob"}), encoding="utf-8")
    (bench.folder / "text.json").write_text("hello", encoding="utf-8")
    done = bench.run("check", "good.json", "bad.json")
    assert done.returncode == 1 and "good.json: complete" in done.stdout
    assert "bad.json: 'seed' is missing" in done.stdout
    for name in ("text.json", "nowhere.json"):
        assert refused(bench.run("check", name))


def test_the_board_agrees_with_the_solution_of_the_lab():
    entries = [
        entry("ada", 0, 300),
        entry("ada", 1, 200),
        entry("bob", 0, 250),
        entry("bob", 0, 499),
        entry("cy", 0, 250, mean_len=3.0),
        entry("dan", 0, 450),
        entry("dan", 1, 450, mean_len=9.0),
        entry("eve", 0, 400),
    ]
    rows, off = experiment.board(entries, 8, 600, 500)
    ranking = [(name, accuracy) for name, accuracy, _, _ in rows]
    assert ranking == [("eve", 0.8), ("cy", 0.5), ("ada", 0.5), ("bob", 0.5)]
    assert ranking == solution.leaderboard(entries, 8, 600)
    assert [seeds for *_, seeds in rows] == [1, 1, 2, 1]
    assert list(off) == ["dan"] and "seed 1: #L is 9.00" in off["dan"]


def test_the_board_ignores_the_limits_that_an_entry_names():
    few = entry("few", n=20, right=19, accuracy=0.95)
    long = entry("long", mean_len=20.0, latents_limit=50.0)
    slow = entry("slow", cpu_seconds=5000.0, seconds_limit=9000.0)
    rows, off = experiment.board([long, slow, few], 8, 600, 500)
    assert rows == [] and set(off) == {"long", "slow", "few"} and "20 questions" in off["few"]
    assert experiment.board([few], 8, 600, 20)[0] == [("few", 0.95, 4.0, 1)]


def test_the_board_of_all_files_in_a_folder_skips_a_configuration(bench):
    for e in (entry("ada", 0, 300), entry("ada", 1, 310), entry("bob", 0, 400, split="val")):
        (bench.folder / f"{e['name']}-seed{e['seed']}.json").write_text(json.dumps(e), encoding="utf-8")
    (bench.folder / "config.json").write_text('{"method": "no_cot"}', encoding="utf-8")
    done = bench.run("board", *sorted(p.name for p in bench.folder.glob("*.json")))
    assert done.returncode == 0 and done.stderr == "config.json is not an entry: it has no name or no seed\n"
    first, second = done.stdout.splitlines()
    assert first.split() == ["1", "ada", "61.0", "%", "#L", "4.00", "2", "seeds"]
    assert second.split()[:2] == ["-", "bob"] and "measured on test" in second
