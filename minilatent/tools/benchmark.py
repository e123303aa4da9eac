"""Compare our speed with that of transformers, and measure the machine's rate of matrix products.

    python -m minilatent.tools.benchmark HF_FOLDER [--data FILE] [--json FILE]    needs transformers
    python -m minilatent.tools.benchmark                                          the rate alone
    .. HF_FOLDER --data gsm8k_train.jsonl --device cuda --dtype bfloat16 --rows 400 --compile      on a GPU

Both sides run in turn: same machine, batch, precision and threads. Times and ratios are medians. A ratio is
their time over ours: above 1 we are faster. MFU is the share of the hardware's peak that a training step
reaches: FLOPs of matrix products (padding counts nothing) / seconds / peak.
"""

import json
import os
import random
import statistics
from collections.abc import Callable
from pathlib import Path

import torch

from .. import tasks
from ..backbones.pretrained import load_pretrained
from ..batch import IGNORE, Row, encode, pad
from ..config import Parser, UserError, run_script
from ..decode import decode, explicit_thinker
from ..fast import speed_up
from ..files import write_json
from ..machine import Moved, pick_device
from ..methods import Method, Stage, build
from ..model import Transformer
from ..optim import train_only
from ..run import resolve
from ..study.budget import counted, machine, matrix_rate, seconds
from ..tokenizer import Tokenizer

NEW = 32  # tokens decoded
FEW = 4  # rows whose FLOPs are counted
PEAKS = {"H200": 989, "H100 PCIe": 756, "H100": 989, "A100": 312, "L40S": 362, "4090": 165}  # bfloat16, dense


def in_turn(ours: Callable, theirs: Callable, repeats: int) -> dict:
    """Median seconds of two functions, and the median of the turns' ratios: whatever else slows the machine
    down slows both calls of a turn."""
    turns = [(seconds(ours), seconds(theirs)) for _ in range(repeats + 1)][1:]  # the first warms up
    return {
        "seconds": statistics.median(mine for mine, _ in turns),
        "seconds_theirs": statistics.median(other for _, other in turns),
        "ratio": statistics.median(other / mine for mine, other in turns),
    }


def stepper(trained, loss: Callable, dtype: torch.dtype) -> Callable:
    """A training step with AdamW, in mixed precision if dtype is of 16 bits."""
    optimizer = torch.optim.AdamW(trained, lr=1e-6, fused=True)
    device = optimizer.param_groups[0]["params"][0].device.type

    def once():
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            value = loss()
        value.backward()
        optimizer.step()
        optimizer.zero_grad()

    return once


def measure_stage(method: Method, stage: Stage, args, theirs: Callable = lambda: None) -> dict:
    """A step on all rows, theirs in turn."""
    networks = [module for module in method.modules() if isinstance(module, Transformer)]
    trained = train_only(method.train(), stage.trained).values()

    def step(items) -> Callable:
        batch = Moved(stage.collate(list(items), random.Random(0)), method.device)
        loss = lambda: stage.loss(batch, torch.Generator().manual_seed(0))[0]
        return stepper(trained, loss, getattr(torch, args.dtype))

    middle = max(0, (len(stage.items) - FEW) // 2)
    few = stage.items[middle : middle + FEW]
    flops = counted(step(few)) * len(stage.items) / len(few)
    for network in networks:
        speed_up(network, method.config)
    found = in_turn(step(stage.items), theirs, args.repeats)
    for network in networks:
        network.fast = None
    found |= {"tokens": sum(stage.lengths), "tflops": flops / found["seconds"] / 1e12}
    return found | {"mfu": args.peak and found["tflops"] / args.peak}


def compare_training(model: Transformer, tok: Tokenizer, other, rows: list[Row], args) -> dict:
    """CoT-SFT against transformers, which computes logits everywhere; and every stage of Latent-SFT."""
    texts = [r.prompt + r.chain + r.tail for r in rows]
    labels = pad([[IGNORE] * len(r.prompt) + r.chain + r.tail for r in rows], IGNORE)
    real = pad([[1] * len(text) for text in texts], 0)
    given = {"input_ids": pad(texts, tok.pad), "attention_mask": real, "labels": labels}
    given = {name: t.to(model.embed.weight.device) for name, t in given.items()}
    theirs = stepper(other.train().parameters(), lambda: other(**given).loss, getattr(torch, args.dtype))
    found = {}
    for name in ("cot_sft", "latent_sft") if all(r.chain for r in rows) else ("cot_sft",):
        asked = {"dtype": args.dtype, "compile": args.compile, "attention": args.attention}
        method = build(resolve({"method": name, **asked}), tok, model)
        for stage in method.stages(rows):
            stage.before()
            found[stage.name] = measure_stage(method, stage, args, *[theirs][: stage.name == "cot"])
    return found


def compare_decoding(model: Transformer, tok: Tokenizer, other, questions: list, args) -> dict:
    """Greedy decoding of NEW tokens; no row ends early."""
    device = model.embed.weight.device
    model.eval()
    other.eval()
    speed_up(model, resolve({"method": "cot_sft", "compile": args.compile}))
    tok.never, other.generation_config.eos_token_id = [*tok.markers.values()], None
    prompts = pad(questions, tok.eos).to(device)
    lengths = torch.tensor([len(q) for q in questions], device=device)
    ids = pad(questions, tok.eos, "left").to(device)
    real = pad([[1] * len(q) for q in questions], 0, "left").to(device)
    options = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": tok.eos}
    think, chain = explicit_thinker(model), NEW - 2  # then </think> and an answer of one token
    ours = lambda: decode(model, tok, model.embed(prompts), lengths, think, chain, 1)
    found = in_turn(ours, lambda: other.generate(ids, attention_mask=real, **options), args.repeats)
    return found | {"new_tokens": NEW, "tokens_per_second": len(questions) * NEW / found["seconds"]}


def benchmark(args, device: torch.device) -> dict:
    """Both comparisons and what they were made with. UserError without transformers."""
    try:
        import transformers
    except ImportError:
        raise UserError("the benchmark compares with transformers: pip install transformers") from None
    transformers.utils.logging.disable_progress_bar()
    model, tok = load_pretrained(args.folder)
    other = transformers.AutoModelForCausalLM.from_pretrained(args.folder, dtype=torch.float32)
    other.resize_token_embeddings(model.config.vocab_size, mean_resizing=False)  # the markers' rows for both
    examples = sorted(tasks.load(args.data, "test", limit=2000), key=lambda e: len(e.question))
    rows = encode(examples[len(examples) // 2 :][: args.rows], tok, model.config.context)[0]
    both = model.to(device), tok, other.to(device)
    training = compare_training(*both, rows, args)
    for network in (model, other):
        network.to(getattr(torch, args.dtype))
    return {
        "model": Path(args.folder).name,
        "device": str(device),
        "dtype": args.dtype,
        "rows": len(rows),
        "compile": args.compile,
        "transformers": transformers.__version__,
        "train_step": training.pop("cot"),
        "stages": training,
        "decode": compare_decoding(*both, [r.prompt for r in rows], args),
    }


def main(argv: list[str]) -> None:
    parser = Parser(prog="python -m minilatent.tools.benchmark", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("folder", nargs="?", help="Hugging Face folder (without it: only the rate of matrix products)")
    add("--data", default="mini", help="data set whose questions and chains are the texts [mini]")
    add("--json", type=Path, metavar="FILE", help="file for the results")
    add("--device", default="cpu", help="cpu or cuda [cpu]")
    add("--dtype", default="float32", choices=("float32", "bfloat16"), help="precision [float32]")
    add("--rows", type=int, default=8, help="rows of a training step, and decoded side by side [8]")
    add("--repeats", type=int, default=5, help="repeats of each measurement [5]")
    add("--threads", type=int, default=0, help="CPU threads (0: PyTorch's choice) [0]")
    add("--compile", action="store_true", help="as train.py's")
    add("--attention", default="sdpa", help="as train.py's [sdpa]")
    add("--peak", type=float, help="TFLOP/s that the hardware can do, for MFU [known for some GPUs]")
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    device = pick_device(args.device)
    results = {"load_average": os.getloadavg()[0], "cpus": os.cpu_count(), **machine(device)}
    results["gflops_bfloat16"] = round(matrix_rate(torch.bfloat16, device), 1)
    args.peak = args.peak or next((PEAKS[name] for name in PEAKS if name in results["hardware"]), None)
    if args.folder:
        results |= benchmark(args, device)
    print(json.dumps(results, indent=1))
    if args.json:
        write_json(args.json, results)


if __name__ == "__main__":
    run_script(main)
