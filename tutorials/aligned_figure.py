"""A chain in words above its latents: what each latent holds of its segment.

python tutorials/aligned_figure.py      draws README's picture anew
"""

import textwrap
import zlib
from pathlib import Path

import torch
from lesson import BASE, BLUE, LATENT_SFT, ORANGE, plt
from matplotlib.patches import Rectangle

from minilatent.run import load_run
from minilatent.study.trace import trace

INK = "#333333"
QUESTION = (
    "Ava has 12 apples. Ava swaps each for 3. Ava sells all full boxes of 8. Ben has 7 apples. "
    "Ben buys 9 more. How many have Ava and Ben together?"
)


def aligned_figure(words, thought, tok, ratio: int, top: int = 3):
    """words, thought: the traces of one question, in words and in latents of `ratio` tokens each. Under the
    tokens of a segment stands its latent: the `top` most likely tokens and their probabilities, as bars."""
    segments = [words.chain[i : i + ratio] for i in range(0, len(words.chain), ratio)]
    columns = max(len(segments), len(thought.chain))
    figure, ax = plt.subplots(figsize=(1.02 * columns + 1.3, 0.42 * top + 2.3))
    ax.set(xlim=(-1.25, columns), ylim=(-top - 0.75, 1.75))
    ax.axis("off")
    for y, text in ((1.25, "words"), (-top / 2 + 0.5, f"latents:\n{top} most likely\ntokens")):
        ax.text(-0.15, y, text, ha="right", va="center", color=INK, fontsize=10.5, linespacing=1.3)
    for n, segment in enumerate(segments):
        width = 0.9 / len(segment)
        for i, token in enumerate(segment):
            ax.add_patch(Rectangle((n + 0.05 + i * width, 1), width, 0.55, fill=False, edgecolor=INK, lw=0.9))
            name = tok.name(token)
            place, size = n + 0.05 + (i + 0.5) * width, 10.5 if len(name) < 5 else 8.5
            ax.text(place, 1.27, name, ha="center", va="center", color=INK, fontsize=size)
        ax.plot([n + 0.05, n + 0.05, n + 0.95, n + 0.95], [0.93, 0.8, 0.8, 0.93], color=INK, lw=0.9)
        ax.plot([n + 0.5, n + 0.5], [0.8, 0.62], color=INK, lw=0.9)
    values, ids = thought.probs[: len(thought.chain)].topk(top, dim=-1)
    for n, (probs, tokens) in enumerate(zip(values.tolist(), ids.tolist())):
        own = segments[n] if n < len(segments) else []
        for rank, (p, token) in enumerate(zip(probs, tokens)):
            y, look = -rank + 0.05, "bold" if token in own else "normal"
            colour = ORANGE if token in own else "#d5d9df"
            ax.add_patch(Rectangle((n + 0.05, y - 0.42), 0.9 * p, 0.84, color=colour, alpha=0.55, lw=0))
            ax.text(n + 0.1, y, tok.name(token), va="center", color=INK, fontweight=look, fontsize=10.5)
            number = f"{p:.2f}".removeprefix("0")
            ax.text(n + 0.93, y, number, ha="right", va="center", color=INK, fontsize=9.5)
        ax.add_patch(Rectangle((n + 0.02, -top + 0.5), 0.96, top + 0.05, fill=False, edgecolor=BLUE, lw=1.2))
        ax.text(n + 0.5, -top + 0.12, str(n + 1), ha="center", va="center", color=BLUE, fontsize=10.5)
    held = "bold, on orange: a token of the segment above; the bar's length is the probability"
    ax.text(columns / 2, -top - 0.5, held, ha="center", va="center", color=INK, fontsize=10.5)
    lengths = f"One thought in {len(words.chain)} tokens, and below them in {len(thought.chain)} latents"
    asked = textwrap.fill(thought.question, 13 * columns)
    ax.set_title(f"{lengths}\n{asked}", fontsize=11.5, loc="left", linespacing=1.5)
    return figure


def example(question: str = QUESTION):
    """The figure, of mini-base's chain and the latents of the committed checkpoint."""
    base, method = (load_run(folder, torch.device("cpu")) for folder in (BASE, LATENT_SFT))
    return aligned_figure(trace(base, question), trace(method, question), method.tok, method.ratio)


def models() -> str:
    """Checksums of the two, which the picture carries: a test finds one of earlier models."""
    return " ".join(f"{zlib.crc32((p / 'model.safetensors').read_bytes()):08x}" for p in (BASE, LATENT_SFT))


if __name__ == "__main__":
    more = {"bbox_inches": "tight", "facecolor": "white", "metadata": {"Source": models()}}
    example().savefig(Path(__file__).parent / "aligned.png", dpi=110, **more)
