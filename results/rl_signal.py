"""How much of a policy gradient is signal: the gradients of independent batches of samples are compared.

    python -m results.rl_signal --init out/nll --sigma_floor 0 0.3 --json results/mini/rl_signal.json
    python -m results.rl_signal --method latent_rl --init out/latent_sft

The gradient of batch i is g_i = G + noise_i. The dot product of two different batches' gradients is |G|² on
average, that of one with itself |G|² + |noise|². Printed is the ratio |G|² / |noise|² of one batch, for each
part of the objective. At a ratio of 0.01, the mean over 100 batches is half signal, half noise. ± is a
jackknife's standard error.
"""

import random
from pathlib import Path

import torch
from torch import Tensor

from minilatent import tasks
from minilatent.batch import Row, encode
from minilatent.config import Parser, run_script
from minilatent.files import write_json
from minilatent.losses import mean_by
from minilatent.methods import METHODS, build
from minilatent.methods.grpo import GRPO
from minilatent.optim import train_only
from minilatent.run import initial_model, resolve

PARTS = ("latents", "decisions", "answer")


def start(method: str, **settings) -> GRPO:
    """The method as train.py would begin with it."""
    config = resolve({"method": method, "dtype": "float32", **settings})
    model, tok, inherited, tensors = initial_model(config)
    METHODS[method].inherit(config, inherited)
    made = build(config, tok, model)
    made.adopt(tensors, inherited)
    return made


def ratio(dots: Tensor) -> float:
    """|G|² / |noise|² from the dot products of n batches' gradients, (n, n)."""
    n = len(dots)
    own = dots.diagonal().mean()
    signal = (dots.sum() - dots.diagonal().sum()) / (n * (n - 1))
    return float(signal / (own - signal))


def signal(gradients: list[Tensor]) -> dict[str, float]:
    """`ratio` of n gradients (P,), with its jackknife standard error."""
    g = torch.stack(gradients).double()
    dots, n = g @ g.T, len(g)
    left_out = []
    for i in range(n):
        others = [j for j in range(n) if j != i]
        left_out.append(ratio(dots[others][:, others]))
    error = ((n - 1) * torch.tensor(left_out).var(correction=0)) ** 0.5
    return {"signal": ratio(dots), "error": float(error)}


def measure(method: GRPO, rows: list[Row], batches: int, questions: int) -> dict:
    """Over rollouts of so many questions each: the share of right samples, of groups without a gradient
    (`silent`), and the signal of each part."""
    trained = list(train_only(method, method.trainable()).values())
    gradients: dict[str, list[Tensor]] = {name: [] for name in PARTS}
    right, silent = [], []
    for i in range(batches):
        batch = method.rollout(rows[i * questions : (i + 1) * questions], random.Random(i))
        right.append(batch["right"].float().mean().item())
        silent.append((batch["rewards"].std(1) == 0).float().mean().item())
        part = method.informative(batch)
        for name, (log_p, sample) in method.log_probs(part)[0].items():
            gain = log_p * method.advantage_of(name, part, sample)
            objective = mean_by(gain, sample, len(part["ids"]))[0].sum()
            grads = torch.autograd.grad(objective, trained, retain_graph=True, allow_unused=True)
            gradients[name].append(torch.cat([g.flatten() for g in grads if g is not None]))
    found = {"accuracy": sum(right) / batches, "silent": sum(silent) / batches}
    return {**found, **{name: signal(gradients[name]) for name in PARTS}}


def main(argv: list[str]) -> None:
    parser = Parser(prog="python -m results.rl_signal", description="Signal and noise of RL's gradients.")
    parser.add_argument("--method", default="colar_rl", choices=("colar_rl", "latent_rl"))
    parser.add_argument("--init", default="out/nll", metavar="DIR", help="run folder to start from")
    parser.add_argument("--speed", default="2", help="CoLaR's")
    parser.add_argument(
        "--sigma_floor", type=float, nargs="+", default=[0.0], help="CoLaR's; 0: the run's own"
    )
    parser.add_argument("--batches", type=int, default=40)
    parser.add_argument("--questions", type=int, default=32, help="of each batch")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    results = []
    for floor in args.sigma_floor:
        own = {"sigma_floor": floor, "speed": args.speed} if args.method == "colar_rl" else {}
        method = start(args.method, init=args.init, **own)
        examples = tasks.load("mini", "train", limit=args.batches * args.questions)
        rows = encode(examples, method.tok, 512)[0]
        found = measure(method, rows, args.batches, args.questions)
        if own:
            own["sigma_floor"] = method.config.sigma_floor
        samples = args.questions * method.config.group
        results.append({"method": args.method, **own, "batches": args.batches, "samples": samples, **found})
        signals = [f"{name} {found[name]['signal']:.4f} ± {found[name]['error']:.4f}" for name in PARTS]
        print(f"{args.method} {own}: {found['accuracy']:.1%} of the samples right,")
        print(f"{found['silent']:.0%} of the groups without a gradient; {', '.join(signals)}", flush=True)
    if args.json:
        write_json(args.json, results)


if __name__ == "__main__":
    run_script(main)
