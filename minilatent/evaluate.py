"""Run a method over examples and judge it: the same function for validation, eval.py and the tests."""
import time

import torch

from .example import Example, is_correct
from .metrics import wilson


def accuracy(method, examples: list[Example]) -> dict[str, float]:
    """Greedy free-running decoding of every question; accuracy in 0..1 and the mean length of reasoning."""
    results = solve_all(method, examples)
    return {"accuracy": results["accuracy"], "mean_len": results["mean_len"]}


def solve_all(method, examples: list[Example], **options) -> dict:
    """Questions in order of length, `eval_batch` at a time; per-question results in the examples' order."""
    was_training = method.training
    method.eval()
    order = sorted(range(len(examples)), key=lambda i: len(examples[i].question))
    correct, lengths, answers, seconds = {}, {}, {}, 0.0
    for at in range(0, len(order), method.config.eval_batch):
        chosen = order[at:at + method.config.eval_batch]
        start = time.perf_counter()
        out = method.solve([examples[i].question for i in chosen], **options)
        seconds += time.perf_counter() - start
        for i, answer, length in zip(chosen, out.answers, out.lengths.tolist()):
            answers[i], lengths[i], correct[i] = answer, length, is_correct(answer, examples[i].answer)
    method.train(was_training)
    n, right = len(examples), sum(correct.values())
    return {"n": n, "accuracy": right / max(n, 1), "ci95": list(wilson(right, n)),
            "mean_len": sum(lengths.values()) / max(n, 1), "seconds": seconds,
            "questions_per_second": n / max(seconds, 1e-9),
            "correct": [correct[i] for i in range(n)], "answers": [answers[i] for i in range(n)]}
