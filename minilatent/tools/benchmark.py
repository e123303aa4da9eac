"""Ours against transformers and tokenizers: the same machine, the same run, the same batch, dtype and threads, in turn.

    python -m minilatent.benchmark HF_FOLDER [--data FILE] [--json FILE]     needs: pip install transformers
    python -m minilatent.benchmark HF_FOLDER --memory llama-3.2-1b           what a preset's training takes; config.json is enough

Times and ratios are medians. A ratio is theirs over ours: above 1 we are faster.
"""

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from .. import tasks
from ..backbones.lora import add_lora, own_state
from ..backbones.pretrained import load_pretrained, model_config
from ..config import PRESETS, Config, Parser, UserError, nearest, resolve, run_script
from ..decode import decode, explicit_thinker
from ..files import write_json
from ..model import ModelConfig, Transformer
from ..run import pick_device, pick_dtype
from ..tasks.answers import Example
from ..tokenizer import Tokenizer

PEAK = {
    "H100": 989,
    "H200": 989,
    "A100": 312,
    "L40S": 362,
    "4090": 165,
}  # TFLOP/s of dense bfloat16, by the card's name


def in_turn(ours, theirs, repeats: int, sync=lambda: None) -> dict:
    """Median seconds of two functions, called in turn, and the median of the turns' ratios: a machine that others use
    too slows down both calls of a turn."""
    seconds = {"ours": [], "theirs": []}
    for turn in range(repeats + 1):  # the first call of each warms up
        for name, call in (("ours", ours), ("theirs", theirs))[:: 1 if turn % 2 else -1]:
            sync()
            start = time.perf_counter()
            call()
            sync()
            seconds[name].append(time.perf_counter() - start)
    a, b = seconds["ours"][1:], seconds["theirs"][1:]
    return {
        "seconds": statistics.median(a),
        "seconds_theirs": statistics.median(b),
        "ratio": statistics.median(y / x for x, y in zip(a, b)),
    }


def loading(folder: str, repeats: int) -> dict:
    """A fresh process a load, because what one has loaded the next finds in memory: seconds without imports, and how
    much resident memory grew, at the peak, over the float32 model's size."""
    program = """
import resource, sys, time, torch
torch.set_num_threads(int(sys.argv[3]))
if sys.argv[2] == "ours":
    from pathlib import Path
    from minilatent.pretrained import load_transformer
    load = lambda: load_transformer(Path(sys.argv[1]))
else:
    import transformers
    from transformers import AutoModelForCausalLM      # its slow imports, as ours, before the clock starts
    transformers.utils.logging.disable_progress_bar()
    load = lambda: AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
model = load()
took = time.perf_counter() - start
size = sum(p.numel() * p.element_size() for p in model.parameters())
print(took, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / size)
"""
    found = {"ours": [], "theirs": []}
    for _ in range(repeats):
        for name, results in found.items():
            done = subprocess.run(
                [sys.executable, "-c", program, folder, name, str(torch.get_num_threads())],
                capture_output=True,
                text=True,
            )
            if done.returncode:
                raise UserError(
                    f"loading failed: {done.stderr.strip().splitlines()[-1].split('UserError: ')[-1]}"
                )
            results.append([float(x) for x in done.stdout.split()[-2:]])
    (a, grown), (b, grown_theirs) = (map(statistics.median, zip(*found[name])) for name in ("ours", "theirs"))
    return {
        "seconds": a,
        "seconds_theirs": b,
        "ratio": b / a,
        "memory_growth": grown,
        "memory_growth_theirs": grown_theirs,
    }


def benchmark(
    folder: str,
    examples: list[Example],
    device: torch.device,
    dtype: torch.dtype,
    rows: int,
    repeats: int,
    new: int,
    skip_load: bool = False,
) -> dict:
    """Every comparison, as JSON would hold it. UserError without transformers. A training step is one of CoT-SFT: the
    question has no labels, so that we make no logits there; transformers makes them everywhere."""
    try:
        import transformers
        from tokenizers import Tokenizer as TheirTokenizer
    except ImportError:
        raise UserError("the benchmark compares with transformers: pip install transformers") from None
    transformers.utils.logging.disable_progress_bar()
    results = {
        "model": Path(folder).name,
        "device": str(device),
        "dtype": str(dtype).removeprefix("torch."),
        "rows": rows,
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    if not skip_load:
        results["load"] = loading(folder, min(repeats, 3))

    tok = Tokenizer.from_hf(folder)
    theirs = TheirTokenizer.from_file(str(Path(folder) / "tokenizer.json"))
    theirs.encode_special_tokens = True
    texts = [e.question for e in examples]
    results["tokenise"] = in_turn(
        lambda: [tok.encode(t) for t in texts],
        lambda: [e.ids for e in theirs.encode_batch(texts, add_special_tokens=False)],
        repeats,
    )
    results["tokenise"]["texts"] = len(texts)

    model, _ = load_pretrained(folder, dtype)
    other = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    other.resize_token_embeddings(model.config.vocab_size, mean_resizing=False)  # the markers' rows for both
    model, other = model.to(device), other.to(device)
    sync = torch.cuda.synchronize if device.type == "cuda" else lambda: None

    def padded(rows: list[list[int]], value: int, side: str = "right") -> torch.Tensor:
        return torch.nn.utils.rnn.pad_sequence(
            [torch.tensor(r) for r in rows], True, value, padding_side=side
        ).to(device)

    some = sorted((e for e in examples if e.question), key=lambda e: len(e.question))[len(examples) // 2 :][
        :rows
    ]
    encoded = [tok.encode(e.question) for e in some]
    told = [tok.encode(f"{e.chain} {e.answer}".strip()) for e in some]
    ids = padded([q + a for q, a in zip(encoded, told)], tok.eos)  # (B, T)
    labels = padded([[-100] * len(q) + a for q, a in zip(encoded, told)], -100)
    real = padded([[1] * len(q + a) for q, a in zip(encoded, told)], 0)

    def step(net, loss):
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-6, fused=True)

        def once():
            loss().backward()
            optimizer.step()
            optimizer.zero_grad()

        return once

    def our_loss():
        counts = labels[:, 1:] != -100
        logits = model.logits(model(ids[:, :-1])[counts])
        return F.cross_entropy(logits.float(), labels[:, 1:][counts])

    model.train(), other.train()
    results["train_step"] = in_turn(
        step(model, our_loss),
        step(other, lambda: other(input_ids=ids, attention_mask=real, labels=labels).loss),
        repeats,
        sync,
    )
    tokens, parameters = int(real.sum()), model.num_parameters()
    results["train_step"] |= {
        "tokens": tokens,
        "labels": int((labels != -100).sum()),
        "tflops": 6 * parameters * tokens / results["train_step"]["seconds"] / 1e12,
    }
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    if peak := next((p for name, p in PEAK.items() if name in card), None):
        results["train_step"] |= {"card": card, "mfu": results["train_step"]["tflops"] / peak}

    model.eval(), other.eval()
    prompts, lengths = padded(encoded, tok.eos), torch.tensor([len(q) for q in encoded], device=device)
    left, seen = padded(encoded, tok.eos, "left"), padded([[1] * len(q) for q in encoded], 0, "left")
    tok.never, other.generation_config.eos_token_id = [*tok.markers.values()], None  # nobody ends early
    results["decode"] = in_turn(
        lambda: decode(
            model, tok, model.embed(prompts), lengths, explicit_thinker(model), new - 2, 1
        ),  # and </think>
        lambda: other.generate(
            left, attention_mask=seen, max_new_tokens=new, do_sample=False, pad_token_id=tok.eos
        ),
        repeats,
        sync,
    )
    results["decode"] |= {"new_tokens": new, "tokens_per_second": rows * new / results["decode"]["seconds"]}
    return results


# ------------------------------------------------------------------ memory


def saved_bytes(config: ModelConfig, rows: int, length: int, labelled: int, dtype: torch.dtype) -> int:
    """What a forward pass keeps for going back, without the weights: counted on the meta device, where nothing is
    computed."""
    with torch.device("meta"):
        model, kept = Transformer(config).to(dtype), {}
        weights = {p.untyped_storage()._cdata for p in model.parameters()}

        def keep(t):
            if t.untyped_storage()._cdata not in weights:
                kept[t.untyped_storage()._cdata] = (
                    t,
                    t.untyped_storage().nbytes(),
                )  # t: so that no number is used twice
            return t

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            hidden = model(torch.zeros(rows, length, dtype=torch.long))[:, :labelled]
            F.cross_entropy(
                model.logits(hidden).float().flatten(0, 1), torch.zeros(rows * labelled, dtype=torch.long)
            )
    return sum(size for _, size in kept.values())


def training_memory(model: ModelConfig, config: Config, length: int, labelled: int) -> dict[str, float]:
    """Gigabytes of a training step of --method's heaviest stage, calculated: rows of `length` tokens, `labelled` of
    them with a label.

    weights      4 bytes a parameter, 2 more for the copies that autocast makes with another --dtype
    learning     gradient and AdamW's two moments, 12 bytes a trained parameter
    activations  what the forward pass keeps, a layer times their number, or with --grad_checkpoint a layer's input
                 times their number and one layer; then the logits, three times: as they are, in float32, and their gradient
    Latent-SFT's stage 1 has a second model, which shares what LoRA freezes, but for its embedding.
    """
    dtype = getattr(torch, pick_dtype(config.dtype, torch.device("cpu")))
    with torch.device("meta"):
        net = Transformer(model)
    size = net.num_parameters()
    if config.lora_rank:
        add_lora(net, config, [0, 1, 2, 3, 4])
    trained = sum(t.numel() for t in own_state(net).values())
    rows = -(-config.batch_size // config.accumulate)
    one, two = (
        saved_bytes(ModelConfig(**{**vars(model), "n_layer": n}), rows, length, labelled, dtype)
        for n in (1, 2)
    )
    layer, rest = two - one, one - (two - one)
    layers = (
        model.n_layer * rows * length * model.width * dtype.itemsize + layer
        if config.grad_checkpoint
        else model.n_layer * layer
    )
    logits = rows * labelled * model.vocab_size * 4  # their gradient, made when all the rest is still there
    weights, learning = size * (4 if dtype == torch.float32 else 6), 12 * trained
    if config.method == "latent_sft":
        weights += 4 * model.vocab_size * model.width if config.lora_rank else weights
        learning, layers = 2 * learning, 2 * layers
    found = {"weights": weights, "learning": learning, "activations": layers + rest + logits}
    return {name: round(value / 1e9, 2) for name, value in (found | {"total": sum(found.values())}).items()}


def main(argv: list[str]) -> None:
    parser = Parser(prog="python -m minilatent.benchmark", description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="Hugging Face folder")
    parser.add_argument("--data", default="mini", help="whose questions and chains are the texts [mini]")
    parser.add_argument("--json", metavar="FILE", help="write the results")
    parser.add_argument(
        "--memory",
        metavar="PRESET",
        help="calculate what training with this preset takes, and measure nothing",
    )
    parser.add_argument("--method", default="cot_sft", help="for --memory [cot_sft]")
    parser.add_argument("--grad_checkpoint", action="store_true", help="for --memory")
    parser.add_argument("--length", type=int, default=160, help="for --memory: tokens a row [160]")
    parser.add_argument("--labelled", type=int, default=48, help="for --memory: of them with a label [48]")
    parser.add_argument("--device", default="cpu", help="cpu | cuda [cpu]")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="[float32]")
    parser.add_argument(
        "--rows", type=int, default=8, help="of a training step, and decoded side by side [8]"
    )
    parser.add_argument("--new", type=int, default=32, help="tokens decoded [32]")
    parser.add_argument("--repeats", type=int, default=5, help="of each measurement [5]")
    parser.add_argument(
        "--skip_load", action="store_true", help="leave out loading, for which fresh processes are started"
    )
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (0: PyTorch's choice)")
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.memory:
        if args.memory not in PRESETS:
            raise UserError(f"unknown preset '{args.memory}'{nearest(args.memory, PRESETS)}")
        config = resolve(
            {"method": args.method, "preset": args.memory, "grad_checkpoint": args.grad_checkpoint}
        )
        results = training_memory(
            model_config(Path(args.folder) / "config.json")[0], config, args.length, args.labelled
        )
    else:
        examples = tasks.load(args.data, "test", limit=2000)
        results = benchmark(
            args.folder,
            examples,
            pick_device(args.device),
            getattr(torch, args.dtype),
            args.rows,
            args.repeats,
            args.new,
            args.skip_load,
        )
    for name, value in results.items():
        shown = value.items() if isinstance(value, dict) else [("", value)]
        print(
            f"{name:14s}",
            *(f"{key} {v:.4g}" if isinstance(v, float) else f"{key} {v}".strip() for key, v in shown),
            sep="  ",
        )
    if args.json:
        write_json(Path(args.json), results)


if __name__ == "__main__":
    run_script(main)
