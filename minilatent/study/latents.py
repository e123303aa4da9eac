"""What latents look like: their norms and directions, and how many dimensions they fill. This is
illustration; the interventions show whether a model uses its latents."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..config import UserError
from ..evaluate import fitting, solve_batches
from ..latent import entropy
from ..tasks.answers import Example
from .evaluation import label, show, table


def spectrum(x: Tensor) -> Tensor:
    """The shares of the squared singular values of x (n, C), largest first, (min(n, C),). Not centred."""
    x = x.double()
    energy = torch.linalg.eigvalsh(x.T @ x if len(x) > x.shape[1] else x @ x.T).flip(0).clamp(min=0)
    return energy / energy.sum().clamp(min=1e-300)


def effective_rank(x: Tensor) -> float:
    """How many directions the rows of x (n, C) fill: exp of the entropy of `spectrum`. 1 if all are parallel,
    n if they are orthogonal and equally long. (Roy and Vetterli, "The effective rank", EUSIPCO 2007, take the
    singular values themselves; their squares are shares of the energy.)"""
    return entropy(spectrum(x)).exp().item()


def mean_cosine(x: Tensor, count: Tensor) -> float | None:
    """The mean cosine of all pairs of vectors in a row; None without a pair. x (A, B, C), 0 for padding,
    count (A,) vectors that are real"""
    unit = F.normalize(x.double(), dim=-1)  # zeros stay zeros
    pairs = (count * (count - 1)).sum().item()
    total = unit.sum(1).pow(2).sum().item() - count.sum().item()  # Σ over a ≠ b of u_a · u_b
    return total / pairs if pairs else None


def usable(method) -> Tensor:
    """The embeddings (V', C) of the tokens that may occur in a text."""
    keep = torch.ones(method.model.config.vocab_size, dtype=torch.bool)
    keep[method.tok.never] = False
    return method.model.embed.weight.detach().float().cpu()[keep]


@torch.no_grad()
def describe_latents(method, examples: list[Example], batch: int = 0) -> dict:
    """The latents of the model's own chains (for explicit CoT: its tokens' embeddings) against the embedding
    table, as JSON would hold it. Cosines: of all pairs within a chain, and of the same step in different
    questions."""
    chains = []
    for _, out, _ in solve_batches(method, fitting(method, examples), batch):
        if out.latents is None:
            raise UserError(f"{method.config.method} does not think: it has no latents to describe")
        chains += [z[:n].float().cpu() for z, n in zip(out.latents, out.lengths.tolist())]
    every, words = torch.cat(chains), usable(method)  # (n, C), (V', C)
    if not len(every):
        raise UserError(f"{method.config.method}: no chain has a single latent")
    z, steps = pad_sequence(chains, True), torch.tensor([len(chain) for chain in chains])  # (Q, N, C), (Q,)
    having = (torch.arange(z.shape[1]) < steps[:, None]).sum(0)  # (N,) chains that have this step
    ranks = [effective_rank(chain) for chain in chains if len(chain)]
    return {
        "latents": len(every),
        "norm_ratio": (every.norm(dim=-1).mean() / words.norm(dim=-1).mean()).item(),
        "cosine_within": mean_cosine(z, steps),
        "cosine_between": mean_cosine(z.transpose(0, 1), having),
        "rank_chain": sum(ranks) / len(ranks),
        "rank": effective_rank(every),
        "rank_embeddings": effective_rank(words),
    }


def report_latents(results: list[dict]) -> str:
    """A table with a line for each data set."""
    rows = []
    for r in results:
        count, *numbers = r["latents"].values()
        rows.append([label(r), str(count), *map(show, numbers)])
    head = ["latents", "n", "norm / embeddings'", "cosine in chain", "other questions'"]
    return table([*head, "effective rank of a chain", "of all", "embeddings'"], rows)
