"""Accuracy against #L over CoLaR's speeds, from what eval.py --speed .. --json FILE wrote:

    python -m results.speeds results/mini/colar-seed0.json --figure results/mini/speed.png

A line for each data set, with 95 % intervals. Where a higher speed no longer shortens the chain (a factor
beyond those of training), the markers are hollow and the line ends.
"""

import json
from pathlib import Path

from minilatent.config import Parser, UserError, run_script
from minilatent.study.figures import STYLE, plt, save_figure


@plt.rc_context(STYLE)
def speed_figure(results: list[dict]):
    figure, ax = plt.subplots(figsize=(7.5, 4.6), layout="constrained")
    for name in dict.fromkeys(r["data"] for r in results):
        some = [r for r in results if r["data"] == name]
        x, y = [r["mean_len"] for r in some], [100 * r["accuracy"] for r in some]
        shorter = next((i for i in range(1, len(x)) if x[i] >= x[i - 1]), len(x))
        colour = ax.plot(x[:shorter], y[:shorter], label=name)[0].get_color()
        labels: list[list] = []  # x, y, text: one label for markers on top of each other
        for i, r in enumerate(some):
            arms = [[100 * abs(edge - r["accuracy"])] for edge in r["ci95"]]
            face = colour if i < shorter else "white"
            ax.errorbar(x[i], y[i], arms, marker="o", capsize=3, color=colour, markerfacecolor=face)
            near = [at for at in labels if abs(at[0] - x[i]) < 0.3 and abs(at[1] - y[i]) < 3]
            if near:
                near[0][2] += f", ×{r['speed']}"
            else:
                labels.append([x[i], y[i], f"×{r['speed']}"])
        for *at, text in labels:
            ax.annotate(text, at, (7, -13), textcoords="offset points", fontsize=9.5, color=colour)
    ax.set(xlabel="#L, steps of thinking", ylabel="accuracy (%)", ylim=(0, 100))
    ax.set_xlim(0, 1.06 * max(r["mean_len"] for r in results))
    ax.grid(alpha=0.25)
    ax.legend(loc="lower right")
    ax.set_title("One checkpoint, many speeds", loc="left", fontweight="bold")
    return figure


def main(argv: list[str]) -> None:
    parser = Parser(prog="python -m results.speeds", description=__doc__.splitlines()[0])
    parser.add_argument("results", help="file that eval.py --json wrote")
    parser.add_argument("--figure", required=True, metavar="FILE", help="figure to write (.png, .pdf, .svg)")
    args = parser.parse_args(argv)
    try:
        found = json.loads(Path(args.results).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{args.results} cannot be read: {error}") from None
    found = [r for r in found if "speed" in r]
    if not found:
        raise UserError(f"{args.results} has no speeds: it was not written by eval.py --speed")
    save_figure(speed_figure(found), args.figure)


if __name__ == "__main__":
    run_script(main)
