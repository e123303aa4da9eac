"""How often mini's answers are right by guessing, without computing every step:

    python -m results.guesses --json results/mini/guesses.json

Each guesser is learned on 40,000 training problems and judged on 3,000 of validation: the most frequent
answer, overall or among the problems that agree in what the guesser sees; and the best linear function of the
operations and numbers. With them, what the problems are like: operations, orders, tokens.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np

from minilatent import tasks
from minilatent.config import Parser, run_script
from minilatent.files import write_json
from minilatent.tasks.answers import Example
from minilatent.tasks.words import normalise
from minilatent.tokenizer import mini_tokenizer

OPERATORS, MOST = "+-*%", 6


def parts(step: str) -> tuple[str, str, str, str]:
    """ "<<12*3=36>>" -> 12, *, 3, 36"""
    return re.fullmatch(r"<<(\d+)(\D)(\d+)=(\d+)>>", step).groups()


def sentences(text: str) -> list[str]:
    return re.split(r"(?<=[.?]) ", text)


def last_sentences(e: Example) -> str:
    """The last two sentences, with the people numbered anew."""
    return normalise(" ".join(sentences(e.question)[-2:]))


def last_operations(e: Example) -> tuple:
    """The last two operations with those of their numbers that the question names."""
    named = set(re.findall(r"\d+", e.question))
    ends = [parts(step) for step in e.steps[-2:]]
    return tuple((op, b if b in named else "") for _, op, b, _ in ends)


def share_right(key: Callable, train: list[Example], val: list[Example]) -> np.ndarray:
    """Per problem, whether the most frequent answer among the training problems of the same key is right."""
    answers, everywhere = defaultdict(Counter), Counter(e.answer for e in train).most_common(1)
    for e in train:
        answers[key(e)][e.answer] += 1
    best = {found: counts.most_common(1) for found, counts in answers.items()}
    return np.array([best.get(key(e), everywhere)[0][0] == e.answer for e in val])


def features(e: Example) -> np.ndarray:
    """From the last operation backwards: which one, and its number. And the first number, and the sum."""
    found = np.zeros((MOST, len(OPERATORS), 2))
    for place, step in zip(found, reversed(e.steps)):
        _, op, b, _ = parts(step)
        place[OPERATORS.index(op)] = 1, int(b)
    numbers = [int(x) for x in re.findall(r"\d+", e.question)]
    return np.concatenate([found.ravel(), [numbers[0], sum(numbers), 1]])


def linear(train: list[Example], val: list[Example]) -> np.ndarray:
    x, y = (np.array([f(e) for e in train]) for f in (features, lambda e: int(e.answer)))
    weights = np.linalg.solve(x.T @ x + np.eye(x.shape[1]), x.T @ y)
    return np.rint([features(e) @ weights for e in val]) == [int(e.answer) for e in val]


def main(argv: list[str]) -> None:
    parser = Parser(prog="python -m results.guesses", description=__doc__.splitlines()[0])
    parser.add_argument("--json", required=True, help="file to write")
    args = parser.parse_args(argv)
    train, val = tasks.load("mini", "train", limit=40_000), tasks.load("mini", "val", limit=3000)
    operations, tok = np.array([len(e.steps) for e in val]), mini_tokenizer()

    def by_operations(values) -> dict:
        values = np.asarray(values, dtype=float)
        each = {str(n): float(values[operations == n].mean()) for n in range(1, MOST + 1)}
        return {"all": float(values.mean()), **each}

    def tokens(text: str) -> int:
        return len(tok.encode(text))

    operators = Counter(parts(step)[1] for e in val for step in e.steps)
    facts = Counter(step for e in train for step in e.steps)
    frequent = np.cumsum(sorted(facts.values(), reverse=True)) / facts.total()
    result = {
        "a constant": by_operations(share_right(lambda e: 0, train, val)),
        "given the last two sentences": by_operations(share_right(last_sentences, train, val)),
        "given the last two operations": by_operations(share_right(last_operations, train, val)),
        "a linear function": by_operations(linear(train, val)),
        "several valid orders": by_operations([len(e.chains) > 1 for e in val]),
        "question tokens": by_operations([tokens(e.question) for e in val]),
        "tokens a sentence": float(np.mean([tokens(s) for e in val for s in sentences(e.question)])),
        "operators": {op: n / operators.total() for op, n in operators.items()},
        "different steps": len(facts),
        "different steps in 95 % of the cases": int((frequent < 0.95).sum()),
        "vocabulary": tok.vocab_size,
    }
    write_json(Path(args.json), result)
    for name, value in result.items():
        print(f"{name:40s} {value}")


if __name__ == "__main__":
    run_script(main)
