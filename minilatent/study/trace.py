"""How a run thinks one question through, as text; figures.py draws it. A readable chain is only an illustration."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..batch import encode_question
from ..config import UserError
from ..evaluate import room
from ..latent import entropy
from ..methods import CoLaR
from ..tokenizer import Tokenizer
from .interventions import closed_prefix


@dataclass
class Trace:
    """How one question was thought through. Row N of probs is the distribution at the collapse, after the last step."""

    question: str
    answer: str
    closed: bool  # ended by itself, not by max_chain
    chain: list[int]  # (N,) each step's likeliest token
    probs: Tensor  # (N + 1, V); (0, V) for a method that does not think
    explicit: bool
    nearest: Tensor | None = None  # CoLaR: (N, V) cosines of each latent with the embedding table
    sigma: Tensor | None = None  # and (N,) the latent head's σ, its mean over the width


@torch.no_grad()
def trace(method, question: str) -> Trace:
    if not question.strip():
        raise UserError("the question is empty")
    if len(method.prompt(question)) > room(method):
        raise UserError(
            f"the question has {len(encode_question(question, method.tok))} tokens: with {method.decoding()['max_chain']} "
            f"for the chain and {method.config.max_answer} for the answer it does not fit in the context of "
            f"{method.model.config.context}"
        )
    method.eval()
    out = method.solve([question])
    if out.latents is None:
        return Trace(
            question, out.answers[0], True, [], torch.zeros(0, method.model.config.vocab_size), False
        )
    n = int(out.lengths)
    # The chain is known now: one parallel pass gives every step's distribution, and the one that collapses.
    prefix, _ = closed_prefix(method, [question], out.latents, out.lengths)
    hidden = method.model(embeds=prefix[:, :-1])[0, -n - 1 :]  # (N + 1, C)
    logits = method.model.logits(hidden).float()
    logits[:, method.tok.never] = float("-inf")
    found = Trace(
        question,
        out.answers[0],
        bool(out.closed),
        out.chain[0, :n].tolist(),
        logits.softmax(-1).cpu(),
        method.explicit,
    )
    if isinstance(method, CoLaR):
        table = method.model.embed.weight.clone()
        table[method.tok.never] = 0
        found.nearest = torch.nn.functional.cosine_similarity(out.latents[0, :, None], table, dim=-1).cpu()
        found.sigma = method.latent_head(hidden[:-1])[1].exp().mean(-1).cpu()
    return found


def describe(t: Trace, tok: Tokenizer, top: int = 5) -> str:
    """What sample.py prints."""
    lines = [f"question  {t.question.strip()}"]
    if t.explicit:
        lines += [
            f"chain     {visible(tok.decode(t.chain))}",
            f"          {len(t.chain)} tokens, {ending(t)}",
        ]
    elif len(t.probs):
        lines += [f"chain     {len(t.chain)} latents, {ending(t)}", "", latent_lines(t, tok, top), ""]
        if t.nearest is not None:
            lines += [nearest_lines(t, tok, top), ""]
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
        cells = [
            f"{clip(tok.name(i), 8):8} {v:.2f}".replace("0.", ".", 1)
            if v < 0.995
            else f"{clip(tok.name(i), 8):8} 1.0"
            for i, v in zip(best, p)
        ]
        rows = ["  ".join(cells[i : i + a_line]) for i in range(0, top, a_line)]
        if n == len(t.probs):
            lines.append(" " * 4 + "-" * 15 + (" collapse" if t.closed else " no collapse: cut off"))
        lines.append(f"{n:4d}  {h:5.2f} {bar:6}  {rows[0]}".rstrip())
        lines += [" " * 21 + row for row in rows[1:]]
    return "\n".join(lines)


def nearest_lines(t: Trace, tok: Tokenizer, top: int) -> str:
    """A line a latent of CoLaR: its σ, the probability that the chain ends at it, and the tokens nearest to it."""
    cosine, ids = t.nearest.topk(top, dim=-1)
    lines = ["latent  σ      end    nearest embeddings, by cosine"]
    for n, (sigma, end, values, best) in enumerate(
        zip(t.sigma.tolist(), t.probs[1:, tok.end_think].tolist(), cosine.tolist(), ids.tolist()), 1
    ):
        cells = "  ".join(f"{clip(tok.name(i), 8):8} {v:5.2f}" for i, v in zip(best, values))
        lines.append(f"{n:4d}   {sigma:5.3f}  {end:5.3f}  {cells}")
    return "\n".join(lines)


def clip(text: str, width: int) -> str:
    """A token's name in a table or a figure."""
    text = visible(text)
    return text if len(text) <= width else text[: width - 1] + "…"
