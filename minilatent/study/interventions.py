"""Does a model use its latents? They are replaced, and the answer is decoded from `Q <think> Z' </think>`.

If the answer stays right, the latents were not needed; if it becomes the answer of the question that Z' was
taken from, they carry it. A readable chain is an illustration; this is evidence.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..config import UserError, nearest
from ..decode import decode
from ..evaluate import fitting, solve_batches, wilson
from ..tasks.answers import Example, extract_answer, is_correct
from .evaluation import label, percent, table
from .measures import partners, to_hex


@dataclass
class Latents:
    """What an intervention may use: B questions' own latents, and what else could stand in their place."""

    z: Tensor  # (B, N, C) latents, 0 after `steps`
    steps: Tensor  # (B,)
    donor: Tensor  # (B,) another question of the batch
    likeliest: Tensor  # (B, N, C) the embedding of each step's most likely token
    mean: Tensor  # (C,) the mean latent of the whole data set
    generator: torch.Generator


Replaced = tuple[Tensor, Tensor]  # latents (B, N', C) and steps (B,)


def noise(x: Latents) -> Replaced:
    """A random direction with the norm of each latent."""
    random = torch.randn(x.z.shape, generator=x.generator).to(x.z)
    return random / random.norm(dim=-1, keepdim=True) * x.z.norm(dim=-1, keepdim=True), x.steps


def shuffle(x: Latents) -> Replaced:
    """The question's own latents in random order."""
    key = torch.rand(x.z.shape[:2], generator=x.generator).to(x.z.device)
    padding = torch.arange(x.z.shape[1], device=x.z.device) >= x.steps[:, None]
    order = key.masked_fill(padding, 2.0).argsort(1)  # padding stays at the end
    return x.z.gather(1, order[:, :, None].expand_as(x.z)), x.steps


INTERVENTIONS: dict[str, Callable[[Latents], Replaced]] = {
    "keep": lambda x: (x.z, x.steps),  # nothing changes: must cost nothing
    "noise": noise,
    "swap": lambda x: (x.z[x.donor], x.steps[x.donor]),  # another question's, as many as it has
    "zeros": lambda x: (torch.zeros_like(x.z), x.steps),
    "mean": lambda x: (x.mean.expand_as(x.z), x.steps),  # every latent is the mean latent of the data set
    "shuffle": shuffle,
    "truncate": lambda x: (x.z, x.steps // 2),  # the first half only
    "top1": lambda x: (x.likeliest, x.steps),  # no mixture: one token a step
}


def applies(name: str, method) -> bool:
    """top1 needs steps that are tokens or mixtures of tokens; other latents have no most likely token."""
    return name != "top1" or method.mixed or method.explicit


def check_interventions(method, names: list[str]) -> None:
    """UserError for an unknown name, a method that does not think, and top1 where it does not apply."""
    for name in names:
        if name not in INTERVENTIONS:
            raise UserError(f"unknown intervention '{name}'{nearest(name, INTERVENTIONS)}")
    if names and method.thinker() is None:
        raise UserError(f"{method.config.method} does not think: it has no latents to replace")
    if not all(applies(name, method) for name in names):
        raise UserError(f"--intervene top1: {method.config.method} feeds neither tokens nor mixtures of them")


def closed_prefix(method, questions: list[str], latents: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
    """Input embeddings of `Q <think> Z </think>`, (B, T, C) padded, and lengths (B,). latents (B, N, C)"""
    embed = method.model.embed.weight
    end, rows = embed[method.tok.end_think][None], []
    for question, z, n in zip(questions, latents, steps.tolist()):
        rows.append(torch.cat([embed[method.prompt(question)], z[:n], end]))
    return pad_sequence(rows, True), torch.tensor([len(row) for row in rows], device=embed.device)


@torch.no_grad()
def answers_given(method, questions: list[str], latents: Tensor, steps: Tensor) -> list[str]:
    """The answers to questions whose latents (B, N, C) are given."""
    prefix = closed_prefix(method, questions, latents, steps)
    return decode(method.model, method.tok, *prefix, None, max_answer=method.config.max_answer).answers


@torch.no_grad()
def intervene(method, examples: list[Example], names: list[str], batch=0, per_question=False) -> dict:
    """By intervention: accuracy with the replaced latents, its 95 % interval, and the share of answers that
    stay `unchanged`. For explicit CoT the latents are the embeddings of its tokens.

    A donor is a question of the same batch, with a chain of the same length where possible, whose answer by
    the model is neither this question's right answer nor its own; `follows_donor` is the share of answers
    that become the donor's. Questions without a donor are left out of swap (see `n`).

    per_question: also "questions", with "judged" and "correct" by question, as bits (measures.to_hex)
    """
    check_interventions(method, names)
    examples = fitting(method, examples)
    generator = torch.Generator().manual_seed(0)  # on the CPU: the same everywhere
    batches = list(solve_batches(method, examples, batch))
    total = sum(int(out.lengths.sum()) for _, out, _ in batches)
    mean = sum(out.latents.double().sum((0, 1)) for _, out, _ in batches) / max(1, total)  # (C,)
    # Is an answer right, unchanged, the donor's? NaN for a question that is left out.
    found = {name: torch.full((3, len(examples)), torch.nan).double() for name in names}
    for chosen, out, _ in batches:
        some, z = [examples[i] for i in chosen], out.latents
        questions, likeliest = [e.question for e in some], method.model.embed(out.chain)
        own = [extract_answer(a, e.answer) for a, e in zip(out.answers, some)]
        donor = donors(some, own, out.lengths.cpu())
        there = donor.clamp(min=0).to(z.device)
        latents = Latents(z, out.lengths, there, likeliest, mean.to(z), generator)
        for name in names:
            answers = answers_given(method, questions, *INTERVENTIONS[name](latents))
            for i, answer in enumerate(answers):
                if name != "swap" or donor[i] >= 0:
                    right, given = is_correct(answer, some[i].answer), extract_answer(answer, some[i].answer)
                    flags = [right, given == own[i], given == own[donor[i]]]
                    found[name][:, chosen[i]] = torch.tensor(flags).double()
    results = {}
    for name, flags in found.items():
        judged, right = ~flags[0].isnan(), flags[0] == 1
        n = int(judged.sum())
        accuracy, unchanged, follows = flags[:, judged].mean(1).tolist() if n else (None, None, None)
        interval = list(wilson(int(right.sum()), n))
        results[name] = {"n": n, "accuracy": accuracy, "ci95": interval, "unchanged": unchanged}
        if name == "swap":
            results[name]["follows_donor"] = follows
        if per_question:
            bits = {"judged": to_hex(judged.tolist()), "correct": to_hex(right.tolist())}
            results[name]["questions"] = bits
    return results


def donors(examples: list[Example], own: list[str | None], steps: Tensor) -> Tensor:
    """For each question the one whose latents it gets, (B,), -1 without any. own: the model's answers."""
    gold = [extract_answer(e.answer, e.answer) for e in examples]
    numbers = {answer: i for i, answer in enumerate(dict.fromkeys(gold + own))}
    right = torch.tensor([numbers[answer] for answer in gold])  # (B,)
    given = torch.tensor([-1 if answer is None else numbers[answer] for answer in own])  # (B,)
    return partners(steps, (right[:, None] != given) & (given[:, None] != given) & (given >= 0))


def report_interventions(result: dict) -> str:
    """The interventions on one data set as a table, below the accuracy with the model's own latents."""
    rows = [["the model's own", str(result["n"]), percent(result["accuracy"]), "100.0", "-"]]
    for name, r in result["interventions"].items():
        shares = [percent(r.get(key)) for key in ("accuracy", "unchanged", "follows_donor")]
        rows.append([name, str(r["n"]), *shares])
    head = ["", "n", "acc %", "same answer %", "donor's answer %"]
    return f"latents replaced, {label(result)}\n" + table(head, rows)
