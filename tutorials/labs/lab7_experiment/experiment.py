"""Trains and measures a configuration for lab 7. Needs the repository: minilatent and train.py.

    python experiment.py trial config.json              train, measure on validation, never on test
    python experiment.py enter config.json --name ada   train, measure once on test
                                                        and write ada-seed0.json
    python experiment.py check ENTRY.json ..            entries are complete and within the limits
    python experiment.py board ENTRY.json ..            print the leaderboard

--latents n [9], --seconds [600], --seed [0], --questions [500], --repo FOLDER (default: where
minilatent is found).
"""

import argparse
import hashlib
import json
import math
import os
import resource
import signal
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

HERE = Path(__file__).resolve().parent
METHODS = ("cot_sft", "no_cot", "pause", "icot", "coconut", "codi", "latent_sft", "colar")
# What a configuration may set. The data, the initial model, the seed and the number of questions are fixed.
KEYS = set(
    """
    method train_size steps batch_size accumulate lr warmup weight_decay beta2 clip optimizer dtype
    max_chain eval_every
    ratio k labels stage1_steps stage1_lr pull kl_weight ce_weight
    gumbel gumbel_scale gumbel_tau ltim ltsum latent
    speed c_max auto pooling head_width latent_loss entropy_weight latent_weight compressed_labels
    num_latents latents_a_step remove smoothing curriculum first_stage distill_weight
    """.split()
)
ENTRY = {
    "name": str,
    "seed": int,
    "config": dict,
    "accuracy": float,
    "right": int,
    "n": int,
    "mean_len": float,
    "cpu_seconds": float,
    "latents_limit": float,
    "seconds_limit": float,
    "package": str,
    "split": str,
}


class Bad(Exception):
    """Bad input: one message, exit code 2."""


def wrapped(message: str) -> str:
    """Lines of at most 100 columns, all but the first indented. Names and paths stay whole."""
    shape = {"break_long_words": False, "break_on_hyphens": False, "subsequent_indent": "  "}
    return textwrap.fill(message, 100, **shape)


def reason(stderr: str) -> str:
    """The last message of a program, or the last line of a traceback, on one line."""
    lines = stderr.strip().splitlines() or ["no reason given"]
    first = max(n for n, line in enumerate(lines) if line[:1] != " ")  # the others continue it
    return " ".join(map(str.strip, lines[first:]))


def read(path: Path) -> dict:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise Bad(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise Bad(f"{path} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise Bad(f"{path} contains no JSON object")
    return found


def check_config(config: dict) -> None:
    """Raise Bad, naming what is wrong."""
    if unknown := sorted(config.keys() - KEYS):
        raise Bad(f"a configuration may not set '{unknown[0]}'; it may set {', '.join(sorted(KEYS))}")
    if config.get("method") not in METHODS:
        raise Bad(f'"method" must be one of {", ".join(METHODS)}')
    for key, value in config.items():
        infinite = isinstance(value, float) and not math.isfinite(value)
        if infinite or not isinstance(value, (int, float, str, bool)):
            raise Bad(f"'{key}' must be a finite number, a string, true or false")


def arguments(config: dict) -> list[str]:
    """A configuration as train.py's command line."""
    return [
        f"--{'' if value is True else 'no-'}{key}" if isinstance(value, bool) else f"--{key}={value}"
        for key, value in config.items()
    ]


def repository(given: str | None) -> Path:
    for folder in [Path(given)] if given else [Path.cwd(), *Path.cwd().parents, *HERE.parents]:
        if (folder / "minilatent").is_dir() and (folder / "train.py").is_file():
            return folder.resolve()
    raise Bad("minilatent was not found: give --repo FOLDER, a clone of the repository")


def package_hash(repo: Path) -> str:
    """A hash of the package's source, so that an entry records which code produced it."""
    total = hashlib.sha256()
    for path in sorted((repo / "minilatent").rglob("*.py")):
        total.update(path.relative_to(repo).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return total.hexdigest()[:16]


def train(config: dict, repo: Path, out: Path, seed: int, seconds: float) -> float:
    """CPU seconds of training; the kernel stops it when they are spent."""
    limit = math.ceil(seconds)

    def restrain():
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))

    command = [
        sys.executable,
        "train.py",
        *arguments(config),
        f"--seed={seed}",
        f"--out={out}",
        "--data=mini",
        "--device=cpu",
        "--threads=1",
    ]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        command,
        cwd=repo,
        preexec_fn=restrain,
        capture_output=True,
        encoding="utf-8",
        errors="replace",  # of a locale that is another
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    if done.returncode in (-signal.SIGXCPU, -signal.SIGKILL) or used > seconds:
        advice = "use fewer steps, a smaller batch, or a shorter stage 1"
        raise Bad(f"training took more than {seconds:g} CPU seconds: {advice}")
    if done.returncode:
        raise Bad(f"training failed: {reason(done.stderr)}")
    return used


def measure(run: Path, repo: Path, split: str, questions: int) -> dict:
    """Accuracy and #L of a trained run, in a separate process that starts after training."""
    code = (
        "import json, sys, torch; torch.set_num_threads(1); sys.path.insert(0, sys.argv[1]);"
        "from minilatent import tasks; from minilatent.evaluate import solve_all;"
        "from minilatent.run import load_run;"
        "examples = tasks.load('mini', sys.argv[3], limit=int(sys.argv[4]));"
        "found = solve_all(load_run(sys.argv[2], torch.device('cpu')), examples);"
        "right = sum(map(bool, found['correct']));"
        "print(json.dumps({'right': right, 'n': found['n'], 'mean_len': found['mean_len']}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(repo), str(run), split, str(questions)],
        cwd=repo,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
    )
    try:
        return json.loads(done.stdout)
    except ValueError:
        raise Bad(f"measuring failed: {reason(done.stderr)}") from None


def check(entry: dict) -> list[str]:
    """What is wrong with an entry. Whether the numbers were ever measured only training it again can show."""
    wrong = [
        f"'{key}' is missing or not of type {kind.__name__}"
        for key, kind in ENTRY.items()
        if not isinstance(entry.get(key), (int, float) if kind is float else kind)
        or isinstance(entry.get(key), bool)
    ]
    if wrong:
        return wrong
    numbers = [entry[k] for k, kind in ENTRY.items() if kind in (int, float)]
    if not all(math.isfinite(x) and x >= 0 for x in numbers):
        return ["a number is negative or not finite"]
    try:
        check_config(entry["config"])
    except Bad as error:
        wrong.append(str(error))
    n, right = entry["n"], entry["right"]
    if not n or right > n or abs(right / n - entry["accuracy"]) > 1e-9:
        wrong.append("accuracy is not right / n")
    if entry["split"] != "test":
        wrong.append("an entry must be measured on test")
    if entry["mean_len"] > entry["latents_limit"]:
        wrong.append(f"#L is {entry['mean_len']:.2f}, the limit {entry['latents_limit']:g}")
    if entry["cpu_seconds"] > entry["seconds_limit"]:
        wrong.append(
            f"training took {entry['cpu_seconds']:.0f} CPU seconds, the limit is {entry['seconds_limit']:g}"
        )
    return wrong


def board(
    entries: list[dict], latents: float, seconds: float, questions: int
) -> tuple[list[tuple[str, float, float, int]], dict[str, str]]:
    """(name, mean accuracy, mean #L, seeds), the best first, by the rules of the handout; and why other names
    are missing."""
    by_name: dict[str, dict[int, dict]] = {}
    for entry in entries:
        by_name.setdefault(entry["name"], {}).setdefault(entry["seed"], entry)
    rows, off = [], {}
    for name, seeds in by_name.items():
        runs = list(seeds.values())
        for seed, run in seeds.items():
            wrong = check({**run, "latents_limit": latents, "seconds_limit": seconds})
            if not wrong and run["n"] != questions:  # few questions give a wide interval, and luck decides
                wrong = [f"measured on {run['n']} questions instead of {questions}"]
            if wrong:
                off.setdefault(name, f"seed {seed}: {wrong[0]}")
        if name not in off:
            accuracy = sum(r["accuracy"] for r in runs) / len(runs)
            mean_len = sum(r["mean_len"] for r in runs) / len(runs)
            rows.append((name, accuracy, mean_len, len(runs)))
    return sorted(rows, key=lambda row: (-row[1], row[2], row[0])), off


def main(argv: list[str]) -> int:
    class Parser(argparse.ArgumentParser):
        def error(self, message):
            raise Bad(message)

    parser = Parser(
        prog="experiment.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("trial", "enter", "check", "board"))
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--latents", type=float, default=9.0)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--questions", type=int, default=500)
    parser.add_argument("--name", default="")
    parser.add_argument("--repo")
    given = parser.parse_args(argv)
    if given.what == "check":
        found = {path: check(read(path)) for path in given.files}
        for path, wrong in found.items():
            print(wrapped(f"{path}: {'; '.join(wrong) or 'complete and within the limits'}"))
        return 1 if any(found.values()) else 0
    if given.what == "board":
        entries = []
        for path in given.files:
            found = read(path)
            if isinstance(found.get("name"), str) and isinstance(found.get("seed"), int):
                entries.append(found)
            else:  # a config.json beside them
                print(wrapped(f"{path} is not an entry: it has no name or no seed"), file=sys.stderr)
        rows, off = board(entries, given.latents, given.seconds, given.questions)
        for place, (name, accuracy, mean_len, seeds) in enumerate(rows, 1):
            line = f"{place:3}  {name:20} {100 * accuracy:5.1f} %   #L {mean_len:5.2f}   "
            print(f"{line}{seeds} seed" if seeds == 1 else f"{line}{seeds} seeds")
        for name, why in off.items():
            print(wrapped(f"  -  {name:20} {why}"))
        return 0

    if given.questions < 1 or not 1 <= given.seconds < math.inf:
        raise Bad("--questions and --seconds must be 1 or more")
    config = read(given.files[0])
    check_config(config)
    entry_path = Path(f"{given.name}-seed{given.seed}.json")
    if given.what == "enter":
        if not given.name.isidentifier():
            raise Bad("--name may contain letters, digits and underscores")
        if entry_path.exists():
            raise Bad(f"{entry_path} exists: a name can enter each seed only once")
    repo = repository(given.repo)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        seconds = train(config, repo, run, given.seed, given.seconds)
        split = "test" if given.what == "enter" else "val"
        found = measure(run, repo, split, given.questions)
    accuracy = found["right"] / found["n"]
    result = f"{split}: {100 * accuracy:.1f} % of {found['n']}, #L {found['mean_len']:.2f}"
    above = "" if found["mean_len"] <= given.latents else f"; above the limit of {given.latents:g} latents"
    print(f"{result}, {seconds:.0f} CPU seconds{above}")
    if given.what == "trial":
        trial = {"config": config, "seed": given.seed, "val_accuracy": accuracy}
        trial |= {"val_mean_len": found["mean_len"], "cpu_seconds": seconds}
        with open("trials.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(trial) + "\n")
        return 0
    entry = {
        "name": given.name,
        "seed": given.seed,
        "config": config,
        "split": split,
        "accuracy": accuracy,
        **found,
        "cpu_seconds": seconds,
        "latents_limit": given.latents,
        "seconds_limit": given.seconds,
        "package": package_hash(repo),
    }
    entry_path.write_text(json.dumps(entry, indent=1) + "\n", encoding="utf-8")
    print(wrapped(f"{entry_path}: {'; '.join(check(entry)) or 'complete and within the limits'}"))
    return 0


if __name__ == "__main__":
    try:
        raise SystemExit(main(sys.argv[1:]))
    except Bad as error:
        print(wrapped(f"error: {error}"), file=sys.stderr)
        raise SystemExit(2) from None
