"""Files with one JSON object a line, and what a run's own says about its training."""

import json
from pathlib import Path

from filelock import FileLock

from minilatent.files import replace_file, to_json

CURVE = ("stage", "index", "step", "loss", "val_accuracy", "val_compression", "accuracy", "seconds")


def read_lines(path: Path) -> list[dict]:
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def curve(log: list[dict], plan: dict, before: float) -> list[dict]:
    """A run's losses and validations, with the training FLOPs spent by then; `before`: on its start."""
    found, names = [], list(plan["stages"])
    for line in log:
        at, step_flops = names.index(line["stage"]), plan["step_flops"]
        spent = before + sum(plan["stages"][name] * step_flops[name] for name in names[:at])
        spent += line["step"] * step_flops[line["stage"]]
        spent += plan["once"] if at == len(names) - 1 else 0.0
        found.append({key: line[key] for key in CURVE if key in line} | {"flops": float(f"{spent:.4g}")})
    return found


def write_text(path: Path, text: str) -> None:
    replace_file(path, lambda p: p.write_text(text, encoding="utf-8"))


def add_line(path: Path, line: dict) -> None:
    """One process at a time, of those that share the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.parent / ".lock"):
        held = path.read_text(encoding="utf-8") if path.exists() else ""
        write_text(path, held + to_json(line, separators=(",", ":")) + "\n")


def last_gain(log: list[dict]) -> tuple[float, float]:
    """The best validation of a run's last stage, and what its last quarter added to it: there is one
    validation per quarter."""
    *early, last = [l["val_accuracy"] for l in log if "val_accuracy" in l and l["index"] == log[-1]["index"]]
    best = max(*early, last) if early else last
    return best, best - max(early, default=0.0)
