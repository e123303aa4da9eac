"""Every number about a result that README says, from the files in results/: python -m results.table [--check]

A number stands between two marks that nobody sees; what is between them is written by this program. --check writes nothing and
fails if one differs. In a sentence:

    <!-- results:latent_sft_r2 mini interventions.noise.accuracy -->1.8<!-- /results -->

    ROW SET KEY      a row of mini/rows.jsonl, else the runs mini/ROW-seed*.json of eval.py: the mean over its seeds. SET may be
                     `average`: the comparison's four. Keys go down with dots. Shares are told in %.
    FILE KEY         any .json or .jsonl file in results/; -1.seconds/60 is the last line's, in minutes

On lines of its own, a block: `first_runs`, the table of mini/*-seed*.json, or `comparison`, that of rows.jsonl's main rows.
"""
import json
import re
import sys
from collections import defaultdict
from pathlib import Path

from minilatent.config import Parser, UserError, nearest, run
from minilatent.files import replace_file
from minilatent.metrics import wilson
from minilatent.verdicts import SETS, better, table_text

HERE = Path(__file__).parent
PAGES = (HERE.parent / "README.md", HERE / "README.md")
MARK = re.compile(r"(<!-- results:([^>]+?) -->)(.*?)(<!-- /results -->)", re.DOTALL)
SHARES = {"accuracy", "val_accuracy", "follows_donor", "unchanged", "closed"}


# ------------------------------------------------------------------ numbers

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
            raise UserError(f"results: no '{key}' of '{keys}'" + (nearest(key, value) if isinstance(value, dict) else "")) from None
    return value


def runs(row: str) -> list[list[dict]]:
    """By seed, what a row scored on each data set."""
    if (HERE / "mini/rows.jsonl").exists():
        seeds = defaultdict(list)
        for line in read(HERE / "mini/rows.jsonl"):
            if line["row"] == row:
                seeds[line["seed"]].append(line)
        if seeds:
            return list(seeds.values())
    found = [read(path) for path in sorted((HERE / "mini").glob(f"{row}-seed*.json"))]
    return found or [read(HERE / f"mini/{row}-seed0.json")]                          # which says what is missing


def quoted(name: str) -> str:
    """What a mark stands for."""
    if name in BLOCKS:
        return "\n" + BLOCKS[name]() + "\n"
    words = name.split()
    if len(words) == 2 and "." in words[0]:
        return told(words[1], [down(read(HERE / words[0]), words[1].partition("/")[0])])
    if len(words) != 3:
        raise UserError(f"results:{name}: a block ({', '.join(BLOCKS)}), FILE KEY or ROW SET KEY")
    row, data, key = words
    sets = SETS if data == "average" else (data,)
    scores = [r for seed in runs(row) for r in seed if r["data"] in sets]
    if {r["data"] for r in scores} != set(sets):
        raise UserError(f"results:{name}: {row} has not been judged on {data}")
    return told(key, [down(r, key.partition("/")[0]) for r in scores])


def told(key: str, values: list) -> str:
    """The mean as README says it."""
    key, _, by = key.partition("/")
    last, value = key.split(".")[-1], sum(values) / len(values)
    if last in SHARES:
        return f"{100 * value:.1f}"
    if by:
        return f"{value / float(by):.0f}"
    return f"{value:,.0f}" if last == "n" or abs(value) >= 100 else f"{value:.1f}" if last == "mean_len" else f"{value:.2f}"


# ------------------------------------------------------------------ blocks

def first_runs() -> str:
    """A row's figure is the mean over its seeds; ± is half of Wilson's 95 % interval over all their questions."""
    rows, sets = defaultdict(list), (*SETS, "mini_long")
    for path in sorted((HERE / "mini").glob("*-seed*.json")):
        rows[re.sub(r"-seed\d+$", "", path.stem)].append({r["data"]: r for r in read(path)})
    text = ["| row | seeds | " + " | ".join(sets) + " | #L on mini |", "|---" * (len(sets) + 3) + "|"]
    for name, seeds in rows.items():
        cells = []
        for data in sets:
            found = [s[data] for s in seeds if data in s]
            n, right = sum(r["n"] for r in found), sum(r["n"] * r["accuracy"] for r in found)
            low, high = wilson(round(right), n)
            cells.append(f"{100 * right / n:.1f} ± {50 * (high - low):.1f}" if found else "–")
        length = sum(s["mini"]["mean_len"] for s in seeds) / len(seeds)
        title = re.sub(r"latent_sft_r(\d+)", r"Latent-SFT(\1)", name)
        text.append(f"| {title} | {len(seeds)} | " + " | ".join(cells) + f" | {length:.1f} |")
    return "\n".join(text)


def comparison() -> str:
    """table.md's main rows, up to #L."""
    lines = [line for line in better(read(HERE / "mini/rows.jsonl")) if line["group"] == "main"]
    columns = 4 + len(SETS)                              # row, seeds, SETS, average, #L
    return "\n".join("|".join(row.split("|")[:columns + 1]) + "|" for row in table_text(lines).splitlines() if row.startswith("|"))


BLOCKS = {"first_runs": first_runs, "comparison": comparison}


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
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a page says something else than results/")
    args = parser.parse_args(argv)
    for page in PAGES:
        text, changed = written(page.read_text())
        if changed and args.check:
            raise UserError(f"{page.name} and results/ disagree: {', '.join(changed)}; python -m results.table puts it right")
        if changed:
            replace_file(page, lambda p: p.write_text(text))
        print(f"{page}: {len(MARK.findall(text))} marks, {len(changed)} written", file=sys.stderr)


if __name__ == "__main__":
    run(main)
