"""How much of a policy gradient is signal: the gradients of independent batches of samples, held against each other.

    python -m results.rl_signal --init out/nll --sigma_floor 0 0.3 --json results/colar/rl_signal.json
    python -m results.rl_signal --method latent_rl --init out/latent_sft

A batch's gradient is g_i = G + noise_i. The dot product of two different batches' is |G|² on average, that of one with itself |G|² + |noise|².
Told is |G|² / |noise|² of one batch, for each part of the objective: the mean of 1 / this many batches is half signal. ± is a jackknife's
standard error. σ's floor (colar_rl): 0 is the run's own.
"""

import random
from pathlib import Path

import torch

from minilatent import tasks
from minilatent.batch import encode
from minilatent.config import Parser, resolve, run_script
from minilatent.files import write_json
from minilatent.losses import mean_by
from minilatent.methods import METHODS
from minilatent.methods.grpo import GRPO
from minilatent.run import initial_model


def start(method: str, **settings) -> GRPO:
    """The method as train.py would begin with it."""
    config = resolve({"method": method, "dtype": "float32", **settings})
    model, tok, theirs, beside = initial_model(config)
    METHODS[method].inherit(config, theirs)
    found = METHODS[method](config, tok, model)
    found.adopt(beside, theirs)
    return found


def ratio(dots: torch.Tensor) -> float:
    """|G|² / |noise|² from the dot products of n batches' gradients, (n, n)."""
    n = len(dots)
    own = dots.diagonal().mean()
    signal = (dots.sum() - dots.diagonal().sum()) / (n * (n - 1))
    return float(signal / (own - signal))


def measure(method: GRPO, rows, batches: int, questions: int) -> dict:
    trained = list(
        {id(p): p.requires_grad_(True) for module in method.trainable() for p in module.parameters()}.values()
    )
    found, told = {}, {"accuracy": 0.0, "silent": 0.0}
    for i in range(batches):
        batch = method.rollout(rows[i * questions : (i + 1) * questions], random.Random(i))
        told["accuracy"] += batch["right"].float().mean().item() / batches
        told["silent"] += (batch["rewards"].std(1) == 0).float().mean().item() / batches
        part = method.heard(batch)
        for name, (log_p, sample) in method.log_probs(part)[0].items():
            objective = mean_by(log_p * method.credit(name, part, sample), sample, len(part["ids"]))[
                0
            ].sum()  # silent samples count 0
            gradient = torch.autograd.grad(objective, trained, retain_graph=True, allow_unused=True)
            found.setdefault(name, []).append(torch.cat([g.flatten() for g in gradient if g is not None]))
    for name, gradients in found.items():
        g = torch.stack(gradients).double()
        dots, n = g @ g.T, len(g)
        left_out = torch.tensor(
            [
                ratio(dots[[j for j in range(n) if j != i]][:, [j for j in range(n) if j != i]])
                for i in range(n)
            ]
        )
        told[name] = {"signal": ratio(dots), "error": float(((n - 1) * left_out.var(correction=0)) ** 0.5)}
    return told


def main(argv: list[str]) -> None:
    parser = Parser(prog="python -m results.rl_signal", description=__doc__.splitlines()[0])
    parser.add_argument("--method", default="colar_rl", choices=("colar_rl", "latent_rl"))
    parser.add_argument("--init", default="out/nll")
    parser.add_argument("--speed", default="2")
    parser.add_argument("--sigma_floor", type=float, nargs="+", default=[0.0])
    parser.add_argument("--batches", type=int, default=40)
    parser.add_argument("--questions", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    results = []
    for floor in args.sigma_floor:
        method = start(args.method, init=args.init, sigma_floor=floor, speed=args.speed)
        rows, _ = encode(tasks.load("mini", "train", limit=args.batches * args.questions), method.tok, 512)
        told = measure(method, rows, args.batches, args.questions)
        results.append(
            {
                "method": args.method,
                "sigma_floor": method.config.sigma_floor,
                "speed": args.speed,
                "batches": args.batches,
                "samples": args.questions * method.config.group,
                **told,
            }
        )
        print(
            f"{args.method} σ_floor {method.config.sigma_floor}: {told['accuracy']:.1%} of the samples right, {told['silent']:.0%} of the groups silent; signal "
            + ", ".join(
                f"{name} {told[name]['signal']:.4f} ± {told[name]['error']:.4f}"
                for name in ("latents", "decisions", "answer")
            ),
            flush=True,
        )
    if args.json:
        write_json(args.json, results)


if __name__ == "__main__":
    run_script(main)
