"""Data sets by name or by file, as lists of `Example`.

Names: the mini family (generated here, no download), and those of SOURCES, through `datasets`, which caches them.
Files: GSM8K's jsonl (Cobbe et al. 2021); GSM8K-Aug's text, `question||<<16-3=13>> ... #### 18` (Deng et al.
2023); jsonl with question, steps and answer; jsonl with input and target, as PAL packs GSM-Hard, SVAMP and
MultiArith (Gao et al. 2022); jsonl with problem and solution or answer, as MATH and AIME come (Hendrycks et al. 2021).
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
    """Where a named data set is. `file` holds the same data, in a format that --data reads; "": no such file."""

    repo: str  # on the Hugging Face hub, or the address of a jsonl file
    splits: dict[str, str]  # ours -> theirs; without val, a part of train is held out
    config: str | None = None
    file: str = ""


# Addresses with a commit in them are pinned. The hub's repositories are not: pass `revision` for a run to repeat.
_GSM = "https://raw.githubusercontent.com/openai/grade-school-math/5d331b448c28db43ef0d513bb1224e1a4b10950a/grade_school_math/data/"
_AUG = (
    "https://media.githubusercontent.com/media/da03/Internalize_CoT_Step_by_Step/"  # kept in Git LFS
    "e06a32ee5e4cd117171daeb4755d2a97ece62761/data/gsm8k/"
)
_PAL = "https://raw.githubusercontent.com/reasoning-machines/pal/f81ca2a9777f002f98a6b4d0f10b61bd5c8feb02/datasets/"
_TEST = {"test": "train"}  # a file alone is called train by `datasets`
SOURCES = {
    "gsm8k": Source("openai/gsm8k", {"train": "train", "test": "test"}, "main", _GSM + "train.jsonl"),
    "gsm8k_aug": Source(
        "whynlp/gsm8k-aug", {"train": "train", "val": "validation", "test": "test"}, None, _AUG + "train.txt"
    ),
    "gsm_hard": Source(_PAL + "gsmhardv2.jsonl", _TEST),
    "svamp": Source(_PAL + "svamp.jsonl", _TEST),
    "multiarith": Source(_PAL + "mawpsmultiarith.jsonl", _TEST),
    "math": Source("DigitalLearningGmbH/MATH-lighteval", {"train": "train", "test": "test"}, "default"),
    "math500": Source("HuggingFaceH4/MATH-500", {"test": "test"}),
    "aime24": Source("HuggingFaceH4/aime_2024", _TEST),
}
_MARK = re.compile(r"<<[^<>]*>>")


def exclude(examples: Iterable[Example], other: Iterable[Example]) -> list[Example]:
    """The examples whose question, but for case, spaces and punctuation, is not in `other`.

    For validation on GSM8K-Aug's 500 validation questions, for instance: all are from GSM8K's train split.
    """
    taken = {_key(example.question) for example in other}
    return [example for example in examples if _key(example.question) not in taken]


def _key(question: str) -> str:
    return " ".join(re.findall(r"\w+", question.casefold()))


def divide(examples: list[Example], split: str) -> list[Example]:
    """A split of examples that come in one piece: by question, so that copies of one stay on the same side."""
    if split == "test":
        return examples
    keys = [_key(example.question) for example in examples]
    ranked = sorted(set(keys), key=lambda key: hashlib.sha256(key.encode(errors="surrogatepass")).digest())
    held_out = set(
        ranked[: min(500, -(-len(ranked) // 10))]
    )  # rounded up: ten questions or fewer still give one
    return [example for example, key in zip(examples, keys) if (key in held_out) == (split == "val")]


# A record is what every format is first read into: (question, solution text, answer).
Record = tuple[str, str, str]


def read(path: Path) -> Iterator[Record]:
    """The records of a file, line by line; an error names the file and the line."""
    if path.is_dir():
        raise UserError(f"{path} is a folder: pass one data file, such as {path / 'train.jsonl'}")
    empty = True
    try:
        with open(path, "rb") as file:  # bytes, so that a wrong encoding can be laid to its line
            for number, raw in enumerate(file, 1):
                try:
                    line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                    if line:
                        empty = False
                        yield _parse(line)
                except UnicodeDecodeError as e:
                    raise UserError(
                        f"{path}, line {number}: not UTF-8 ({e.reason}, byte {e.start + 1})"
                    ) from None
                except UserError as e:
                    raise UserError(f"{path}, line {number}: {e}") from None
    except OSError as e:
        raise UserError(f"cannot read {path}: {e.strerror}") from None
    if empty:
        raise UserError(f"{path} is empty")


def _parse(line: str) -> Record:
    """One line of any of the formats."""
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
    """The record of a row of a file or of the hub, with an answer that is a number, or for MATH's rows LaTeX."""
    if "problem" in row and "question" not in row:
        return _math_record(row)
    asked, replied = (
        ("input", "target") if "input" in row and "question" not in row else ("question", "answer")
    )
    for field in (asked, replied):
        if row.get(field) is None:
            raise UserError(f"lacks the field {field!r} (it has {', '.join(map(repr, row)) or 'none'})")
    question, answer, steps = row[asked], row[replied], row.get("steps") or []
    if not isinstance(question, str) or not question.strip():
        raise UserError(f"{asked!r} must be a text that is not empty")
    if not isinstance(steps, (list, str)):
        raise UserError(f"'steps' must be a list of texts, not a {type(steps).__name__}")
    solution = steps if isinstance(steps, str) else "\n".join(map(str, steps))
    if isinstance(answer, str) and "####" in answer:
        text, _, answer = answer.rpartition("####")
        solution = solution or text
    number = normalise(answer)
    if number is None:
        given = str(answer)[-40:]
        raise UserError(
            f"has no answer: {replied!r} must be a number or end with '#### NUMBER', not {given!r}"
        )
    return question.strip(), solution, number


def _math_record(row: dict) -> Record:
    r"""The record of {problem, answer and/or solution}: the answer is the one given, or the solution's last \boxed{}.

    What is no plain number or fraction is LaTeX in dollars, by which `is_correct` knows it: "5\pi" is not 5.
    """
    question, solution = row["problem"], row.get("solution") or ""
    answer = row.get("answer") if row.get("answer") is not None else last_boxed(str(solution))
    answer = "" if answer is None else str(answer).strip().strip("$").strip()
    if not isinstance(question, str) or not question.strip() or not isinstance(solution, str) or not answer:
        raise UserError("lacks a 'problem', or an 'answer' or 'solution' with an answer in \\boxed{}")
    plain = re.fullmatch(r"-?[\d,]*\.?\d+|-?\d+/\d+|-?\\[dt]?frac\{-?\d+\}\{\d+\}", answer.replace(r"\!", ""))
    return question.strip(), solution, (plain and normalise(answer)) or f"${answer}$"


def with_chains(records: Iterable[Record], style: str, source: str) -> list[Example]:
    """Examples with their solutions cut into steps."""
    examples, solved = [], False
    for question, solution, answer in records:
        if style == "equations":
            steps = _MARK.findall(solution)
        else:
            steps = [line.strip() for line in _MARK.sub("", solution).splitlines() if line.strip()]
        solved = solved or bool(solution.strip()) and "\\boxed" not in solution  # MATH's have sentences only
        examples.append(Example(question, tuple(steps), answer))
    # No chain at all means the wrong style was asked for, except where there are no solutions to cut (SVAMP).
    if examples and (solved or style == "text") and not any(example.steps for example in examples):
        wanted, other = ("<<...>> marks", "text") if style == "equations" else ("sentences", "equations")
        raise UserError(f"{source} has no {wanted} to make chains of: use --chain_style {other}")
    return examples


def from_hub(name: str, split: str, style: str, revision: str) -> list[Example]:
    """A split of a named data set. Where there is none for validation, a part of train is held out, never of test."""
    source = SOURCES[name]
    theirs = source.splits.get(split) or (split == "val" and source.splits.get("train"))
    if not theirs:
        raise UserError(f"{name} is a test set, it has no {split} split: python eval.py --data {name}")

    def fetch(their_split: str) -> list[Example]:
        is_file = source.repo.startswith("https://")
        try:
            from datasets import load_dataset  # slow to import, and only these names need it

            if is_file:
                rows = load_dataset("json", data_files=source.repo, split=their_split)
            else:
                rows = load_dataset(source.repo, source.config, split=their_split, revision=revision or None)
        except Exception as e:  # no network, no such revision, a full disk: the way out is the same
            reason = (str(e) or type(e).__name__).splitlines()[0]
            file = source.repo if is_file else source.file
            do = (
                f"download {file}"
                if file
                else (
                    f"where there is one, save it: datasets.load_dataset({source.repo!r}, split={their_split!r}).to_json('{name}.jsonl');"
                )
            )
            raise UserError(
                f"cannot get {name} from {source.repo} ({reason}); without a network, {do} "
                f"and pass --data path/to/{Path(file or name + '.jsonl').name}, or use --data mini, which needs no download"
            ) from None
        records, bad = [], 0
        for row in rows:
            try:
                records.append(_record(row))
            except UserError:  # nobody can mend a row of the hub: leave it out, but say so
                bad += 1
        if bad:
            print(
                f"{source.repo}, {their_split}: {bad} rows left out, without question or answer",
                file=sys.stderr,
            )
        return with_chains(records, style, source.repo)

    examples = fetch(theirs)
    if split == "train" and "val" in source.splits:
        return exclude(examples, fetch(source.splits["val"]))
    return examples if split in source.splits and split != "train" else divide(examples, split)
