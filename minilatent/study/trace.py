"""How a run thinks about one question, as text (figures.py draws it): an illustration, no evidence."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import UserError, wrapped
from ..evaluate import fitting
from ..latent import entropy
from ..tasks.answers import Example
from ..tokenizer import Tokenizer
from .interventions import closed_prefix


@dataclass
class Trace:
    """One question's chain. Row N of probs is the distribution at the collapse, after the last step."""

    question: str
    answer: str
    closed: bool  # the chain ended by itself, not at max_chain
    chain: list[int]  # (N,) each step's most likely token
    probs: Tensor  # (N + 1, V); (0, V) for a method that does not think
    explicit: bool
    # With a latent head: (N, V) cosines of each latent with the embedding table, and (N,) the mean of its σ
    nearest: Tensor | None = None
    sigma: Tensor | None = None


@torch.no_grad()
def trace(method, question: str) -> Trace:
    """Raises UserError for a question that is empty or does not fit in the context."""
    if not question.strip():
        raise UserError("the question is empty")
    fitting(method, [Example(question, (), "")])
    method.eval()
    out = method.solve([question])
    answer = out.answers[0]
    if out.latents is None:
        return Trace(question, answer, True, [], torch.zeros(0, method.model.config.vocab_size), False)
    n, never = int(out.lengths), method.tok.never
    # The chain is known now: one parallel pass gives the distribution of every step and of the collapse.
    prefix, _ = closed_prefix(method, [question], out.latents, out.lengths)
    hidden = method.model(embeds=prefix[:, :-1])[0, -n - 1 :]  # (N + 1, C)
    logits = method.model.logits(hidden).float()
    logits[:, never] = float("-inf")
    chain, probs = out.chain[0, :n].tolist(), logits.softmax(-1).cpu()
    found = Trace(question, answer, bool(out.closed), chain, probs, method.explicit)
    if hasattr(method, "latent_head"):
        embeddings = method.model.embed.weight.clone()
        embeddings[never] = 0
        found.nearest = F.cosine_similarity(out.latents[0, :, None], embeddings, dim=-1).cpu()
        found.sigma = method.latent_head(hidden[:-1])[1].exp().mean(-1).cpu()
    return found


# ------------------------------------------------------------------ as text


def describe(t: Trace, tok: Tokenizer, top: int = 5) -> str:
    """The text that sample.py prints; `top` tokens a step."""
    ending = "ended by itself" if t.closed else "cut off there: it did not end by itself"
    lines = [wrapped(f"question  {t.question.strip()}", 10)]
    if t.explicit:
        lines.append(wrapped(f"chain     {visible(tok.decode(t.chain))}", 10))
        lines.append(f"          {len(t.chain)} tokens, {ending}")
    elif len(t.probs):
        lines += [f"chain     {len(t.chain)} latents, {ending}", "", *latent_lines(t, tok, top), ""]
        if t.nearest is not None:
            lines += [*nearest_lines(t, tok, top), ""]
    return "\n".join([*lines, f"answer    {visible(t.answer.strip()) or '(none)'}"])


def latent_lines(t: Trace, tok: Tokenizer, top: int) -> list[str]:
    """For each step the entropy (nats) as a bar, then the most likely tokens with their probabilities."""
    H = entropy(t.probs)
    full = max(1.0, H.max().item())
    values, ids = t.probs.topk(top, dim=-1)
    lines = ["step  entropy        most likely tokens"]
    for n, (h, probs, best) in enumerate(zip(H.tolist(), values.tolist(), ids.tolist()), 1):
        cells = []
        for i, p in zip(best, probs):
            number = "1.0" if p >= 0.995 else f"{p:.2f}".removeprefix("0")
            cells.append(f"{clip(tok.name(i), 8):8} {number}".replace(" ", "\0"))  # stays whole
        if n == len(t.probs):
            lines.append("    --------------- " + ("collapse" if t.closed else "no collapse: cut off"))
        bar = "█" * round(6 * h / full)
        lines.append(wrapped(f"{n:4d}  {h:5.2f} {bar:6}  {'  '.join(cells)}", 21))
    return lines


def nearest_lines(t: Trace, tok: Tokenizer, top: int) -> list[str]:
    """For each latent its σ, the probability that the chain ends after it, and the tokens nearest to it."""
    cosines, ids = t.nearest.topk(top, dim=-1)
    ends = t.probs[1:, tok.end_think]
    lines = ["latent  σ      end    nearest embeddings, by cosine"]
    for n, (sigma, end, values, best) in enumerate(zip(t.sigma, ends, cosines.tolist(), ids.tolist()), 1):
        cells = [f"{clip(tok.name(i), 8):8} {v:5.2f}".replace(" ", "\0") for i, v in zip(best, values)]
        lines.append(wrapped(f"{n:4d}   {sigma:5.3f}  {end:5.3f}  {'  '.join(cells)}", 21))
    return lines


def visible(text: str) -> str:
    """A byte token can be a control character, which a terminal would obey and a font does not have."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def clip(text: str, width: int) -> str:
    """The name of a token in a table or a figure."""
    text = visible(text)
    return text if len(text) <= width else text[: width - 1] + "…"
