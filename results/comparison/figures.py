"""The comparison's figures, drawn from rows.jsonl and curves/."""

import textwrap
from pathlib import Path

import torch

from minilatent.files import read_json
from minilatent.study.figures import BLUE, GREY, RED, STYLE, plt, save_figure

from .claims import CLAIMS
from .entries import ROWS
from .verdicts import (
    PLATEAU,
    UNITS,
    Line,
    claim_cells,
    estimate,
    margin,
    mean_length,
    numbers,
    problem_steps,
    run_trends,
    weakest,
)

# Colour and marker of each row
STYLES = {row: entry.style for row, (entry, _) in ROWS.items()}


TWO, WORDS, ANSWER = "latent_sft_2", "cot_sft", "no_cot"  # rows that titles name
TOP = 103  # of an axis for accuracy in %


def titles(lines: list[Line]) -> dict[str, str]:
    """The title of each row that is no ablation, by its name, in order."""
    return {line["row"]: line["title"] for line in lines if line["group"] == "main"}


def label_points(
    ax, points: list[tuple], at: float, least: float, fontsize: float = 10, side: str = "right", **arrow
) -> None:
    """Labels at x = `at`, on that side of their points, with lines to them; their lines of text are at least
    `least` apart, above 0 and below TOP. points: (label, x, y, colour)"""
    points = sorted(points, key=lambda point: point[2])
    heights = [y for _, _, y, _ in points]
    tall = [least * (1 + label.count("\n")) for label, *_ in points]
    for _ in range(200):  # neighbours that are too close push each other apart
        if heights:
            heights[0] = max(heights[0], tall[0] / 2)
            heights[-1] = min(heights[-1], TOP - tall[-1] / 2)
        for i in range(len(heights) - 1):
            gap = (tall[i] + tall[i + 1]) / 2 - (heights[i + 1] - heights[i])
            if gap > 1e-6:
                heights[i], heights[i + 1] = heights[i] - gap / 2, heights[i + 1] + gap / 2
    ends = {"right": ("left", (0, 0.5)), "left": ("right", (1, 0.5))}
    align, touched = ends[side]
    for (text, x, y, colour), height in zip(points, heights):
        line = {"arrowstyle": "-", "color": colour, "alpha": 0.35, "linewidth": 0.8, "relpos": touched}
        more = {"va": "center", "fontsize": fontsize, "annotation_clip": False, "arrowprops": line | arrow}
        ax.annotate(text, (x, y), (at, height), color=colour, ha=align, **more)


MARGIN, LETTER, LINE = 0.025, 0.0095, 4.6  # of the frontier's labels; shares of the longest #L, and points


def label_side(column: list[tuple], others: list[tuple], longest: float) -> str:
    """Left, if a label on the right would cover one of the points that follow there."""
    for label, _, y, _ in column:
        letters = max(len(line) for line in label.split("\n"))
        end = column[-1][1] + (MARGIN + LETTER * letters) * longest
        if any(other_x < end and abs(other_y - y) < 0.8 * LINE for _, other_x, other_y, _ in others):
            return "left"
    return "right"


def frontier_title(lines: list[Line]) -> str:
    found = {row: estimate(lines, row) for row in (TWO, WORDS)}
    if not all(found.values()):
        return "Equal compute: accuracy against length of thought"
    lengths = [mean_length([line for line in lines if line["row"] == row]) for row in (TWO, WORDS)]
    share = f"{100 * found[TWO].mean / found[WORDS].mean:.0f} % of CoT-SFT's accuracy"
    length = f"{100 * lengths[0] / lengths[1]:.0f} % of its length"
    return f"Equal compute: Latent-SFT(2) has {share} at {length}"


@plt.rc_context(STYLE)
def frontier_figure(lines: list[Line]):
    """Accuracy against #L for all methods: the average over the data sets, with 95 % intervals."""
    figure, ax = plt.subplots(figsize=(10.6, 5.6), layout="constrained")
    points = []
    for row, title in titles(lines).items():
        if found := estimate(lines, row):
            x, y = mean_length([line for line in lines if line["row"] == row]), 100 * found.mean
            colour, marker = STYLES.get(row, (GREY, "o"))
            points.append((title.replace(", ", ",\n"), x, y, colour))
            arms = [[max(0.0, y - 100 * found.low)], [max(0.0, 100 * found.high - y)]]
            look = {"marker": marker, "markersize": 9, "color": colour}
            ax.errorbar(x, y, arms, capsize=3, linestyle="", zorder=3, **look)
    longest = max((x for _, x, _, _ in points), default=1.0)
    columns: list[list] = []  # points with about the same #L: their labels must not overlap
    for point in sorted(points, key=lambda point: point[1]):
        if not columns or point[1] - columns[-1][0][1] >= 0.075 * longest:
            columns.append([])
        columns[-1].append(point)
    for i, column in enumerate(columns):
        side = label_side(column, [point for later in columns[i + 1 :] for point in later], longest)
        edge = column[-1][1] + MARGIN * longest if side == "right" else column[0][1] - MARGIN * longest
        label_points(ax, column, edge, LINE, side=side, shrinkA=1, shrinkB=4)
    ax.set(xlim=(-0.03 * longest, 1.25 * longest), xlabel="#L, steps of thinking (mean)")
    ax.set(ylim=(0, TOP), ylabel="accuracy (%), mean of four test sets")
    ax.grid(alpha=0.25)
    ax.set_title(frontier_title(lines), loc="left", fontweight="bold")
    return figure


@plt.rc_context(STYLE)
def steps_figure(lines: list[Line]):
    """Accuracy against the number of steps of the problem, with 95 % intervals."""
    figure, axes = plt.subplots(1, 2, figsize=(12.2, 4.8), layout="constrained", sharey=True)
    longest = {}  # by row: its accuracy on mini's problems with the most steps
    for ax, name in zip(axes, ("mini", "mini_hard")):
        ends = []
        for row, title in titles(lines).items():
            mine = [l for l in lines if l["row"] == row and l["data"] == name and not l["skipped"]]
            if not mine:
                continue
            steps = problem_steps(name, mine[0]["n"])  # (n,)
            hits = torch.stack([numbers(line, "accuracy") for line in mine])  # (S, n)
            xs = [s for s in steps.unique().tolist() if (steps == s).sum() >= 10]
            if not xs:
                continue
            shares = [hits[:, steps == s] for s in xs]
            ys = [100 * s.mean().item() for s in shares]
            errors = [196 * s.mean(0).std().item() / s.shape[1] ** 0.5 for s in shares]  # over questions
            colour, marker = STYLES.get(row, (GREY, "o"))
            look = {"color": colour, "marker": marker, "markersize": 6, "linewidth": 1.5}
            line = "--" if row.endswith(("_3", "_6")) else "-"
            ax.errorbar(xs, ys, errors, capsize=2, linestyle=line, **look)
            ends.append((title, xs[-1], ys[-1], colour))
            longest.setdefault(row, (xs[-1], f"{title} {ys[-1]:.0f} %"))
        ax.set_title(name, loc="left", fontweight="bold")
        ax.set(xlabel="steps of the problem", ylim=(0, TOP))
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.grid(alpha=0.25)
    if ends:
        label_points(axes[-1], ends, max(x for _, x, _, _ in ends) + 0.16, 5.5)
    axes[0].set_ylabel("accuracy (%)")
    if named := [longest[row] for row in (TWO, ANSWER) if row in longest]:
        title = f"Problems of {named[0][0]:.0f} steps: {', '.join(what for _, what in named)}"
        figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
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
    donors = [values[-1] for values in table]
    follow = f"{sum(share > 50 for share in donors)} of {len(donors)} models"
    title = f"{judged[0]['data']}: given another question's latents (swap), {follow} answer that question"
    ax.set_title(title, loc="left", fontweight="bold", pad=14)
    return figure


@plt.rc_context(STYLE)
def compute_figure(lines: list[Line], curves: Path):
    """Accuracy on validation against training FLOPs, the mean over seeds; of runs with a curve."""
    figure, ax = plt.subplots(figsize=(9, 5.6), layout="constrained")
    ends, rising = [], 0
    runs = {line["run"]: line for line in lines if line["group"] == "main"}  # CoLaR's speeds share one
    for run, line in runs.items():
        seeds = sorted({l["seed"] for l in lines if l["row"] == line["row"]})
        paths = [path for s in seeds if (path := curves / f"{run}-seed{s}.json").exists()]
        if not paths:
            continue
        judged = [[p for p in read_json(path) if "val_accuracy" in p] for path in paths]
        judged = [[p for p in points if p["index"] == points[-1]["index"]] for points in judged]
        xs = [point["flops"] / 1e13 for point in judged[0]]
        ys = torch.tensor([[100 * point["val_accuracy"] for point in points] for points in judged]).mean(0)
        colour, marker = STYLES.get(line["row"], (GREY, "o"))
        ax.plot(xs, ys, color=colour, marker=marker, markersize=6, linewidth=1.5)
        entry = ROWS[line["row"]][0] if line["row"] in ROWS else None
        title = entry.title if entry else line["title"]
        if entry and len(entry.variants) > 1:  # CoLaR
            title += ", mean over speeds"
        ends.append((title, xs[-1], float(ys[-1]), colour))
        rising += line["gain"] >= PLATEAU
    if not ends:
        return None
    longest = max(x for _, x, _, _ in ends)
    label_points(ax, ends, 1.03 * longest, 4.6)
    ax.set(xlabel="training compute (10¹³ FLOPs), last stage", ylabel="accuracy on validation (%)")
    ax.set(xlim=(0, 1.25 * longest), ylim=(0, TOP))
    ax.grid(alpha=0.25)
    title = f"{rising} of {len(ends)} methods still gain a point or more in their last quarter"
    ax.set_title(title, loc="left", fontweight="bold")
    return figure


LOOKS = {  # of a verdict: marker, colour, whether it is filled
    "holds": ("o", BLUE, True),
    "within noise": ("o", GREY, False),
    "does not hold": ("X", RED, True),
}


@plt.rc_context(STYLE)
def claims_figure(lines: list[Line]):
    """A forest plot: for each claim the margins of its trends that are in points of accuracy, and the weakest
    with its interval."""
    figure, ax = plt.subplots(figsize=(11, 7.2), layout="constrained")
    heads, drawn, holding, one_seed = [], False, 0, False
    for y, claim in enumerate(CLAIMS):
        heads.append(textwrap.fill(f"{y + 1}. {claim.sentence}", 46))
        found = run_trends(lines, claim.trends)
        what, _, count = claim_cells(claim, found)
        holding, one_seed = holding + what.startswith("holds"), one_seed or count == "1"
        in_points = [each for each in found if UNITS[each[0].measure][0] == "points"]
        if not in_points:  # N_eff, for example
            text = "not in points: see verdicts.md" if found else "not run"
            ax.annotate(text, (0, y), (8, 0), textcoords="offset points", va="center", fontsize=8, color=GREY)
        found = in_points
        for each in found:
            drawn, (trend, what, estimated) = True, each
            marker, colour, filled = LOOKS[what]
            look = {"color": colour, "markerfacecolor": colour if filled else "white", "markersize": 7}
            mean, low, high = (100 * x for x in margin(trend, estimated))
            if each is not weakest(found):
                ax.plot(mean, y, marker, alpha=0.45, zorder=2, **look)
                continue
            arms = [[mean - low], [high - mean]]
            ax.errorbar(mean, y, xerr=arms, fmt=marker, capsize=3, zorder=3, **look)
            look = {"ha": "center", "va": "top", "fontsize": 8, "zorder": 2}
            look["bbox"] = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
            ax.annotate(trend.name, (mean, y), (0, -7), textcoords="offset points", **look)
    if not drawn:
        plt.close(figure)
        return None
    ax.axvline(0, color="black", linewidth=1, zorder=1)
    ax.set_yticks(range(len(CLAIMS)), heads, fontsize=9)
    ax.set(ylim=(len(CLAIMS) - 0.4, -0.6), xlabel="margin (points): right of 0 the claim holds")
    for what, (marker, colour, filled) in LOOKS.items():
        ax.plot([], [], marker, color=colour, markerfacecolor=colour if filled else "white", label=what)
    ax.margins(x=0.25)
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
    title = f"{holding} of {len(CLAIMS)} claims hold" + (", some on one seed" if one_seed else "")
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
    ax.grid(axis="x", alpha=0.25)
    return figure


def draw(lines: list[Line], out: Path) -> None:
    """All figures that these lines have the numbers for, into out/."""
    figures = {
        "frontier": frontier_figure(lines),
        "steps": steps_figure(lines),
        "compute": compute_figure(lines, out / "curves"),
        "interventions": interventions_figure(lines),
        "claims": claims_figure(lines),
    }
    for name, figure in figures.items():
        if figure:
            save_figure(figure, out / f"{name}.png")
