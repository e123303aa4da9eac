"""Pictures: a chain as the paper's Figure 1 has it, the two masks, measures against their controls, CoLaR's speeds."""

import io
import textwrap
from pathlib import Path

import matplotlib
import torch
from torch import Tensor

from .. import masks
from ..batch import Row
from ..config import UserError
from ..files import replace_file
from ..latent import entropy
from ..methods.latent_sft import LatentSFT
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
    "text.parse_math": False,
    "legend.frameon": False,
    "figure.dpi": 150,
}  # "$" is a token, not mathematics


def figure_kind(path: str | Path) -> str:
    """By the name's ending; UserError if it is none that is known."""
    kind = Path(path).suffix[1:].lower()
    if kind not in ("png", "pdf", "svg"):
        raise UserError(f"{path}: a figure's name ends with .png, .pdf or .svg")
    return kind


def save_figure(figure, path: str | Path) -> None:
    """As PNG, PDF or SVG, by the name's ending; atomically."""
    path, kind = Path(path), figure_kind(path)
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, bbox_inches="tight", facecolor="white")
    plt.close(figure)
    replace_file(path, lambda p: p.write_bytes(buffer.getvalue()))


@plt.rc_context(STYLE)
def chain_figure(t: Trace, tok: Tokenizer, top: int = 8):
    """The paper's Figure 1 for one question: the k likeliest tokens of each step by rank, and the entropy above."""
    if not len(t.probs):
        raise UserError("this method does not think: there is no chain to draw")
    values, ids = (x.numpy() for x in t.probs.topk(top, dim=-1))  # (N + 1, k)
    steps = len(t.probs)
    size = (max(6.5, 0.74 * steps + 1.6), 0.36 * top + 2.6)
    figure, (above, below) = plt.subplots(
        2, 1, sharex=True, figsize=size, layout="constrained", height_ratios=(1.4, 0.36 * top)
    )
    image = below.imshow(values.T, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for n in range(steps):
        for rank in range(top):
            p = values[n, rank]
            name = clip(tok.name(int(ids[n, rank])), 8)
            below.text(
                n,
                rank,
                name,
                ha="center",
                va="center",
                fontsize=9 if len(name) < 7 else 7.5,
                color="white" if p > 0.55 else "black" if p > 0.02 else GREY,
            )
    below.set_yticks(range(top), range(1, top + 1))
    below.set_xticks(range(steps), [str(n) for n in range(1, steps)] + ["end"])
    below.set_ylabel("rank")
    below.set_xlabel("step of thinking")
    below.spines[:].set_visible(False)
    below.tick_params(length=0)
    figure.colorbar(image, ax=below, label="probability", pad=0.01, aspect=14)

    H = entropy(t.probs).numpy()
    above.plot(H, color=ORANGE, marker="o", markersize=4, clip_on=False)
    above.fill_between(range(steps), H, color=ORANGE, alpha=0.15, linewidth=0)
    above.set_ylabel("entropy (nats)")
    above.set_ylim(0, max(0.5, 1.15 * H.max()))
    above.tick_params(axis="x", length=0)
    for ax in (above, below):  # the collapse
        ax.axvline(steps - 1.5, color=RED, linestyle="--", linewidth=1.4)
    word = "collapse" if t.closed else "cut off"
    above.annotate(
        f"{word} → {visible(t.answer.strip())}",
        (steps - 1.5, 1.0),
        xycoords=("data", "axes fraction"),
        color=RED,
        xytext=(-5, 2),
        textcoords="offset points",
        ha="right",
        va="bottom",
        fontweight="bold",
    )
    unit = "tokens" if t.explicit else "latents"
    figure.suptitle(
        f"{wrap(t.question, int(size[0] * 13))}\n{steps - 1} {unit}", fontsize=11, ha="left", x=0.01
    )
    return figure


def wrap(text: str, width: int) -> str:
    return "\n".join(textwrap.wrap(" ".join(text.split()), width))


KIND_COLOURS = {masks.PREFIX: "#9ab8d8", masks.LATENT: ORANGE, masks.TEXT: "#7fbf7b", masks.TAIL: "#b39bc8"}
KIND_NAMES = {
    masks.PREFIX: "question, <think>",
    masks.LATENT: "latents",
    masks.TEXT: "chain",
    masks.TAIL: "</think>, answer",
}


@plt.rc_context(STYLE)
def masks_figure(method):
    """The two masks of Latent-SFT's stage 1 on a short example, as its own code builds them: who (row) sees whom
    (column), what the mask hides, and the positions of the decoder's dual track."""
    tok, maker = method.tok, LatentSFT(method.config, method.tok, method.model)
    row = Row(tok.encode("Ava has 12."), tok.encode("<<12*3=36>>"), [*tok.encode("36"), tok.eos])
    figure, axes = plt.subplots(1, 2, figsize=(15, 8.2), layout="constrained")
    for ax, layout, name in zip(
        axes, (maker.encoder_layout(row), maker.decoder_layout(row)), ("induction", "supervision")
    ):
        ids, kind, block = maker.tensors([layout]).values()
        mask = masks.induction_mask(kind) if name == "induction" else masks.supervision_mask(kind, block)
        positions = (
            torch.arange(len(layout.ids)) if name == "induction" else masks.dual_track_positions(kind)[0]
        )
        latent = "L" if name == "induction" else "Z"
        labels = [
            f"{latent}{layout.block[i]}" if layout.kind[i] == masks.LATENT else clip(tok.name(token), 8)
            for i, token in enumerate(layout.ids)
        ]
        draw_mask(ax, mask[0], masks.causal(kind)[0], layout.kind, labels, positions.tolist())
        ax.set_title(
            {
                "induction": "Latent token induction mask (encoder)",
                "supervision": "Latent token supervision mask (decoder)",
            }[name],
            pad=12,
            fontweight="bold",
        )
    handles = [Patch(color=KIND_COLOURS[kind], label=f"sees {KIND_NAMES[kind]}") for kind in KIND_COLOURS]
    handles.append(Patch(facecolor="white", edgecolor=GREY, hatch="////", label="earlier, but hidden"))
    figure.legend(handles=handles, loc="outside lower center", ncols=5, fontsize=12)
    return figure


def draw_mask(
    ax, mask: Tensor, causal: Tensor, kind: list[int], labels: list[str], positions: list[int]
) -> None:
    T = len(labels)
    for i in range(T):
        for j in range(i + 1):
            if mask[i, j]:
                ax.add_patch(
                    Rectangle((j, i), 1, 1, facecolor=KIND_COLOURS[kind[j]], edgecolor="white", linewidth=1)
                )
            elif causal[i, j]:
                ax.add_patch(
                    Rectangle((j, i), 1, 1, facecolor="white", edgecolor="#c9ccd1", hatch="////", linewidth=0)
                )
    ax.set(xlim=(0, T), ylim=(T, 0), aspect="equal")
    middle = [i + 0.5 for i in range(T)]
    ax.set_yticks(middle, labels)
    ax.set_xticks(middle, labels, rotation=60, ha="right", rotation_mode="anchor")
    for ticks in (ax.get_xticklabels(), ax.get_yticklabels()):
        for text, of in zip(ticks, kind):
            if of == masks.LATENT:
                text.set(color=ORANGE, fontweight="bold")
    for i, position in enumerate(positions):
        ax.text(T + 0.4, i + 0.5, str(position), va="center", ha="left", color=GREY)
    ax.text(T + 0.4, -0.3, "position", ha="center", va="bottom", color=GREY, fontsize=10)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)


@plt.rc_context(STYLE)
def results_figure(results: list[dict]):
    """A row for each data set of eval.py: ECR@K over K, and N_eff over the questions (by all tokens, and by those
    that tell a question's chains apart), with their controls."""
    results = [r for r in results if r["ecr"] or r["n_multi"]]
    if not results:
        raise UserError("nothing to draw: no data set has latents that could be judged")
    wide = 3 if any(r["n_multi"] for r in results) else 1
    figure, axes = plt.subplots(
        len(results), wide, figsize=(5.2 * wide, 4 * len(results)), layout="constrained", squeeze=False
    )
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


@plt.rc_context(STYLE)
def speed_figure(results: list[dict]):
    """Accuracy against #L over CoLaR's speeds, a line for each data set, with 95 % intervals. Where a higher speed no longer
    shortens the chain (a factor that was never trained), the marks are hollow and the line ends."""
    results = [r for r in results if "speed" in r]
    if not results:
        raise UserError("nothing to draw: only CoLaR has speeds")
    figure, ax = plt.subplots(figsize=(7.5, 4.6), layout="constrained")
    for name in dict.fromkeys(r["data"] for r in results):
        some = [r for r in results if r["data"] == name]
        x, y = [r["mean_len"] for r in some], [100 * r["accuracy"] for r in some]
        error = [[100 * abs(r["ci95"][i] - r["accuracy"]) for r in some] for i in (0, 1)]
        obeyed = next((i for i in range(1, len(x)) if x[i] >= x[i - 1]), len(x))
        line = ax.plot(x[:obeyed], y[:obeyed], label=name)[0]
        color = line.get_color()
        labels: list[tuple[float, float, str]] = []
        for i, r in enumerate(some):
            ax.errorbar(
                x[i],
                y[i],
                [[e[i]] for e in error],
                marker="o",
                capsize=3,
                color=color,
                markerfacecolor=color if i < obeyed else "white",
            )
            near = next((l for l in labels if abs(l[0] - x[i]) < 0.3 and abs(l[1] - y[i]) < 3), None)
            if near:  # one label for marks on top of each other
                labels[labels.index(near)] = (*near[:2], f"{near[2]}, ×{r['speed']}")
            else:
                labels.append((x[i], y[i], f"×{r['speed']}"))
        for *at, text in labels:
            ax.annotate(text, at, xytext=(7, -13), textcoords="offset points", fontsize=9.5, color=color)
    ax.set(xlabel="#L, steps of thinking", ylabel="accuracy (%)", ylim=(0, 100))
    ax.set_xlim(0, 1.06 * max(r["mean_len"] for r in results))
    ax.grid(alpha=0.25)
    ax.legend(loc="lower right")
    ax.set_title("One checkpoint, many speeds", loc="left", fontweight="bold")
    return figure


def draw_ecr(ax, r: dict) -> None:
    ax.set_axis_on()
    ks = [int(k) for k in r["ecr"]]
    ax.plot(ks, r["ecr"].values(), color=BLUE, marker="o", label=r["method"])
    if r["ecr_control"]:
        ax.plot(
            ks,
            r["ecr_control"].values(),
            color=GREY,
            marker="o",
            linestyle="--",
            label="most frequent tokens",
        )
    ax.set_xscale("log")
    ax.set_xticks(ks, ks, fontsize=9)
    ax.minorticks_off()
    ax.set(xlabel="K", ylabel="ECR@K (tokens a step)", ylim=(0, None))
    ax.legend(loc="lower right")


def draw_n_eff(ax, r: dict, suffix: str, label: str) -> None:
    ax.set_axis_on()
    for key, name, colour, line in (
        ("n_eff", "its own chains", BLUE, "-"),
        ("n_eff_control", "another question's chains", GREY, "--"),
        ("n_eff_one_path", "latents that hold one chain", ORANGE, "--"),
    ):
        if values := r["n_eff_quantiles"][key + suffix]:
            ax.plot(
                [100 * i / (len(values) - 1) for i in range(len(values))],
                values,
                color=colour,
                linestyle=line,
                linewidth=2,
                label=name,
            )
    ax.axhline(1.7, color=RED, linewidth=1, linestyle=":", label="parallel from here on (1.7)")
    ax.set(xlabel=f"% of {r['n_multi']} questions with several chains, sorted", ylabel=label)
    ax.set_ylim(0.9, 1.45 * ax.get_ylim()[1])  # room for the legend
    ax.legend(loc="upper left", fontsize=9.5)


@plt.rc_context(STYLE)
def look_figure(results: list[dict]):
    """A row for each data set of eval.py --look: norms against the embeddings', cosines by step, the spectrum, the entropy."""
    wide = 4 if any(r["look"]["entropy_by_step"] for r in results) else 3
    shape = (2, 2) if wide == 4 and len(results) == 1 else (len(results), wide)
    figure, axes = plt.subplots(
        *shape, figsize=(5 * shape[1], 4 * shape[0]), layout="constrained", squeeze=False
    )
    for row, r in zip(axes.reshape(len(results), wide), results):
        seen = r["look"]
        row[0].set_title(f"{r['method']}, {label(r)}", loc="left", fontweight="bold")
        for key, name, colour in (("norms", "latents", BLUE), ("norms_embeddings", "embeddings", GREY)):
            row[0].plot(
                [100 * i / (len(seen[key]) - 1) for i in range(len(seen[key]))],
                seen[key],
                color=colour,
                linewidth=2,
                label=name,
            )
        row[0].set(xlabel="% of them, sorted", ylabel="norm", ylim=(0, None))
        row[0].legend()
        by_step = [[float("nan") if v is None else v for v in line] for line in seen["cosine_by_step"]]
        image = row[1].imshow(by_step, cmap="RdBu_r", vmin=-1, vmax=1)
        row[1].set(xlabel="step of thinking", ylabel="step of thinking")
        for axis in (row[1].xaxis, row[1].yaxis):
            axis.set_major_locator(plt.MaxNLocator(8, integer=True))
            axis.set_major_formatter(lambda at, _: str(int(at) + 1))
        figure.colorbar(image, ax=row[1], label="mean cosine in a chain", aspect=16)
        draw_spectrum(
            row[2],
            {
                "latents": (seen["spectrum"], seen["rank"], BLUE),
                "embeddings": (seen["spectrum_embeddings"], seen["rank_embeddings"], GREY),
            },
        )
        if H := seen["entropy_by_step"]:
            row[3].plot(range(1, len(H) + 1), H, color=ORANGE, marker="o", markersize=4)
            row[3].set(xlabel="step of thinking", ylabel="entropy of the mixture (nats)", ylim=(0, None))
            row[3].xaxis.get_major_locator().set_params(integer=True)
        elif wide == 4:
            row[3].set_axis_off()
    return figure


@plt.rc_context(STYLE)
def space_figure(method, examples: list):
    """Why not simply feed a hidden state back? Hidden states of the model's own chains against its embeddings: both on the first two
    principal axes of their directions, norms, the cosine with the nearest embedding; and the embedding matrix's spectrum.
    (Embeddings with a cosine of 1 are those of tokens that training never showed: they went the same way together.)"""
    words, states = usable(method), hidden_states(method, examples)
    states = states[torch.randperm(len(states), generator=torch.Generator().manual_seed(0))[:2000]]
    figure, ((plane, length), (near, shares)) = plt.subplots(2, 2, figsize=(11, 8.4), layout="constrained")
    direction = lambda x: torch.nn.functional.normalize(x, dim=-1)
    words_to, states_to = direction(words), direction(states)
    middle = (words_to.mean(0) + states_to.mean(0)) / 2  # (C,) the two clouds count equally
    axes = torch.pca_lowrank(torch.cat([words_to, states_to]) - middle, 2, center=False, niter=10)[
        2
    ]  # (C, 2)
    longest = 1.05 * max(x.norm(dim=-1).max() for x in (words, states))
    for x, to, name, colour in (
        (words, words_to, "embeddings", GREY),
        (states, states_to, "hidden states", ORANGE),
    ):
        plane.scatter(*((to - middle) @ axes).T, s=12, alpha=0.5, color=colour, label=name, linewidth=0)
        length.hist(
            x.norm(dim=-1).tolist(),
            torch.linspace(0, longest, 60).tolist(),
            density=True,
            color=colour,
            alpha=0.7,
            label=name,
        )
    random = torch.randn(words.shape, generator=torch.Generator().manual_seed(0))
    cosine = {
        "embeddings": (words_to @ words_to.T - 2 * torch.eye(len(words)), GREY),
        "hidden states": (states_to @ words_to.T, ORANGE),
        "random directions": (direction(random) @ words_to.T, BLUE),
    }
    for name, (values, colour) in cosine.items():
        near.hist(
            values.max(-1).values.tolist(),
            torch.linspace(0, 1.001, 50).tolist(),
            density=True,
            color=colour,
            alpha=0.6,
            label=name,
        )
    plane.set(xlabel="first principal axis of the directions", ylabel="second", title="Directions")
    length.set(xlabel="norm", ylabel="density", title="Norms")
    near.set(
        xlabel="cosine with the nearest embedding (not itself)",
        ylabel="density",
        title="Distance from the vocabulary",
    )
    draw_spectrum(
        shares,
        {
            "embedding matrix": (spectrum(words).tolist(), effective_rank(words), GREY),
            "random matrix": (spectrum(random).tolist(), effective_rank(random), BLUE),
            "hidden states": (spectrum(states).tolist(), effective_rank(states), ORANGE),
        },
    )
    shares.set_title("Spectrum")
    for ax in (plane, length, near):
        ax.legend(fontsize=9.5)
    return figure


def draw_spectrum(ax, shares: dict[str, tuple[list[float], float, str]]) -> None:
    """How much of the energy the first directions hold. By name: the shares, the effective rank, a colour."""
    for name, (values, rank, colour) in shares.items():
        ax.plot(
            range(1, len(values) + 1),
            torch.tensor(values).cumsum(0).mul(100),
            color=colour,
            linewidth=2,
            label=f"{name}: effective rank {rank:.0f}",
        )
    ax.set(
        xlabel="directions, strongest first",
        ylabel="% of the energy that they hold",
        ylim=(0, 103),
        xlim=(0, None),
    )
    ax.legend(loc="lower right", fontsize=9.5)
