"""Watch a trained run think: python sample.py --ckpt out/latent_sft --question "..." --figure chain.png"""

import argparse

from minilatent.config import Config, Parser, UserError, add_fields, run_script
from minilatent.machine import pick_device, use_threads
from minilatent.methods import CoLaR
from minilatent.run import load_run
from minilatent.study.evaluation import change_settings
from minilatent.study.figures import chain_figure, figure_kind, save_figure
from minilatent.study.trace import describe, trace

QUESTION = (
    "Ava has 12 apples. Ava swaps each for 3. Ava sells all full boxes of 8. Ben has 7 apples. "
    "Ben buys 9 more. How many have Ava and Ben together?"
)
COLAR = ("speed", "latent_temperature", "sample_end")  # settings of some methods


def main(argv: list[str]) -> None:
    parser = Parser(prog="sample.py", description=__doc__, argument_default=argparse.SUPPRESS)
    add = parser.add_argument
    add("--ckpt", required=True, metavar="DIR", help="run folder")
    add("--question", help=f"question to answer [{QUESTION}]")
    add("--top", type=int, metavar="int", help="tokens shown for each step [5]")
    add(
        "--figure",
        metavar="FILE",
        help="figure of the chain: ranks, probabilities, entropy (.png, .pdf, .svg)",
    )
    add_fields(parser, Config, only=("device", "threads", "max_chain"))
    add_fields(parser, CoLaR.Settings, only=COLAR)
    given = vars(parser.parse_args(argv))
    if "figure" in given:
        figure_kind(given["figure"])
    use_threads(given.get("threads", 0))

    method = load_run(given["ckpt"], pick_device(given.get("device", "auto")))
    change_settings(method, {name: given[name] for name in ("max_chain", *COLAR) if name in given})
    top, vocabulary = given.get("top", 5), method.model.config.vocab_size
    if not 1 <= top <= vocabulary:
        raise UserError(f"--top must be between 1 and the vocabulary's {vocabulary}, not {top}")
    found = trace(method, given.get("question", QUESTION))
    print(describe(found, method.tok, top))
    if "figure" in given:
        save_figure(chain_figure(found, method.tok, max(top, 8)), given["figure"])


if __name__ == "__main__":
    run_script(main)
