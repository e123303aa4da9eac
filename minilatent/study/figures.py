"""What figures share, and the figure of one chain, the paper's Figure 1."""

import io
import textwrap
from pathlib import Path

import matplotlib

from ..config import UserError
from ..files import replace_file
from ..latent import entropy
from ..tokenizer import Tokenizer
from .trace import Trace, clip, visible

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  (after the backend is chosen)

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


# ------------------------------------------------------------------ one chain


@plt.rc_context(STYLE)
def chain_figure(t: Trace, tok: Tokenizer, top: int = 8):
    """The paper's Figure 1: the most likely tokens of each step by rank, and the entropy above."""
    if not len(t.probs):
        raise UserError("this method does not think: there is no chain to draw")
    values, ids = (x.numpy() for x in t.probs.topk(top, dim=-1))  # (N + 1, top)
    steps = len(t.probs)
    size = (max(6.5, 0.74 * steps + 1.6), 0.36 * top + 2.6)
    shape = {"figsize": size, "layout": "constrained", "height_ratios": (1.4, 0.36 * top)}
    figure, (above, below) = plt.subplots(2, 1, sharex=True, **shape)
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
