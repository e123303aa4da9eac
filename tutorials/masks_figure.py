"""The figure of lesson 5: Latent-SFT's two masks."""

import torch
from lesson import GREY, ORANGE, plt
from matplotlib.patches import Patch, Rectangle
from torch import Tensor

from minilatent import masks
from minilatent.batch import encode
from minilatent.study.trace import clip
from minilatent.tasks.answers import Example
from minilatent.tokenizer import Tokenizer

KINDS = {  # of a position: its colour and its name
    masks.PREFIX: ("#9ab8d8", "question, <think>"),
    masks.LATENT: (ORANGE, "latents"),
    masks.TEXT: ("#7fbf7b", "chain"),
    masks.TAIL: ("#b39bc8", "</think>, answer"),
}


def masks_figure(method):
    """The two masks of stage 1 on a short example, as the method builds them: which position (row) sees which
    (column), what the mask hides, and the positions of the decoder's dual track."""
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
