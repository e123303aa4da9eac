"""Run a method over examples and judge it: the same function for validation, eval.py and the tests."""

import math
import time
from collections.abc import Iterator

from .config import UserError
from .decode import Decoded
from .tasks.answers import Example, is_correct


def wilson(correct: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a share (Wilson's score), in 0..1; (0, 1) for n = 0."""
    if n == 0:
        return 0.0, 1.0
    p, z2 = correct / n, z * z
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = z / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def accuracy(method, examples: list[Example]) -> dict[str, float]:
    """Greedy free-running decoding of every question; accuracy in 0..1 and the mean length of reasoning."""
    results = solve_all(method, examples)
    return {"accuracy": results["accuracy"], "mean_len": results["mean_len"]}


def solve_batches(
    method, examples: list[Example], batch: int = 0, **options
) -> Iterator[tuple[list[int], Decoded, float]]:
    """Questions in order of length, `batch` (default: the run's eval_batch) at a time: which they are,
    what came out, and the seconds it took."""
    batch = batch or method.config.eval_batch
    was_training = method.training
    method.eval()
    order = sorted(range(len(examples)), key=lambda i: len(examples[i].question))
    for at in range(0, len(order), batch):
        chosen = order[at : at + batch]
        start = time.perf_counter()
        out = method.solve([examples[i].question for i in chosen], **options)
        yield chosen, out, time.perf_counter() - start
    method.train(was_training)


def solve_all(method, examples: list[Example], **options) -> dict:
    """Per-question results in the examples' order, and their means."""
    correct, lengths, answers, seconds = {}, {}, {}, 0.0
    for chosen, out, took in solve_batches(method, examples, **options):
        seconds += took
        for i, answer, length in zip(chosen, out.answers, out.lengths.tolist()):
            answers[i], lengths[i], correct[i] = answer, length, is_correct(answer, examples[i].answer)
    n, right = len(examples), sum(correct.values())
    return {
        "n": n,
        "accuracy": right / max(n, 1),
        "ci95": list(wilson(right, n)),
        "mean_len": sum(lengths.values()) / max(n, 1),
        "seconds": seconds,
        "questions_per_second": n / max(seconds, 1e-9),
        "correct": [correct[i] for i in range(n)],
        "answers": [answers[i] for i in range(n)],
    }


def fitting(method, examples: list[Example]) -> list[Example]:
    """The examples whose prompt leaves room for the longest chain and answer. UserError if none does."""
    limits, context = method.decoding(), method.model.config.context
    room = context - limits["max_chain"] - limits["max_answer"] - 1
    fits = [e for e in examples if len(method.prompt(e.question)) <= room]
    if not fits:
        lengths = f"--max_chain {limits['max_chain']} and --max_answer {limits['max_answer']}"
        raise UserError(f"{lengths} leave no room for any of {len(examples)} questions in {context} tokens")
    return fits
