"""Judge a trained run: python eval.py --ckpt out/latent_sft --data mini mini_hard --intervene --json results.json"""

import argparse
import sys
from pathlib import Path

import torch

from minilatent import tasks
from minilatent.config import Config, Parser, SoftThinking, UserError, add_fields, check, check_speed, run_script
from minilatent.files import write_json
from minilatent.methods import CoLaR
from minilatent.run import load_run, pick_device
from minilatent.study.evaluation import evaluate, label, report, training_tokens
from minilatent.study.figures import (
    figure_kind,
    look_figure,
    results_figure,
    save_figure,
    space_figure,
    speed_figure,
)
from minilatent.study.interventions import (
    INTERVENTIONS,
    check_interventions,
    intervene,
    intervention,
    report_interventions,
)
from minilatent.study.latents import look, report_look

FIGURES = {"figure", "look_figure", "space_figure", "speed_figure"}


def main(argv: list[str]) -> None:
    parser = Parser(prog="eval.py", description=__doc__, argument_default=argparse.SUPPRESS)
    parser.add_argument("--ckpt", required=True, metavar="DIR", help="run folder")
    parser.add_argument(
        "--data", nargs="+", metavar="NAME|FILE", help="test sets (default: that of the run's data)"
    )
    parser.add_argument("--limit", type=int, metavar="int", help="questions of each, at most")
    parser.add_argument(
        "--json", metavar="FILE", help="write the results: a list with one object per data set"
    )
    parser.add_argument(
        "--figure", metavar="FILE", help="draw ECR@K and N_eff with their controls (.png, .pdf, .svg)"
    )
    parser.add_argument(
        "--intervene",
        nargs="*",
        metavar="NAME",
        help="also replace the latents and decode the answer "
        f"from that: {', '.join(INTERVENTIONS)}, truncate:N, truncate:-N [noise swap]",
    )
    parser.add_argument(
        "--look",
        action="store_true",
        help="also tell what the latents look like: norms, cosines, effective rank, entropy",
    )
    parser.add_argument("--look_figure", metavar="FILE", help="draw that (.png, .pdf, .svg)")
    parser.add_argument(
        "--space_figure",
        metavar="FILE",
        help="draw hidden states against token embeddings, and these' spectrum",
    )
    parser.add_argument(
        "--speed",
        nargs="+",
        metavar="c",
        help="compression factors to ask CoLaR for: numbers, or auto [the run's]",
    )
    parser.add_argument(
        "--speed_figure", metavar="FILE", help="draw accuracy against #L over the speeds (.png, .pdf, .svg)"
    )
    parser.add_argument(
        "--batch",
        type=int,
        metavar="int",
        help="questions decoded side by side (default: the run's eval_batch)",
    )
    parser.add_argument(
        "--brief",
        action="store_true",
        help="only accuracy and #L, which is much faster with a large vocabulary",
    )
    parser.add_argument(
        "--too_long",
        choices=("skip", "error"),
        help="questions over the context: skip and count them, or stop [skip]",
    )
    add_fields(parser, SoftThinking)
    add_fields(
        parser,
        Config,
        only=(
            "device",
            "threads",
            "chain_style",
            "max_chain",
            "max_answer",
            "latent_temperature",
            "sample_end",
            "revision",
        ),
    )
    given = vars(parser.parse_args(argv))
    names = given.get("intervene", []) or (["noise", "swap"] if "intervene" in given else [])
    for name in names:
        intervention(name)
    for name in FIGURES & given.keys():
        figure_kind(given[name])
    for name in ("batch", "limit"):
        if given.get(name, 1) < 1:
            raise UserError(f"--{name} {given[name]} is out of range: 1 or more")
    if given.get("threads"):
        torch.set_num_threads(given["threads"])

    method = load_run(given["ckpt"], pick_device(given.get("device", "auto")), SoftThinking.of(given))
    config, batch = method.config, given.get("batch", 0)
    for name in ("chain_style", "max_chain", "max_answer", "latent_temperature", "sample_end", "revision"):
        setattr(config, name, given.get(name, getattr(config, name)))
    check(config)
    speeds = given.get("speed", [config.speed])
    if "speed" in given and not isinstance(method, CoLaR):
        raise UserError(f"--speed is CoLaR's: a run of {config.method} has one speed")
    for speed in speeds:
        check_speed(speed)
    if "data" not in given and config.data not in tasks.NAMES:
        raise UserError(
            f"the run was trained on {config.data}, which has no test split of its own: give --data"
        )
    check_interventions(method, names)
    looks, results = "look" in given or "look_figure" in given, []
    frequent = None if given.get("brief") else training_tokens(method)
    tests = {
        name: tasks.load(
            name, "test", limit=given.get("limit"), chain_style=config.chain_style, revision=config.revision
        )
        for name in given.get("data", [config.data])
    }  # all of them, before the first is judged
    for name, examples in tests.items():
        for config.speed in speeds:
            result = evaluate(
                method,
                examples,
                Path(name).name,
                frequent=frequent,
                too_long=given.get("too_long", "skip"),
                batch=batch,
                brief=given.get("brief", False),
            )
            if isinstance(method, CoLaR):
                result["speed"] = config.speed if config.speed == "auto" else int(config.speed)
            if given.get("soft_thinking"):
                result["method"] = "soft_thinking"
            if names:
                result["interventions"] = intervene(method, examples, names, batch)
            if looks:
                result["look"] = look(method, examples, batch)
            results.append(result)
            print(
                f"{label(result)}: accuracy {result['accuracy']:.3f} after {result['seconds']:.1f} s",
                file=sys.stderr,
            )
            if "json" in given:  # after each one: what is done is safe
                write_json(Path(given["json"]), results)
    print(
        report(results),
        *(report_interventions(r) for r in results if names),
        *([report_look(results)] if looks else []),
        sep="\n\n",
    )
    if "look_figure" in given:
        save_figure(look_figure(results), given["look_figure"])
    if "space_figure" in given:
        save_figure(space_figure(method, examples), given["space_figure"])
    if "figure" in given:
        save_figure(results_figure(results), given["figure"])
    if "speed_figure" in given:
        save_figure(speed_figure(results), given["speed_figure"])


if __name__ == "__main__":
    run_script(main)
