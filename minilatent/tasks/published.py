"""Published data sets, by name or by file.

The names are those of SOURCES; the library `datasets` downloads and caches them. Formats of files:

    jsonl with question and answer, "... #### 18"       GSM8K (Cobbe et al. 2021)
    the same with template                              GSM8K redrawn (redraw.py), divided by template
    text, `question||<<16-3=13>> ... #### 18`           GSM8K-Aug (Deng et al. 2023)
    jsonl with question, steps and answer               GSM8K-Aug on the hub
    jsonl with input and target                         GSM-Hard, SVAMP, MultiArith (Gao et al. 2022)
    jsonl with problem and solution or answer           MATH, AIME (Hendrycks et al. 2021)
    a JSON list of such objects, on any lines           Coconut (Hao et al. 2024), SIM-CoT
"""

import hashlib
import json
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from ..config import UserError, wrapped
from ..files import check_regular
from .answers import Example, last_boxed, math_verify, normalise


class Source(NamedTuple):
    """Where a named data set is."""

    repo: str  # on the Hugging Face hub, or the address of a jsonl file
    splits: dict[str, str]  # our names -> theirs; without val, a part of train is held out
    config: str | None = None


_PAL = "https://raw.githubusercontent.com/reasoning-machines/pal/"
_PAL += "f81ca2a9777f002f98a6b4d0f10b61bd5c8feb02/datasets/"
_BOTH = {"train": "train", "test": "test"}
_TEST = {"test": "train"}  # a single file is called train by `datasets`
SOURCES = {
    "gsm8k": Source("openai/gsm8k", _BOTH, "main"),
    "gsm8k_aug": Source("whynlp/gsm8k-aug", {**_BOTH, "val": "validation"}),
    "gsm_hard": Source(_PAL + "gsmhardv2.jsonl", _TEST),
    "svamp": Source(_PAL + "svamp.jsonl", _TEST),
    "multiarith": Source(_PAL + "mawpsmultiarith.jsonl", _TEST),
    "math": Source("DigitalLearningGmbH/MATH-lighteval", _BOTH, "default"),
    "math500": Source("HuggingFaceH4/MATH-500", {"test": "test"}),
    "aime24": Source("HuggingFaceH4/aime_2024", _TEST),
}
_MARK = re.compile(r"<<[^<>\n]*>>")

# The fields of question and answer; a row of MATH may have its answer in the solution.
FIELDS = (("question", "answer"), ("input", "target"), ("problem", "answer"))
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


def divide(examples: list, split: str, templates: Iterable[str] = ()) -> list:
    """A split of examples that come in one piece: by template, which is by default the question. So the
    copies of a question, or the problems drawn from one, stay on the same side."""
    if split == "test":
        return examples
    keys = [_key(text) for text in templates or (example.question for example in examples)]
    ranked = sorted(set(keys), key=lambda key: hashlib.sha256(key.encode(errors="surrogatepass")).digest())
    size = min(500, -(-len(ranked) // 10))  # rounded up: of ten questions or fewer, one is held out
    held_out = set(ranked[:size])
    return [example for example, key in zip(examples, keys) if (key in held_out) == (split == "val")]


# ------------------------------------------------------------------ formats


def read(path: Path, templates: list[str] | None = None) -> Iterator[Record]:
    """The records of a file. UserError names the file and the line, or of a list the item. Each record's
    template is added to `templates`: the original of a redrawn question, else the question."""
    check_regular(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason}, byte {error.start + 1})") from None
    if text.strip() in ("", "[]"):
        raise UserError(f"{path} is empty")
    unit, rows = "line", text.split("\n")
    if text.lstrip().startswith("["):
        try:
            unit, rows = "item", json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: not a JSON list ({error})") from None
    for number, row in enumerate(rows, 1):
        try:
            if unit == "line" and not row.strip():
                continue
            row = row if unit == "item" else _parse(row.strip())
            record = record_of(row)
            if templates is not None:
                templates.append(str(row.get("template") or record[0]))
            yield record
        except UserError as error:
            raise UserError(f"{path}, {unit} {number}: {error}") from None


def _parse(line: str) -> dict:
    """One line in any of the formats, as a row."""
    if not line.startswith("{") and "||" in line:
        question, _, rest = line.partition("||")
        if "||" in rest:
            raise UserError(f"has more than one ||: {line[:60]!r}")
        return {"question": question, "answer": rest}
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"not JSON ({error}), nor `question||chain #### answer`: {line[:40]!r}") from None


def record_of(row: dict) -> Record:
    """The record of a row of a file or of the hub. Its answer is a number, or LaTeX in a row of MATH."""
    if not isinstance(row, dict):
        raise UserError(f"a JSON object is expected, not {type(row).__name__}")
    names = next((names for names in FIELDS if names[0] in row), FIELDS[0])
    question, answer = (row.get(name) for name in names)
    if not isinstance(question, str) or not question.strip():
        raise UserError(f"lacks {names[0]!r}, a text (it has {', '.join(map(repr, row)) or 'none'})")
    if names[0] == "problem":
        return question.strip(), *_solution_and_latex(row)
    steps = row.get("steps") or []
    solution = "\n".join(map(str, steps)) if isinstance(steps, list) else str(steps)
    if isinstance(answer, str) and "####" in answer:
        text, _, answer = answer.rpartition("####")
        solution = solution or text
    if half := re.search(r"<<.*|.*>>", _MARK.sub("", solution)):
        raise UserError(f"has a broken <<...>>: {half[0][-40:]!r}")
    number = normalise(answer)
    if number is None:
        wanted = f"{names[1]!r} must be a number or end with '#### NUMBER'"
        raise UserError(f"has no answer: {wanted}, not {str(answer)[-40:]!r}")
    return question.strip(), solution, number


def _solution_and_latex(row: dict) -> tuple[str, str]:
    r"""Of a row of MATH or AIME the solution, and in dollars the answer: the one given, or what the last
    \boxed{} of the solution holds."""
    solution, answer = str(row.get("solution") or ""), row.get("answer")
    answer = str(last_boxed(solution) or "" if answer is None else answer).strip().strip("$").strip()
    if not answer:
        raise UserError("lacks an 'answer', or a 'solution' with an answer in \\boxed{}")
    return solution, f"${answer}$"


def with_chains(records: Iterable[Record], style: str, source: str) -> list[Example]:
    """Examples with their solutions cut into steps. UserError if no solution has steps in this style, or if
    the library that judges answers in LaTeX is needed and not there."""
    examples, solved = [], False
    for question, solution, answer in records:
        if answer.startswith("$"):
            math_verify()
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


def from_hub(name: str, split: str, style: str) -> list[Example]:
    """A split of a named data set. Without one for validation, a part of train is held out, never of test."""
    source = SOURCES[name]
    theirs = source.splits.get(split) or (split == "val" and source.splits.get("train"))
    if not theirs:
        raise UserError(f"{name} is a test set, it has no {split} split: python eval.py --data {name}")
    examples = with_chains(download(name, theirs), style, source.repo)
    if split == "train" and "val" in source.splits:
        return exclude(examples, with_chains(download(name, source.splits["val"]), style, source.repo))
    return examples if split in source.splits and split != "train" else divide(examples, split)


def download(name: str, split: str) -> list[Record]:
    """The records of a split (the source's name). UserError says what to do without a network."""
    source = SOURCES[name]
    try:
        from datasets import load_dataset  # slow to import, and only these names need it

        if source.repo.startswith("https://"):
            rows = load_dataset("json", data_files=source.repo, split=split)
        else:
            rows = load_dataset(source.repo, source.config, split=split)
    except Exception as error:  # no network, no library, a full disk: the way out is the same
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"cannot get {name} from {source.repo} ({reason}); without a network, save it elsewhere with "
            f"datasets' to_json and pass --data path/to/{name}.jsonl, or use --data mini, which needs none"
        ) from None
    records, bad = [], 0
    for row in rows:
        try:
            records.append(record_of(row))
        except UserError:  # a row of the hub cannot be repaired here: skip and count it
            bad += 1
    if bad:
        why = "no question, no answer or a broken <<...>>"
        print(wrapped(f"{source.repo}, {split}: {bad} rows skipped: {why}"), file=sys.stderr)
    return records
