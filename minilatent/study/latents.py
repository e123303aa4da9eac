"""What latents look like: how long, in which directions, how many dimensions they fill, how mixed they are; and the space in which
they live. All of it is illustration: whether a model uses its latents, the interventions of analysis.py say.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..config import UserError
from ..evaluate import fitting, solve_batches
from ..latent import entropy
from ..tasks.answers import Example
from .evaluation import QUANTILES, label, table
from .interventions import closed_prefix
from .trace import visible

SHOWN = 2  # questions whose latents' nearest tokens are told
NEAREST = 5


# ------------------------------------------------------------------ measures


def spectrum(x: Tensor) -> Tensor:
    """The shares of the squared singular values of x (n, C), largest first; rows are not centred. (min(n, C),)"""
    x = x.double()
    energy = torch.linalg.eigvalsh(x.T @ x if len(x) > x.shape[1] else x @ x.T).flip(0).clamp(min=0)
    return energy / energy.sum().clamp(min=1e-300)


def effective_rank(x: Tensor) -> float:
    """How many directions the rows of x (n, C) fill: exp of the entropy of `spectrum`. 1 if all are parallel, n if they are
    orthogonal and equally long. (Roy and Vetterli, "The effective rank", EUSIPCO 2007, take the singular values themselves; their
    squares are shares of the rows' energy.)"""
    return entropy(spectrum(x)).exp().item()


def cosines(z: Tensor, steps: Tensor) -> tuple[Tensor, float | None, float | None]:
    """Mean cosines of latents: of step i and step j of one chain (N, N), NaN where no chain has both; of all pairs within a
    chain; and of the same step in different questions. None without such a pair. z (Q, N, C), 0 behind steps (Q,)"""
    unit = F.normalize(z.double(), dim=-1)  # zeros stay zeros
    real = (torch.arange(z.shape[1]) < steps[:, None]).double()  # (Q, N)
    total, pairs = torch.einsum("qic,qjc->ij", unit, unit), real.T @ real  # (N, N)
    off = ~torch.eye(z.shape[1], dtype=torch.bool)
    count = pairs.diagonal()  # (N,) chains that have this step
    others = (count * (count - 1)).sum().item()
    between = unit.sum(0).pow(2).sum() - total.diagonal().sum()  # Σ over a ≠ b of u_a · u_b
    return (
        total / pairs,
        (total[off].sum() / pairs[off].sum()).item() if pairs[off].sum() else None,
        between.item() / others if others else None,
    )


def quantiles(x: Tensor) -> list[float]:
    return [
        round(v, 4) for v in torch.quantile(x.double(), torch.linspace(0, 1, QUANTILES).double()).tolist()
    ]


# ------------------------------------------------------------------ the latents of a run


@torch.no_grad()
def look(method, examples: list[Example], batch: int = 0) -> dict:
    """The latents of these questions' own chains (for explicit CoT: its tokens' embeddings) against the embedding table, as JSON
    would hold it. Steps that fewer than one chain in twenty reaches are left out of what is told by step."""
    examples = fitting(method, examples)
    parts, mixtures, steps, order = [], [], [], []
    for chosen, out, _ in solve_batches(method, examples, batch, keep_probs=method.mixed):
        if out.latents is None:
            raise UserError(f"{method.config.method} does not think: it has no latents to look at")
        parts += [z[:n].float().cpu() for z, n in zip(out.latents, out.lengths.tolist())]
        if method.mixed:
            best = out.probs.topk(
                min(method.config.k, out.probs.shape[-1]), dim=-1
            ).values  # (B, N, k), 0 behind the chain
            mixtures += list(entropy(best / best.sum(-1, keepdim=True).clamp(min=1e-30)))
        steps, order = steps + out.lengths.tolist(), order + chosen
    z, steps = pad_sequence(parts, True), torch.tensor(steps)  # (Q, N, C), (Q,)
    every, words = torch.cat(parts), usable(method)  # (n, C), (V', C)
    if not len(every):
        raise UserError(f"{method.config.method}: no chain has a single latent to look at")
    by_step, within, between = cosines(z, steps)
    long = max(1, int((torch.arange(z.shape[1]) < steps[:, None]).double().mean(0).ge(0.05).sum()))
    of_words, V = F.normalize(words, dim=-1).double(), len(words)
    told = {
        "n": len(parts),
        "latents": len(every),
        "width": words.shape[1],
        "norm_ratio": (every.norm(dim=-1).mean() / words.norm(dim=-1).mean()).item(),
        "norms": quantiles(every.norm(dim=-1)),
        "norms_embeddings": quantiles(words.norm(dim=-1)),
        "cosine_within": within,
        "cosine_between": between,
        "cosine_embeddings": ((of_words.sum(0).pow(2).sum() - V) / (V * (V - 1))).item(),
        "cosine_by_step": [
            [None if v != v else round(v, 4) for v in row] for row in by_step[:long, :long].tolist()
        ],
        "rank": effective_rank(every),
        "rank_embeddings": effective_rank(words),
        "rank_chain": sum(effective_rank(p) for p in parts if len(p)) / sum(len(p) > 0 for p in parts),
        "spectrum": [round(v, 6) for v in spectrum(every).tolist()],
        "spectrum_embeddings": [round(v, 6) for v in spectrum(words).tolist()],
        "entropy_by_step": None,
    }
    if method.mixed:
        H, real = pad_sequence(mixtures, True)[:, :long], torch.arange(long) < steps[:, None]
        told["entropy_by_step"] = ((H * real).sum(0) / real.sum(0).clamp(min=1)).tolist()
    names = [visible(method.tok.name(i)) for i in range(method.tok.vocab_size)]
    first = [order.index(i) for i in range(min(SHOWN, len(order)))]
    told["illustration"] = [
        {
            "question": examples[order[i]].question,
            "nearest": [nearest_words(method, latent, names) for latent in parts[i]],
        }
        for i in first
    ]
    return told


def usable(method) -> Tensor:
    """The embeddings (V', C) of the tokens that may stand in a text."""
    keep = torch.ones(method.model.config.vocab_size, dtype=torch.bool)
    keep[method.tok.never] = False
    return method.model.embed.weight.detach().float().cpu()[keep]


def nearest_words(method, latent: Tensor, names: list[str]) -> list[str]:
    """The tokens whose embeddings have the largest cosine with the latent (C,), and these cosines."""
    cosine = F.cosine_similarity(latent, method.model.embed.weight.detach().float().cpu(), dim=-1)
    cosine[method.tok.never] = -1
    return [f"{names[i]} {v:.2f}" for v, i in zip(*(x.tolist() for x in cosine[: len(names)].topk(NEAREST)))]


def report_look(results: list[dict]) -> str:
    """A line a data set, and the nearest tokens of one chain."""
    show = lambda value: "-" if value is None else f"{value:.2f}"
    rows = []
    for r in results:
        seen = r["look"]
        H = seen["entropy_by_step"]
        rows.append(
            [
                label(r),
                show(seen["norm_ratio"]),
                show(seen["cosine_within"]),
                show(seen["cosine_between"]),
                show(seen["rank_chain"]),
                f"{seen['rank']:.1f}",
                f"{seen['rank_embeddings']:.1f} of {seen['width']}",
                show(H and sum(H) / len(H)),
            ]
        )
    text = table(
        [
            "latents",
            "norm / embeddings'",
            "cosine in chain",
            "other questions'",
            "rank of a chain",
            "of all",
            "embeddings'",
            "entropy",
        ],
        rows,
    )
    first = results[0]["look"]["illustration"][0]
    return "\n".join(
        [
            text,
            "",
            f"nearest tokens by cosine, an illustration: {first['question']}",
            *(f"{n:4d}  {'   '.join(words)}" for n, words in enumerate(first["nearest"], 1)),
        ]
    )


# ------------------------------------------------------------------ the space


@torch.no_grad()
def hidden_states(method, examples: list[Example], batch: int = 0) -> Tensor:
    """The last hidden states (n, C) from which the model's own chains and their ends are foretold: what a method that feeds back
    hidden states feeds to a model that has only ever read embeddings."""
    found, examples = [], fitting(method, examples)
    for chosen, out, _ in solve_batches(method, examples, batch):
        questions = [examples[i].question for i in chosen]
        steps, C = out.lengths, method.model.config.width
        z = out.latents if out.latents is not None else torch.zeros(len(chosen), 0, C, device=method.device)
        prefix, length = closed_prefix(method, questions, z, steps)
        h = method.model(embeds=prefix)  # (B, T, C)
        found += [
            row[n - 2 - k : n - 1].float().cpu() for row, n, k in zip(h, length.tolist(), steps.tolist())
        ]
    return torch.cat(found)
