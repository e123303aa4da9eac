"""Train mini-base again, from nothing, and check that it is as good as the one in the repository.

    python -m minilatent.tools.rebuild_base [--out out/base]       half an hour on one core

Exit code 0 if its accuracy on mini's test set reaches the lower end of the committed model's 95 % interval,
else 1. To replace the committed one, copy the model's three files over it.
"""

import torch

from .. import tasks
from ..config import Parser, run_script
from ..evaluate import solve_all
from ..run import BASE, load_run, train


def judge(name: str, folder) -> dict:
    test = tasks.load("mini", "test")
    result = solve_all(load_run(folder, torch.device("cpu")), test)
    low, high = result["ci95"]
    print(f"{name:10s} accuracy {result['accuracy']:.3f} (95 % {low:.3f} to {high:.3f}, n {len(test)})")
    return result


def main(argv: list[str]) -> None:
    parser = Parser(prog="python -m minilatent.tools.rebuild_base", description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="out/base", help="run folder [out/base]")
    args = parser.parse_args(argv)
    train({"method": "cot_sft", "preset": "base", "out": args.out})
    committed, rebuilt = judge("committed", BASE), judge("rebuilt", args.out)
    if rebuilt["accuracy"] < committed["ci95"][0]:
        print("the rebuilt base is not as good")
        raise SystemExit(1)


if __name__ == "__main__":
    run_script(main)
