"""Schematics: what is fed back at each step of thinking (lesson 4), and Latent-SFT's two stages (lesson 6).

python tutorials/schematics.py      draws README's picture anew
"""

from pathlib import Path

from lesson import BLUE, GREEN, ORANGE, plt
from matplotlib.patches import FancyBboxPatch

INK, MODEL, GREY = "#333333", "#eef1f5", "#6b717a"


def box(ax, x: float, y: float, width: float, height: float, text: str, colour=INK, fill="white", **more):
    """A rounded box around the point (x, y)."""
    style, corner = "round,pad=0.02,rounding_size=0.09", (x - width / 2, y - height / 2)
    ax.add_patch(FancyBboxPatch(corner, width, height, style, edgecolor=colour, facecolor=fill, lw=1.4))
    ax.text(x, y, text, ha="center", va="center", color=INK, linespacing=1.35, **more)


def arrow(ax, start: tuple, end: tuple, colour=INK):
    style = {"arrowstyle": "-|>", "color": colour, "lw": 1.7, "shrinkA": 0, "shrinkB": 0}
    ax.annotate("", end, start, arrowprops=style)


def feedback_figure():
    """The three loops side by side: a word, a hidden state, a superposition."""
    figure, axes = plt.subplots(1, 3, figsize=(12.6, 4.6))
    loops = (
        (
            "A word",
            "chain of thought",
            GREY,
            "most likely\ntoken",
            "its\nembedding",
            "one token is kept, the rest is lost",
        ),
        (
            "A hidden state",
            "Coconut, CODI",
            GREEN,
            "state $h_t$",
            "$h_t$ itself",
            "all is kept, but unlike any word",
        ),
        (
            "A superposition",
            "Latent-SFT",
            BLUE,
            "top-k\nprobabilities $α$",
            "$\\sum_v α_v e_v$",
            "several tokens are kept, in words it knows",
        ),
    )
    for ax, (title, who, colour, made, fed, kept) in zip(axes, loops):
        ax.set(xlim=(0.2, 3.8), ylim=(0.1, 5.4))
        ax.axis("off")
        ax.text(2, 5.15, title, ha="center", fontsize=15, fontweight="bold", color=colour)
        ax.text(2, 4.75, who, ha="center", fontsize=11.5, color=INK)
        box(ax, 1.3, 2.5, 1.6, 0.75, "transformer", fill=MODEL, fontsize=12)
        box(ax, 1.3, 3.9, 1.6, 0.8, made, colour, fontsize=12)
        arrow(ax, (1.3, 1.15), (1.3, 2.1))
        arrow(ax, (1.3, 2.9), (1.3, 3.48))
        ax.plot([2.13, 3.5, 3.5], [3.9, 3.9, 1.55], color=colour, lw=2)
        arrow(ax, (3.5, 1.55), (1.36, 1.55), colour)
        ax.text(3.4, 2.75, fed, ha="right", va="center", fontsize=12, color=colour, linespacing=1.3)
        ax.text(1.3, 1.0, "question and thought so far", ha="center", va="top", fontsize=11, color=INK)
        ax.text(2, 0.3, kept, ha="center", va="center", fontsize=11.5, style="italic", color=INK)
    return figure


def stages_figure():
    """Stage 1 makes the latents of a known chain; stage 2 teaches the model to produce them by itself."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(12.6, 4.4), width_ratios=(1.25, 1))
    left.set(xlim=(0, 6.4), ylim=(0, 4.6))
    left.set_title("Stage 1: make the latents", fontweight="bold")
    box(left, 1.15, 0.6, 2.1, 0.75, "question, chain\nin words", fontsize=11)
    box(left, 1.15, 2.1, 1.7, 0.75, "encoder", fill=MODEL, fontsize=12)
    box(left, 1.15, 3.7, 2.1, 0.8, "a latent for every\nr tokens", ORANGE, fontsize=11)
    box(left, 4.9, 0.6, 2.5, 0.75, "question, latents", ORANGE, fontsize=11)
    box(left, 4.9, 2.1, 1.7, 0.75, "decoder", fill=MODEL, fontsize=12)
    box(left, 4.9, 3.7, 2.6, 0.8, "what follows each latent,\nand the answer", fontsize=11)
    for x in (1.15, 4.9):
        arrow(left, (x, 1.02), (x, 1.68))
        arrow(left, (x, 2.52), (x, 3.26))
    left.plot([2.25, 2.95, 2.95], [3.7, 3.7, 0.6], color=ORANGE, lw=2)
    arrow(left, (2.95, 0.6), (3.6, 0.6), ORANGE)

    right.set(xlim=(0, 5), ylim=(0, 4.6))
    right.set_title("Stage 2: learn to produce them", fontweight="bold")
    box(right, 1.6, 0.6, 2.1, 0.75, "question, latents\nso far", fontsize=11)
    box(right, 1.6, 2.1, 1.7, 0.75, "model", fill=MODEL, fontsize=12)
    box(right, 1.6, 3.7, 2.1, 0.8, "next latent,\nthen the answer", ORANGE, fontsize=11)
    arrow(right, (1.6, 1.02), (1.6, 1.68))
    arrow(right, (1.6, 2.52), (1.6, 3.26))
    right.plot([2.7, 3.3, 3.3], [3.55, 3.55, 0.6], color=BLUE, lw=2)
    arrow(right, (3.3, 0.6), (2.72, 0.6), BLUE)
    right.text(3.4, 1.9, "fed back,\nat inference", fontsize=11, color=BLUE, va="center")
    right.text(2.8, 4.0, "KL to stage 1's latents,\ncross-entropy on the answer", fontsize=11, color=INK)
    for ax in (left, right):
        ax.axis("off")
    return figure


if __name__ == "__main__":
    figure = feedback_figure()
    figure.savefig(Path(__file__).parent / "feedback.png", dpi=110, facecolor="white")
