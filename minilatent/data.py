"""Data sets by name or by file, as lists of `Example`.

Names: the mini family (generated here, no download), and gsm8k and gsm8k_aug from the Hugging Face hub.
Files: GSM8K's jsonl (Cobbe et al. 2021); GSM8K-Aug's text, `question||<<16-3=13>> ... #### 18` (Deng et al.
2023); jsonl with question, steps and answer; jsonl with input and target, as PAL packs GSM-Hard, SVAMP and
MultiArith (Gao et al. 2022).
"""

import difflib
import hashlib
import json
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from . import mini, prosqa
from .config import UserError
from .example import Example, normalise

GSM8K = "https://raw.githubusercontent.com/openai/grade-school-math/master/grade_school_math/data/train.jsonl"
GSM8K_AUG = ("https://media.githubusercontent.com/media/da03/Internalize_CoT_Step_by_Step/"  # kept in Git LFS
             "e06a32ee5e4cd117171daeb4755d2a97ece62761/data/gsm8k/train.txt")
HUB = {  # name: repository, configuration, where the same data is as a file
    "gsm8k": ("openai/gsm8k", "main", GSM8K),
    "gsm8k_aug": ("whynlp/gsm8k-aug", None, GSM8K_AUG),
}
GENERATED = {**{name: mini.load for name in mini.TEST_SETS}, "mini_prosqa": prosqa.load}
NAMES = (*GENERATED, *HUB)
SPLITS, STYLES = ("train", "val", "test"), ("equations", "text")
_MARK = re.compile(r"<<[^<>]*>>")


def load(
    data: str | Path,
    split: str = "train",
    *,
    limit: int | None = None,
    seed: int = 0,
    chain_style: str = "equations",
    chain_order: str = "text",
    revision: str | None = None,
) -> list[Example]:
    """The examples of one split, in the order of the data; the first `limit` of them.

    data         one of NAMES, or a file, whose format is found from its lines
    split        train, val or test. A file, and gsm8k's own train split, are divided by a hash of the question:
                 val is a tenth of the questions, at most 500; train is the rest. As test, a file counts whole.
    seed         mini only: which problems are generated
    chain_style  "equations": the <<48/2=24>> marks; "text": the sentences, without marks
    chain_order  mini only: the order of the steps; other data keeps its own, "text"
    revision     of a hub data set, for a run that can be repeated

    Nothing is dropped for want of a chain: such examples (95 in GSM8K's train split) have steps == (), and whoever
    needs steps counts them. Raises UserError, one line, for any bad input.
    """
    data = str(data)
    for option, value, known in (("split", split, SPLITS), ("chain_style", chain_style, STYLES)):
        if value not in known:
            raise UserError(f"{option} must be one of {', '.join(known)}, not {value!r}")
    if limit is not None and limit < 1:
        raise UserError(f"limit must be at least 1, not {limit}")
    if data in GENERATED:
        if chain_style != "equations":
            raise UserError(f"{data} has its own chains only: leave out --chain_style {chain_style}")
        return GENERATED[data](data, split, limit, seed, chain_order)
    if chain_order != "text":
        raise UserError(f"--chain_order {chain_order} needs mini: the problems' graphs are not known in {data}")
    if data in HUB:
        examples = _from_hub(data, split, chain_style, revision)
    elif Path(data).exists() or "/" in data or "." in data:
        examples = _divide(_with_chains(_read(Path(data)), chain_style, data), split)
    else:
        near = difflib.get_close_matches(data, NAMES, n=1, cutoff=0)[0]
        raise UserError(f"no data set or file is called {data!r}: did you mean {near}? (of {', '.join(NAMES)})")
    if not examples:
        raise UserError(f"{data} has too few questions to make a {split} split")
    return examples[:limit]


def exclude(examples: Iterable[Example], other: Iterable[Example]) -> list[Example]:
    """The examples whose question, but for case, spaces and punctuation, is not in `other`.

    For validation on GSM8K-Aug's 500 validation questions, for instance: all are from GSM8K's train split.
    """
    taken = {_key(example.question) for example in other}
    return [example for example in examples if _key(example.question) not in taken]


def _key(question: str) -> str:
    return " ".join(re.findall(r"\w+", question.casefold()))


def _divide(examples: list[Example], split: str) -> list[Example]:
    """A split of examples that come in one piece: by question, so that copies of one stay on the same side."""
    if split == "test":
        return examples
    keys = [_key(example.question) for example in examples]
    ranked = sorted(set(keys), key=lambda key: hashlib.sha256(key.encode(errors="surrogatepass")).digest())
    held_out = set(ranked[: min(500, -(-len(ranked) // 10))])  # rounded up: ten questions or fewer still give one
    return [example for example, key in zip(examples, keys) if (key in held_out) == (split == "val")]


# A record is what every format is first read into: (question, solution text, answer).
Record = tuple[str, str, str]


def _read(path: Path) -> Iterator[Record]:
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
                    raise UserError(f"{path}, line {number}: not UTF-8 ({e.reason}, byte {e.start + 1})") from None
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
    """The record of a row of a file or of the hub, with an answer that is a number."""
    asked, replied = ("input", "target") if "input" in row and "question" not in row else ("question", "answer")
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
        raise UserError(f"has no answer: {replied!r} must be a number or end with '#### NUMBER', not {given!r}")
    return question.strip(), solution, number


def _with_chains(records: Iterable[Record], style: str, source: str) -> list[Example]:
    """Examples with their solutions cut into steps."""
    examples, solved = [], False
    for question, solution, answer in records:
        if style == "equations":
            steps = _MARK.findall(solution)
        else:
            steps = [line.strip() for line in _MARK.sub("", solution).splitlines() if line.strip()]
        solved = solved or bool(solution.strip())
        examples.append(Example(question, tuple(steps), answer))
    # No chain at all means the wrong style was asked for, except where there are no solutions to cut (SVAMP).
    if examples and (solved or style == "text") and not any(example.steps for example in examples):
        wanted, other = ("<<...>> marks", "text") if style == "equations" else ("sentences", "equations")
        raise UserError(f"{source} has no {wanted} to make chains of: use --chain_style {other}")
    return examples


def _from_hub(name: str, split: str, style: str, revision: str | None) -> list[Example]:
    """A split of a hub data set. GSM8K has none for validation: a part of train is held out, never of test."""
    repo, config, url = HUB[name]

    def fetch(hub_split: str) -> list[Example]:
        try:
            from datasets import load_dataset  # slow to import, and only these names need it

            rows = load_dataset(repo, config, split=hub_split, revision=revision)
        except Exception as e:  # no network, no such revision, a full disk: the way out is the same
            reason = (str(e) or type(e).__name__).splitlines()[0]
            raise UserError(
                f"cannot get {repo} from the Hugging Face hub ({reason}); without it, download {url} "
                f"and pass --data path/to/{Path(url).name}, or use --data mini, which needs no download"
            ) from None
        records, bad = [], 0
        for row in rows:
            try:
                records.append(_record(row))
            except UserError:  # nobody can mend a row of the hub: leave it out, but say so
                bad += 1
        if bad:
            print(f"{repo}, {hub_split}: {bad} rows left out, without question or numeric answer", file=sys.stderr)
        return _with_chains(records, style, repo)

    if name == "gsm8k":
        return fetch("test") if split == "test" else _divide(fetch("train"), split)
    if split == "train":
        return exclude(fetch("train"), fetch("validation"))
    return fetch("validation" if split == "val" else "test")
