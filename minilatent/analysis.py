"""Looking at a trained run: what its latents hold (as text and as pictures), and whether it uses them.

A readable chain is only an illustration. Interventions are evidence: the model thinks freely, its latents are
replaced, and the answer is decoded from `Q <think> Z' </think>`. If it stays right, the latents were not needed;
if it becomes the answer of the question that Z' was taken from, they carry it.
"""
import io
import textwrap
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

import matplotlib
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from . import masks
from .batch import Row, encode_question
from .files import replace_file
from .config import UserError
from .decode import decode
from .evaluate import fitting, room, solve_batches, table
from .example import Example, extract_answer, is_correct
from .latent import entropy
from .methods.latent_sft import LatentSFT
from .metrics import partners, wilson
from .tokenizer import Tokenizer

matplotlib.use("Agg")
import matplotlib.pyplot as plt                      # noqa: E402  (after the backend is chosen)
from matplotlib.patches import Patch, Rectangle      # noqa: E402

# ------------------------------------------------------------------ interventions

# (latents (B, N, C), steps (B,), donor (B,): another question of the batch, generator) -> latents, steps
Intervention = Callable[[Tensor, Tensor, Tensor, torch.Generator], tuple[Tensor, Tensor]]


def noise(z: Tensor, steps: Tensor, donor: Tensor, generator: torch.Generator):
    """A random direction with each latent's own norm."""
    random = torch.randn(z.shape, generator=generator).to(z)
    return random / random.norm(dim=-1, keepdim=True) * z.norm(dim=-1, keepdim=True), steps


def swap(z: Tensor, steps: Tensor, donor: Tensor, generator: torch.Generator):
    """Another question's latents, as many as it has."""
    return z[donor], steps[donor]


def mean(z: Tensor, steps: Tensor, donor: Tensor, generator: torch.Generator):
    """Every latent is the batch's mean latent."""
    return (z.sum((0, 1)) / steps.sum().clamp(min=1)).expand_as(z), steps          # z is 0 behind `steps`


def shuffle(z: Tensor, steps: Tensor, donor: Tensor, generator: torch.Generator):
    """The question's own latents in random order."""
    key = torch.rand(z.shape[:2], generator=generator).to(z.device)
    key = key.masked_fill(torch.arange(z.shape[1], device=z.device) >= steps[:, None], 2.0)   # padding stays behind
    return z.gather(1, key.argsort(1)[:, :, None].expand_as(z)), steps


INTERVENTIONS: dict[str, Intervention] = {
    "keep": lambda z, steps, donor, generator: (z, steps),                         # nothing changes: must cost nothing
    "noise": noise,
    "swap": swap,
    "zeros": lambda z, steps, donor, generator: (torch.zeros_like(z), steps),
    "mean": mean,
    "shuffle": shuffle,
    "truncate": lambda z, steps, donor, generator: (z, steps // 2),                # the first half only
}


def closed_prefix(method, questions: list[str], latents: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
    """Input embeddings of `Q <think> Z </think>`, (B, T, C) padded, and their lengths (B,). latents (B, N, C)."""
    embed = method.model.embed.weight
    rows = [torch.cat([embed[method.prompt(q)], z[:n], embed[[method.tok.end_think]]])
            for q, z, n in zip(questions, latents, steps.tolist())]
    return pad_sequence(rows, True), torch.tensor([len(r) for r in rows], device=embed.device)


@torch.no_grad()
def answers_given(method, questions: list[str], latents: Tensor, steps: Tensor) -> list[str]:
    """The answers to questions whose chains are given."""
    return decode(method.model, method.tok, *closed_prefix(method, questions, latents, steps), None,
                  max_answer=method.config.max_answer).answers


@torch.no_grad()
def intervene(method, examples: list[Example], names: list[str], batch: int = 0, seed: int = 0) -> dict[str, dict]:
    """Accuracy with the latents replaced, by intervention: its 95 % interval, and the share of answers that stay
    what they were (`unchanged`). For explicit CoT the latents are its tokens' embeddings.

    Donors are questions of the same batch, with a chain of the same length where possible, that the model itself
    answers with something else than this question's right answer; `follows_donor` is the share of answers that
    become the donor's. Questions without a donor (`n` tells) are left out of swap.
    """
    examples = fitting(method, examples)
    generator = torch.Generator().manual_seed(seed)                                # on the CPU: the same everywhere
    found: dict[str, dict[str, list[bool]]] = {name: defaultdict(list) for name in names}
    for chosen, out, _ in solve_batches(method, examples, batch):
        if out.latents is None:
            raise UserError(f"{method.config.method} does not think: it has no latents to replace")
        some = [examples[i] for i in chosen]
        questions, gold = [e.question for e in some], [extract_answer(e.answer, e.answer) for e in some]
        said = [extract_answer(a, e.answer) for a, e in zip(out.answers, some)]
        known = {answer: i for i, answer in enumerate(dict.fromkeys(gold + said))}
        right = torch.tensor([known[answer] for answer in gold])                   # (B,) answers as numbers
        told = torch.tensor([known[answer] if answer is not None else -1 for answer in said])
        donor = partners(out.lengths.cpu(), (right[:, None] != told) & (told >= 0))
        for name in names:
            z, steps = INTERVENTIONS[name](out.latents, out.lengths, donor.clamp(min=0).to(out.latents.device), generator)
            answers = answers_given(method, questions, z, steps)
            for i, answer in enumerate(answers):
                d = int(donor[i])
                if name == "swap" and d < 0:
                    continue
                found[name]["right"].append(is_correct(answer, some[i].answer))
                answer = extract_answer(answer, some[i].answer)
                found[name]["unchanged"].append(answer == said[i])
                if name == "swap":
                    found[name]["follows_donor"].append(answer == said[d])
    results = {}
    for name, flags in found.items():
        n, right = len(flags["right"]), sum(flags["right"])
        shares = {key: sum(flags[key]) / n if n else None for key in ("unchanged", *(["follows_donor"] if name == "swap" else []))}
        results[name] = {"n": n, "accuracy": right / n if n else None, "ci95": list(wilson(right, n)), **shares}
    return results


def report_interventions(result: dict) -> str:
    """One data set's interventions as a table, below the free chain's accuracy."""
    percent = lambda value: "-" if value is None else f"{100 * value:.1f}"
    rows = [["the model's own", str(result["n"]), percent(result["accuracy"]), "100.0", "-"]]
    rows += [[name, str(r["n"]), percent(r["accuracy"]), percent(r.get("unchanged")), percent(r.get("follows_donor"))]
             for name, r in result["interventions"].items()]
    return f"latents replaced, {result['data']}\n" + table(["", "n", "acc %", "same answer %", "donor's answer %"], rows)


# ------------------------------------------------------------------ one question's chain

@dataclass
class Trace:
    """How one question was thought through. Row N of probs is the distribution at the collapse, after the last step."""
    question: str
    answer: str
    closed: bool                 # ended by itself, not by max_chain
    chain: list[int]             # (N,) each step's likeliest token
    probs: Tensor                # (N + 1, V); (0, V) for a method that does not think
    explicit: bool


@torch.no_grad()
def trace(method, question: str) -> Trace:
    if not question.strip():
        raise UserError("the question is empty")
    if len(method.prompt(question)) > room(method):
        raise UserError(f"the question has {len(encode_question(question, method.tok))} tokens: with {method.decoding()['max_chain']} "
                        f"for the chain and {method.config.max_answer} for the answer it does not fit in the context of "
                        f"{method.model.config.context}")
    method.eval()
    out = method.solve([question])
    if out.latents is None:
        return Trace(question, out.answers[0], True, [], torch.zeros(0, method.model.config.vocab_size), False)
    n = int(out.lengths)
    # The chain is known now: one parallel pass gives every step's distribution, and the one that collapses.
    prefix, _ = closed_prefix(method, [question], out.latents, out.lengths)
    hidden = method.model(embeds=prefix[:, :-1])[0, -n - 1:]                       # (N + 1, C)
    logits = method.model.logits(hidden).float()
    logits[:, method.tok.never] = float("-inf")
    return Trace(question, out.answers[0], bool(out.closed), out.chain[0, :n].tolist(), logits.softmax(-1).cpu(),
                 method.explicit)


def describe(t: Trace, tok: Tokenizer, top: int = 5) -> str:
    """What sample.py prints."""
    lines = [f"question  {t.question.strip()}"]
    if t.explicit:
        lines += [f"chain     {visible(tok.decode(t.chain))}", f"          {len(t.chain)} tokens, {ending(t)}"]
    elif len(t.probs):
        lines += [f"chain     {len(t.chain)} latents, {ending(t)}", "", latent_lines(t, tok, top), ""]
    return "\n".join([*lines, f"answer    {visible(t.answer.strip()) or '(none)'}"])


def visible(text: str) -> str:
    """A byte token can be a control character, which a terminal would obey and a font does not have."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def ending(t: Trace) -> str:
    return "ended by itself" if t.closed else "cut off there: it did not end by itself"


def latent_lines(t: Trace, tok: Tokenizer, top: int, a_line: int = 5) -> str:
    """A line a step: entropy (nats) as a bar, then the likeliest tokens with their probabilities."""
    H = entropy(t.probs)
    full = max(1.0, H.max().item())
    values, ids = t.probs.topk(top, dim=-1)
    lines = [f"step  entropy        {'likeliest tokens':{14 * min(top, a_line)}}".rstrip()]
    for n, (h, p, best) in enumerate(zip(H.tolist(), values.tolist(), ids.tolist()), 1):
        bar = "█" * round(6 * h / full)
        cells = [f"{clip(tok.name(i), 8):8} {v:.2f}".replace("0.", ".", 1) if v < 0.995 else f"{clip(tok.name(i), 8):8} 1.0"
                 for i, v in zip(best, p)]
        rows = ["  ".join(cells[i:i + a_line]) for i in range(0, top, a_line)]
        if n == len(t.probs):
            lines.append(" " * 4 + "-" * 15 + (" collapse" if t.closed else " no collapse: cut off"))
        lines.append(f"{n:4d}  {h:5.2f} {bar:6}  {rows[0]}".rstrip())
        lines += [" " * 21 + row for row in rows[1:]]
    return "\n".join(lines)


def clip(text: str, width: int) -> str:
    """A token's name in a table or a figure."""
    text = visible(text)
    return text if len(text) <= width else text[:width - 1] + "…"


# ------------------------------------------------------------------ figures

BLUE, ORANGE, GREY, RED = "#2a6fbb", "#e08214", "#8a8f98", "#c0392b"
STYLE = {"font.size": 11, "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 12,
         "text.parse_math": False, "legend.frameon": False, "figure.dpi": 150}      # "$" is a token, not mathematics


def save_figure(figure, path: str | Path) -> None:
    """As PNG, PDF or SVG, by the name's ending; atomically."""
    path = Path(path)
    kind = path.suffix[1:].lower()
    if kind not in ("png", "pdf", "svg"):
        raise UserError(f"{path}: a figure's name ends with .png, .pdf or .svg")
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, bbox_inches="tight", facecolor="white")
    plt.close(figure)
    replace_file(path, lambda p: p.write_bytes(buffer.getvalue()))


@plt.rc_context(STYLE)
def chain_figure(t: Trace, tok: Tokenizer, top: int = 8):
    """The paper's Figure 1 for one question: the k likeliest tokens of each step by rank, and the entropy above."""
    if not len(t.probs):
        raise UserError("this method does not think: there is no chain to draw")
    values, ids = (x.numpy() for x in t.probs.topk(top, dim=-1))                   # (N + 1, k)
    steps = len(t.probs)
    size = (max(6.5, 0.74 * steps + 1.6), 0.36 * top + 2.6)
    figure, (above, below) = plt.subplots(2, 1, sharex=True, figsize=size, layout="constrained",
                                          height_ratios=(1.4, 0.36 * top))
    image = below.imshow(values.T, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for n in range(steps):
        for rank in range(top):
            p = values[n, rank]
            name = clip(tok.name(int(ids[n, rank])), 8)
            below.text(n, rank, name, ha="center", va="center", fontsize=9 if len(name) < 7 else 7.5,
                       color="white" if p > 0.55 else "black" if p > 0.02 else GREY)
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
    for ax in (above, below):                                                      # the collapse
        ax.axvline(steps - 1.5, color=RED, linestyle="--", linewidth=1.4)
    word = "collapse" if t.closed else "cut off"
    above.annotate(f"{word} → {visible(t.answer.strip())}", (steps - 1.5, 1.0), xycoords=("data", "axes fraction"), color=RED,
                   xytext=(-5, 2), textcoords="offset points", ha="right", va="bottom", fontweight="bold")
    unit = "tokens" if t.explicit else "latents"
    figure.suptitle(f"{wrap(t.question, int(size[0] * 13))}\n{steps - 1} {unit}", fontsize=11, ha="left", x=0.01)
    return figure


def wrap(text: str, width: int) -> str:
    return "\n".join(textwrap.wrap(" ".join(text.split()), width))


KIND_COLOURS = {masks.PREFIX: "#9ab8d8", masks.LATENT: ORANGE, masks.TEXT: "#7fbf7b", masks.TAIL: "#b39bc8"}
KIND_NAMES = {masks.PREFIX: "question, <think>", masks.LATENT: "latents", masks.TEXT: "chain", masks.TAIL: "</think>, answer"}


@plt.rc_context(STYLE)
def masks_figure(method):
    """The two masks of Latent-SFT's stage 1 on a short example, as its own code builds them: who (row) sees whom
    (column), what the mask hides, and the positions of the decoder's dual track."""
    tok, maker = method.tok, LatentSFT(method.config, method.tok, method.model)
    row = Row(tok.encode("Ava has 12."), tok.encode("<<12*3=36>>"), [*tok.encode("36"), tok.eos])
    figure, axes = plt.subplots(1, 2, figsize=(15, 8.2), layout="constrained")
    for ax, layout, name in zip(axes, (maker.encoder_layout(row), maker.decoder_layout(row)), ("induction", "supervision")):
        ids, kind, block = maker.tensors([layout]).values()
        mask = masks.induction_mask(kind) if name == "induction" else masks.supervision_mask(kind, block)
        positions = torch.arange(len(layout.ids)) if name == "induction" else masks.dual_track_positions(kind)[0]
        latent = "L" if name == "induction" else "Z"
        labels = [f"{latent}{layout.block[i]}" if layout.kind[i] == masks.LATENT else clip(tok.name(token), 8)
                  for i, token in enumerate(layout.ids)]
        draw_mask(ax, mask[0], masks.causal(kind)[0], layout.kind, labels, positions.tolist())
        ax.set_title({"induction": "Latent token induction mask (encoder)",
                      "supervision": "Latent token supervision mask (decoder)"}[name], pad=12, fontweight="bold")
    handles = [Patch(color=KIND_COLOURS[kind], label=f"sees {KIND_NAMES[kind]}") for kind in KIND_COLOURS]
    handles.append(Patch(facecolor="white", edgecolor=GREY, hatch="////", label="earlier, but hidden"))
    figure.legend(handles=handles, loc="outside lower center", ncols=5, fontsize=12)
    return figure


def draw_mask(ax, mask: Tensor, causal: Tensor, kind: list[int], labels: list[str], positions: list[int]) -> None:
    T = len(labels)
    for i in range(T):
        for j in range(i + 1):
            if mask[i, j]:
                ax.add_patch(Rectangle((j, i), 1, 1, facecolor=KIND_COLOURS[kind[j]], edgecolor="white", linewidth=1))
            elif causal[i, j]:
                ax.add_patch(Rectangle((j, i), 1, 1, facecolor="white", edgecolor="#c9ccd1", hatch="////", linewidth=0))
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
    figure, axes = plt.subplots(len(results), wide, figsize=(5.2 * wide, 4 * len(results)), layout="constrained", squeeze=False)
    for row, r in zip(axes, results):
        for ax in row:
            ax.set_axis_off()                                                      # until there is something in it
        row[0].set_title(r["data"], loc="left", fontweight="bold")
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
    if r["ecr_control"]:
        ax.plot(ks, r["ecr_control"].values(), color=GREY, marker="o", linestyle="--", label="most frequent tokens")
    ax.set_xscale("log")
    ax.set_xticks(ks, ks, fontsize=9)
    ax.minorticks_off()
    ax.set(xlabel="K", ylabel="ECR@K (tokens a step)", ylim=(0, None))
    ax.legend(loc="lower right")


def draw_n_eff(ax, r: dict, suffix: str, label: str) -> None:
    ax.set_axis_on()
    for key, name, colour, line in (("n_eff", "its own chains", BLUE, "-"),
                                    ("n_eff_control", "another question's chains", GREY, "--"),
                                    ("n_eff_one_path", "latents that hold one chain", ORANGE, "--")):
        if values := r["n_eff_quantiles"][key + suffix]:
            ax.plot([100 * i / (len(values) - 1) for i in range(len(values))], values, color=colour, linestyle=line,
                    linewidth=2, label=name)
    ax.axhline(1.7, color=RED, linewidth=1, linestyle=":", label="parallel from here on (1.7)")
    ax.set(xlabel=f"% of {r['n_multi']} questions with several chains, sorted", ylabel=label)
    ax.set_ylim(0.9, 1.45 * ax.get_ylim()[1])                                      # room for the legend
    ax.legend(loc="upper left", fontsize=9.5)
