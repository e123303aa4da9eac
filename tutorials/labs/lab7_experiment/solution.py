"""Lab 7: an open experiment, and the rule that judges it. README.md tells the problems; experiment.py trains and measures.

An entry is a dict: "name" (whose), "seed", "accuracy" in 0..1 over "n" questions, "mean_len" (#L, the mean number of
latents), "cpu_seconds" of training, and more that is of no matter here.
"""

import math


def interval(right: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's interval for a share of `right` in `n`: the two p with (right / n - p)² = z² p (1 - p) / n. n = 0: (0, 1)."""
    # BEGIN SOLUTION
    if n == 0:
        return 0.0, 1.0
    share = right / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)
    # END SOLUTION


def admissible(entry: dict, most_latents: float, most_seconds: float) -> bool:
    """Whether an entry keeps to the limits, each of which may be reached: #L at most most_latents, training at most
    most_seconds. Not admissible is an entry whose "mean_len", "cpu_seconds" or "accuracy" is missing, no number, not
    finite or below 0, or whose accuracy is above 1."""
    # BEGIN SOLUTION
    for key, most in (("mean_len", most_latents), ("cpu_seconds", most_seconds), ("accuracy", 1.0)):
        value = entry.get(key)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value <= most:
            return False
    return True
    # END SOLUTION


def choose(trials: list[dict], most_latents: float, most_seconds: float) -> dict | None:
    """Which of one's own trials to enter. A trial has "val_accuracy", "val_mean_len" and "cpu_seconds"; some also hold
    "test_accuracy", which nothing may depend on. Of those within the limits (#L by val_mean_len) the one with the highest
    val_accuracy; of equals the one with fewer latents, then the first. None if there is none."""
    # BEGIN SOLUTION
    within = [t for t in trials if t["val_mean_len"] <= most_latents and t["cpu_seconds"] <= most_seconds]
    return min(within, key=lambda t: (-t["val_accuracy"], t["val_mean_len"])) if within else None
    # END SOLUTION


def leaderboard(entries: list[dict], most_latents: float, most_seconds: float) -> list[tuple[str, float]]:
    """Names with their mean accuracy over seeds, the best first; of equals the one with the smaller mean #L, then by
    name. A name counts only if *every* one of its entries is admissible: else a bad seed could be hidden behind a limit.
    The same name and seed twice: the first counts, the later one is as if it were not there."""
    # BEGIN SOLUTION
    by_name: dict[str, dict[int, dict]] = {}
    for entry in entries:
        by_name.setdefault(entry["name"], {}).setdefault(entry["seed"], entry)
    rows = []
    for name, seeds in by_name.items():
        runs = list(seeds.values())
        if all(admissible(run, most_latents, most_seconds) for run in runs):
            mean = lambda key: sum(run[key] for run in runs) / len(runs)
            rows.append((-mean("accuracy"), mean("mean_len"), name))
    return [(name, -accuracy) for accuracy, _, name in sorted(rows)]
    # END SOLUTION
