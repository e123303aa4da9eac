"""Figures of one run: a chain as in the paper's Figure 1, the two masks, measures against their controls,
CoLaR's speeds, the space of the latents."""

import io
import textwrap
from pathlib import Path

import matplotlib
import torch
import torch.nn.functional as F
from torch import Tensor

from .. import masks
from ..batch import encode
from ..config import UserError
from ..files import replace_file
from ..latent import entropy
from ..tasks.answers import Example
from ..tokenizer import Tokenizer
from .evaluation import label
from .latents import effective_rank, hidden_states, spectrum, usable
from .trace import Trace, clip, visible

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  (after the backend is chosen)
from matplotlib.patches import Patch, Rectangle  # noqa: E402

BLUE, ORANGE, GREY, RED = "#2a6fbb", "#e08214", "#8a8f98", "#c0392b"
STYLE = {
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 12,
    "text.parse_math": False,  # "$" is a token, not mathematics
    "legend.frameon": False,
    "figure.dpi": 150,
}


def figure_kind(path: str | Path) -> str:
    """png, pdf or svg, by the ending of the name; UserError for any other."""
    kind = Path(path).suffix[1:].lower()
    if kind not in ("png", "pdf", "svg"):
        raise UserError(f"{path}: a figure's name ends with .png, .pdf or .svg")
    return kind


def save_figure(figure, path: str | Path) -> None:
    """Write PNG, PDF or SVG, by the ending of the name; atomically."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=figure_kind(path), bbox_inches="tight", facecolor="white")
    plt.close(figure)
    replace_file(Path(path), lambda p: p.write_bytes(buffer.getvalue()))


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


def plot_sorted(ax, quantiles: list[float], label: str, colour: str, line: str = "-") -> None:
    """Quantiles at equal distances over their share in %."""
    shares = [100 * i / (len(quantiles) - 1) for i in range(len(quantiles))]
    ax.plot(shares, quantiles, color=colour, linestyle=line, linewidth=2, label=label)


# ------------------------------------------------------------------ one chain


@plt.rc_context(STYLE)
def chain_figure(t: Trace, tok: Tokenizer, top: int = 8):
    """The paper's Figure 1 for one question: the likeliest tokens of each step by rank, and the entropy
    above."""
    if not len(t.probs):
        raise UserError("this method does not think: there is no chain to draw")
    values, ids = (x.numpy() for x in t.probs.topk(top, dim=-1))  # (N + 1, top)
    steps = len(t.probs)
    size, heights = (max(6.5, 0.74 * steps + 1.6), 0.36 * top + 2.6), (1.4, 0.36 * top)
    figure, (above, below) = plt.subplots(
        2, 1, sharex=True, figsize=size, layout="constrained", height_ratios=heights
    )
    image = below.imshow(values.T, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for n in range(steps):
        for rank in range(top):
            p, name = values[n, rank], clip(tok.name(int(ids[n, rank])), 8)
            colour = "white" if p > 0.55 else "black" if p > 0.02 else GREY
            fontsize = 9 if len(name) < 7 else 7.5
            below.text(n, rank, name, ha="center", va="center", fontsize=fontsize, color=colour)
    below.set_yticks(range(top), range(1, top + 1))
    below.set_xticks(range(steps), [str(n) for n in range(1, steps)] + ["end"])
    below.set(xlabel="step of thinking", ylabel="rank")
    below.spines[:].set_visible(False)
    below.tick_params(length=0)
    figure.colorbar(image, ax=below, label="probability", pad=0.01, aspect=14)

    H = entropy(t.probs).numpy()
    above.plot(H, color=ORANGE, marker="o", markersize=4, clip_on=False)
    above.fill_between(range(steps), H, color=ORANGE, alpha=0.15, linewidth=0)
    above.set(ylabel="entropy (nats)", ylim=(0, max(0.5, 1.15 * H.max())))
    above.tick_params(axis="x", length=0)
    for ax in (above, below):  # the collapse
        ax.axvline(steps - 1.5, color=RED, linestyle="--", linewidth=1.4)
    end = f"{'collapse' if t.closed else 'cut off'} → {visible(t.answer.strip())}"
    place = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "ha": "right"}
    above.annotate(end, (steps - 1.5, 1.0), (-5, 2), color=RED, va="bottom", fontweight="bold", **place)
    question = textwrap.fill(" ".join(t.question.split()), int(size[0] * 13))
    unit = "tokens" if t.explicit else "latents"
    figure.suptitle(f"{question}\n{steps - 1} {unit}", fontsize=11, ha="left", x=0.01)
    return figure


# ------------------------------------------------------------------ the masks of Latent-SFT

KINDS = {  # of a position: its colour and its name
    masks.PREFIX: ("#9ab8d8", "question, <think>"),
    masks.LATENT: (ORANGE, "latents"),
    masks.TEXT: ("#7fbf7b", "chain"),
    masks.TAIL: ("#b39bc8", "</think>, answer"),
}


@plt.rc_context(STYLE)
def masks_figure(method):
    """The two masks of stage 1 on a short example, as the method builds them: which position (row) sees which
    (column), what the mask hides, and the positions of the decoder's dual track. UserError without such
    masks."""
    if not hasattr(method, "encoder_layout"):
        raise UserError(f"--masks belongs to latent_sft, this is a run of {method.config.method}")
    tok = method.tok
    example = Example("Ava has 12.", ("<<12*3=36>>",), "36")
    (row,), _ = encode([example], tok, method.model.config.context)
    figure, (left, right) = plt.subplots(1, 2, figsize=(15, 8.2), layout="constrained")

    layout = method.encoder_layout(row)
    kind = torch.tensor([layout.kind])
    draw_mask(left, tok, layout, masks.induction_mask(kind)[0], range(len(layout.ids)), "L")
    left.set_title("Latent token induction mask (encoder)", pad=12, fontweight="bold")

    layout = method.decoder_layout(row)
    kind, block = torch.tensor([layout.kind]), torch.tensor([layout.block])
    positions = masks.dual_track_positions(kind)[0].tolist()
    draw_mask(right, tok, layout, masks.supervision_mask(kind, block)[0], positions, "Z")
    right.set_title("Latent token supervision mask (decoder)", pad=12, fontweight="bold")

    handles = [Patch(color=colour, label=f"sees {name}") for colour, name in KINDS.values()]
    handles.append(Patch(facecolor="white", edgecolor=GREY, hatch="////", label="earlier, but hidden"))
    figure.legend(handles=handles, loc="outside lower center", ncols=5, fontsize=12)
    return figure


def draw_mask(ax, tok: Tokenizer, layout: masks.Layout, mask: Tensor, positions, latent: str) -> None:
    """mask (T, T); latents are called by the letter `latent` and their number."""
    T = len(layout.ids)
    for i in range(T):
        for j in range(i + 1):
            if mask[i, j]:
                look = {"facecolor": KINDS[layout.kind[j]][0], "edgecolor": "white", "linewidth": 1}
            else:
                look = {"facecolor": "white", "edgecolor": "#c9ccd1", "hatch": "////", "linewidth": 0}
            ax.add_patch(Rectangle((j, i), 1, 1, **look))
    labels = []
    for token, kind, block in zip(layout.ids, layout.kind, layout.block):
        labels.append(f"{latent}{block}" if kind == masks.LATENT else clip(tok.name(token), 8))
    middle = [i + 0.5 for i in range(T)]
    ax.set(xlim=(0, T), ylim=(T, 0), aspect="equal")
    ax.set_yticks(middle, labels)
    ax.set_xticks(middle, labels, rotation=60, ha="right", rotation_mode="anchor")
    for ticks in (ax.get_xticklabels(), ax.get_yticklabels()):
        for text, kind in zip(ticks, layout.kind):
            if kind == masks.LATENT:
                text.set(color=ORANGE, fontweight="bold")
    for i, position in enumerate(positions):
        ax.text(T + 0.4, i + 0.5, str(position), va="center", ha="left", color=GREY)
    ax.text(T + 0.4, -0.3, "position", ha="center", va="bottom", color=GREY, fontsize=10)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)


# ------------------------------------------------------------------ the results of eval.py


@plt.rc_context(STYLE)
def results_figure(results: list[dict]):
    """A row for each data set: ECR@K over K, and N_eff over the questions (by all tokens, and by those that
    differ between the question's chains), with their controls."""
    results = [r for r in results if r["ecr"] or r["n_multi"]]
    if not results:
        raise UserError("nothing to draw: no data set has latents that could be judged")
    wide = 3 if any(r["n_multi"] for r in results) else 1
    size = (5.2 * wide, 4 * len(results))
    figure, axes = plt.subplots(len(results), wide, figsize=size, layout="constrained", squeeze=False)
    for row, r in zip(axes, results):
        for ax in row:
            ax.set_axis_off()  # until there is something in it
        row[0].set_title(label(r), loc="left", fontweight="bold")
        if r["ecr"]:
            draw_ecr(row[0], r)
        if r["n_multi"]:
            draw_n_eff(row[1], r, "", "N_eff")
            draw_n_eff(row[2], r, "_distinct", "N_eff, by the tokens that differ")
    return figure


def draw_ecr(ax, r: dict) -> None:
    ax.set_axis_on()
    ks = [int(k) for k in r["ecr"]]
    ax.plot(ks, r["ecr"].values(), color=BLUE, marker="o", label=r["method"])
    if control := r["ecr_control"]:
        frequent = {"linestyle": "--", "label": "most frequent tokens"}
        ax.plot(ks, control.values(), color=GREY, marker="o", **frequent)
    ax.set_xscale("log")
    ax.set_xticks(ks, ks, fontsize=9)
    ax.minorticks_off()
    ax.set(xlabel="K", ylabel="ECR@K (tokens a step)", ylim=(0, None))
    ax.legend(loc="lower right")


def draw_n_eff(ax, r: dict, suffix: str, name: str) -> None:
    ax.set_axis_on()
    for key, of, colour, line in (
        ("n_eff", "its own chains", BLUE, "-"),
        ("n_eff_control", "another question's chains", GREY, "--"),
        ("n_eff_one_path", "latents that hold one chain", ORANGE, "--"),
    ):
        if quantiles := r["n_eff_quantiles"][key + suffix]:
            plot_sorted(ax, quantiles, of, colour, line)
    ax.axhline(1.7, color=RED, linewidth=1, linestyle=":", label="parallel from here on (1.7)")
    ax.set(xlabel=f"% of {r['n_multi']} questions with several chains, sorted", ylabel=name)
    ax.set_ylim(0.9, 1.45 * ax.get_ylim()[1])  # room for the legend
    ax.legend(loc="upper left", fontsize=9.5)


@plt.rc_context(STYLE)
def speed_figure(results: list[dict]):
    """Accuracy against #L over CoLaR's speeds, a line for each data set, with 95 % intervals. Where a higher
    speed no longer shortens the chain (a factor beyond those of training), the markers are hollow and the
    line ends."""
    results = [r for r in results if "speed" in r]
    if not results:
        raise UserError("nothing to draw: only CoLaR has speeds")
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


# ------------------------------------------------------------------ the space of the latents


@plt.rc_context(STYLE)
def latents_figure(results: list[dict]):
    """A row for each data set of eval.py --latents: norms against the embeddings', cosines by step, the
    spectrum, and for mixtures the entropy by step."""
    wide = 4 if any(r["latents"]["entropy_by_step"] for r in results) else 3
    size = (5 * wide, 4 * len(results))
    figure, axes = plt.subplots(len(results), wide, figsize=size, layout="constrained", squeeze=False)
    for row, r in zip(axes, results):
        found = r["latents"]
        row[0].set_title(f"{r['method']}, {label(r)}", loc="left", fontweight="bold")
        plot_sorted(row[0], found["norms"], "latents", BLUE)
        plot_sorted(row[0], found["norms_embeddings"], "embeddings", GREY)
        row[0].set(xlabel="% of them, sorted", ylabel="norm", ylim=(0, None))
        row[0].legend()
        by_step = [[torch.nan if v is None else v for v in line] for line in found["cosine_by_step"]]
        end = len(by_step) + 0.5
        image = row[1].imshow(by_step, cmap="RdBu_r", vmin=-1, vmax=1, extent=(0.5, end, end, 0.5))
        row[1].set(xlabel="step of thinking", ylabel="step of thinking")
        figure.colorbar(image, ax=row[1], label="mean cosine in a chain", aspect=16)
        draw_spectrum(row[2], found["spectrum"], found["rank"], "latents", BLUE)
        draw_spectrum(row[2], found["spectrum_embeddings"], found["rank_embeddings"], "embeddings", GREY)
        if H := found["entropy_by_step"]:
            row[3].plot(range(1, len(H) + 1), H, color=ORANGE, marker="o", markersize=4)
            row[3].set(xlabel="step of thinking", ylabel="entropy of the mixture (nats)", ylim=(0, None))
        for axis in (row[1].xaxis, row[1].yaxis, row[-1].xaxis):
            axis.get_major_locator().set_params(integer=True)
    return figure


@plt.rc_context(STYLE)
def space_figure(method, examples: list):
    """Why not simply feed a hidden state back? Hidden states of the model's own chains against its
    embeddings: both on the first two principal axes of their directions, norms, the cosine with the nearest
    embedding; and spectra. (Embeddings with a cosine of 1 belong to tokens that never occurred in training:
    they moved together.)"""
    generator = torch.Generator().manual_seed(0)
    words, states = usable(method), hidden_states(method, examples)
    states = states[torch.randperm(len(states), generator=generator)[:2000]]
    random = torch.randn(words.shape, generator=torch.Generator().manual_seed(0))
    unit_words, unit_states, unit_random = (F.normalize(x, dim=-1) for x in (words, states, random))
    figure, ((plane, length), (near, shares)) = plt.subplots(2, 2, figsize=(11, 8.4), layout="constrained")

    middle = (unit_words.mean(0) + unit_states.mean(0)) / 2  # (C,) the two clouds count equally
    both = torch.cat([unit_words, unit_states]) - middle
    axes = torch.linalg.svd(both, full_matrices=False).Vh[:2].T  # (C, 2)
    longest = 1.05 * max(x.norm(dim=-1).max().item() for x in (words, states))
    for x, unit, name, colour in (
        (words, unit_words, "embeddings", GREY),
        (states, unit_states, "hidden states", ORANGE),
    ):
        plane.scatter(*((unit - middle) @ axes).T, s=12, alpha=0.5, color=colour, label=name, linewidth=0)
        draw_histogram(length, x.norm(dim=-1), torch.linspace(0, longest, 60), name, colour, 0.7)
    bins, without_itself = torch.linspace(0, 1.001, 50), 2 * torch.eye(len(words))
    for cosine, name, colour in (
        (unit_words @ unit_words.T - without_itself, "embeddings", GREY),
        (unit_states @ unit_words.T, "hidden states", ORANGE),
        (unit_random @ unit_words.T, "random directions", BLUE),
    ):
        draw_histogram(near, cosine.max(-1).values, bins, name, colour, 0.6)
    plane.set(xlabel="first principal axis of the directions", ylabel="second", title="Directions")
    length.set(xlabel="norm", ylabel="density", title="Norms")
    near.set(xlabel="cosine with the nearest embedding (not itself)", ylabel="density")
    near.set_title("Distance from the vocabulary")
    for ax in (plane, length, near):
        ax.legend(fontsize=9.5)
    for x, name, colour in (
        (words, "embedding matrix", GREY),
        (random, "random matrix", BLUE),
        (states, "hidden states", ORANGE),
    ):
        draw_spectrum(shares, spectrum(x).tolist(), effective_rank(x), name, colour)
    shares.set_title("Spectrum")
    return figure


def draw_histogram(ax, values: Tensor, bins: Tensor, name: str, colour: str, alpha: float) -> None:
    ax.hist(values.tolist(), bins.tolist(), density=True, color=colour, alpha=alpha, label=name)


def draw_spectrum(ax, shares: list[float], rank: float, name: str, colour: str) -> None:
    """The share of the energy that the first directions hold."""
    total = torch.tensor(shares).cumsum(0).mul(100)
    text = f"{name}: effective rank {rank:.0f}"
    ax.plot(range(1, len(shares) + 1), total, color=colour, linewidth=2, label=text)
    ax.set(xlabel="directions, strongest first", ylabel="% of the energy that they hold")
    ax.set(ylim=(0, 103), xlim=(0, None))
    ax.legend(loc="lower right", fontsize=9.5)
