"""Where questions come from: generated problems, published data sets by name, and files."""

import difflib
from functools import partial
from pathlib import Path

from ..config import UserError
from . import graph, words
from .answers import Example
from .published import SOURCES, divide, download, exclude, from_hub, read, record_of, with_chains

__all__ = ["NAMES", "Example", "exclude", "load"]

GENERATED = {**{name: partial(words.make, name) for name in words.TEST_SETS}, "mini_prosqa": graph.make}
NAMES = (*GENERATED, *SOURCES, "gsm8k_redrawn")
MOST = 1_000_000  # generated problems: more than train in a day, and no limit without end
DRAWN = 400_000  # examples of gsm8k_redrawn
SPLITS, STYLES = ("train", "val", "test"), ("equations", "text")


def load(
    data: str | Path,
    split: str = "train",
    *,
    limit: int | None = None,
    seed: int = 0,
    chain_style: str = "equations",
    chain_order: str = "text",
) -> list[Example]:
    """The first `limit` examples of one split, in the order of the data. UserError for any bad input.

    data         one of NAMES, or a file, whose format is found from its lines; gsm8k_redrawn=FILE
                 draws from a file in GSM8K's form, not from the hub's
    split        train, val or test. A file, and gsm8k's own train split, are divided by a hash of the
                 question: a tenth, at most 500, is val, the rest is train. As test, a file counts whole.
    seed         generated data only: which problems are generated
    chain_style  "equations": the <<48/2=24>> marks; "text": the sentences, without marks
    chain_order  generated data only: the order of the steps; other data keep their own, "text"

    Examples without a chain (95 in GSM8K's train split) are kept, with steps == ().
    """
    data = str(data)
    for option, value, known in (("split", split, SPLITS), ("chain_style", chain_style, STYLES)):
        if value not in known:
            raise UserError(f"{option} must be one of {', '.join(known)}, not {value!r}")
    if limit is not None and limit < 1:
        raise UserError(f"limit must be at least 1, not {limit}")
    if data in GENERATED:
        make = GENERATED[data]
        if data in words.TEST_SETS:
            make = partial(make, chain_style=chain_style)
        elif chain_style != "equations":
            raise UserError(f"{data} has its own chains only: leave out --chain_style {chain_style}")
        if (limit or 0) > MOST:
            raise UserError(f"{data} has at most {MOST} problems, not {limit}")
        return words.collect(make, data, split, limit, seed, chain_order)
    if chain_order != "text":
        raise UserError(f"--chain_order {chain_order} needs mini: {data} has one order of steps only")
    name, _, file = data.partition("=")
    if name == "gsm8k_redrawn" and split == "train":
        return redrawn(file, limit or DRAWN, seed, chain_style)
    if name == "gsm8k_redrawn":  # judged on the real questions, none of which is a source
        return load(file or "gsm8k", split, limit=limit, chain_style=chain_style)
    if data in SOURCES:
        examples = from_hub(data, split, chain_style)
    elif Path(data).exists() or "/" in data or "." in data:
        templates: list[str] = []
        examples = with_chains(read(Path(data), templates), chain_style, data)
        examples = divide(examples, split, templates)
    else:
        near = difflib.get_close_matches(data, NAMES, n=1, cutoff=0)[0]
        known = ", ".join(NAMES)
        raise UserError(f"no data set or file is called {data!r}: did you mean {near}? (of {known})")
    if not examples:
        raise UserError(f"{data} has too few questions to make a {split} split")
    return examples[:limit]


def redrawn(file: str, n: int, seed: int, style: str) -> list[Example]:
    """GSM8K's training split with its numbers drawn anew. UserError if no question can be traced."""
    from . import redraw  # here, because it is a tool as well: python -m would load it twice

    records = list(read(Path(file))) if file else download("gsm8k", "train")
    sources = divide(records, "train", [question for question, *_ in records])
    made, _ = redraw.templates(sources, file or "gsm8k")
    return with_chains(map(record_of, redraw.redraw(made, n, seed)), style, "gsm8k_redrawn")
