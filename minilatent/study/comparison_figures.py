"""The comparison's figures, drawn from rows.jsonl (and the curves beside it) alone."""

import json
from pathlib import Path

import torch

from .figures import BLUE, GREY, ORANGE, RED, STYLE, plt, results_figure, save_figure
from .verdicts import Line, better, estimate, problem_steps, right

# The families of methods, in the order in which a row's name is looked up: its colour and marker everywhere.
FAMILIES = {
    "latent_sft": (BLUE, "o", "superpositions"),
    "latent_rl": ("#17375e", "H", "superpositions"),
    "colar_rl": ("#8c4a00", "p", "merged embeddings"),
    "colar": (ORANGE, "s", "merged embeddings"),
    "coconut": ("#4d9a5b", "D", "hidden states"),
    "codi": ("#7b5aa6", "P", "hidden states, distilled"),
    "icot": ("#b3538b", "X", "no chain"),
    "no_cot": (GREY, "v", "no chain"),
    "pause": ("#5f666f", "^", "pause tokens"),
    "cot_sft_soft": ("#c98a86", "*", "words"),
    "": (RED, "*", "words"),
}


def look(row: str) -> tuple[str, str]:
    """Colour and marker of a row."""
    return next(FAMILIES[name][:2] for name in FAMILIES if row.startswith(name))


def main_rows(lines: list[Line]) -> dict[str, str]:
    """Title of each row of the main group, by its name, in order."""
    return {l["row"]: l["title"] for l in lines if l["group"] == "main"}


def bars(found) -> tuple[float, list[list[float]]]:
    """Mean and the two arms of its interval in %, as errorbar() wants them."""
    m, low, high, *_ = found
    return 100 * m, [[max(0.0, 100 * (m - low))], [max(0.0, 100 * (high - m))]]


def spread(at: list[float], least: float) -> list[float]:
    """Heights of labels, near to `at` but at least `least` apart."""
    order, placed = sorted(range(len(at)), key=at.__getitem__), list(at)
    for _ in range(200):
        for low, high in zip(order, order[1:]):
            if (gap := least - (placed[high] - placed[low])) > 1e-6:
                placed[low], placed[high] = placed[low] - gap / 2, placed[high] + gap / 2
    return placed


@plt.rc_context(STYLE)
def frontier_figure(lines: list[Line]):
    """Accuracy against #L for all methods: the average over the data sets, with 95 % intervals."""
    points = []
    for row, title in main_rows(lines).items():
        if found := estimate(lines, row):
            lengths = [l["mean_len"] for l in lines if l["row"] == row]
            points.append((row, title, sum(lengths) / len(lengths), *bars(found)))
    figure, ax = plt.subplots(figsize=(9, 5.6), layout="constrained")
    for row, title, x, y, arms in points:
        colour, marker = look(row)
        ax.errorbar(x, y, arms, marker=marker, markersize=9, capsize=3, color=colour, linestyle="", zorder=3)
    longest = max((p[2] for p in points), default=1.0)
    columns: list[list] = []  # points with about the same #L: their labels must not overlap
    for p in sorted(points, key=lambda p: p[2]):
        if columns and p[2] - columns[-1][0][2] < 0.12 * longest:
            columns[-1].append(p)
        else:
            columns.append([p])
    for column in columns:
        edge = max(p[2] for p in column) + 0.025 * longest
        for (row, title, x, y, _), height in zip(column, spread([p[3] for p in column], 4.6)):
            ax.annotate(
                title,
                (x, y),
                (edge, height),
                color=look(row)[0],
                va="center",
                fontsize=10.5,
                arrowprops={
                    "arrowstyle": "-",
                    "color": look(row)[0],
                    "alpha": 0.35,
                    "linewidth": 0.8,
                    "shrinkA": 1,
                    "shrinkB": 4,
                    "relpos": (0, 0.5),
                },
            )
    ax.set(
        xlabel="#L, steps of thinking (mean)", ylabel="accuracy (%), mean of four test sets", ylim=(0, 103)
    )
    ax.set_xlim(-0.03 * longest, 1.28 * longest)
    ax.grid(alpha=0.25)
    ax.set_title("Same base, same compute: accuracy against length of thought", loc="left", fontweight="bold")
    return figure


@plt.rc_context(STYLE)
def ablation_figure(lines: list[Line]):
    """A row's ablations below it: average accuracy with intervals, and the difference from the whole method on the seeds that both have."""
    found = {
        row: (title, estimate(lines, row)) for row, title in {l["row"]: l["title"] for l in lines}.items()
    }
    groups = {
        whole: [whole] + [row for row in found if parent(row) == whole]
        for whole in (
            "latent_sft_2",
            "latent_sft_4",
            "latent_sft_8_step",
            "latent_rl",
            "colar_2",
            "colar_5",
            "colar_rl",
        )
    }
    groups = {
        whole: some
        for whole, rows in groups.items()
        if len(some := [r for r in rows if r in found and found[r][1]]) > 1
    }
    if not groups:
        return None
    columns = [
        c
        for c in ([g for g in groups.items() if g[0].startswith(family)] for family in ("latent", "colar"))
        if c
    ]
    rows = max(sum(len(some) + 1.2 for _, some in column) for column in columns)
    figure = plt.figure(figsize=(7.6 * len(columns), 0.36 * rows + 1), layout="constrained")
    for part, column in zip(figure.subfigures(1, len(columns), squeeze=False)[0], columns):
        axes = part.subplots(
            len(column), 1, sharex=True, squeeze=False, height_ratios=[len(some) + 0.4 for _, some in column]
        )
        for ax, (whole, some) in zip(axes[:, 0], column):
            draw_ablations(
                ax, whole, {row: (*found[row], estimate(lines, row, against=whole)) for row in some}
            )
        axes[-1, 0].set(
            xlabel="accuracy (%), mean of four test sets", xlim=(0, 100), xticks=range(0, 101, 20)
        )
    figure.suptitle(
        "What each part contributes (in grey: the difference on the seeds that both have)",
        x=0.01,
        ha="left",
        fontweight="bold",
        fontsize=13,
    )
    return figure


def draw_ablations(ax, whole: str, found: dict[str, tuple]) -> None:
    """Bars of a whole method and its ablations: titles, estimates and differences, by row. The numbers stand to the right of the axes."""
    colour, full = look(whole)[0], 100 * found[whole][1][0] if whole in found else None
    for i, (row, (_, estimated, less)) in enumerate(found.items()):
        y, arms = bars(estimated)
        ax.barh(i, y, color=colour, alpha=1.0 if row == whole else 0.45, height=0.72)
        ax.errorbar(y, i, xerr=arms, color="black", capsize=3, linewidth=1.2)
        beside = {
            "xycoords": ax.get_yaxis_transform(),
            "textcoords": "offset points",
            "va": "center",
            "ha": "right",
            "fontsize": 10,
        }
        ax.annotate(f"{y:.1f}", (1, i), (34, 0), **beside)
        if row != whole and less:
            ax.annotate(f"{100 * less[0]:+.1f}", (1, i), (70, 0), color=GREY, **beside)
    title = found[whole][0] if whole in found else ""
    ax.set_yticks(
        range(len(found)),
        [name if row == whole else name.removeprefix(title + ", ") for row, (name, *_) in found.items()],
    )
    if full is not None:
        ax.get_yticklabels()[0].set_fontweight("bold")
        ax.axvline(full, color=colour, linewidth=1, linestyle="--", alpha=0.7)
    ax.invert_yaxis()
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x", alpha=0.25)
    ax.set_axisbelow(True)


def parent(row: str) -> str | None:
    """The whole method that a row is an ablation of, by its name: colar_mean_2 of colar_2, colar_rl_x of colar_rl."""
    if row in (
        known := {
            "colar_nll_half_2": "colar_rl",
            "latent_sft_half": "latent_rl",
            "latent_sft_8_adaptive": "latent_sft_8_step",
            "colar_nll_half_5": None,
        }
    ):  # what RL starts from; equals in #L
        return known[row]
    for whole in ("latent_sft_2", "latent_sft_4", "colar_rl"):
        if row.startswith(whole + "_"):
            return whole
    return (
        f"colar_{row[-1]}"
        if row.startswith("colar_") and row[-2:] in ("_2", "_5") and row[6:].count("_")
        else None
    )


@plt.rc_context(STYLE)
def curves_figure(lines: list[Line], folder: Path):
    """Loss and validation accuracy over the share of the run's time, for the main rows: first seed, last stage (a curriculum's
    earlier stages are other tasks). All runs have the same compute; how long that took depends on what else the machine did."""
    runs = {
        l["run"]: l["row"] for l in reversed(lines) if l["group"] == "main"
    }  # a run may be judged as several rows
    curves = {
        run: json.loads(paths[0].read_text())
        for run in reversed(runs)
        if (paths := sorted(folder.glob(f"{run}-seed*.json")))
    }
    if not curves:
        return None
    titles, ends = (
        {"colar": "CoLaR"} | {run: main_rows(lines)[row] for run, row in runs.items() if run != "colar"},
        [],
    )
    figure, (left, middle) = plt.subplots(1, 2, figsize=(11.5, 4.6), layout="constrained")
    for run, entries in curves.items():
        last, colour = entries[-1]["index"], look(run)[0]
        line = "--" if run.endswith("_4") else "-"
        share = lambda e: 100 * e["seconds"] / entries[-1]["seconds"]
        losses = [(share(e), e["loss"]) for e in entries if "loss" in e and e["index"] == last]
        scores = [
            (share(e), 100 * e["val_accuracy"]) for e in entries if "val_accuracy" in e and e["index"] == last
        ]
        left.plot(*zip(*losses), color=colour, linestyle=line, linewidth=1.6)
        middle.plot(*zip(*scores), color=colour, linestyle=line, marker="o", markersize=4, linewidth=1.6)
        ends.append((titles[run], *scores[-1], colour))
    right_edge = max(e[1] for e in ends)
    for (title, x, y, colour), height in zip(ends, spread([e[2] for e in ends], 5.5)):
        middle.annotate(
            title,
            (x, y),
            (1.04 * right_edge, height),
            color=colour,
            va="center",
            fontsize=10,
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "alpha": 0.35,
                "linewidth": 0.8,
                "relpos": (0, 0.5),
            },
        )
    left.set(
        xlabel="share of the training (%)",
        ylabel="loss (each method's own)",
        yscale="symlog" if any(e.get("loss", 1) <= 0 for c in curves.values() for e in c) else "log",
    )
    left.yaxis.set_major_formatter("{x:g}")
    left.yaxis.set_minor_formatter("")
    middle.set(xlabel="share of the training (%)", ylabel="validation accuracy (%)", ylim=(0, 103))
    for ax in (left, middle):
        ax.grid(alpha=0.25)
    figure.suptitle(
        "Training: the last stage of each method", x=0.01, ha="left", fontweight="bold", fontsize=12
    )
    return figure


@plt.rc_context(STYLE)
def steps_figure(lines: list[Line], sets=("mini", "mini_hard")):
    """Accuracy against the number of steps that the problem takes, with 95 % intervals (over questions and seeds together)."""
    figure, axes = plt.subplots(
        1, len(sets), figsize=(5.4 * len(sets) + 1.4, 4.8), layout="constrained", sharey=True, squeeze=False
    )
    ends: list[tuple] = []
    for ax, name in zip(axes[0], sets):
        for row, title in main_rows(lines).items():
            mine = [l for l in lines if l["row"] == row and l["data"] == name and not l["skipped"]]
            if not mine:
                continue
            steps, hits = (
                problem_steps(name, mine[0]["n"]),
                torch.stack([right(l) for l in mine]),
            )  # (n,), (S, n)
            xs = [s for s in steps.unique().tolist() if (steps == s).sum() >= 10]
            shares = [hits[:, steps == s] for s in xs]
            ys = [100 * s.mean().item() for s in shares]
            arms = [196 * (s.mean() * (1 - s.mean()) / s.numel()).sqrt().item() for s in shares]
            colour, marker = look(row)
            line = "--" if row.endswith(("_4", "_5")) else "-"
            ax.errorbar(
                xs,
                ys,
                arms,
                color=colour,
                marker=marker,
                capsize=2,
                linestyle=line,
                linewidth=1.5,
                markersize=6,
            )
            if ax is axes[0, -1]:
                ends.append((title, xs[-1], ys[-1], colour))
        ax.set_title(name, loc="left", fontweight="bold")
        ax.set(xlabel="steps of the problem", ylim=(0, 103))
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.grid(alpha=0.25)
    for (title, x, y, colour), height in zip(ends, spread([e[2] for e in ends], 5.5)):
        axes[0, -1].annotate(
            title,
            (x, y),
            (x + 0.16, height),
            color=colour,
            va="center",
            fontsize=10,
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "alpha": 0.35,
                "linewidth": 0.8,
                "relpos": (0, 0.5),
            },
        )
    axes[0, 0].set_ylabel("accuracy (%)")
    return figure


@plt.rc_context(STYLE)
def interventions_figure(lines: list[Line]):
    """A heat map: accuracy when the latents are replaced, and how often the answer is the donor's."""
    judged = [
        l for l in lines if len(l.get("interventions", {})) > 1 and l["group"] == "main"
    ]  # elsewhere: swap only, for a verdict
    if not judged:
        return None
    names = list(
        dict.fromkeys(name for l in judged for name in l["interventions"])
    )  # not every one applies to every method
    rows = {l["row"]: l["title"] for l in judged}
    table = []
    for row in rows:
        mine = [l for l in judged if l["row"] == row]
        mean = lambda value: (
            100 * sum(v if v is not None else float("nan") for v in map(value, mine)) / len(mine)
        )
        table.append(
            [
                mean(lambda l: l["accuracy"]),
                *(mean(lambda l, n=n: l["interventions"].get(n, {}).get("accuracy")) for n in names),
                mean(lambda l: l["interventions"].get("swap", {}).get("follows_donor")),
            ]
        )
    columns = ["its own", *names, "donor's\nanswer"]
    figure, ax = plt.subplots(
        figsize=(1.05 * len(columns) + 2.6, 0.5 * len(rows) + 1.9), layout="constrained"
    )
    image = ax.imshow(table, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    for i, values in enumerate(table):
        for j, value in enumerate(values):
            ax.text(
                j,
                i,
                "–" if value != value else f"{value:.0f}",
                ha="center",
                va="center",
                color="white" if value > 55 else "black",
            )
    for edge in (0.5, len(columns) - 1.5):
        ax.axvline(edge, color="white", linewidth=5)
    ax.set_xticks(range(len(columns)), columns)
    ax.set_yticks(range(len(rows)), rows.values())
    ax.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    ax.spines[:].set_visible(False)
    figure.colorbar(image, ax=ax, label="%", pad=0.015, aspect=18)
    ax.set_title(
        f"Accuracy on {judged[0]['data']} when the latents are replaced",
        loc="left",
        fontweight="bold",
        pad=14,
    )
    return figure


def latents_figure(lines: list[Line]):
    """ECR@K and N_eff with their controls, of Latent-SFT on mini, first seed of each ratio."""
    judged = [l for l in lines if l["row"] in ("latent_sft_2", "latent_sft_4") and l["data"] == "mini"]
    first = {l["row"]: l for l in reversed(judged)}
    shown = [
        {**l, "data": l["title"] + ", mini"} for _, l in sorted(first.items()) if l["ecr"] or l["n_multi"]
    ]
    return results_figure(shown) if shown else None


def draw(lines: list[Line], out: Path) -> None:
    """All figures that these lines have the numbers for, into out/."""
    lines = better(lines)
    figures = {
        "frontier": frontier_figure(lines),
        "ablations": ablation_figure(lines),
        "curves": curves_figure(lines, out / "curves"),
        "latents": latents_figure(lines),
        "steps": steps_figure(lines),
        "interventions": interventions_figure(lines),
    }
    for name, figure in figures.items():
        if figure is not None:
            save_figure(figure, out / f"{name}.png")
