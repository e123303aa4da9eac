"""Lab 7: an open experiment, and the rule that judges it. README.md tells the problems; experiment.py trains and measures.

An entry is a dict: "name" (whose), "seed", "accuracy" in 0..1 over "n" questions, "mean_len" (#L, the mean number of
latents), "cpu_seconds" of training, and more that is of no matter here.
"""



def interval(right: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's interval for a share of `right` in `n`: the two p with (right / n - p)² = z² p (1 - p) / n. n = 0: (0, 1)."""
    raise NotImplementedError


def admissible(entry: dict, most_latents: float, most_seconds: float) -> bool:
    """Whether an entry keeps to the limits, each of which may be reached: #L at most most_latents, training at most
    most_seconds. Not admissible is an entry whose "mean_len", "cpu_seconds" or "accuracy" is missing, no number, not
    finite or below 0, or whose accuracy is above 1."""
    raise NotImplementedError


def choose(trials: list[dict], most_latents: float, most_seconds: float) -> dict | None:
    """Which of one's own trials to enter. A trial has "val_accuracy", "val_mean_len" and "cpu_seconds"; some also hold
    "test_accuracy", which nothing may depend on. Of those within the limits (#L by val_mean_len) the one with the highest
    val_accuracy; of equals the one with fewer latents, then the first. None if there is none."""
    raise NotImplementedError


def leaderboard(entries: list[dict], most_latents: float, most_seconds: float) -> list[tuple[str, float]]:
    """Names with their mean accuracy over seeds, the best first; of equals the one with the smaller mean #L, then by
    name. A name counts only if *every* one of its entries is admissible: else a bad seed could be hidden behind a limit.
    The same name and seed twice: the first counts, the later one is as if it were not there."""
    raise NotImplementedError
