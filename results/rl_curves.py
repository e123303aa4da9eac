"""The curves of RL runs, from their metrics.jsonl:

    python -m results.rl_curves --figure results/colar/rl.png "averaged=results/colar/rl.jsonl" "not averaged=results/colar/rl_no_average.jsonl"

Greedy accuracy on validation; and of the samples, smoothed over ten lines of the log, since a batch's questions are of about one length: reward, #L
and the share of groups that are all right or all wrong.
"""

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

from minilatent.config import Parser, UserError, run_script  # noqa: E402
from minilatent.study.figures import save_figure  # noqa: E402

PANELS = {
    "val_accuracy": "accuracy on validation, greedy (%)",
    "reward": "reward of the samples (%)",
    "len": "#L of the samples",
    "silent": "silent groups (%)",
}
WIDTH = 10


def smooth(values: list[float]) -> list[float]:
    """The mean of the last WIDTH."""
    return [
        sum(values[max(0, i - WIDTH + 1) : i + 1]) / len(values[max(0, i - WIDTH + 1) : i + 1])
        for i in range(len(values))
    ]


def read(path: str) -> list[dict]:
    try:
        return [json.loads(line) for line in Path(path).read_text().splitlines()]
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is no metrics.jsonl: {error}") from None


def main(argv: list[str]) -> None:
    parser = Parser(prog="python -m results.rl_curves", description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", metavar="TITLE=FILE")
    parser.add_argument("--figure", required=True)
    args = parser.parse_args(argv)
    figure, axes = plt.subplots(1, len(PANELS), figsize=(14, 3.8), layout="constrained")
    for given in args.runs:
        title, _, path = given.partition("=")
        lines = read(path)
        for ax, key in zip(axes, PANELS):
            some = [line for line in lines if key in line]
            values = [line[key] * (1 if key == "len" else 100) for line in some]
            ax.plot(
                [line["seconds"] / 60 for line in some],
                values if key.startswith("val_") else smooth(values),
                label=title,
                marker="o" if key.startswith("val_") else None,
            )
    for ax, (key, title) in zip(axes, PANELS.items()):
        ax.set(xlabel="minutes on one core", ylim=(0, None if key == "len" else 100))
        ax.set_title(title, loc="left", fontsize=10.5)
        ax.grid(alpha=0.25)
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(args.runs), fontsize=9.5
    )
    save_figure(figure, args.figure)


if __name__ == "__main__":
    run_script(main)
