"""Evaluate a trained run: python eval.py --ckpt out/latent_sft --data mini mini_hard --json results.json"""

import argparse
import sys
from pathlib import Path

from minilatent import tasks
from minilatent.config import Config, Parser, UserError, add_fields, run_script
from minilatent.fast import Fast
from minilatent.files import write_json
from minilatent.machine import pick_device, use_threads
from minilatent.methods import CoLaR
from minilatent.run import load_run
from minilatent.study.evaluation import change_settings, evaluate, label, report, training_tokens
from minilatent.study.interventions import INTERVENTIONS, check_interventions, intervene, report_interventions

COMMON = ("chain_style", "max_chain", "max_answer")  # settings that can be changed for a run
COLAR = ("latent_temperature", "sample_end")  # further ones of some methods


def parse(argv: list[str]) -> dict:
    parser = Parser(prog="eval.py", description=__doc__, argument_default=argparse.SUPPRESS)
    add = parser.add_argument
    add("--ckpt", required=True, metavar="DIR", help="run folder")
    add("--data", nargs="+", metavar="NAME|FILE", help="test sets [that of the run's data]")
    add("--limit", type=int, metavar="int", help="questions of each, at most")
    add("--batch", type=int, metavar="int", help="questions decoded side by side [the run's eval_batch]")
    add("--json", metavar="FILE", help="file for the results, a list with one object per data set")
    add("--brief", action="store_true", help="only accuracy and #L, much faster with a large vocabulary")
    known = ", ".join(INTERVENTIONS)
    add("--intervene", nargs="*", metavar="NAME", help=f"replacements of the latents: {known} [noise swap]")
    add("--speed", nargs="+", metavar="c", help="compression factors, numbers or auto (colar) [the run's]")
    add_fields(parser, Config, only=("device", "threads", "compile", *COMMON))
    add_fields(parser, CoLaR.Settings, only=COLAR)
    given = vars(parser.parse_args(argv))
    for name in ("batch", "limit"):
        if given.get(name, 1) < 1:
            raise UserError(f"--{name} {given[name]} is out of range: 1 or more")
    return given


def main(argv: list[str]) -> None:
    given = parse(argv)
    use_threads(given.get("threads", 0))
    method = load_run(given["ckpt"], pick_device(given.get("device", "auto")))
    method.model.fast = Fast(compiled=True) if given.get("compile") else None
    change_settings(method, {name: given[name] for name in (*COMMON, *COLAR) if name in given})
    config, batch = method.config, given.get("batch", 0)
    for speed in given.get("speed", []):
        change_settings(method, {"speed": speed})  # all are checked before the first is used
    speeds = given.get("speed", [getattr(config, "speed", None)])
    if "data" not in given and config.data not in tasks.NAMES:
        raise UserError(f"the run was trained on {config.data}, which has no test split: give --data")
    names = given.get("intervene", []) or (["noise", "swap"] if "intervene" in given else [])
    check_interventions(method, names)
    options = {"limit": given.get("limit"), "chain_style": config.chain_style}
    tests = {name: tasks.load(name, "test", **options) for name in given.get("data", [config.data])}
    brief, results, files = "brief" in given, [], [Path(name).name for name in tests]
    frequent = None if brief else training_tokens(method)
    for name, examples in tests.items():
        shown = Path(name).name if files.count(Path(name).name) == 1 else name
        print(f"{shown}: {len(examples)} questions are judged", file=sys.stderr)
        for speed in speeds:
            if speed:
                config.speed = speed
            result = evaluate(method, examples, shown, frequent=frequent, batch=batch, brief=brief)
            if speed:
                result["speed"] = speed if speed == "auto" else int(speed)
            if names:
                result["interventions"] = intervene(method, examples, names, batch)
            results.append(result)
            found = f"{label(result)}: accuracy {result['accuracy']:.3f}"
            print(f"{found} after {result['seconds']:.1f} s", file=sys.stderr)
            if "json" in given:  # after each one: what is done is safe
                write_json(Path(given["json"]), results)
    print("\n\n".join([report(results), *(report_interventions(r) for r in results if names)]))


if __name__ == "__main__":
    run_script(main)
