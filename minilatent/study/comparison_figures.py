"""The comparison's figures, drawn from rows.jsonl and the training curves beside it."""

import json
from pathlib import Path

import torch

from .entries import ENTRIES, PARENTS, ROWS
from .figures import GREY, STYLE, plt, results_figure, save_figure
from .verdicts import Estimate, Line, better, estimate, numbers, problem_steps

AVERAGE = "accuracy (%), mean of four test sets"
STYLES = {entry.name: entry.style for entry in ENTRIES}
STYLES |= {row: entry.style for row, (entry, _) in ROWS.items()}
ABLATED = {
    "latent": ("latent_sft_2", "latent_sft_4", "latent_sft_8_step", "latent_rl"),
    "colar": ("colar_2", "colar_5", "colar_rl"),
}  # a column of the figure each


def style(name: str) -> tuple[str, str]:
    """Colour and marker of a row or an entry."""
    return STYLES.get(name, (GREY, "o"))


def titles(lines: list[Line], main: bool = True) -> dict[str, str]:
    """The title of each row, by its name, in order: of all rows, or of those that are no ablation."""
    return {line["row"]: line["title"] for line in lines if line["group"] == "main" or not main}


def arms(found: Estimate) -> list[list[float]]:
    """The two arms of the interval in %, as errorbar() wants them."""
    return [[max(0.0, 100 * (found.mean - found.low))], [max(0.0, 100 * (found.high - found.mean))]]


def figure_title(figure, text: str, fontsize: float) -> None:
    figure.suptitle(text, x=0.01, ha="left", fontweight="bold", fontsize=fontsize)


def spread(at: list[float], least: float) -> list[float]:
    """Heights near to `at`, but at least `least` apart."""
    order, placed = sorted(range(len(at)), key=at.__getitem__), list(at)
    for _ in range(200):
        for low, high in zip(order, order[1:]):
            gap = least - (placed[high] - placed[low])
            if gap > 1e-6:
                placed[low], placed[high] = placed[low] - gap / 2, placed[high] + gap / 2
    return placed


def label_points(ax, points: list[tuple], at: float, least: float, fontsize: float = 10, **arrow) -> None:
    """Labels at x = `at`, at least `least` apart, each joined to its point by a thin line. points: (label, x,
    y, colour)"""
    heights = spread([y for _, _, y, _ in points], least)
    for (text, x, y, colour), height in zip(points, heights):
        line = {"arrowstyle": "-", "color": colour, "alpha": 0.35, "linewidth": 0.8, "relpos": (0, 0.5)}
        more = {"va": "center", "fontsize": fontsize, "annotation_clip": False, "arrowprops": line | arrow}
        ax.annotate(text, (x, y), (at, height), color=colour, **more)


@plt.rc_context(STYLE)
def frontier_figure(lines: list[Line]):
    """Accuracy against #L for all methods: the average over the data sets, with 95 % intervals."""
    figure, ax = plt.subplots(figsize=(9, 5.6), layout="constrained")
    points = []
    for row, title in titles(lines).items():
        if found := estimate(lines, row):
            lengths = [line["mean_len"] for line in lines if line["row"] == row]
            x, y, (colour, marker) = sum(lengths) / len(lengths), 100 * found.mean, style(row)
            points.append((title, x, y, colour))
            look = {"marker": marker, "markersize": 9, "color": colour}
            ax.errorbar(x, y, arms(found), capsize=3, linestyle="", zorder=3, **look)
    longest = max((x for _, x, _, _ in points), default=1.0)
    columns: list[list] = []  # points with about the same #L: their labels must not overlap
    for point in sorted(points, key=lambda point: point[1]):
        if columns and point[1] - columns[-1][0][1] < 0.12 * longest:
            columns[-1].append(point)
        else:
            columns.append([point])
    for column in columns:
        edge = max(x for _, x, _, _ in column) + 0.025 * longest
        label_points(ax, column, edge, 4.6, fontsize=10.5, shrinkA=1, shrinkB=4)
    ax.set(xlabel="#L, steps of thinking (mean)", ylabel=AVERAGE, ylim=(0, 103))
    ax.set_xlim(-0.03 * longest, 1.28 * longest)
    ax.grid(alpha=0.25)
    ax.set_title("Same base, same compute: accuracy against length of thought", loc="left", fontweight="bold")
    return figure


@plt.rc_context(STYLE)
def ablation_figure(lines: list[Line]):
    """The ablations below each method: average accuracy with intervals, and the difference from the whole
    method on the seeds that both have."""
    found = {row: estimate(lines, row) for row in titles(lines, main=False)}
    columns = []
    for wholes in ABLATED.values():
        groups = {}
        for whole in wholes:
            rows = [row for row in found if found[row] and (row == whole or PARENTS.get(row) == whole)]
            if len(rows) > 1:
                groups[whole] = sorted(rows, key=lambda row, whole=whole: row != whole)
        if groups:
            columns.append(groups)
    if not columns:
        return None
    height = max(sum(len(rows) + 1.2 for rows in groups.values()) for groups in columns)
    figure = plt.figure(figsize=(7.6 * len(columns), 0.36 * height + 1), layout="constrained")
    for part, groups in zip(figure.subfigures(1, len(columns), squeeze=False)[0], columns):
        heights = [len(rows) + 0.4 for rows in groups.values()]
        axes = part.subplots(len(groups), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
        for ax, (whole, rows) in zip(axes, groups.items()):
            draw_ablations(ax, whole, {row: found[row] for row in rows}, lines)
        axes[-1].set(xlabel=AVERAGE, xlim=(0, 100), xticks=range(0, 101, 20))
    title = "What each part contributes (in grey: the difference on the seeds that both have)"
    figure_title(figure, title, 13)
    return figure


def draw_ablations(ax, whole: str, found: dict[str, Estimate], lines: list[Line]) -> None:
    """Bars of a method and its ablations. The numbers stand to the right of the axes."""
    colour, names = style(whole)[0], titles(lines, main=False)
    beside = {"xycoords": ax.get_yaxis_transform(), "textcoords": "offset points", "fontsize": 10}
    beside |= {"va": "center", "ha": "right"}
    for i, (row, estimated) in enumerate(found.items()):
        y = 100 * estimated.mean
        ax.barh(i, y, color=colour, alpha=1.0 if row == whole else 0.45, height=0.72)
        ax.errorbar(y, i, xerr=arms(estimated), color="black", capsize=3, linewidth=1.2)
        ax.annotate(f"{y:.1f}", (1, i), (34, 0), **beside)
        if row != whole and (less := estimate(lines, row, against=whole)):
            ax.annotate(f"{100 * less.mean:+.1f}", (1, i), (70, 0), color=GREY, **beside)
    labels = [names[row].removeprefix(names.get(whole, "") + ", ") for row in found]
    ax.set_yticks(range(len(found)), labels)
    if whole in found:
        ax.get_yticklabels()[0].set_fontweight("bold")
        ax.axvline(100 * found[whole].mean, color=colour, linewidth=1, linestyle="--", alpha=0.7)
    ax.invert_yaxis()
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x", alpha=0.25)
    ax.set_axisbelow(True)


@plt.rc_context(STYLE)
def curves_figure(lines: list[Line], folder: Path):
    """Loss and validation accuracy over the share of the run's time, for the main rows: first seed, last
    stage (the earlier stages of a curriculum are other tasks)."""
    curves = {}
    for run in dict.fromkeys(line["run"] for line in lines if line["group"] == "main"):
        if paths := sorted(folder.glob(f"{run}-seed*.json")):
            entries = json.loads(paths[0].read_text(encoding="utf-8"))
            curves[run] = [entry for entry in entries if entry.get("index") == entries[-1]["index"]]
    if not curves:
        return None
    names, ends, logarithmic = {entry.name: entry.title for entry in ENTRIES}, [], True
    figure, (left, right_ax) = plt.subplots(1, 2, figsize=(11.5, 4.6), layout="constrained")
    for run, entries in curves.items():
        colour, line = style(run)[0], "--" if run.endswith("_4") else "-"
        losses, scores = [], []
        for entry in entries:
            share = 100 * entry["seconds"] / entries[-1]["seconds"]
            if "loss" in entry:
                losses.append((share, entry["loss"]))
            if "val_accuracy" in entry:
                scores.append((share, 100 * entry["val_accuracy"]))
        logarithmic &= all(loss > 0 for _, loss in losses)
        left.plot(*zip(*losses), color=colour, linestyle=line, linewidth=1.6)
        right_ax.plot(*zip(*scores), color=colour, linestyle=line, marker="o", markersize=4, linewidth=1.6)
        ends.append((names.get(run, run), *scores[-1], colour))
    label_points(right_ax, ends, 1.04 * max(x for _, x, _, _ in ends), 5.5)
    left.set(ylabel="loss (each method's own)", yscale="log" if logarithmic else "symlog")
    left.yaxis.set_major_formatter("{x:g}")
    left.yaxis.set_minor_formatter("")
    right_ax.set(ylabel="validation accuracy (%)", ylim=(0, 103))
    for ax in (left, right_ax):
        ax.set_xlabel("share of the training (%)")
        ax.grid(alpha=0.25)
    figure_title(figure, "Training: the last stage of each method", 12)
    return figure


@plt.rc_context(STYLE)
def steps_figure(lines: list[Line], sets=("mini", "mini_hard")):
    """Accuracy against the number of steps of the problem, with 95 % intervals."""
    size = (5.4 * len(sets) + 1.4, 4.8)
    figure, axes = plt.subplots(1, len(sets), figsize=size, layout="constrained", sharey=True, squeeze=False)
    for ax, name in zip(axes[0], sets):
        ends = []
        for row, title in titles(lines).items():
            mine = [l for l in lines if l["row"] == row and l["data"] == name and not l["skipped"]]
            if not mine:
                continue
            steps = problem_steps(name, mine[0]["n"])  # (n,)
            hits = torch.stack([numbers(line, "accuracy") for line in mine])  # (S, n)
            xs = [s for s in steps.unique().tolist() if (steps == s).sum() >= 10]
            shares = [hits[:, steps == s] for s in xs]
            ys = [100 * s.mean().item() for s in shares]
            errors = [196 * (s.mean() * (1 - s.mean()) / s.numel()).sqrt().item() for s in shares]
            colour, marker = style(row)
            look = {"color": colour, "marker": marker, "markersize": 6, "linewidth": 1.5}
            line = "--" if row.endswith(("_4", "_5")) else "-"
            ax.errorbar(xs, ys, errors, capsize=2, linestyle=line, **look)
            ends.append((title, xs[-1], ys[-1], colour))
        ax.set_title(name, loc="left", fontweight="bold")
        ax.set(xlabel="steps of the problem", ylim=(0, 103))
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.grid(alpha=0.25)
    if ends:
        label_points(axes[0, -1], ends, max(x for _, x, _, _ in ends) + 0.16, 5.5)
    axes[0, 0].set_ylabel("accuracy (%)")
    return figure


@plt.rc_context(STYLE)
def interventions_figure(lines: list[Line]):
    """A heat map: accuracy when the latents are replaced, and how often the answer is the donor's."""
    # On the other data sets latents are only swapped, for a verdict.
    judged = [l for l in lines if len(l.get("interventions", {})) > 1 and l["group"] == "main"]
    if not judged:
        return None
    names = list(dict.fromkeys(name for l in judged for name in l["interventions"]))
    columns = ["its own", *names, "donor's\nanswer"]
    rows, table = titles(judged), []
    for row in rows:
        values = []
        for line in judged:
            if line["row"] == row:
                found = line["interventions"]  # not every intervention applies to every method
                shares = [found.get(name, {}).get("accuracy") for name in names]
                shares = [line["accuracy"], *shares, found.get("swap", {}).get("follows_donor")]
                values.append([float("nan") if s is None else 100 * s for s in shares])
        table.append(torch.tensor(values).double().mean(0).tolist())
    size = (1.05 * len(columns) + 2.6, 0.5 * len(rows) + 1.9)
    figure, ax = plt.subplots(figsize=size, layout="constrained")
    image = ax.imshow(table, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    for i, values in enumerate(table):
        for j, value in enumerate(values):
            text, colour = "–" if value != value else f"{value:.0f}", "white" if value > 55 else "black"
            ax.text(j, i, text, ha="center", va="center", color=colour)
    for edge in (0.5, len(columns) - 1.5):
        ax.axvline(edge, color="white", linewidth=5)
    ax.set_xticks(range(len(columns)), columns)
    ax.set_yticks(range(len(rows)), rows.values())
    ax.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    ax.spines[:].set_visible(False)
    figure.colorbar(image, ax=ax, label="%", pad=0.015, aspect=18)
    title = f"Accuracy on {judged[0]['data']} when the latents are replaced"
    ax.set_title(title, loc="left", fontweight="bold", pad=14)
    return figure


def measures_figure(lines: list[Line]):
    """ECR@K and N_eff with their controls, of Latent-SFT on mini, first seed of each ratio."""
    shown = {}
    for line in lines:
        if line["row"] in ("latent_sft_2", "latent_sft_4") and line["data"] == "mini":
            shown.setdefault(line["row"], {**line, "data": f"{line['title']}, mini"})
    results = [shown[row] for row in sorted(shown) if shown[row]["ecr"] or shown[row]["n_multi"]]
    return results_figure(results) if results else None


def draw(lines: list[Line], out: Path) -> None:
    """All figures that these lines have the numbers for, into out/."""
    lines = better(lines)
    figures = {
        "frontier": frontier_figure(lines),
        "ablations": ablation_figure(lines),
        "curves": curves_figure(lines, out / "curves"),
        "latents": measures_figure(lines),
        "steps": steps_figure(lines),
        "interventions": interventions_figure(lines),
    }
    for name, figure in figures.items():
        if figure:
            save_figure(figure, out / f"{name}.png")
