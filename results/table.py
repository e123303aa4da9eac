"""Every number about a result that README says, from the files in results/: python -m results.table [--check]

A number stands between two marks that nobody sees; what is between them is written by this program. --check writes nothing and
fails if one differs. In a sentence:

    <!-- results:long:latent_sft_2 mini interventions.noise.accuracy -->2.2<!-- /results -->

    FOLDER:ROW SET KEY   a row of FOLDER/rows.jsonl: the mean over its seeds, ROW@2 of seed 2 alone. SET may be `average`: the comparison's four. Keys go
                         down with dots. Shares are told in %.
    FOLDER:ROW-OTHER SET accuracy (or interval): the paired difference, in points (or its 95 % interval), as verdicts.md has it
    FILE KEY             any .json or .jsonl file in results/; -1.seconds/60 is the last line's, in minutes. A * in FILE: the mean over
                         all that fit

On lines of its own, `table:FOLDER`: the main rows of FOLDER/rows.jsonl.
"""

import json
import re
import sys
from functools import lru_cache
from pathlib import Path

from minilatent.config import Parser, UserError, nearest, run_script
from minilatent.files import replace_file
from minilatent.study.verdicts import SETS, better, estimate, table_text

HERE = Path(__file__).parent
PAGES = (
    HERE.parent / "README.md",
    HERE / "README.md",
    HERE / "mini_prosqa" / "README.md",
    HERE / "smollm2" / "README.md",
)
MARK = re.compile(r"(<!-- results:([^>]+?) -->)(.*?)(<!-- /results -->)", re.DOTALL)
SHARES = {
    "accuracy",
    "val_accuracy",
    "val_compression",
    "mfu",
    "follows_donor",
    "unchanged",
    "closed",
    "silent",
    "told",
}


# ------------------------------------------------------------------ numbers


@lru_cache
def read(path: Path) -> list | dict:
    if not path.exists():
        raise UserError(f"there is no {path}")
    text = path.read_text()
    return [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else json.loads(text)


def down(value, keys: str):
    """value[a][b] for the keys a.b"""
    for key in keys.split("."):
        try:
            value = value[int(key) if isinstance(value, list) else key]
        except (KeyError, IndexError, ValueError, TypeError):
            raise UserError(
                f"results: no '{key}' of '{keys}'" + (nearest(key, value) if isinstance(value, dict) else "")
            ) from None
    return value


def rows(folder: str) -> list[dict]:
    return read(HERE / folder / "rows.jsonl")


def quoted(name: str) -> str:
    """What a mark stands for."""
    if name.startswith("table:"):
        return "\n" + table(name.removeprefix("table:")) + "\n"
    words = name.split()
    if len(words) == 2 and "." in words[0]:
        files = sorted(HERE.glob(words[0])) or [HERE / words[0]]
        return told(words[1], [down(read(f), words[1].partition("/")[0]) for f in files])
    if len(words) != 3 or ":" not in words[0]:
        raise UserError(f"results:{name}: neither table:FOLDER, FILE KEY nor FOLDER:ROW SET KEY")
    (folder, _, row), data, key = words[0].partition(":"), *words[1:]
    sets = SETS if data == "average" else (data,)
    row, minus, other = row.partition("-")
    if minus:
        return paired(name, estimate(rows(folder), row, sets, against=other), key)
    row, _, seed = row.partition("@")
    scores = [
        r for r in rows(folder) if r["row"] == row and r["data"] in sets and seed in ("", str(r["seed"]))
    ]
    if {r["data"] for r in scores} != set(sets):
        raise UserError(f"results:{name}: {row} has not been judged on {data}")
    return told(key, [down(r, key.partition("/")[0]) for r in scores])


def paired(name: str, difference: tuple | None, key: str) -> str:
    if difference is None or key not in ("accuracy", "interval"):
        raise UserError(
            f"results:{name}: "
            + ("the rows share no seed on these data sets" if difference is None else "accuracy or interval")
        )
    mean, low, high, *_ = difference
    return f"{100 * mean:+.1f}" if key == "accuracy" else f"{100 * low:.1f} to {100 * high:.1f}"


def told(key: str, values: list) -> str:
    """The mean as README says it."""
    key, _, by = key.partition("/")
    keys, value = key.split("."), sum(values) / len(values)
    if SHARES & set(keys):
        return f"{100 * value:.1f}"
    if by:
        return f"{value / float(by):.0f}"
    if keys[-1] == "n" or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.{1 if keys[-1] == 'mean_len' else 2 if abs(value) >= 0.02 or not value else 4}f}"


# ------------------------------------------------------------------ tables


def table(folder: str) -> str:
    """table.md's main rows, up to #L."""
    lines = [line for line in better(rows(folder)) if line["group"] == "main"]
    columns = 4 + len(SETS)  # row, seeds, SETS, average, #L
    return "\n".join(
        "|".join(row.split("|")[: columns + 1]) + "|"
        for row in table_text(lines).splitlines()
        if row.startswith("|")
    )


# ------------------------------------------------------------------ pages


def written(text: str) -> tuple[str, list[str]]:
    """The text with every mark's number as results/ has it, and the names of those that were different."""
    changed = []

    def put(mark: re.Match) -> str:
        new = quoted(mark[2])
        if new != mark[3]:
            changed.append(mark[2])
        return mark[1] + new + mark[4]

    return MARK.sub(put, text), changed


def main(argv: list[str]) -> None:
    parser = Parser(prog="python -m results.table", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--check", action="store_true", help="write nothing; fail if a page says something else than results/"
    )
    args = parser.parse_args(argv)
    for page in PAGES:
        text, changed = written(page.read_text())
        if changed and args.check:
            raise UserError(
                f"{page.name} and results/ disagree: {', '.join(changed)}; python -m results.table puts it right"
            )
        if changed:
            replace_file(page, lambda p: p.write_text(text))
        print(f"{page}: {len(MARK.findall(text))} marks, {len(changed)} written", file=sys.stderr)


if __name__ == "__main__":
    run_script(main)
