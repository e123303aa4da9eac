"""GSM8K at small scale: SmolLM2-135M on redrawn GSM8K, row by row, on whatever GPU is at hand.

    python -m results.gsm8k MODEL [--data gsm8k_redrawn=gsm8k_train.jsonl --tests FOLDER]
    python -m results.gsm8k MODEL --plan      the rows that are missing, and about how long each takes
    python -m results.gsm8k MODEL --tiny      a rehearsal of all of them on a CPU, in minutes

MODEL is a Hugging Face folder or name. --tests names a folder with gsm8k_test.jsonl, multiarith_test.jsonl,
svamp_test.jsonl and gsm_hard_test.jsonl; without it they come from the hub. --data gsm8k_aug makes the same
table with the papers' data.

A row is a run of train.py, then of eval.py on the four test sets, then interventions on GSM8K's. Its result,
results/gsm8k/NAME-seedS.json, appears when all is done. Rows that have one are skipped and a run that was
stopped goes on, so the same command on another day does the next rows; --minutes starts none that would not
fit. All train LoRA adapters, of less than 16 MB: to go on elsewhere, carry out/gsm8k/cot_sft*, from which the
others start, and results/gsm8k. `python -m results.table` makes the table.

A step has 384 questions, about 64,000 tokens. All rows that start from CoT-SFT have the same number of
further steps; a step of Latent-SFT's stage 1 trains two models and counts as two. The curve has the same
numbers of steps for every number of examples.
"""

import gc
import json
import shutil
import sys
import time
from argparse import BooleanOptionalAction
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

from eval import main as evaluate
from minilatent import tasks
from minilatent.config import Parser, UserError, run_script
from minilatent.files import write_json
from minilatent.run import parse_args, train

HERE = Path(__file__).parent / "gsm8k"
SETS = ("gsm8k", "multiarith", "svamp", "gsm_hard")
FIRST, FURTHER, PHASES = 400, 600, (60, 40, 100)  # steps: CoT-SFT, all others, the phases of stage 1
STAGE2 = FURTHER - 2 * sum(PHASES)
SIZE, CURVE = 120_000, (7_000, 30_000, 400_000)  # examples: of the table, and of the curve besides
TOKENS = 64_000  # a step's
COMMON = (
    "--preset smollm2-135m --batch_size 384 --accumulate 1 --max_tokens 320 --val_size 256 --test_size 16 "
    "--lora_rank 12 --lora_dropout 0 --lr 1e-3 --beta2 0.99 --eval_batch 660 --save_every 100 "
    f"--steps {FURTHER} --eval_every {FURTHER // 2}"
)
STAGE1 = f"--stage1_steps {','.join(map(str, PHASES))} --stage1_lr 5e-4"
STAGE1 += f" --steps {STAGE2} --eval_every {STAGE2 // 2}"
TINY = (
    "--preset smoke --device cpu --threads 1 --dtype float32 --train_size 24 --val_size 2 --steps 2 "
    "--eval_every 2 --batch_size 4 --lora_rank 2 --max_chain 3 --max_answer 2 --test_size 1"
)


@dataclass
class Kind:
    """A row of the table without its seed. cost: what a step costs, in passes of CoT-SFT."""

    title: str
    method: str
    options: str = ""
    seeds: int = 1
    cost: float = 1.0
    judged: str = ""  # further options of eval.py


KINDS = {
    "cot_sft": Kind("CoT-SFT", "cot_sft", f"--steps {FIRST} --eval_every {FIRST // 2} --max_chain 128", 3),
    "no_cot": Kind("No-CoT", "no_cot", seeds=3, cost=0.7),
    "latent_sft_2": Kind("Latent-SFT(2)", "latent_sft", f"--ratio 2 --max_chain 64 {STAGE1}", 3, 0.9),
    "latent_sft_4": Kind("Latent-SFT(4)", "latent_sft", f"--ratio 4 --max_chain 32 {STAGE1}", cost=0.8),
    "latent_sft_2_uniform": Kind(
        "Latent-SFT(2), no encoder", "latent_sft", "--ratio 2 --labels uniform --max_chain 64", cost=0.8
    ),
    "colar": Kind("CoLaR", "colar", "--lora_rank 8 --max_chain 128", judged="--speed 2 5"),
    "coconut": Kind("Coconut", "coconut", "--first_stage 1", cost=1.5),
}


@dataclass
class Row:
    name: str
    kind: Kind
    seed: int
    size: int

    @property
    def run(self) -> str:
        return f"{self.name}-seed{self.seed}"

    @property
    def start(self) -> str:
        """The run that this one starts from."""
        size = "" if self.size == SIZE else f"_{self.size}"
        return "" if self.kind.method == "cot_sft" else f"cot_sft{size}-seed{self.seed}"

    def seconds(self, rate: float) -> float:
        """About how long it takes at this many TFLOP/s, with half a minute to judge it."""
        steps = FURTHER if self.start else FIRST
        return 30 + steps * self.kind.cost * 6 * 135e6 * TOKENS / (rate * 1e12)


def rows() -> list[Row]:
    """First what the table needs, one seed of all, then the curve, then the other seeds."""
    curve = ("cot_sft", "no_cot", "latent_sft_2")
    first = [Row(name, kind, 0, SIZE) for name, kind in KINDS.items()]
    first += [Row(f"{name}_{size}", KINDS[name], 0, size) for size in CURVE for name in curve]
    return first + [
        Row(name, k, seed, SIZE) for seed in (1, 2) for name, k in KINDS.items() if seed < k.seeds
    ]


def trained(row: Row, args) -> Path:
    """The row's run folder, finished."""
    folder = args.out / row.run
    if (folder / "model.safetensors").exists():
        return folder
    start = args.out / row.start if row.start else args.model
    words = f"--method {row.kind.method} {COMMON} {row.kind.options} --train_size {row.size}".split()
    words += ["--compile"] if args.compile else []
    if args.tiny:
        words += [*TINY.split(), *(["--stage1_steps", "1,1,1"] if "--ratio" in words else [])]
    given = [*words, "--seed", str(row.seed), "--data", args.data, "--init", str(start), "--out", str(folder)]
    if (folder / "config.json").exists():
        given.append("--resume")
    train(parse_args(given))
    return folder


def judged(row: Row, folder: Path, args) -> list[dict]:
    """What eval.py finds: every test set, and interventions on some questions of GSM8K."""
    tests = [str(args.tests / f"{name}_test.jsonl") if args.tests else name for name in SETS]
    file, again = folder / "judged.json", folder / "interventions.json"
    common = ["--ckpt", str(folder), "--brief", *row.kind.judged.split()]
    common += ["--compile"] if args.compile else []
    evaluate([*common, "--json", str(file), "--data", *tests, *(["--limit", "3"] if args.tiny else [])])
    results = json.loads(file.read_text(encoding="utf-8"))
    for i, result in enumerate(results):  # in the order of the sets, for each speed
        result["data"] = SETS[i * len(SETS) // len(results)]
    if row.kind.method != "no_cot":
        limit = "3" if args.tiny else "400"
        options = ["--json", str(again), "--data", tests[0], "--limit", limit, "--intervene", "noise", "swap"]
        evaluate([*common, *options])
        for result, other in zip(results, json.loads(again.read_text(encoding="utf-8"))):
            result["interventions"] = {
                "n": other["n"],
                "accuracy": other["accuracy"],
                **other["interventions"],
            }
    return results


def do(row: Row, args) -> None:
    began, folder = time.perf_counter(), trained(row, args)
    took = time.perf_counter() - began
    about = {"run": row.run, "size": row.size, "training_data": args.data.partition("=")[0]}
    results = [{**result, **about} for result in judged(row, folder, args)]
    shutil.copy(folder / "metrics.jsonl", args.results / f"{row.run}.jsonl")
    write_json(args.results / f"{row.run}.json", results)
    weights = (folder / "model.safetensors").stat().st_size / 1e6
    print(f"{row.run}: trained in {took:.0f} s, all in {time.perf_counter() - began:.0f} s, {weights:.1f} MB")
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def main(argv: list[str]) -> None:
    parser = Parser(prog="python -m results.gsm8k", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("model", help="Hugging Face folder or name of SmolLM2-135M, or another")
    add("--data", default="gsm8k_redrawn", help="training data, as train.py's [gsm8k_redrawn]")
    add("--tests", type=Path, metavar="FOLDER", help="folder with the test sets' files [from the hub]")
    add("--only", nargs="+", metavar="RUN", help="only these rows, as no_cot-seed0, if they are missing")
    add("--minutes", type=float, default=1e9, help="start no row that would not fit into this time")
    add(
        "--rate",
        type=float,
        default=130,
        help="TFLOP/s that training reaches, for the times [130: eager, H200]",
    )
    add(
        "--compile",
        action=BooleanOptionalAction,
        default=torch.cuda.is_available(),
        help="as train.py's [on a GPU]",
    )
    add("--plan", action="store_true", help="only say what would be done")
    add("--tiny", action="store_true", help="a rehearsal with a few steps and questions")
    add("--out", type=Path, metavar="FOLDER", help="run folders [out/gsm8k; of a rehearsal out/gsm8k_tiny]")
    args = parser.parse_args(argv)
    args.out = args.out or Path("out/gsm8k_tiny" if args.tiny else "out/gsm8k")
    args.results = args.out / "results" if args.tiny else HERE
    known = {row.run for row in rows()}
    if strange := set(args.only or ()) - known:
        raise UserError(f"there is no row '{min(strange)}': {', '.join(sorted(known))}")
    todo = [row for row in rows() if not (args.results / f"{row.run}.json").exists()]
    todo = [row for row in todo if not args.only or row.run in args.only]
    if args.plan:
        for row in todo:
            print(f"{row.run:30s} {row.seconds(args.rate) / 60:5.1f} min   {row.size:7,} examples")
        total = sum(row.seconds(args.rate) for row in todo) / 60
        print(f"{len(todo)} of {len(known)} rows, {total:.0f} min at {args.rate:.0f} TFLOP/s")
        return
    args.results.mkdir(parents=True, exist_ok=True)
    began, load = time.perf_counter(), tasks.load
    tasks.load = lru_cache(maxsize=8)(load)  # rows with the same data draw them once
    try:
        for row in todo:
            left = 60 * args.minutes - (time.perf_counter() - began)
            if row.seconds(args.rate) > left and not args.tiny:
                print(f"{row.run}: no time left", file=sys.stderr)
            else:
                do(row, args)
    finally:
        tasks.load = load


if __name__ == "__main__":
    run_script(main)
