"""Watch a trained run think: python sample.py --ckpt out/latent_sft --question "..." --figure chain.png"""

import argparse

import torch

from minilatent.config import Config, Parser, SoftThinking, UserError, add_fields, check, check_speed, run_script
from minilatent.methods import CoLaR
from minilatent.run import load_run, pick_device
from minilatent.study.figures import chain_figure, figure_kind, masks_figure, save_figure
from minilatent.study.trace import describe, trace

QUESTION = (
    "Ava has 12 apples. Ben has 3 times as many apples as Ava. Ava buys 5 more apples. "
    "How many apples do Ava and Ben have together?"
)


def main(argv: list[str]) -> None:
    parser = Parser(prog="sample.py", description=__doc__, argument_default=argparse.SUPPRESS)
    parser.add_argument("--ckpt", required=True, metavar="DIR", help="run folder")
    parser.add_argument("--question", help=f"what to solve [{QUESTION}]")
    parser.add_argument("--speed", help="compression factor to ask CoLaR for: a number, or auto [the run's]")
    parser.add_argument("--top", type=int, metavar="int", help="tokens shown for each step [5]")
    parser.add_argument(
        "--figure", metavar="FILE", help="draw the chain: ranks, probabilities, entropy (.png, .pdf, .svg)"
    )
    parser.add_argument("--masks", metavar="FILE", help="draw Latent-SFT's two masks on a short example")
    add_fields(parser, SoftThinking)
    add_fields(parser, Config, only=("device", "threads", "max_chain", "latent_temperature", "sample_end"))
    given = vars(parser.parse_args(argv))
    for name in {"figure", "masks"} & given.keys():
        figure_kind(given[name])
    if given.get("threads"):
        torch.set_num_threads(given["threads"])

    method = load_run(given["ckpt"], pick_device(given.get("device", "auto")), SoftThinking.of(given))
    if "speed" in given and not isinstance(method, CoLaR):
        raise UserError(f"--speed is CoLaR's: a run of {method.config.method} has one speed")
    for name in ("speed", "max_chain", "latent_temperature", "sample_end"):
        setattr(method.config, name, given.get(name, getattr(method.config, name)))
    check_speed(method.config.speed)
    check(method.config)
    top = given.get("top", 5)
    if not 1 <= top <= method.model.config.vocab_size:
        raise UserError(
            f"--top must be between 1 and the vocabulary's {method.model.config.vocab_size}, not {top}"
        )
    found = trace(method, given.get("question", QUESTION))
    print(describe(found, method.tok, top))
    if "figure" in given:
        save_figure(chain_figure(found, method.tok, max(top, 8)), given["figure"])
    if "masks" in given:
        save_figure(masks_figure(method), given["masks"])


if __name__ == "__main__":
    run_script(main)
