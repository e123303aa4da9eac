"""Compare our speed with that of transformers, or measure the machine's rate of matrix products.

    python -m minilatent.tools.benchmark HF_FOLDER [--data FILE] [--json FILE]    needs transformers
    python -m minilatent.tools.benchmark --machine

Both sides run in turn: same machine, batch, dtype and threads. Times and ratios are medians. A ratio is
their time over ours: above 1 we are faster.
"""

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from .. import tasks
from ..backbones.pretrained import load_pretrained
from ..batch import IGNORE, pad
from ..config import Parser, UserError, run_script
from ..decode import decode, explicit_thinker
from ..files import write_json
from ..losses import cross_entropy
from ..machine import pick_device
from ..study.budget import machine, matrix_rate
from ..tokenizer import Tokenizer

# TFLOP/s of dense bfloat16, by the card's name
PEAK = {"H100": 989, "H200": 989, "A100": 312, "L40S": 362, "4090": 165}


def in_turn(ours: Callable, theirs: Callable, repeats: int) -> dict:
    """Median seconds of two functions, and the median of the turns' ratios: whatever else slows the machine
    down slows both calls of a turn."""
    calls = [("ours", ours), ("theirs", theirs)]
    turns = []
    for _ in range(repeats + 1):
        seconds = {}
        for name, call in calls:
            synchronize()
            start = time.perf_counter()
            call()
            synchronize()
            seconds[name] = time.perf_counter() - start
        turns.append(seconds)
        calls.reverse()  # neither of them always goes first
    turns = turns[1:]  # the first calls warm up
    return {
        "seconds": statistics.median(turn["ours"] for turn in turns),
        "seconds_theirs": statistics.median(turn["theirs"] for turn in turns),
        "ratio": statistics.median(turn["theirs"] / turn["ours"] for turn in turns),
    }


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def compare_training(model, other, given: list, target: list, padding: int, repeats: int) -> dict:
    """A step of CoT-SFT with AdamW. The question has no labels, so that we compute no logits there;
    transformers computes them everywhere."""
    device = model.embed.weight.device
    rows = [g + t for g, t in zip(given, target)]
    ids = pad(rows, padding).to(device)  # (B, T) each
    labels = pad([[IGNORE] * len(g) + t for g, t in zip(given, target)], IGNORE).to(device)
    real = pad([[1] * len(row) for row in rows], 0).to(device)

    def our_loss():
        labelled = labels[:, 1:] != IGNORE
        logits = model.logits(model(ids[:, :-1])[labelled])
        return cross_entropy(logits, labels[:, 1:][labelled])

    def their_loss():
        return other(input_ids=ids, attention_mask=real, labels=labels).loss

    def step(net, loss: Callable) -> Callable:
        optimizer = torch.optim.AdamW(net.train().parameters(), lr=1e-6, fused=True)

        def once():
            loss().backward()
            optimizer.step()
            optimizer.zero_grad()

        return once

    found = in_turn(step(model, our_loss), step(other, their_loss), repeats)
    found |= {"tokens": int(real.sum()), "labels": int((labels != IGNORE).sum())}
    found["tflops"] = 6 * model.num_parameters() * found["tokens"] / found["seconds"] / 1e12
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    for name, peak in PEAK.items():
        if name in card:
            found |= {"card": card, "mfu": found["tflops"] / peak}
    return found


def compare_decoding(model, other, questions: list, tok: Tokenizer, new: int, repeats: int) -> dict:
    """Greedy decoding of `new` tokens; no row ends early."""
    device = model.embed.weight.device
    model.eval()
    other.eval()
    tok.never, other.generation_config.eos_token_id = [*tok.markers.values()], None
    prompts = pad(questions, tok.eos).to(device)
    lengths = torch.tensor([len(q) for q in questions], device=device)
    theirs = {
        "input_ids": pad(questions, tok.eos, "left").to(device),
        "attention_mask": pad([[1] * len(q) for q in questions], 0, "left").to(device),
        "max_new_tokens": new,
        "do_sample": False,
        "pad_token_id": tok.eos,
    }
    think, chain = explicit_thinker(model), new - 2  # then </think> and an answer of one token
    ours = lambda: decode(model, tok, model.embed(prompts), lengths, think, chain, 1)
    found = in_turn(ours, lambda: other.generate(**theirs), repeats)
    return found | {"new_tokens": new, "tokens_per_second": len(questions) * new / found["seconds"]}


def benchmark(args, device: torch.device, dtype: torch.dtype) -> dict:
    """Both comparisons and what they were made with. UserError without transformers."""
    try:
        import transformers
    except ImportError:
        raise UserError("the benchmark compares with transformers: pip install transformers") from None
    transformers.utils.logging.disable_progress_bar()
    model, tok = load_pretrained(args.folder, dtype)
    other = transformers.AutoModelForCausalLM.from_pretrained(args.folder, dtype=dtype)
    other.resize_token_embeddings(model.config.vocab_size, mean_resizing=False)  # the markers' rows for both
    model, other = model.to(device), other.to(device)
    examples = [e for e in tasks.load(args.data, "test", limit=2000) if e.question]
    examples = sorted(examples, key=lambda e: len(e.question))[len(examples) // 2 :][: args.rows]
    questions = [tok.encode(e.question) for e in examples]
    targets = [tok.encode(f"{e.chain} {e.answer}".strip()) for e in examples]
    return {
        "model": Path(args.folder).name,
        "device": str(device),
        "dtype": args.dtype,
        "rows": args.rows,
        "transformers": transformers.__version__,
        "train_step": compare_training(model, other, questions, targets, tok.eos, args.repeats),
        "decode": compare_decoding(model, other, questions, tok, args.new, args.repeats),
    }


def show(results: dict) -> None:
    for name, value in results.items():
        cells = [name.ljust(16)]
        for key, number in (value if isinstance(value, dict) else {"": value}).items():
            shown = f"{number:.4g}" if isinstance(number, float) else str(number)
            cells.append(f"{key} {shown}".strip())
        print("  ".join(cells), flush=True)


def main(argv: list[str]) -> None:
    parser = Parser(prog="python -m minilatent.tools.benchmark", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("folder", nargs="?", help="Hugging Face folder")
    add("--machine", action="store_true", help="measure the rate of matrix products and nothing else")
    add("--data", default="mini", help="data set whose questions and chains are the texts [mini]")
    add("--json", metavar="FILE", help="file for the results")
    add("--device", default="cpu", help="cpu or cuda [cpu]")
    add("--dtype", default="float32", choices=("float32", "bfloat16"), help="precision [float32]")
    add("--rows", type=int, default=8, help="rows of a training step, and decoded side by side [8]")
    add("--new", type=int, default=32, help="tokens decoded [32]")
    add("--repeats", type=int, default=5, help="repeats of each measurement [5]")
    add("--threads", type=int, default=0, help="CPU threads (0: PyTorch's choice) [0]")
    args = parser.parse_args(argv)
    if not args.folder and not args.machine:
        raise UserError("name a Hugging Face folder, or give --machine")
    if args.threads:
        torch.set_num_threads(args.threads)
    device = pick_device(args.device)
    results = {"load_average": os.getloadavg()[0], "cpus": os.cpu_count(), **machine(device)}
    results["gflops_bfloat16"] = round(matrix_rate(torch.bfloat16, device), 1)
    show(results)
    if not args.machine:
        compared = benchmark(args, device, getattr(torch, args.dtype))
        show(compared)
        results |= compared
    if args.json:
        write_json(Path(args.json), results)


if __name__ == "__main__":
    run_script(main)
