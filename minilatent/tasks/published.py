"""Published data sets, by name or by file.

The names are those of SOURCES; the library `datasets` downloads and caches them. Formats of files:

    jsonl with question and answer, "... #### 18"       GSM8K (Cobbe et al. 2021)
    text, `question||<<16-3=13>> ... #### 18`           GSM8K-Aug (Deng et al. 2023)
    jsonl with question, steps and answer               GSM8K-Aug on the hub
    jsonl with input and target                         GSM-Hard, SVAMP, MultiArith (Gao et al. 2022)
    jsonl with problem and solution or answer           MATH, AIME (Hendrycks et al. 2021)
"""

import hashlib
import json
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from ..config import UserError
from .answers import Example, last_boxed, normalise


class Source(NamedTuple):
    """Where a named data set is."""

    repo: str  # on the Hugging Face hub, or the address of a jsonl file
    splits: dict[str, str]  # our names -> theirs; without val, a part of train is held out
    config: str | None = None
    file: str = ""  # address of the same data in a format that --data reads


# Addresses with a commit in them are pinned; the hub's repositories are not, unless a `revision` is given.
_RAW = "https://raw.githubusercontent.com"
_GSM = f"{_RAW}/openai/grade-school-math/5d331b448c28db43ef0d513bb1224e1a4b10950a/grade_school_math/data/"
_PAL = f"{_RAW}/reasoning-machines/pal/f81ca2a9777f002f98a6b4d0f10b61bd5c8feb02/datasets/"
_AUG = (
    "https://media.githubusercontent.com/media/da03/Internalize_CoT_Step_by_Step/"  # stored in Git LFS
    "e06a32ee5e4cd117171daeb4755d2a97ece62761/data/gsm8k/"
)
_BOTH = {"train": "train", "test": "test"}
_TEST = {"test": "train"}  # a single file is called train by `datasets`
SOURCES = {
    "gsm8k": Source("openai/gsm8k", _BOTH, "main", _GSM + "train.jsonl"),
    "gsm8k_aug": Source("whynlp/gsm8k-aug", {**_BOTH, "val": "validation"}, None, _AUG + "train.txt"),
    "gsm_hard": Source(_PAL + "gsmhardv2.jsonl", _TEST),
    "svamp": Source(_PAL + "svamp.jsonl", _TEST),
    "multiarith": Source(_PAL + "mawpsmultiarith.jsonl", _TEST),
    "math": Source("DigitalLearningGmbH/MATH-lighteval", _BOTH, "default"),
    "math500": Source("HuggingFaceH4/MATH-500", {"test": "test"}),
    "aime24": Source("HuggingFaceH4/aime_2024", _TEST),
}
_MARK = re.compile(r"<<[^<>]*>>")

# What every format is first read into: (question, text of the solution, answer).
Record = tuple[str, str, str]

# ------------------------------------------------------------------ splits


def exclude(examples: Iterable[Example], other: Iterable[Example]) -> list[Example]:
    """The examples whose question is not in `other`; case, spaces and punctuation do not count. Needed for
    validation on GSM8K-Aug's 500 validation questions: all are from GSM8K's train split."""
    taken = {_key(example.question) for example in other}
    return [example for example in examples if _key(example.question) not in taken]


def _key(question: str) -> str:
    return " ".join(re.findall(r"\w+", question.casefold()))


def divide(examples: list[Example], split: str) -> list[Example]:
    """A split of examples that come in one piece: by question, so that its copies stay on the same side."""
    if split == "test":
        return examples
    keys = [_key(example.question) for example in examples]
    ranked = sorted(set(keys), key=lambda key: hashlib.sha256(key.encode(errors="surrogatepass")).digest())
    size = min(500, -(-len(ranked) // 10))  # rounded up: of ten questions or fewer, one is held out
    held_out = set(ranked[:size])
    return [example for example, key in zip(examples, keys) if (key in held_out) == (split == "val")]


# ------------------------------------------------------------------ formats


def read(path: Path) -> Iterator[Record]:
    """The records of a file, line by line. UserError names the file and the line."""
    if path.is_dir():
        raise UserError(f"{path} is a folder: pass one data file, such as {path / 'train.jsonl'}")
    empty = True
    try:
        with open(path, "rb") as file:  # bytes, so that the line with a wrong encoding is known
            for number, raw in enumerate(file, 1):
                try:
                    line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                    if line:
                        empty = False
                        yield _parse(line)
                except UnicodeDecodeError as e:
                    where = f"{e.reason}, byte {e.start + 1}"
                    raise UserError(f"{path}, line {number}: not UTF-8 ({where})") from None
                except UserError as e:
                    raise UserError(f"{path}, line {number}: {e}") from None
    except OSError as e:
        raise UserError(f"cannot read {path}: {e.strerror}") from None
    if empty:
        raise UserError(f"{path} is empty")


def _parse(line: str) -> Record:
    """One line in any of the formats."""
    if not line.startswith("{") and "||" in line:
        question, _, rest = line.partition("||")
        return _record({"question": question, "answer": rest})
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as e:
        reason = f"{e.msg} at column {e.colno}" if isinstance(e, json.JSONDecodeError) else str(e)
        raise UserError(f"not JSON ({reason}), nor `question||chain #### answer`: {line[:40]!r}") from None
    if not isinstance(row, dict):
        raise UserError(f"one JSON object a line is expected, not a {type(row).__name__}")
    return _record(row)


def _record(row: dict) -> Record:
    """The record of a row of a file or of the hub. Its answer is a number, or LaTeX in a row of MATH."""
    if "problem" in row and "question" not in row:
        return _math_record(row)
    names = ("input", "target") if "input" in row and "question" not in row else ("question", "answer")
    for name in names:
        if row.get(name) is None:
            raise UserError(f"lacks the field {name!r} (it has {', '.join(map(repr, row)) or 'none'})")
    question, answer = (row[name] for name in names)
    steps = row.get("steps") or []
    if not isinstance(question, str) or not question.strip():
        raise UserError(f"{names[0]!r} must be a text that is not empty")
    if not isinstance(steps, (list, str)):
        raise UserError(f"'steps' must be a list of texts, not a {type(steps).__name__}")
    solution = steps if isinstance(steps, str) else "\n".join(map(str, steps))
    if isinstance(answer, str) and "####" in answer:
        text, _, answer = answer.rpartition("####")
        solution = solution or text
    number = normalise(answer)
    if number is None:
        wanted = f"{names[1]!r} must be a number or end with '#### NUMBER'"
        raise UserError(f"has no answer: {wanted}, not {str(answer)[-40:]!r}")
    return question.strip(), solution, number


def _math_record(row: dict) -> Record:
    r"""The record of {problem, answer and/or solution}. The answer is the one given, or the solution's last
    \boxed{}. If it is no plain number or fraction, it is kept as LaTeX in dollars, so that `is_correct` knows
    it: "5\pi" is not 5."""
    question, solution = row["problem"], row.get("solution") or ""
    answer = row.get("answer") if row.get("answer") is not None else last_boxed(str(solution))
    answer = "" if answer is None else str(answer).strip().strip("$").strip()
    if not isinstance(question, str) or not question.strip() or not isinstance(solution, str) or not answer:
        raise UserError("lacks a 'problem', or an 'answer' or 'solution' with an answer in \\boxed{}")
    plain = re.fullmatch(r"-?[\d,]*\.?\d+|-?\d+/\d+|-?\\[dt]?frac\{-?\d+\}\{\d+\}", answer.replace(r"\!", ""))
    return question.strip(), solution, (plain and normalise(answer)) or f"${answer}$"


def with_chains(records: Iterable[Record], style: str, source: str) -> list[Example]:
    """Examples with their solutions cut into steps. UserError if no solution has steps in this style."""
    examples, solved = [], False
    for question, solution, answer in records:
        if style == "equations":
            steps = _MARK.findall(solution)
        else:
            steps = [line.strip() for line in _MARK.sub("", solution).splitlines() if line.strip()]
        solved = solved or bool(solution.strip()) and "\\boxed" not in solution  # MATH has sentences only
        examples.append(Example(question, tuple(steps), answer))
    # Data without any solution (SVAMP) are fine in either style.
    if examples and (solved or style == "text") and not any(example.steps for example in examples):
        wanted, other = ("<<...>> marks", "text") if style == "equations" else ("sentences", "equations")
        raise UserError(f"{source} has no {wanted} to make chains of: use --chain_style {other}")
    return examples


# ------------------------------------------------------------------ the hub


def from_hub(name: str, split: str, style: str, revision: str) -> list[Example]:
    """A split of a named data set. Without one for validation, a part of train is held out, never of test."""
    source = SOURCES[name]
    theirs = source.splits.get(split) or (split == "val" and source.splits.get("train"))
    if not theirs:
        raise UserError(f"{name} is a test set, it has no {split} split: python eval.py --data {name}")
    examples = with_chains(download(name, theirs, revision), style, source.repo)
    if split == "train" and "val" in source.splits:
        val = download(name, source.splits["val"], revision)
        return exclude(examples, with_chains(val, style, source.repo))
    return examples if split in source.splits and split != "train" else divide(examples, split)


def download(name: str, split: str, revision: str) -> list[Record]:
    """The records of a split (the source's name). UserError says what to do without a network."""
    source = SOURCES[name]
    is_file = source.repo.startswith("https://")
    try:
        from datasets import load_dataset  # slow to import, and only these names need it

        if is_file:
            rows = load_dataset("json", data_files=source.repo, split=split)
        else:
            rows = load_dataset(source.repo, source.config, split=split, revision=revision or None)
    except Exception as e:  # no network, no such revision, a full disk: the way out is the same
        reason = (str(e) or type(e).__name__).splitlines()[0]
        file = source.repo if is_file else source.file
        advice = f"download {file}"
        if not file:
            call = f"datasets.load_dataset({source.repo!r}, split={split!r}).to_json('{name}.jsonl')"
            advice = f"run {call} on a machine that has one"
        path = f"path/to/{Path(file or name + '.jsonl').name}"
        raise UserError(
            f"cannot get {name} from {source.repo} ({reason}); without a network, {advice} and pass "
            f"--data {path}, or use --data mini, which needs no download"
        ) from None
    records, bad = [], 0
    for row in rows:
        try:
            records.append(_record(row))
        except UserError:  # a row of the hub cannot be repaired here: skip and count it
            bad += 1
    if bad:
        print(f"{source.repo}, {split}: {bad} rows skipped, without question or answer", file=sys.stderr)
    return records
