"""Lab 7's runner, with a training that only counts: what is read when, what an entry holds, and who is on the board."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT

FOLDER = ROOT / "tutorials" / "labs" / "lab7_experiment"


def loaded(name):
    spec = importlib.util.spec_from_file_location(f"lab7_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


experiment, solution = loaded("experiment"), loaded("solution")

# A repository in small: train.py notes its arguments, and `steps` decides how it ends.
TRAIN = """
import os, sys
from pathlib import Path
given = dict(a[2:].split("=", 1) for a in sys.argv[1:] if "=" in a)
with open("log", "a") as file:
    file.write("train " + " ".join(sys.argv[1:]) + chr(10))
if given["steps"] == "666":
    raise SystemExit("error: no such luck")
while given["steps"] == "999":
    pass
Path(given["out"]).mkdir(parents=True)
(Path(given["out"]) / "seed").write_text(given["seed"])
"""
PACKAGE = {
    "__init__": "",
    "data": "def load(name, split, limit):\n    open('log', 'a').write(f'read {name} {split} {limit}\\n')\n    return [split] * limit\n",
    "setup": "def load_run(folder, device):\n    return int(open(folder + '/seed').read())\n",
    "evaluate": "def solve_all(seed, examples):\n    n, right = len(examples), len(examples) // 2 + seed\n"
    "    return {'correct': [1] * right + [0] * (n - right), 'n': n, 'mean_len': 4.0 + seed}\n",
}


@pytest.fixture
def bench(tmp_path):
    """run(..) calls experiment.py in a folder of its own; log() tells what was trained and read since the last time."""
    repo, work = tmp_path / "repo", tmp_path / "work"
    (repo / "minilatent").mkdir(parents=True)
    work.mkdir()
    (repo / "train.py").write_text(TRAIN)
    for name, source in PACKAGE.items():
        (repo / "minilatent" / f"{name}.py").write_text(source)

    class Bench:
        folder = work

        def run(self, *args):
            return subprocess.run(
                [sys.executable, str(FOLDER / "experiment.py"), *map(str, args)],
                cwd=work,
                capture_output=True,
                text=True,
            )

        def train(self, what, *args, **config):
            (work / "config.json").write_text(json.dumps({"method": "latent_sft", "steps": 5, **config}))
            return self.run(what, "config.json", "--repo", repo, *args)

        def log(self):
            lines = (repo / "log").read_text().splitlines() if (repo / "log").exists() else []
            (repo / "log").unlink(missing_ok=True)
            return lines

    return Bench()


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


def one_error_line(done):
    return done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_a_trial_reads_validation_only_and_its_line_can_be_chosen_from(bench):
    for seed in (0, 2):
        done = bench.train("trial", "--questions", 10, "--seed", seed, ltim=False, ratio=4)
        assert done.returncode == 0 and done.stdout.startswith("val: "), done.stderr
    trained, read = bench.log()[:2]
    assert (
        "--method=latent_sft" in trained
        and "--no-ltim" in trained
        and "--ratio=4" in trained
        and "--seed=0" in trained
    )
    assert read == "read mini val 10"
    trials = [json.loads(line) for line in (bench.folder / "trials.jsonl").read_text().splitlines()]
    assert [(t["val_accuracy"], t["val_mean_len"], t["seed"]) for t in trials] == [
        (0.5, 4.0, 0),
        (0.7, 6.0, 2),
    ]
    assert solution.choose(trials, 8, 600) is trials[1] and solution.choose(trials, 5, 600) is trials[0]
    assert not list(bench.folder.glob("*-seed*.json"))


def test_an_entry_reads_test_once_after_training_and_passes_its_check(bench):
    done = bench.train("enter", "--name", "ada", "--seed", 1, "--questions", 10)
    assert done.returncode == 0 and "whole, and within its limits" in done.stdout, done.stderr
    log = bench.log()
    assert (
        [line.split()[0] for line in log] == ["train", "read"]
        and "--seed=1" in log[0]
        and log[1] == "read mini test 10"
    )
    made = json.loads((bench.folder / "ada-seed1.json").read_text())
    assert (
        made["accuracy"] == 0.6
        and made["right"] == 6
        and made["n"] == 10
        and made["mean_len"] == 5.0
        and made["split"] == "test"
    )
    assert made["config"] == {"method": "latent_sft", "steps": 5} and 0 < made["cpu_seconds"] < 600
    assert solution.admissible(made, 8, 600) and bench.run("check", "ada-seed1.json").returncode == 0

    again = bench.train("enter", "--name", "ada", "--seed", 1)  # a second try at the test set
    assert one_error_line(again) and "once" in again.stderr and bench.log() == []
    assert not (bench.folder / "trials.jsonl").exists()


def test_a_training_that_takes_too_long_or_fails_makes_no_entry_and_reads_nothing(bench):
    done = bench.train("enter", "--name", "ada", "--seconds", 1, steps=999)
    assert one_error_line(done) and "more than 1 CPU seconds" in done.stderr
    done = bench.train("enter", "--name", "ada", steps=666)
    assert one_error_line(done) and "no such luck" in done.stderr
    assert [line.split()[0] for line in bench.log()] == ["train", "train"] and not list(
        bench.folder.glob("ada*")
    )


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
def test_what_a_configuration_may_not_say_is_an_error_before_any_training(config, word):
    with pytest.raises(experiment.Bad, match=word):
        experiment.check_config({"method": "colar", **config})


def test_a_name_that_is_no_path_questions_and_seconds_are_needed(bench):
    for args in (
        [],
        ["--name", ""],
        ["--name", "../ada"],
        ["--name", "ada", "--questions", 0],
        ["--name", "ada", "--seconds", "nan"],
    ):
        assert one_error_line(bench.train("enter", *args))
    assert bench.log() == []


def test_every_setting_that_is_allowed_is_one_of_train_py():
    """A renamed option would otherwise be found out in the middle of a course."""
    done = subprocess.run(
        [sys.executable, "train.py", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "200"},
    )
    assert done.returncode == 0
    missing = [key for key in experiment.KEYS if f"--{key}" not in done.stdout.replace(",", " ").split()]
    assert not missing
    for method in experiment.METHODS:
        assert method in done.stdout


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


def test_check_of_several_files_tells_each_and_fails_if_one_is_wrong(bench):
    (bench.folder / "good.json").write_text(json.dumps(entry()))
    (bench.folder / "bad.json").write_text(json.dumps({"name": "bob"}))
    (bench.folder / "text.json").write_text("hello")
    done = bench.run("check", "good.json", "bad.json")
    assert (
        done.returncode == 1
        and "good.json: whole" in done.stdout
        and "bad.json: 'seed' is missing" in done.stdout
    )
    assert one_error_line(bench.run("check", "text.json")) and one_error_line(
        bench.run("check", "nowhere.json")
    )


def test_the_board_is_the_one_that_the_lab_asks_for():
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
    assert (
        [(name, accuracy) for name, accuracy, _, _ in rows]
        == solution.leaderboard(entries, 8, 600)
        == [("eve", 0.8), ("cy", 0.5), ("ada", 0.5), ("bob", 0.5)]
    )
    assert (
        [seeds for *_, seeds in rows] == [1, 1, 2, 1]
        and list(off) == ["dan"]
        and "seed 1: #L is 9.00" in off["dan"]
    )


def test_the_boards_limits_are_its_own_not_those_that_an_entry_names():
    few = entry("few", n=20, right=19, accuracy=0.95)
    rows, off = experiment.board(
        [
            entry("long", mean_len=20.0, latents_limit=50.0),
            entry("slow", cpu_seconds=5000.0, seconds_limit=9000.0),
            few,
        ],
        8,
        600,
        500,
    )
    assert rows == [] and set(off) == {"long", "slow", "few"} and "20 questions" in off["few"]
    assert experiment.board([few], 8, 600, 20)[0] == [("few", 0.95, 4.0, 1)]


def test_the_board_of_all_files_of_a_folder_passes_over_a_configuration(bench):
    for e in (entry("ada", 0, 300), entry("ada", 1, 310), entry("bob", 0, 400, split="val")):
        (bench.folder / f"{e['name']}-seed{e['seed']}.json").write_text(json.dumps(e))
    (bench.folder / "config.json").write_text('{"method": "no_cot"}')
    done = bench.run("board", *sorted(p.name for p in bench.folder.glob("*.json")))
    assert done.returncode == 0 and done.stderr == "config.json is no entry: it has no name and seed\n"
    first, second = done.stdout.splitlines()
    assert first.split() == ["1", "ada", "61.0", "%", "#L", "4.00", "2", "seeds"]
    assert second.split()[:2] == ["-", "bob"] and "measured on test" in second
