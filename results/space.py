"""Why not simply feed a hidden state back? Hidden states of a run's own chains against its embeddings:

    python -m results.space --ckpt minilatent/base --figure results/mini/space.png

Both on the first two principal axes of their directions, their norms, the cosine with the nearest embedding;
and spectra. (Embeddings with a cosine of 1 belong to tokens that never occurred in training: they moved
together.)
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from minilatent import tasks
from minilatent.config import Parser, run_script
from minilatent.evaluate import solve_batches
from minilatent.latent import entropy
from minilatent.run import load_run
from minilatent.study.figures import BLUE, GREY, ORANGE, STYLE, plt, save_figure
from minilatent.study.interventions import closed_prefix


def spectrum(x: Tensor) -> Tensor:
    """The singular values of the centred x (n, C) as shares of their sum, largest first, (min(n, C),)."""
    values = torch.linalg.svdvals((x - x.mean(0)).double())
    return values / values.sum()


def effective_rank(x: Tensor) -> float:
    """How many directions the rows of x (n, C) fill around their mean: exp of the entropy of `spectrum`. 1 if
    they lie on a line. (Roy and Vetterli, "The effective rank", EUSIPCO 2007; the same as in lesson 3.)"""
    return entropy(spectrum(x)).exp().item()


def usable(method) -> Tensor:
    """The embeddings (V', C) of the tokens that may occur in a text."""
    keep = torch.ones(method.model.config.vocab_size, dtype=torch.bool)
    keep[method.tok.never] = False
    return method.model.embed.weight.detach().float().cpu()[keep]


@torch.no_grad()
def hidden_states(method, examples: list) -> Tensor:
    """The last hidden states (n, C) that predict the model's own chains and their ends: what a method that
    feeds hidden states back feeds to a model that has only ever read embeddings."""
    found = []
    for chosen, out, _ in solve_batches(method, examples):
        questions, z = [examples[i].question for i in chosen], out.latents
        if z is None:  # a method that does not think: the end alone
            z = torch.zeros(len(chosen), 0, method.model.config.width, device=method.device)
        prefix, lengths = closed_prefix(method, questions, z, out.lengths)
        h = method.model(embeds=prefix)  # (B, T, C)
        for row, n, steps in zip(h, lengths.tolist(), out.lengths.tolist()):
            found.append(row[n - 2 - steps : n - 1].float().cpu())
    return torch.cat(found)


@plt.rc_context(STYLE)
def space_figure(method, examples: list):
    words, states = usable(method), hidden_states(method, examples)
    generator = torch.Generator().manual_seed(1)  # 0 is that of the weights: the embeddings began there
    states = states[torch.randperm(len(states), generator=generator)[:2000]]
    random = torch.randn(words.shape, generator=generator)
    unit_words, unit_states, unit_random = (F.normalize(x, dim=-1) for x in (words, states, random))
    figure, ((plane, length), (near, shares)) = plt.subplots(2, 2, figsize=(11, 8.4), layout="constrained")

    middle = (unit_words.mean(0) + unit_states.mean(0)) / 2  # (C,) the two clouds count equally
    both = torch.cat([unit_words, unit_states]) - middle
    axes = torch.linalg.svd(both, full_matrices=False).Vh[:2].T  # (C, 2)
    longest = 1.05 * max(x.norm(dim=-1).max().item() for x in (words, states))
    bins = {"bins": torch.linspace(0, longest, 60).tolist(), "density": True}
    for x, unit, name, colour in (
        (words, unit_words, "embeddings", GREY),
        (states, unit_states, "hidden states", ORANGE),
    ):
        plane.scatter(*((unit - middle) @ axes).T, s=12, alpha=0.5, color=colour, label=name, linewidth=0)
        length.hist(x.norm(dim=-1).tolist(), color=colour, alpha=0.7, label=name, **bins)
    bins["bins"], itself = torch.linspace(0, 1.001, 50).tolist(), 2 * torch.eye(len(words))
    for cosine, name, colour in (
        (unit_words @ unit_words.T - itself, "embeddings", GREY),
        (unit_states @ unit_words.T, "hidden states", ORANGE),
        (unit_random @ unit_words.T, "random directions", BLUE),
    ):
        near.hist(cosine.max(-1).values.tolist(), color=colour, alpha=0.6, label=name, **bins)
    for x, name, colour, line in (
        (words, "embedding matrix", GREY, "--"),
        (random, "random matrix", BLUE, ":"),
        (states, "hidden states", ORANGE, "-"),
    ):
        values = spectrum(x)
        label = f"{name}: effective rank {effective_rank(x):.0f}"
        held = 100 * values.cumsum(0)
        shares.plot(range(1, len(held) + 1), held, color=colour, linestyle=line, linewidth=2, label=label)
    plane.set(xlabel="first principal axis of the directions", ylabel="second", title="Directions")
    length.set(xlabel="norm", ylabel="density", title="Norms")
    near.set(xlabel="cosine with the nearest embedding (not itself)", ylabel="density")
    near.set_title("Distance from the vocabulary")
    shares.set(xlabel="directions, strongest first", ylabel="% of the singular values' sum", title="Spectrum")
    for ax in (plane, length, near, shares):
        ax.legend(fontsize=9.5)
    return figure


def main(argv: list[str]) -> None:
    parser = Parser(prog="python -m results.space", description=__doc__.splitlines()[0])
    parser.add_argument("--ckpt", required=True, metavar="DIR", help="run folder")
    parser.add_argument(
        "--limit", type=int, default=100, metavar="int", help="questions of mini's test set [100]"
    )
    parser.add_argument("--figure", required=True, metavar="FILE", help="figure to write (.png, .pdf, .svg)")
    args = parser.parse_args(argv)
    examples = tasks.load("mini", "test", limit=args.limit)
    save_figure(space_figure(load_run(args.ckpt, torch.device("cpu")), examples), args.figure)


if __name__ == "__main__":
    run_script(main)
