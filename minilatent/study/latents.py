"""What latents look like: their norms and directions, how many dimensions they fill, and the space in which
they live. All of this is illustration: the interventions show whether a model uses its latents.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..config import UserError
from ..evaluate import fitting, solve_batches
from ..latent import entropy
from ..tasks.answers import Example
from .evaluation import label, quantiles, show, table
from .interventions import closed_prefix
from .measures import k_mixture
from .trace import visible

# ------------------------------------------------------------------ measures


def spectrum(x: Tensor) -> Tensor:
    """The shares of the squared singular values of x (n, C), largest first, (min(n, C),). Rows are not
    centred."""
    x = x.double()
    energy = torch.linalg.eigvalsh(x.T @ x if len(x) > x.shape[1] else x @ x.T).flip(0).clamp(min=0)
    return energy / energy.sum().clamp(min=1e-300)


def effective_rank(x: Tensor) -> float:
    """How many directions the rows of x (n, C) fill: exp of the entropy of `spectrum`. 1 if all are parallel,
    n if they are orthogonal and equally long. (Roy and Vetterli, "The effective rank", EUSIPCO 2007, take the
    singular values themselves; their squares are shares of the rows' energy.)"""
    return entropy(spectrum(x)).exp().item()


def cosines(z: Tensor, steps: Tensor) -> tuple[Tensor, float | None, float | None]:
    """Mean cosines of latents: of step i and step j of one chain (N, N), NaN where no chain has both; of all
    pairs within a chain; and of the same step in different questions. None without such a pair. z (Q, N, C),
    0 behind steps (Q,)"""
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


# ------------------------------------------------------------------ the latents of a run


def usable(method) -> Tensor:
    """The embeddings (V', C) of the tokens that may occur in a text."""
    keep = torch.ones(method.model.config.vocab_size, dtype=torch.bool)
    keep[method.tok.never] = False
    return method.model.embed.weight.detach().float().cpu()[keep]


@torch.no_grad()
def describe_latents(method, examples: list[Example], batch: int = 0) -> dict:
    """The latents of the model's own chains (for explicit CoT: its tokens' embeddings) against the embedding
    table, as JSON would hold it. `*_by_step` leaves out steps that fewer than one chain in twenty reaches."""
    examples, chains, mixed, order = fitting(method, examples), [], [], []
    for chosen, out, _ in solve_batches(method, examples, batch, keep_probs=method.mixed):
        if out.latents is None:
            raise UserError(f"{method.config.method} does not think: it has no latents to describe")
        order += chosen
        for i, n in enumerate(out.lengths.tolist()):
            chains.append(out.latents[i, :n].float().cpu())
            if method.mixed:
                mixed.append(entropy(k_mixture(out.probs[i, :n], method.mixture_size)))
    every, words = torch.cat(chains), usable(method)  # (n, C), (V', C)
    if not len(every):
        raise UserError(f"{method.config.method}: no chain has a single latent")
    z, steps = pad_sequence(chains, True), torch.tensor([len(chain) for chain in chains])  # (Q, N, C), (Q,)
    by_step, within, between = cosines(z, steps)
    reached = torch.arange(z.shape[1]) < steps[:, None]  # (Q, N)
    N, V = max(1, int((reached.double().mean(0) >= 0.05).sum())), len(words)
    unit = F.normalize(words, dim=-1).double()
    ranks = [effective_rank(chain) for chain in chains if len(chain)]
    rounded = lambda values, digits=4: [None if v != v else round(v, digits) for v in values]
    return {
        "n": len(chains),
        "latents": len(every),
        "width": words.shape[1],
        "norm_ratio": (every.norm(dim=-1).mean() / words.norm(dim=-1).mean()).item(),
        "norms": rounded(quantiles(every.norm(dim=-1))),
        "norms_embeddings": rounded(quantiles(words.norm(dim=-1))),
        "cosine_within": within,
        "cosine_between": between,
        "cosine_embeddings": ((unit.sum(0).pow(2).sum() - V) / (V * (V - 1))).item(),
        "cosine_by_step": [rounded(row) for row in by_step[:N, :N].tolist()],
        "rank": effective_rank(every),
        "rank_embeddings": effective_rank(words),
        "rank_chain": sum(ranks) / len(ranks),
        "spectrum": rounded(spectrum(every).tolist(), 6),
        "spectrum_embeddings": rounded(spectrum(words).tolist(), 6),
        "entropy_by_step": mean_by_step(mixed, reached)[:N].tolist() if mixed else None,
        "question": examples[0].question,
        "nearest": [nearest_tokens(method, latent) for latent in chains[order.index(0)]],
    }


def mean_by_step(values: list[Tensor], reached: Tensor) -> Tensor:
    """Of one number for each step of each chain: the mean over the chains that reach a step, (N,)."""
    return (pad_sequence(values, True) * reached).sum(0) / reached.sum(0).clamp(min=1)


def nearest_tokens(method, latent: Tensor, count: int = 5) -> list[str]:
    """The tokens whose embeddings have the largest cosines with the latent (C,), and these cosines."""
    cosine = F.cosine_similarity(latent, method.model.embed.weight.detach().float().cpu(), dim=-1)
    cosine[method.tok.never] = -1
    best = cosine[: method.tok.vocab_size].topk(count)
    names = [visible(method.tok.name(i)) for i in best.indices.tolist()]
    return [f"{name} {value:.2f}" for name, value in zip(names, best.values.tolist())]


def report_latents(results: list[dict]) -> str:
    """A table with a line for each data set, and the tokens nearest to the latents of one question."""
    head = ["latents", "norm / embeddings'", "cosine in chain", "other questions'"]
    head += ["rank of a chain", "of all", "embeddings'", "entropy"]
    rows = []
    for r in results:
        found = r["latents"]
        H = found["entropy_by_step"]
        shown = [found[key] for key in ("norm_ratio", "cosine_within", "cosine_between", "rank_chain")]
        ranks = [f"{found['rank']:.1f}", f"{found['rank_embeddings']:.1f} of {found['width']}"]
        rows.append([label(r), *map(show, shown), *ranks, show(H and sum(H) / len(H))])
    first = results[0]["latents"]
    lines = [f"{n:4d}  {'   '.join(tokens)}" for n, tokens in enumerate(first["nearest"], 1)]
    example = f"\n\nnearest tokens by cosine, an illustration: {first['question']}\n"
    return table(head, rows) + example + "\n".join(lines)


@torch.no_grad()
def hidden_states(method, examples: list[Example], batch: int = 0) -> Tensor:
    """The last hidden states (n, C) that predict the model's own chains and their ends: what a method that
    feeds hidden states back feeds to a model that has only ever read embeddings."""
    found, examples = [], fitting(method, examples)
    for chosen, out, _ in solve_batches(method, examples, batch):
        questions, z = [examples[i].question for i in chosen], out.latents
        if z is None:  # a method that does not think: the end alone
            z = torch.zeros(len(chosen), 0, method.model.config.width, device=method.device)
        prefix, lengths = closed_prefix(method, questions, z, out.lengths)
        h = method.model(embeds=prefix)  # (B, T, C)
        for row, n, steps in zip(h, lengths.tolist(), out.lengths.tolist()):
            found.append(row[n - 2 - steps : n - 1].float().cpu())
    return torch.cat(found)
