"""GSM8K at small scale: SmolLM2-135M on redrawn GSM8K, row by row, on whatever GPU is at hand.

    python -m results.gsm8k MODEL [--data gsm8k_redrawn=gsm8k_train.jsonl --tests FOLDER]
    python -m results.gsm8k MODEL --plan      the rows that are missing, and about how long each takes
    python -m results.gsm8k MODEL --tiny      a rehearsal of all of them on a CPU, in minutes
    python -m results.gsm8k MODEL --cpu       instead of them the beginning of the curve, in hours of a CPU

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
numbers of steps for every number of examples; with --cpu a step has 32 questions, and a row as many steps as
one pass over its examples takes.
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

HERE = Path(__file__).parent
SETS = ("gsm8k", "multiarith", "svamp", "gsm_hard")
CURVED = ("cot_sft", "no_cot", "latent_sft_2")
FIRST, FURTHER = 400, 600  # steps: CoT-SFT, all others
PHASES = (1 / 10, 1 / 15, 1 / 6)  # of these others, those of the phases of stage 1
SIZE, CURVE = 120_000, (7_000, 30_000, 400_000)  # examples: of the table, and of the curve besides
SMALL = (7_000, 30_000)  # of the curve on a CPU
BATCH, BATCH_CPU = 384, 32
TOKENS = 167  # a question's, with its chain and padding
COMMON = (
    "--preset smollm2-135m --accumulate 1 --max_tokens 320 --val_size 256 --test_size 16 "
    "--lora_rank 12 --lora_dropout 0 --lr 1e-3 --beta2 0.99 --save_every 100"
)
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
    encoder: bool = False  # stage 1 of Latent-SFT comes first
    judged: str = ""  # further options of eval.py


KINDS = {
    "cot_sft": Kind("CoT-SFT", "cot_sft", "--max_chain 128", 3),
    "no_cot": Kind("No-CoT", "no_cot", seeds=3, cost=0.7),
    "latent_sft_2": Kind("Latent-SFT(2)", "latent_sft", "--ratio 2 --max_chain 64", 3, 0.9, True),
    "latent_sft_4": Kind("Latent-SFT(4)", "latent_sft", "--ratio 4 --max_chain 32", 1, 0.8, True),
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
    cpu: bool = False

    @property
    def run(self) -> str:
        return f"{self.name}-seed{self.seed}"

    @property
    def start(self) -> str:
        """The run that this one starts from."""
        size = "" if self.size == SIZE else f"_{self.size}"
        return "" if self.kind.method == "cot_sft" else f"cot_sft{size}-seed{self.seed}"

    @property
    def batch(self) -> int:
        return BATCH_CPU if self.cpu else BATCH

    @property
    def steps(self) -> int:
        if self.cpu:
            return self.size // self.batch
        return FURTHER if self.start else FIRST

    def seconds(self, rate: float) -> float:
        """About how long it takes at this many TFLOP/s, with the time to judge it."""
        tokens = self.steps * self.kind.cost * self.batch * TOKENS
        return (600 if self.cpu else 30) + 6 * 135e6 * tokens / (rate * 1e12)

    def options(self) -> str:
        """train.py's."""
        steps, more = self.steps, ""
        if self.kind.encoder:
            phases = [max(1, round(share * steps)) for share in PHASES]
            more = f"--stage1_steps {','.join(map(str, phases))} --stage1_lr 5e-4"
            steps -= 2 * sum(phases)
        more += f" --steps {steps} --eval_every {steps // 2} --batch_size {self.batch}"
        more += f" --eval_batch {64 if self.cpu else 660} --train_size {self.size} --seed {self.seed}"
        return f"--method {self.kind.method} {COMMON} {self.kind.options} {more}"


def rows(cpu: bool = False) -> list[Row]:
    """First what the table needs, one seed of all, then the curve, then the other seeds. On a CPU only the
    curve, from its other end."""
    if cpu:
        return [Row(f"{name}_{size}", KINDS[name], 0, size, True) for size in SMALL for name in CURVED]
    first = [Row(name, kind, 0, SIZE) for name, kind in KINDS.items()]
    first += [Row(f"{name}_{size}", KINDS[name], 0, size) for size in CURVE for name in CURVED]
    return first + [
        Row(name, k, seed, SIZE) for seed in (1, 2) for name, k in KINDS.items() if seed < k.seeds
    ]


def trained(row: Row, args) -> Path:
    """The row's run folder, finished."""
    folder = args.out / row.run
    if (folder / "model.safetensors").exists():
        return folder
    start = args.out / row.start if row.start else args.model
    words = row.options().split()
    words += ["--compile"] if args.compile else []
    if args.tiny:
        words += [*TINY.split(), *(["--stage1_steps", "1,1,1"] if row.kind.encoder else [])]
    given = [*words, "--data", args.data, "--init", str(start), "--out", str(folder)]
    if (folder / "config.json").exists():
        given.append("--resume")
    train(parse_args(given))
    return folder


def judged(row: Row, folder: Path, args) -> list[dict]:
    """What eval.py finds: every test set (on a CPU GSM8K's), and interventions on some questions of it."""
    sets = SETS[:1] if row.cpu else SETS
    tests = [str(args.tests / f"{name}_test.jsonl") if args.tests else name for name in sets]
    file, again = folder / "judged.json", folder / "interventions.json"
    common = ["--ckpt", str(folder), "--brief", *row.kind.judged.split()]
    common += ["--compile"] if args.compile else []
    evaluate([*common, "--json", str(file), "--data", *tests, *(["--limit", "3"] if args.tiny else [])])
    results = json.loads(file.read_text(encoding="utf-8"))
    for i, result in enumerate(results):  # in the order of the sets, for each speed
        result["data"] = sets[i * len(sets) // len(results)]
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
        help="TFLOP/s that training reaches, for the times [130: eager, H200; with --cpu 0.35: a core]",
    )
    add(
        "--compile",
        action=BooleanOptionalAction,
        default=torch.cuda.is_available(),
        help="as train.py's [on a GPU]",
    )
    add("--cpu", action="store_true", help="the curve's beginning: small batches, each example once")
    add("--plan", action="store_true", help="only say what would be done")
    add("--tiny", action="store_true", help="a rehearsal with a few steps and questions")
    add("--out", type=Path, metavar="FOLDER", help="run folders [out/gsm8k; with _cpu and _tiny behind it]")
    args = parser.parse_args(argv)
    name = "gsm8k_cpu" if args.cpu else "gsm8k"
    args.out = args.out or Path(f"out/{name}_tiny" if args.tiny else f"out/{name}")
    args.results = args.out / "results" if args.tiny else HERE / name
    args.rate = args.rate or (0.35 if args.cpu else 130)
    table = rows(args.cpu)
    known = {row.run for row in table}
    if strange := set(args.only or ()) - known:
        raise UserError(f"there is no row '{min(strange)}': {', '.join(sorted(known))}")
    todo = [row for row in table if not (args.results / f"{row.run}.json").exists()]
    todo = [row for row in todo if not args.only or row.run in args.only]
    if args.plan:
        for row in todo:
            print(f"{row.run:30s} {row.seconds(args.rate) / 60:5.1f} min   {row.size:7,} examples")
        total = sum(row.seconds(args.rate) for row in todo) / 60
        print(f"{len(todo)} of {len(known)} rows, {total:.0f} min at {args.rate:g} TFLOP/s")
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
