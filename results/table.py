"""results/mini/*.json -> the table of results/mini/README.md: python -m results.table

A row's figure is the mean over its seeds; ± is half of the 95 % interval over all their questions (n · seeds), which
holds for these questions and these seeds' models together.
"""
import json
import re
from collections import defaultdict
from pathlib import Path

from minilatent.metrics import wilson

HERE = Path(__file__).parent / "mini"
SETS = ("mini", "mini_hard", "mini_svamp", "mini_multiarith", "mini_long")


def main() -> None:
    rows = defaultdict(list)
    for path in sorted(HERE.glob("*-seed*.json")):
        rows[re.sub(r"-seed\d+$", "", path.stem)].append({r["data"]: r for r in json.loads(path.read_text())})
    print("| row | seeds | " + " | ".join(SETS) + " | #L on mini |\n|" + "---|" * (len(SETS) + 3))
    for name, seeds in rows.items():
        cells = []
        for data in SETS:
            found = [s[data] for s in seeds if data in s]
            n, right = sum(r["n"] for r in found), sum(r["n"] * r["accuracy"] for r in found)
            low, high = wilson(round(right), n)
            cells.append(f"{100 * right / n:.1f} ± {50 * (high - low):.1f}" if found else "–")
        length = sum(s["mini"]["mean_len"] for s in seeds) / len(seeds)
        print(f"| {name} | {len(seeds)} | " + " | ".join(cells) + f" | {length:.1f} |")


if __name__ == "__main__":
    main()
