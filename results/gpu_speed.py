"""How fast training and decoding are on a GPU, in one command:

    python -m results.gpu_speed MODEL --data gsm8k_train.jsonl [--rows 400] [--peak 989] [--json FILE]

MODEL is a Hugging Face folder or name. A training step on `rows` questions of about equal length (400 are
about 64,000 tokens), for CoT-SFT and each stage of Latent-SFT: eager, compiled, and compiled with
FlexAttention. MFU is FLOPs / seconds / peak, the FLOPs of matrix products, counted in rows of median length.
Decoding: eager, recorded, and `generate` of transformers where it is installed, NEW tokens for the same
questions. All in bfloat16 (training: mixed precision); times are medians. --device cpu tries it out.
"""

import argparse
import json
import random
import statistics
from collections.abc import Callable
from pathlib import Path

import torch

from minilatent import tasks
from minilatent.backbones.pretrained import load_pretrained
from minilatent.batch import Row, encode, pad
from minilatent.config import Parser, UserError, run_script
from minilatent.decode import decode, explicit_thinker
from minilatent.fast import Fast
from minilatent.files import write_json
from minilatent.machine import Moved, pick_device
from minilatent.methods import Method, Stage, build
from minilatent.model import Transformer
from minilatent.optim import make_optimizers, train_only
from minilatent.run import resolve
from minilatent.tools.benchmark import machine, seconds

from .comparison.budget import counted

PEAKS = {
    "H200": 989,
    "H100 PCIe": 756,
    "H100": 989,
    "A100": 312,
    "L40S": 362,
    "4090": 165,
}  # TFLOP/s, bfloat16
NEW = 64  # tokens decoded
FEW = 4  # rows whose FLOPs are counted


def median(work: Callable, repeats: int) -> float:
    """Seconds, after two calls that compile and warm up."""
    return statistics.median([seconds(work) for _ in range(repeats + 2)][2:])


def set_fast(method: Method, fast: Fast | None, attention: str = "sdpa") -> None:
    for module in method.modules():
        if isinstance(module, Transformer):
            module.fast, module.config.attention = fast, attention


def stage_speed(method: Method, stage: Stage, args) -> dict:
    """A step with its update: seconds, tokens, and MFU of each way to do it."""
    method.train()
    optimizers = make_optimizers(train_only(method, stage.trained), method, 1e-6, "adamw", method.config)

    def step(items) -> Callable:
        batch = Moved(stage.collate(list(items), random.Random(0)), method.device)

        def once():
            with method.autocast():
                loss, _ = stage.loss(batch, torch.Generator().manual_seed(0))
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()

        return once

    middle = max(0, (len(stage.items) - FEW) // 2)
    some = stage.items[middle : middle + FEW]
    set_fast(method, None)
    flops = counted(step(some)) * len(stage.items) / len(some)
    found: dict = {"tokens": sum(stage.lengths), "tflop": flops / 1e12}
    ways = {"eager": (None, "sdpa"), "compiled": (Fast(compiled=True, backend=args.backend), "sdpa")}
    if stage.name.startswith("stage1") and method.device.type == "cuda":  # on a CPU it has no backward pass
        ways["flex"] = (Fast(compiled=True, backend=args.backend), "flex")
    for name, way in ways.items():
        set_fast(method, *way)
        took = median(step(stage.items), args.repeats)
        found[name] = {"seconds": took, "tflops": flops / took / 1e12}
        if args.peak:
            found[name]["mfu"] = found[name]["tflops"] / args.peak
        print(f"{stage.name} {name}: {json.dumps(found[name])}", flush=True)
    set_fast(method, None)
    return found


def decode_speed(model: Transformer, tok, questions: list[list[int]], args) -> dict:
    """NEW tokens for each question: no row ends early."""
    model, device = model.to(torch.bfloat16).eval(), model.embed.weight.device
    tok.never = [*tok.markers.values()]
    prompts, lengths = (
        pad(questions, tok.eos).to(device),
        torch.tensor([len(q) for q in questions]).to(device),
    )
    think = explicit_thinker(model)
    ours = lambda: decode(model, tok, model.embed(prompts), lengths, think, NEW - 2, 1)
    found = {}
    for name, model.fast in (("eager", None), ("recorded", Fast(compiled=True, backend=args.backend))):
        found[name] = median(ours, args.repeats)
    try:
        import transformers
    except ImportError:
        return found
    other = transformers.AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.bfloat16)
    other.resize_token_embeddings(model.config.vocab_size, mean_resizing=False)  # the markers
    other, other.generation_config.eos_token_id = other.to(device).eval(), None
    ids = pad(questions, tok.eos, "left").to(device)
    real = pad([[1] * len(q) for q in questions], 0, "left").to(device)
    options = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": tok.eos}
    found["transformers"] = median(lambda: other.generate(ids, attention_mask=real, **options), args.repeats)
    return found | {"ratio": found["transformers"] / found["recorded"]}


def stages_of(name: str, model: Transformer, tok, rows: list[Row], args) -> dict[str, dict]:
    method = build(resolve({"method": name, "dtype": args.dtype}), tok, model)
    found = {}
    for stage in method.stages(rows):
        stage.before()
        found[stage.name] = stage_speed(method, stage, args)
    return found


def main(argv: list[str]) -> None:
    parser = Parser(prog="python -m results.gpu_speed", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("model", help="Hugging Face folder or name")
    add("--data", default="gsm8k", help="questions with chains, a name or a file [gsm8k]")
    add("--rows", type=int, default=400, help="questions of a step, and decoded side by side [400]")
    add("--repeats", type=int, default=5, help="repeats of each measurement [5]")
    add("--peak", type=float, help="TFLOP/s that the hardware can do [known for some GPUs]")
    add("--device", default="cuda", help="cuda or cpu [cuda]")
    add("--dtype", default="bfloat16", choices=("bfloat16", "float32"), help="of training [bfloat16]")
    add("--backend", default="inductor", help=argparse.SUPPRESS)  # torch.compile's
    add("--json", type=Path, metavar="FILE", help="file for the results")
    args = parser.parse_args(argv)
    device = pick_device(args.device)
    results = machine(device)
    args.peak = args.peak or next((PEAKS[name] for name in PEAKS if name in results["hardware"]), None)
    model, tok = load_pretrained(args.model)
    model = model.to(device)
    examples = [e for e in tasks.load(args.data, "test", limit=4000) if e.steps]
    rows = encode(examples, tok, model.config.context, ratio=1)[0]
    rows = sorted(rows, key=lambda r: len(r.prompt) + len(r.chain))
    first = max(0, (len(rows) - args.rows) // 2)
    rows = rows[first : first + args.rows]  # of about the median length
    if not rows:
        raise UserError(f"--data {args.data}: no question has a chain and fits into the context")
    results |= {"model": Path(args.model).name, "rows": len(rows), "peak": args.peak, "new_tokens": NEW}
    for name in ("cot_sft", "latent_sft"):
        results |= stages_of(name, model, tok, rows, args)
    results["decode"] = decode_speed(model, tok, [r.prompt for r in rows], args)
    print(json.dumps(results, indent=1))
    if args.json:
        write_json(args.json, results)


if __name__ == "__main__":
    run_script(main)
