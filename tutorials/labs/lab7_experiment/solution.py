"""Lab 7: an open experiment, and the rules that rank it. README.md describes the problems; experiment.py
trains and measures.

An entry is a dict: "name" (of the student), "seed", "accuracy" in 0..1 over "n" questions, "mean_len" (#L,
the mean number of latents), "cpu_seconds" of training, and more that does not matter here.
"""

import math


def interval(right: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's interval for `right` correct answers in `n`: the two p with (right / n - p)² = z² p (1 - p) /
    n.
    For n = 0: (0, 1)."""
    # BEGIN SOLUTION
    if n == 0:
        return 0.0, 1.0
    share = right / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)
    # END SOLUTION


def admissible(entry: dict, most_latents: float, most_seconds: float) -> bool:
    """Whether an entry keeps the limits, each of which may be reached exactly: #L at most most_latents,
    training at most most_seconds. An entry is not admissible if its "mean_len", "cpu_seconds" or "accuracy"
    is missing, not a number, not finite or below 0, or if its accuracy is above 1."""
    # BEGIN SOLUTION
    for key, most in (("mean_len", most_latents), ("cpu_seconds", most_seconds), ("accuracy", 1.0)):
        value = entry.get(key)
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if not number or not 0 <= value <= most:
            return False
    return True
    # END SOLUTION


def choose(trials: list[dict], most_latents: float, most_seconds: float) -> dict | None:
    """Which of one's own trials to enter. A trial has "val_accuracy", "val_mean_len" and "cpu_seconds"; some
    also have "test_accuracy", which the choice may not depend on. Of those within the limits (#L by
    val_mean_len), the one with the highest val_accuracy; if equal, the one with fewer latents, then the
    first. None if there is none."""
    # BEGIN SOLUTION
    within = [t for t in trials if t["val_mean_len"] <= most_latents and t["cpu_seconds"] <= most_seconds]
    return min(within, key=lambda t: (-t["val_accuracy"], t["val_mean_len"])) if within else None
    # END SOLUTION


def leaderboard(entries: list[dict], most_latents: float, most_seconds: float) -> list[tuple[str, float]]:
    """Names with their mean accuracy over seeds, the best first; if equal, the one with the smaller mean
    #L, then by name. A name counts only if *every* one of its entries is admissible: otherwise a bad seed
    could be hidden behind a limit. If a name and seed occur twice, the first counts and the later one is
    ignored."""
    # BEGIN SOLUTION
    by_name: dict[str, dict[int, dict]] = {}
    for entry in entries:
        by_name.setdefault(entry["name"], {}).setdefault(entry["seed"], entry)
    rows = []
    for name, seeds in by_name.items():
        runs = list(seeds.values())
        if all(admissible(run, most_latents, most_seconds) for run in runs):
            accuracy = sum(run["accuracy"] for run in runs) / len(runs)
            mean_len = sum(run["mean_len"] for run in runs) / len(runs)
            rows.append((-accuracy, mean_len, name))
    return [(name, -accuracy) for accuracy, _, name in sorted(rows)]
    # END SOLUTION
