"""Compare our speed with that of transformers: same machine, same run, same batch, dtype and threads, in
turn.

    python -m minilatent.tools.benchmark HF_FOLDER [--data FILE] [--json FILE]    needs transformers
    python -m minilatent.tools.benchmark HF_FOLDER --memory llama-3.2-1b          memory of training
    python -m minilatent.tools.benchmark --machine                                rate of matrix products

Times and ratios are medians. A ratio is theirs over ours: above 1 we are faster.
"""

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F

from .. import tasks
from ..backbones.lora import add_lora
from ..backbones.pretrained import load_pretrained, model_config
from ..batch import IGNORE, causal_batch, pad
from ..config import Config, Parser, UserError, run_script
from ..decode import decode, explicit_thinker
from ..files import write_json
from ..machine import pick_device, pick_dtype
from ..model import ModelConfig, Transformer
from ..run import resolve
from ..study.budget import matrix_rate
from ..tokenizer import Tokenizer

# TFLOP/s of dense bfloat16, by the card's name
PEAK = {"H100": 989, "H200": 989, "A100": 312, "L40S": 362, "4090": 165}
LENGTH, LABELLED = 160, 48  # for --memory: tokens of a row, and how many of them have a label


def in_turn(ours: Callable, theirs: Callable, repeats: int) -> dict:
    """Median seconds of two functions, called in turn, and the median of the turns' ratios: a machine that
    others use, too, slows down both calls of a turn."""
    calls, turns = {"ours": ours, "theirs": theirs}, []
    for turn in range(repeats + 1):
        seconds = {}
        for name in sorted(calls, reverse=turn % 2 == 0):
            synchronize()
            start = time.perf_counter()
            calls[name]()
            synchronize()
            seconds[name] = time.perf_counter() - start
        turns.append(seconds)
    turns = turns[1:]  # the first call of each warms up
    return {
        "seconds": statistics.median(turn["ours"] for turn in turns),
        "seconds_theirs": statistics.median(turn["theirs"] for turn in turns),
        "ratio": statistics.median(turn["theirs"] / turn["ours"] for turn in turns),
    }


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


# ------------------------------------------------------------------ against transformers


def benchmark(args, examples: list[tasks.Example]) -> dict:
    """All comparisons, as JSON would hold them. UserError without transformers."""
    try:
        import transformers
    except ImportError:
        raise UserError("the benchmark compares with transformers: pip install transformers") from None
    transformers.utils.logging.disable_progress_bar()
    device, dtype = pick_device(args.device), getattr(torch, args.dtype)
    model, tok = load_pretrained(args.folder, dtype)
    other = transformers.AutoModelForCausalLM.from_pretrained(args.folder, dtype=dtype)
    other.resize_token_embeddings(model.config.vocab_size, mean_resizing=False)  # the markers' rows for both
    model, other = model.to(device), other.to(device)
    some = sorted((e for e in examples if e.question), key=lambda e: len(e.question))
    some = some[len(examples) // 2 :][: args.rows]
    questions = [tok.encode(e.question) for e in some]
    targets = [tok.encode(f"{e.chain} {e.answer}".strip()) for e in some]
    return {
        "model": Path(args.folder).name,
        "device": str(device),
        "dtype": args.dtype,
        "rows": args.rows,
        "cpus": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        **machine(device),
        "train_step": compare_training(args, model, other, questions, targets, tok.eos),
        "decode": compare_decoding(args, model, other, questions, tok),
    }


def compare_training(args, model, other, questions: list, targets: list, padding: int) -> dict:
    """A step of CoT-SFT with AdamW. The question has no labels, so that we make no logits there; transformers
    makes them everywhere."""
    device = model.embed.weight.device
    batch = causal_batch(questions, targets, padding)
    ids, labels = batch["ids"].to(device), batch["labels"].to(device)  # (B, T)
    whole = pad([q + t for q, t in zip(questions, targets)], padding).to(device)  # (B, T + 1)
    real = pad([[1] * len(q + t) for q, t in zip(questions, targets)], 0).to(device)
    theirs = {"input_ids": whole, "labels": F.pad(labels, (1, 0), value=IGNORE), "attention_mask": real}

    def our_loss():
        logits = model.logits(model(ids)[labels != IGNORE])
        return F.cross_entropy(logits.float(), labels[labels != IGNORE])

    def step(net, loss: Callable) -> Callable:
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-6, fused=True)

        def once():
            loss().backward()
            optimizer.step()
            optimizer.zero_grad()

        return once

    model.train()
    other.train()
    found = in_turn(step(model, our_loss), step(other, lambda: other(**theirs).loss), args.repeats)
    found |= {"tokens": int(real.sum()), "labels": int((labels != IGNORE).sum())}
    found["tflops"] = 6 * model.num_parameters() * found["tokens"] / found["seconds"] / 1e12
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    for name, peak in PEAK.items():
        if name in card:
            found |= {"card": card, "mfu": found["tflops"] / peak}
    return found


def compare_decoding(args, model, other, questions: list, tok: Tokenizer) -> dict:
    """Greedy decoding, in which no row ends early."""
    device = model.embed.weight.device
    model.eval()
    other.eval()
    tok.never, other.generation_config.eos_token_id = [*tok.markers.values()], None
    prompts = pad(questions, tok.eos).to(device)
    lengths = torch.tensor([len(q) for q in questions], device=device)
    theirs = {
        "input_ids": pad(questions, tok.eos, "left").to(device),
        "attention_mask": pad([[1] * len(q) for q in questions], 0, "left").to(device),
        "max_new_tokens": args.new,
        "do_sample": False,
        "pad_token_id": tok.eos,
    }
    think, chain = explicit_thinker(model), args.new - 2  # then </think> and an answer of one token
    ours = lambda: decode(model, tok, model.embed(prompts), lengths, think, chain, 1)
    found = in_turn(ours, lambda: other.generate(**theirs), args.repeats)
    tokens = len(questions) * args.new
    return found | {"new_tokens": args.new, "tokens_per_second": tokens / found["seconds"]}


# ------------------------------------------------------------------ memory


def saved_bytes(config: ModelConfig, rows: int, length: int, labelled: int, dtype: torch.dtype) -> int:
    """What a forward pass keeps for the backward pass, without the weights: counted on the meta device, where
    nothing is computed."""
    with torch.device("meta"):
        model, kept = Transformer(config).to(dtype), {}
        weights = {p.untyped_storage()._cdata for p in model.parameters()}

        def keep(t):
            storage = t.untyped_storage()
            if storage._cdata not in weights:
                kept[storage._cdata] = (t, storage.nbytes())  # t: so that no number is used twice
            return t

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            hidden = model(torch.zeros(rows, length, dtype=torch.long))[:, :labelled]
            logits = model.logits(hidden).float().flatten(0, 1)
            F.cross_entropy(logits, torch.zeros(rows * labelled, dtype=torch.long))
    return sum(size for _, size in kept.values())


def training_memory(shape: ModelConfig, config: Config, length: int, labelled: int) -> dict[str, float]:
    """Gigabytes of a training step of the heaviest stage, calculated, for rows of `length` tokens of which
    `labelled` have a label.

    weights      4 bytes a parameter, 2 more for the copies that autocast makes with another --dtype
    learning     gradient and AdamW's two moments, 12 bytes a trained parameter
    activations  what the forward pass keeps: a layer times their number, or with --grad_checkpoint a layer's
                 input times their number and one layer; and the logits three times: as they are, in float32,
                 and their gradient

    Latent-SFT's stage 1 has a second model, which shares what LoRA freezes, except for its embedding.
    """
    dtype = getattr(torch, pick_dtype(config.dtype, torch.device("cpu")))
    with torch.device("meta"):
        net = Transformer(shape)
    size = net.num_parameters()
    if config.lora_rank:
        add_lora(net, config, [0, 1, 2, 3, 4])
    trained = sum(p.numel() for p in net.parameters() if p.requires_grad)
    rows = -(-config.batch_size // config.accumulate)
    one = saved_bytes(replace(shape, n_layer=1), rows, length, labelled, dtype)
    layer = saved_bytes(replace(shape, n_layer=2), rows, length, labelled, dtype) - one
    rest = one - layer
    layers = shape.n_layer * layer
    if config.grad_checkpoint:
        layers = shape.n_layer * rows * length * shape.width * dtype.itemsize + layer
    logits = rows * labelled * shape.vocab_size * 4  # their gradient, made while all the rest is still there
    weights, learning = size * (4 if dtype == torch.float32 else 6), 12 * trained
    if config.method == "latent_sft":
        weights += 4 * shape.vocab_size * shape.width if config.lora_rank else weights
        learning, layers = 2 * learning, 2 * layers
    found = {"weights": weights, "learning": learning, "activations": layers + rest + logits}
    found["total"] = sum(found.values())
    return {name: round(value / 1e9, 2) for name, value in found.items()}


# ------------------------------------------------------------------ the command


def machine(device: torch.device) -> dict:
    rates = {f"gflops_{name}": matrix_rate(getattr(torch, name), device) for name in ("float32", "bfloat16")}
    return {"threads": torch.get_num_threads(), **rates}


def main(argv: list[str]) -> None:
    parser = Parser(prog="python -m minilatent.tools.benchmark", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("folder", nargs="?", help="Hugging Face folder")
    add("--machine", action="store_true", help="measure the rate of matrix products, and nothing else")
    add("--data", default="mini", help="data set whose questions and chains are the texts [mini]")
    add("--json", metavar="FILE", help="file for the results")
    add("--device", default="cpu", help="cpu or cuda [cpu]")
    add("--dtype", default="float32", choices=("float32", "bfloat16"), help="precision [float32]")
    add("--rows", type=int, default=8, help="rows of a training step, and decoded side by side [8]")
    add("--new", type=int, default=32, help="tokens decoded [32]")
    add("--repeats", type=int, default=5, help="repeats of each measurement [5]")
    add("--threads", type=int, default=0, help="CPU threads (0: PyTorch's choice) [0]")
    memory = parser.add_argument_group("memory of training, calculated")
    memory.add_argument("--memory", metavar="PRESET", help="preset; nothing is measured")
    memory.add_argument("--method", default="cot_sft", help="method [cot_sft]")
    memory.add_argument("--grad_checkpoint", action="store_true", help="with recomputed activations")
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    if not args.folder and not args.machine:
        raise UserError("name a Hugging Face folder, or give --machine")
    if args.machine:
        results = machine(pick_device(args.device))
    elif args.memory:
        given = {"method": args.method, "preset": args.memory, "grad_checkpoint": args.grad_checkpoint}
        shape, _ = model_config(Path(args.folder) / "config.json")
        results = training_memory(shape, resolve(given), LENGTH, LABELLED)
    else:
        results = benchmark(args, tasks.load(args.data, "test", limit=2000))
    for name, value in results.items():
        cells = [name.ljust(14)]
        for key, number in (value if isinstance(value, dict) else {"": value}).items():
            shown = f"{number:.4g}" if isinstance(number, float) else str(number)
            cells.append(f"{key} {shown}".strip())
        print("  ".join(cells))
    if args.json:
        write_json(Path(args.json), results)


if __name__ == "__main__":
    run_script(main)
