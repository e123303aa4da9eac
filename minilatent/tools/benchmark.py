"""Compare our speed with that of transformers, and measure the machine's rate of matrix products.

    python -m minilatent.tools.benchmark HF_FOLDER [--data FILE] [--json FILE]    needs transformers
    python -m minilatent.tools.benchmark                                          the rate alone

Both sides run in turn: same machine, batch, dtype and threads. Times and ratios are medians. A ratio is
their time over ours: above 1 we are faster. (`python -m results.gpu_speed` measures all stages on a GPU.)
"""

import contextlib
import json
import os
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import torch

from .. import tasks
from ..backbones.pretrained import load_pretrained
from ..batch import IGNORE, pad
from ..config import Parser, UserError, run_script
from ..decode import decode, explicit_thinker
from ..fast import Fast
from ..files import write_json
from ..losses import cross_entropy
from ..machine import pick_device, use_threads
from ..tokenizer import Tokenizer

NEW = 32  # tokens decoded


# ------------------------------------------------------------------ the machine


def seconds(work: Callable, *args) -> float:
    """How long work(*args) takes."""
    start = time.perf_counter()
    work(*args)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def matrix_rate(dtype: torch.dtype, device: torch.device, size: int = 1024) -> float:
    """GFLOP/s of a product of two square matrices: the best of ten, or of as many as fit into a second."""
    a, took = torch.rand(size, size, device=device).to(dtype), []
    while len(took) < 10 and sum(took) < 1:
        took.append(seconds(torch.mm, a, a))
    return 2 * size**3 / min(took) / 1e9


def machine(device: torch.device) -> dict:
    """What seconds were measured on, and with which code: the commit, + if Python files have changed."""
    cpus, folder = Path("/proc/cpuinfo"), Path(__file__).parent
    model = re.search(r"model name\s*: (.*)", cpus.read_text(encoding="utf-8") if cpus.exists() else "")
    git = lambda *words: subprocess.run(["git", *words], cwd=folder, capture_output=True, encoding="utf-8")
    commit = ""
    with contextlib.suppress(OSError):  # git may not be installed
        changed = git("diff", "--quiet", "HEAD", "--", "*.py").returncode == 1
        commit = git("rev-parse", "--short", "HEAD").stdout.strip()
        commit += "+" if commit and changed else ""
    cpu = model[1] if model else platform.machine()
    return {
        "hardware": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu,
        "gflops_float32": round(matrix_rate(torch.float32, device), 1),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "commit": commit,
    }


# ------------------------------------------------------------------ ours against theirs


def in_turn(ours: Callable, theirs: Callable, repeats: int) -> dict:
    """Median seconds of two functions, and the median of the turns' ratios: whatever else slows the machine
    down slows both calls of a turn."""
    turns = [(seconds(ours), seconds(theirs)) for _ in range(repeats + 1)][1:]  # the first warms up
    return {
        "seconds": statistics.median(mine for mine, _ in turns),
        "seconds_theirs": statistics.median(other for _, other in turns),
        "ratio": statistics.median(other / mine for mine, other in turns),
    }


def compare_training(model, other, given: list, target: list, padding: int, repeats: int) -> dict:
    """A step of CoT-SFT with AdamW. The question has no labels, so that we compute no logits there;
    transformers computes them everywhere."""
    device = model.embed.weight.device
    rows = [g + t for g, t in zip(given, target)]
    ids = pad(rows, padding).to(device)  # (B, T) each
    labels = pad([[IGNORE] * len(g) + t for g, t in zip(given, target)], IGNORE).to(device)
    real = pad([[1] * len(row) for row in rows], 0).to(device)
    their_loss = lambda: other(input_ids=ids, attention_mask=real, labels=labels).loss

    def our_loss():
        labelled = labels[:, 1:] != IGNORE
        return cross_entropy(model.logits(model(ids[:, :-1])[labelled]), labels[:, 1:][labelled])

    def step(net, loss: Callable) -> Callable:
        optimizer = torch.optim.AdamW(net.train().parameters(), lr=1e-6, fused=True)

        def once():
            loss().backward()
            optimizer.step()
            optimizer.zero_grad()

        return once

    found = in_turn(step(model, our_loss), step(other, their_loss), repeats)
    found["tokens"] = int(real.sum())
    found["tflops"] = 6 * model.num_parameters() * found["tokens"] / found["seconds"] / 1e12
    return found


def compare_decoding(model, other, questions: list, tok: Tokenizer, repeats: int) -> dict:
    """Greedy decoding of NEW tokens; no row ends early."""
    device = model.embed.weight.device
    model.eval()
    other.eval()
    tok.never, other.generation_config.eos_token_id = [*tok.markers.values()], None
    prompts = pad(questions, tok.eos).to(device)
    lengths = torch.tensor([len(q) for q in questions], device=device)
    ids = pad(questions, tok.eos, "left").to(device)
    real = pad([[1] * len(q) for q in questions], 0, "left").to(device)
    options = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": tok.eos}
    think, chain = explicit_thinker(model), NEW - 2  # then </think> and an answer of one token
    ours = lambda: decode(model, tok, model.embed(prompts), lengths, think, chain, 1)
    found = in_turn(ours, lambda: other.generate(ids, attention_mask=real, **options), repeats)
    return found | {"new_tokens": NEW, "tokens_per_second": len(questions) * NEW / found["seconds"]}


def benchmark(args, device: torch.device) -> dict:
    """Both comparisons and what they were made with. UserError without transformers."""
    try:
        import transformers
    except ImportError:
        raise UserError("the benchmark compares with transformers: pip install transformers") from None
    transformers.utils.logging.disable_progress_bar()
    dtype = getattr(torch, args.dtype)
    model, tok = load_pretrained(args.folder, dtype)
    other = transformers.AutoModelForCausalLM.from_pretrained(args.folder, dtype=dtype)
    other.resize_token_embeddings(model.config.vocab_size, mean_resizing=False)  # the markers' rows for both
    model, other = model.to(device), other.to(device)
    model.fast = Fast(compiled=True) if args.compile else None
    examples = sorted(tasks.load(args.data, "test", limit=2000), key=lambda e: len(e.question))
    examples = examples[len(examples) // 2 :][: args.rows]
    questions = [tok.encode(e.question) for e in examples]
    targets = [tok.encode_chain(f"{e.chain} {e.answer}".strip()) for e in examples]
    return {
        "model": Path(args.folder).name,
        "device": str(device),
        "dtype": args.dtype,
        "rows": args.rows,
        "compile": args.compile,
        "transformers": transformers.__version__,
        "train_step": compare_training(model, other, questions, targets, tok.eos, args.repeats),
        "decode": compare_decoding(model, other, questions, tok, args.repeats),
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
    add("--compile", action="store_true", help="ours as with train.py --compile")
    args = parser.parse_args(argv)
    use_threads(args.threads)
    device = pick_device(args.device)
    results = {"load_average": os.getloadavg()[0], "cpus": os.cpu_count(), **machine(device)}
    results["gflops_bfloat16"] = round(matrix_rate(torch.bfloat16, device), 1)
    if args.folder:
        results |= benchmark(args, device)
    print(json.dumps(results, indent=1))
    if args.json:
        write_json(args.json, results)


if __name__ == "__main__":
    run_script(main)
