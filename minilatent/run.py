"""From settings to a run: device, initial model, data, run folder, summary. Shared by the root scripts."""

import dataclasses
import json
import time
import zlib
from pathlib import Path

import torch
from torch import Tensor

from . import checkpoint, parallel, tasks
from .backbones import lora
from .backbones.hf_tokenizer import read_json
from .backbones.pretrained import load_pretrained
from .batch import Row, encode
from .config import Config, SoftThinking, UserError, resolve
from .evaluate import accuracy, check_room, fitting, wilson
from .methods import METHODS, Method
from .model import ModelConfig, Transformer
from .tasks.answers import Example
from .tokenizer import Tokenizer, mini_tokenizer
from .trainer import Trainer, batches, padding

BASE = Path(__file__).parent / "base"  # mini-base: a CoT-SFT model on mini, from which methods start


def pick_device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name}: no such device") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name}: cpu, cuda or cuda:N")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(
            f"--device {name}: this machine has no CUDA, or this PyTorch was built without it; try --device cpu"
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices, counted from 0"
        )
    return device


def pick_dtype(name: str, device: torch.device) -> str:
    """`auto` is bfloat16 where the hardware multiplies it, else float32: elsewhere it would be slower."""
    if name != "auto":
        return name
    if device.type == "cpu":
        can = getattr(torch.cpu, "get_capabilities", dict)()
        return "bfloat16" if can.get("avx512_bf16") or can.get("amx_bf16") else "float32"
    return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"


def initial_model(config: Config) -> tuple[Transformer, Tokenizer, dict, dict[str, Tensor]]:
    """What --init names: mini-base, a run folder, a Hugging Face folder or hub name, or new weights. With the settings
    of a run folder, and what its method trained beside the model."""
    init = config.init
    if not init:
        if not config.data.startswith("mini"):
            raise UserError(
                f"--data {config.data} needs --init: a run folder, a Hugging Face folder, a hub name, or none"
            )
        init = str(BASE)
    if init == "none":
        tok = mini_tokenizer()
        if config.width % (2 * config.n_head):  # rotary positions turn pairs
            raise UserError(f"--width {config.width} is not an even multiple of --n_head {config.n_head}")
        model = Transformer(
            ModelConfig(
                tok.vocab_size,
                n_layer=config.n_layer,
                n_head=config.n_head,
                n_kv_head=config.n_head,
                width=config.width,
                head_dim=config.width // config.n_head,
                hidden=config.hidden,
            )
        )
        model.init_weights(torch.Generator().manual_seed(config.seed))
        return model, tok, {}, {}
    path = Path(init) / "config.json"
    if path.exists():
        try:
            settings = json.loads(path.read_text())
            ours = isinstance(settings, dict) and "minilatent" in settings
        except ValueError as error:
            raise UserError(f"{path} is damaged: {error}") from None
        if ours:
            run = load_run(init, torch.device("cpu"))
            beside = {name: t for name, t in run.state_dict().items() if not name.startswith("model.")}
            return run.model, run.tok, dataclasses.asdict(run.config), beside
    return (*load_pretrained(init), {}, {})


def load_run(folder: str | Path, device: torch.device, soft: SoftThinking | None = None) -> Method:
    """The method of a run folder with its trained weights, ready to solve; a CoT model by Soft Thinking if wanted.
    Adapters are merged into their base."""
    settings, _ = checkpoint.read_config(folder)
    known = {f.name for f in dataclasses.fields(Config)}
    config = Config(**{k: v for k, v in settings.items() if k in known})
    if config.method not in METHODS:
        raise UserError(f"{folder} holds a run of '{config.method}', which this version does not know")
    path = Path(folder) / "model.safetensors"
    if config.lora_rank:
        tok, (tensors, _) = Tokenizer.load(folder), checkpoint.load_tensors(path)
        method = METHODS[config.method](config, tok, adapter_base(folder, config, tok))
        lora.load_own(method, tensors, path)
        lora.merge(method.model)
    else:
        model, tok, _, rest = checkpoint.load_model(folder)
        method = METHODS[config.method](config, tok, model)
        checkpoint.load_into(
            method, {**{f"model.{n}": t for n, t in model.state_dict().items()}, **rest}, path
        )
    if soft:
        if not method.explicit:
            raise UserError(
                f"--soft_thinking needs a model that thinks in words: {folder} holds a run of {config.method}"
            )
        method.soft, config.k = soft, soft.soft_k
    return method.to(device).eval()


def adapter_base(folder: str | Path, config: Config, tok: Tokenizer) -> Transformer:
    """The base model of a run that saved adapters only, with untrained adapters in it."""
    base = read_json(Path(folder) / "config.json").get("base") or {}
    model, *_ = initial_model(dataclasses.replace(config, init=base.get("init", config.init)))
    if checkpoint.checksum(model.state_dict(), "") != base.get("checksum"):
        raise UserError(f"{folder} holds adapters of {base.get('init')}, which is another model now")
    lora.add_lora(model, config, list(tok.markers.values()))
    return model


def load_data(config: Config, tok: Tokenizer, longest: int) -> tuple[list[Row], list[Example], str]:
    """Training rows, validation examples, and a line that says what was left out."""
    options = {
        "seed": config.seed,
        "chain_style": config.chain_style,
        "chain_order": config.chain_order,
        "revision": config.revision,
    }
    examples = tasks.load(config.data, "train", limit=config.train_size, **options)
    file = (
        config.val_data and config.val_data not in tasks.NAMES
    )  # all of a file; of a data set by name only its validation split
    val = tasks.load(
        config.val_data or config.data,
        "test" if file else "val",
        limit=config.val_size,
        chain_style=config.chain_style,
        revision=config.revision,
    )
    if config.val_data:
        examples = tasks.exclude(examples, val)
    chained = [e for e in examples if e.steps] if METHODS[config.method].needs_chain else examples
    ratio = config.ratio if config.method == "latent_sft" else 0
    rows, skipped = encode(chained, tok, longest, config.too_long, ratio)
    if not rows:
        raise UserError(f"--data {config.data}: no example has a chain and fits in {longest} tokens")
    left_out = (
        f"left out: {len(examples) - len(chained)} without a chain, {skipped} longer than {longest} tokens"
    )
    fits = [e for e in val if encode([e], tok, longest - config.max_answer, "skip", ratio)[0]]
    if not fits or config.too_long == "error" and len(fits) < len(val):
        raise UserError(
            f"{len(val) - len(fits)} of {len(val)} validation examples are longer than {longest} tokens"
        )
    left_out += f", {len(val) - len(fits)} of the validation examples"
    return rows, fits, left_out if len(rows) < len(examples) or len(fits) < len(val) else ""


def fingerprint(rows: list[Row]) -> int:
    """A checksum of the training data: a run is resumed on no other."""
    crc = 0
    for row in rows:
        crc = zlib.crc32(repr((row.question, row.chain, row.answer)).encode(), crc)
    return crc


def prepare_folder(config: Config, folder: Path) -> None:
    """Make the run folder. A finished or broken run of the same method that is in the way is moved aside."""
    if folder.is_dir() and any(folder.iterdir()):
        if not (folder / "config.json").exists():
            raise UserError(f"{folder} is not empty and no run folder: choose another --out")
        settings, _ = checkpoint.read_config(folder)
        if settings["method"] != config.method:
            raise UserError(
                f"{folder} holds a run of {settings['method']}, not of {config.method}: choose another --out"
            )
        n = next(n for n in range(1, 10_000) if not Path(f"{folder}.{n}").exists())
        try:
            folder.rename(f"{folder}.{n}")
        except OSError as error:  # a mounted folder, say
            raise UserError(
                f"the earlier run in {folder} cannot be moved aside: {error.strerror}; choose another --out"
            ) from None
        print(f"the earlier run in {folder} is now in {folder}.{n}")
    elif folder.exists() and not folder.is_dir():
        raise UserError(f"--out {folder} is a file")
    try:
        (folder / "state").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {folder}: {error.strerror}") from None


def resume_config(config: Config, given: dict) -> tuple[Config, Path]:
    """The settings of the run in --out. Of these only the free ones may be given anew."""
    free = {"resume", "out", "device", "threads", "method"}
    folder = Path(config.out or f"out/{config.method}")
    settings, _ = checkpoint.read_config(folder)
    if settings["method"] != config.method:
        raise UserError(f"{folder} holds a run of {settings['method']}, not of {config.method}")
    for key, value in given.items():
        if key not in free and settings.get(key) != value and (key, value) != ("dtype", "auto"):
            was = settings.get(key)
            said = f"--{key} {was}" if not isinstance(was, bool) else f"--{key}" if was else f"--no-{key}"
            raise UserError(f"the run in {folder} was started with {said}; --resume cannot change it")
    if strange := set(settings) - {f.name for f in dataclasses.fields(Config)}:
        raise UserError(
            f"{folder / 'config.json'} has a setting that this version does not know: {min(strange)}"
        )
    stored = Config(**settings)
    machine = {key: given[key] for key in ("device", "threads") if key in given}  # else the same as before
    return dataclasses.replace(stored, out=str(folder), resume=True, **machine), folder


def seconds_per_token(method: Method, rows: list[Row]) -> float:
    """One forward and backward pass of the model over a small batch, timed."""
    ids = torch.full((min(16, len(rows)), 64), method.tok.eos, device=method.device)
    for _ in range(2):  # the first pass warms up
        start = time.perf_counter()
        with method.autocast():
            loss = method.model.logits(method.model(ids)[:, -16:]).logsumexp(-1).sum()
        loss.backward()
        if method.device.type == "cuda":
            torch.cuda.synchronize()
        took = time.perf_counter() - start
    method.zero_grad(set_to_none=True)
    return took / ids.numel()


def summary(config: Config, method: Method, rows: list[Row], val: list[Example], left_out: str) -> str:
    lengths = [len(r.explicit(method.tok)[0]) for r in rows]
    waste = padding(lengths, batches(lengths, config.batch_size, f"{config.seed} 0 0"))
    rate = seconds_per_token(method, rows)
    size = f"{method.model.num_parameters() / 1e6:.2f} M parameters"
    if config.lora_rank:
        size += f" ({sum(t.numel() for t in lora.own_state(method).values()) / 1e6:.2f} M trained)"
    lines = [
        f"{config.method} on {config.data}: {size}, {len(rows)} training "
        f"examples ({sum(lengths) / 1e6:.1f} M tokens, {waste:.1%} padding), {len(val)} to validate on, "
        f"{method.device}, {config.dtype}"
    ]
    lines += [left_out] if left_out else []
    cut_off = sum(len(r.chain) > config.max_chain * method.ratio for r in rows)
    free = (
        method.thinker() is not None
        and method.decoding()["max_chain"] == config.max_chain
        and config.segmentation != "step"
    )
    if free and cut_off:  # not of a method with a fixed number of latents
        lines.append(
            f"{cut_off / len(rows):.1%} of the chains are longer than --max_chain: at inference these are cut off"
        )
    for name, steps, tokens, about in method.plan(rows):
        steps = min(steps, config.max_steps) if config.max_steps else steps
        minutes = steps * config.batch_size * tokens * rate / 60
        lines.append(f"  {name:15s} {steps:6d} steps, about {minutes:4.1f} min   {about}")
    return "\n".join(lines)


def train(given: dict) -> None:
    """The whole of train.py after its command line: settings that the user gave -> a run folder."""
    config = resolve(given)
    if config.resume:
        config, folder = resume_config(config, given)
        if (folder / "model.safetensors").exists():
            print(f"{folder} is finished")
            return
    if config.threads:
        torch.set_num_threads(config.threads)
    device = pick_device(parallel.start(config.device))
    config.dtype = pick_dtype(config.dtype, device)
    first = parallel.rank() == 0  # of several processes: it alone writes and speaks
    model, tok, settings, beside = initial_model(config)
    METHODS[config.method].inherit(config, settings)
    if not config.chat:
        tok.chat = ""  # saved with the tokenizer: the run will be asked as it was trained
    longest = min(config.max_tokens or model.config.context, model.config.context)
    rows, val, left_out = load_data(config, tok, longest)
    told = {"rows": fingerprint(rows)}  # kept in config.json
    if config.resume and read_json(folder / "config.json").get("rows", told["rows"]) != told["rows"]:
        raise UserError(
            f"--data {config.data} is not what it was when the run in {folder} began: start a new --out"
        )
    if config.lora_rank:  # it saves adapters only: the model that they belong to
        init = config.init or str(BASE)
        told["base"] = {
            "init": str(Path(init).resolve()) if Path(init).is_dir() else init,
            "checksum": checkpoint.checksum(model.state_dict(), ""),
        }
        lora.add_lora(model, config, list(tok.markers.values()))
    model.grad_checkpoint = config.grad_checkpoint
    folder = Path(config.out or f"out/{config.method}")
    method = METHODS[config.method](config, tok, model, folder)
    check_room(method)
    if first and not config.resume:
        prepare_folder(config, folder)
        checkpoint.write_config(folder, config, model.config, **told)
        tok.save(folder)
    parallel.wait()
    method.adopt(beside, settings)
    method.to(device)
    if first:
        print(summary(config, method, rows, val, left_out), flush=True)
    if config.compile:
        model.compile(dynamic=True)
    trainer = Trainer(config, method, folder)
    if config.resume:
        trainer.resume()
    trainer.fit(rows, val)
    if first:
        print(
            f"saved {folder}/model.safetensors after {trainer.seconds / 60:.1f} min, {trainer.tokens / 1e6:.1f} M tokens"
        )
    if config.data in tasks.NAMES:  # a file has no test split of its own: eval.py takes one
        test = fitting(
            method, tasks.load(config.data, "test", limit=config.test_size, revision=config.revision)
        )
        result = accuracy(method, test)
        low, high = wilson(round(result["accuracy"] * len(test)), len(test))
        if first:
            print(
                f"{config.data} test: accuracy {result['accuracy']:.3f} (95 % {low:.3f} to {high:.3f}, n {len(test)}), "
                f"#L {result['mean_len']:.1f}"
            )
    if first:
        test = "" if config.data in tasks.NAMES else " --data TEST_FILE"
        print(f"next: python eval.py --ckpt {folder}{test}    python sample.py --ckpt {folder}")
    parallel.finish()
