"""Looking at a trained run: what its latents hold, as text (figures.py draws it), and whether it uses them.

A readable chain is only an illustration. Interventions are evidence: the model thinks freely, its latents are
replaced, and the answer is decoded from `Q <think> Z' </think>`. If it stays right, the latents were not needed;
if it becomes the answer of the question that Z' was taken from, they carry it.
"""

import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..config import UserError, nearest
from ..decode import decode
from ..evaluate import fitting, solve_batches, wilson
from ..tasks.answers import Example, extract_answer, is_correct
from .evaluation import label, table
from .measures import partners, to_hex

# ------------------------------------------------------------------ interventions


@dataclass
class Chains:
    """What an intervention may use: B questions' own chains, and what else could stand there."""

    z: Tensor  # (B, N, C) latents, 0 behind `steps`
    steps: Tensor  # (B,)
    donor: Tensor  # (B,) another question of the batch
    likeliest: Tensor  # (B, N, C) the embedding of each step's likeliest token
    mean: Tensor  # (C,) the mean latent of the whole data set
    generator: torch.Generator


def noise(c: Chains, times: float = 1.0) -> tuple[Tensor, Tensor]:
    """A random direction with each latent's own norm, or `times` that."""
    random = torch.randn(c.z.shape, generator=c.generator).to(c.z)
    return times * random / random.norm(dim=-1, keepdim=True) * c.z.norm(dim=-1, keepdim=True), c.steps


def shuffle(c: Chains) -> tuple[Tensor, Tensor]:
    """The question's own latents in random order."""
    key = torch.rand(c.z.shape[:2], generator=c.generator).to(c.z.device)
    key = key.masked_fill(
        torch.arange(c.z.shape[1], device=c.z.device) >= c.steps[:, None], 2.0
    )  # padding stays behind
    return c.z.gather(1, key.argsort(1)[:, :, None].expand_as(c.z)), c.steps


def extend(c: Chains, more: int = 4) -> tuple[Tensor, Tensor]:
    """The last latent stands `more` times more."""
    at = torch.arange(c.z.shape[1] + more, device=c.z.device).minimum(
        (c.steps - 1).clamp(min=0)[:, None]
    )  # (B, N + more)
    return c.z.gather(1, at[:, :, None].expand(-1, -1, c.z.shape[2])), c.steps + more * (c.steps > 0)


INTERVENTIONS: dict[str, Callable[[Chains], tuple[Tensor, Tensor]]] = {  # -> latents, steps
    "keep": lambda c: (c.z, c.steps),  # nothing changes: must cost nothing
    "noise": noise,
    "loud": lambda c: noise(c, 10),  # noise far larger than any latent
    "swap": lambda c: (c.z[c.donor], c.steps[c.donor]),  # another question's, as many as it has
    "zeros": lambda c: (torch.zeros_like(c.z), c.steps),
    "mean": lambda c: (c.mean.expand_as(c.z), c.steps),  # every latent is the data set's mean latent
    "shuffle": shuffle,
    "truncate": lambda c: (
        c.z,
        c.steps // 2,
    ),  # the first half only; truncate:N: the first N, truncate:-N: all but the last N
    "extend": extend,
    "top1": lambda c: (c.likeliest, c.steps),  # no mixture: one token a step
}


def intervention(name: str) -> Callable[[Chains], tuple[Tensor, Tensor]]:
    """By its name, truncate:N included. UserError if there is none."""
    if found := re.fullmatch(r"truncate:(-?)(\d+)", name):
        n = int(found[2])
        return lambda c: (c.z, (c.steps - n).clamp(min=0) if found[1] else c.steps.clamp(max=n))
    if name not in INTERVENTIONS:
        raise UserError(f"unknown intervention '{name}'{nearest(name, INTERVENTIONS)}")
    return INTERVENTIONS[name]


def applies(name: str, method) -> bool:
    """The likeliest token is part of a mixture, and all of a step in words; elsewhere it is no part of what was fed."""
    return name != "top1" or method.mixed or method.explicit


def check_interventions(method, names: list[str]) -> None:
    """UserError for a method that does not think, and for top1 where neither tokens nor mixtures of them are fed."""
    if names and method.thinker() is None:
        raise UserError(f"{method.config.method} does not think: it has no latents to replace")
    if unfit := [name for name in names if not applies(name, method)]:
        raise UserError(
            f"--intervene {unfit[0]}: {method.config.method} feeds neither tokens nor mixtures of them"
        )


def closed_prefix(method, questions: list[str], latents: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
    """Input embeddings of `Q <think> Z </think>`, (B, T, C) padded, and their lengths (B,). latents (B, N, C)."""
    embed = method.model.embed.weight
    rows = [
        torch.cat([embed[method.prompt(q)], z[:n], embed[[method.tok.end_think]]])
        for q, z, n in zip(questions, latents, steps.tolist())
    ]
    return pad_sequence(rows, True), torch.tensor([len(r) for r in rows], device=embed.device)


@torch.no_grad()
def answers_given(method, questions: list[str], latents: Tensor, steps: Tensor) -> list[str]:
    """The answers to questions whose chains are given."""
    return decode(
        method.model,
        method.tok,
        *closed_prefix(method, questions, latents, steps),
        None,
        max_answer=method.config.max_answer,
    ).answers


@torch.no_grad()
def intervene(
    method,
    examples: list[Example],
    names: list[str],
    batch: int = 0,
    seed: int = 0,
    per_question: bool = False,
) -> dict[str, dict]:
    """Accuracy with the latents replaced, by intervention: its 95 % interval, and the share of answers that stay
    what they were (`unchanged`). For explicit CoT the latents are its tokens' embeddings.

    Donors are questions of the same batch, with a chain of the same length where possible, that the model itself
    answers with something else than this question's right answer; `follows_donor` is the share of answers that
    become the donor's. Questions without a donor (`n` tells) are left out of swap.
    per_question    also "questions": "judged" and "correct" in the examples' order, as hexadecimal bits (metrics.to_hex)
    """
    examples = fitting(method, examples)
    generator = torch.Generator().manual_seed(seed)  # on the CPU: the same everywhere
    found: dict[str, dict[str, list[bool]]] = {name: defaultdict(list) for name in names}
    replace = {name: intervention(name) for name in names}
    check_interventions(method, names)
    batches = list(solve_batches(method, examples, batch))
    total = sum(int(out.lengths.sum()) for _, out, _ in batches)
    mean = sum(out.latents.double().sum((0, 1)) for _, out, _ in batches) / max(1, total)  # (C,)
    for chosen, out, _ in batches:
        some = [examples[i] for i in chosen]
        questions, gold = [e.question for e in some], [extract_answer(e.answer, e.answer) for e in some]
        said = [extract_answer(a, e.answer) for a, e in zip(out.answers, some)]
        known = {answer: i for i, answer in enumerate(dict.fromkeys(gold + said))}
        right = torch.tensor([known[answer] for answer in gold])  # (B,) answers as numbers
        told = torch.tensor([known[answer] if answer is not None else -1 for answer in said])
        donor = partners(out.lengths.cpu(), (right[:, None] != told) & (told >= 0))
        for name in names:
            z, steps = replace[name](
                Chains(
                    out.latents,
                    out.lengths,
                    donor.clamp(min=0).to(out.latents.device),
                    method.model.embed(out.chain),
                    mean.to(out.latents),
                    generator,
                )
            )
            answers = answers_given(method, questions, z, steps)
            for i, answer in enumerate(answers):
                d = int(donor[i])
                if name == "swap" and d < 0:
                    continue
                found[name]["right"].append(is_correct(answer, some[i].answer))
                found[name]["which"].append(chosen[i])
                answer = extract_answer(answer, some[i].answer)
                found[name]["unchanged"].append(answer == said[i])
                if name == "swap":
                    found[name]["follows_donor"].append(answer == said[d])
    results = {}
    for name, flags in found.items():
        n, right = len(flags["right"]), sum(flags["right"])
        shares = {
            key: sum(flags[key]) / n if n else None
            for key in ("unchanged", *(["follows_donor"] if name == "swap" else []))
        }
        results[name] = {
            "n": n,
            "accuracy": right / n if n else None,
            "ci95": list(wilson(right, n)),
            **shares,
        }
        if per_question:
            each = dict(zip(flags["which"], flags["right"]))
            results[name]["questions"] = {
                "judged": to_hex([i in each for i in range(len(examples))]),
                "correct": to_hex([each.get(i, False) for i in range(len(examples))]),
            }
    return results


def report_interventions(result: dict) -> str:
    """One data set's interventions as a table, below the free chain's accuracy."""
    percent = lambda value: "-" if value is None else f"{100 * value:.1f}"
    rows = [["the model's own", str(result["n"]), percent(result["accuracy"]), "100.0", "-"]]
    rows += [
        [
            name,
            str(r["n"]),
            percent(r["accuracy"]),
            percent(r.get("unchanged")),
            percent(r.get("follows_donor")),
        ]
        for name, r in result["interventions"].items()
    ]
    return f"latents replaced, {label(result)}\n" + table(
        ["", "n", "acc %", "same answer %", "donor's answer %"], rows
    )
