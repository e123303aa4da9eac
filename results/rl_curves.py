"""The curves of RL runs, from their metrics.jsonl:

    python -m results.rl_curves --figure results/colar/rl.png \\
        "averaged=results/colar/rl.jsonl" "not averaged=results/colar/rl_no_average.jsonl"

Greedy accuracy on validation; and of the samples the reward, #L and the share of groups that are all right or
all wrong. These are smoothed over ten lines of the log, because a batch's questions are of about one length.
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
    "no_advantage": "groups without an advantage (%)",
}
WIDTH = 10


def smooth(values: list[float]) -> list[float]:
    """The mean of the last WIDTH values, at each value."""
    smoothed = []
    for end in range(1, len(values) + 1):
        window = values[max(0, end - WIDTH) : end]
        smoothed.append(sum(window) / len(window))
    return smoothed


def read(path: str) -> list[dict]:
    try:
        text = Path(path).read_text(encoding="utf-8")
        text = text.replace('"silent":', '"no_advantage":')  # as runs of version 1 call it
        return [json.loads(line) for line in text.splitlines()]
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is no metrics.jsonl: {error}") from None


def main(argv: list[str]) -> None:
    parser = Parser(prog="python -m results.rl_curves", description="Draw the curves of RL runs.")
    parser.add_argument("runs", nargs="+", metavar="TITLE=FILE")
    parser.add_argument("--figure", required=True, metavar="FILE")
    args = parser.parse_args(argv)
    figure, axes = plt.subplots(1, len(PANELS), figsize=(14, 3.8), layout="constrained")
    for run in args.runs:
        title, _, path = run.partition("=")
        lines = read(path)
        for ax, key in zip(axes, PANELS):
            logged = [line for line in lines if key in line]
            minutes = [line["seconds"] / 60 for line in logged]
            values = [line[key] * (1 if key == "len" else 100) for line in logged]
            validated = key.startswith("val_")
            ax.plot(
                minutes,
                values if validated else smooth(values),
                label=title,
                marker="o" if validated else None,
            )
    for ax, (key, title) in zip(axes, PANELS.items()):
        ax.set(xlabel="minutes on one core", ylim=(0, None if key == "len" else 100))
        ax.set_title(title, loc="left", fontsize=10.5)
        ax.grid(alpha=0.25)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(args.runs), fontsize=9.5)
    save_figure(figure, args.figure)


if __name__ == "__main__":
    run_script(main)
