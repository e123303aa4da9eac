"""From settings to a trained run folder, and from a run folder to a method. The door between the core and
the rest."""

import dataclasses
import time
import zlib
from argparse import Namespace
from pathlib import Path

import torch
from torch import Tensor

from . import checkpoint, parallel, tasks
from .backbones import lora
from .backbones.pretrained import load_pretrained
from .batch import Row, encode
from .config import (
    PRESETS,
    Config,
    Parser,
    SoftThinking,
    UserError,
    add_fields,
    nearest,
    option_names,
    preset,
)
from .evaluate import check_room, fitting, wilson
from .machine import pick_device, pick_dtype
from .methods import METHODS, Method, Stage, build
from .model import ModelConfig, Transformer
from .optim import make_optimizers
from .tasks import Example
from .tokenizer import Tokenizer, mini_tokenizer
from .trainer import Trainer, batches

BASE = Path(__file__).parent / "base"  # mini-base: a CoT-SFT model on mini, from which methods start
FREE = {"resume", "out", "device", "threads", "method"}  # what --resume may be given anew

# ------------------------------------------------------------------ settings


def settings_class(method: str) -> type[Config]:
    """UserError if there is no such method."""
    if method not in METHODS:
        raise UserError(
            f"unknown method '{method}'{nearest(method, METHODS)}"
            if method
            else f"--method is required: {', '.join(METHODS)}"
        )
    return METHODS[method].Settings


def parse_args(argv: list[str]) -> dict:
    """The command line of train.py: what the user gave, by key. The options are the common ones and the
    method's."""
    first = Parser(add_help=False)
    first.add_argument("--method", default="")
    first.add_argument("--preset", default="mini")
    asked = first.parse_known_args(argv)[0]
    method, shown = asked.method, preset(asked.preset, PRESETS)
    if not method and ("--help" in argv or "-h" in argv):
        cls = Config
    else:
        cls = settings_class(method)
        shown |= preset(asked.preset, METHODS[method].PRESETS)
    parser = Parser(
        prog="train.py",
        usage="python train.py --method METHOD [--key value | --flag | --no-flag ...]",
        description=f"Train a method. In brackets: the defaults of --preset {asked.preset}.",
        epilog=f"methods: {', '.join(METHODS)} (--method NAME --help lists a method's own options)",
    )
    add_fields(parser, cls, title=method, shown=shown)
    known = option_names(cls)
    for other in METHODS.values():
        for option in option_names(other.Settings, without=Config):
            owners = [name for name, m in METHODS.items() if option in option_names(m.Settings)]
            if option not in known:
                parser.belongs[option] = f"{' and '.join(owners)}, not to {method}"
    return vars(parser.parse_args(argv))


def resolve(given: dict) -> Config:
    """Defaults < preset < the method's part of the preset < `given`. UserError if something makes no
    sense."""
    cls, name = settings_class(given.get("method", "")), given.get("preset", "mini")
    if name not in PRESETS or name in ("gpu", "lora"):  # these two are parts of others
        raise UserError(f"unknown preset '{name}'{nearest(name, PRESETS.keys() - {'gpu', 'lora'})}")
    own = preset(name, METHODS[given["method"]].PRESETS)
    config = cls(**{**preset(name, PRESETS), **own, **given})
    config.check()
    return config


def resume_config(config: Config, given: dict) -> tuple[Config, Path]:
    """The settings of the run in --out. Of these only the FREE ones may be given anew."""
    folder = Path(config.out or f"out/{config.method}")
    settings = checkpoint.read_run(folder)["config"]
    if settings["method"] != config.method:
        raise UserError(f"{folder} holds a run of {settings['method']}, not of {config.method}")
    for key, value in given.items():
        if key not in FREE and settings.get(key) != value and (key, value) != ("dtype", "auto"):
            was = settings.get(key)
            option = f"--{key} {was}"
            if isinstance(was, bool):
                option = f"--{key}" if was else f"--no-{key}"
            raise UserError(f"the run in {folder} was started with {option}; --resume cannot change it")
    if strange := set(settings) - {f.name for f in dataclasses.fields(config)}:
        raise UserError(
            f"{folder / 'config.json'} has a setting that this version does not know: {min(strange)}"
        )
    stored = type(config)(**settings)
    machine = {key: given[key] for key in ("device", "threads") if key in given}  # else the same as before
    return dataclasses.replace(stored, out=str(folder), resume=True, **machine), folder


# ------------------------------------------------------------------ models and runs


def new_model(config: Config | Namespace) -> tuple[Transformer, Tokenizer]:
    """Random weights with mini's tokenizer."""
    if config.width % (2 * config.n_head):  # rotary positions turn pairs
        raise UserError(f"--width {config.width} is not an even multiple of --n_head {config.n_head}")
    tok, heads = mini_tokenizer(), config.n_head
    shape = {"n_layer": config.n_layer, "n_head": heads, "n_kv_head": heads, "width": config.width}
    shape |= {"head_dim": config.width // heads, "hidden": config.hidden}
    shape |= {"qk_norm": True}  # small models learn faster with it
    model = Transformer(ModelConfig(tok.vocab_size, **shape))
    model.init_weights(torch.Generator().manual_seed(config.seed), zero=True)
    return model, tok


def initial_model(config: Config) -> tuple[Transformer, Tokenizer, dict, dict[str, Tensor]]:
    """What --init names: mini-base, a run folder, a Hugging Face folder or hub name, or new weights. With the
    settings of a run folder, and what its method trained beside the model."""
    if config.init == "none":
        return (*new_model(config), {}, {})
    if not config.init and not config.data.startswith("mini"):
        raise UserError(
            f"--data {config.data} needs --init: a run folder, a Hugging Face folder, a hub name, or none"
        )
    return load_weights(config.init or str(BASE))


def load_weights(name: str) -> tuple[Transformer, Tokenizer, dict, dict[str, Tensor]]:
    """The same for a folder or hub name. Adapters are merged into their base, which may have had
    adapters, too."""
    adapters, root = [], name
    while checkpoint.is_run(root) and checkpoint.read_run(root)["config"].get("lora_rank"):
        data = checkpoint.read_run(root)
        adapters.append((Path(root), data))
        root = (data.get("base") or {}).get("init", data["config"]["init"])
    settings, beside = {}, {}
    if root == "none":
        model, tok = new_model(Namespace(**adapters[-1][1]["config"]))
    elif checkpoint.is_run(root):
        model, tok, beside = checkpoint.load_model(root)
        settings = checkpoint.read_run(root)["config"]
    else:
        model, tok = load_pretrained(root)
    for folder, data in reversed(adapters):
        base, settings = data.get("base") or {}, data["config"]
        if checkpoint.checksum(model.state_dict(), "") != base.get("checksum"):
            raise UserError(f"{folder} holds adapters of {base.get('init')}, which is another model now")
        tok, path = Tokenizer.load(folder), folder / "model.safetensors"
        lora.add_lora(model, Namespace(**settings), list(tok.markers.values()))
        weights, beside = checkpoint.split_off(checkpoint.load_tensors(path)[0])
        checkpoint.load_own(model, weights, path)
        lora.merge(model)
    return model, tok, settings, beside


def load_run(folder: str | Path, device: torch.device, soft: SoftThinking | None = None) -> Method:
    """The method of a run folder with its trained weights, ready to solve; a CoT-SFT model by Soft
    Thinking if wanted. UserError if it is not a run folder that this version can read."""
    name = checkpoint.read_run(folder)["config"]["method"]
    if name not in METHODS:
        raise UserError(f"{folder} holds a run of '{name}', which this version does not know")
    model, tok, settings, beside = load_weights(str(folder))
    known = {f.name for f in dataclasses.fields(METHODS[name].Settings)}
    config = METHODS[name].Settings(**{k: v for k, v in settings.items() if k in known})
    method = build(config, tok, model)
    tensors = {f"model.{n}": t for n, t in model.state_dict().items()} | beside
    checkpoint.load_into(method, tensors, Path(folder) / "model.safetensors")
    if soft:
        if not hasattr(method, "soft"):
            raise UserError(f"--soft_thinking belongs to cot_sft: {folder} holds a run of {name}")
        method.soft = soft
    return method.to(device).eval()


# ------------------------------------------------------------------ data


def load_data(config: Config, tok: Tokenizer, longest: int) -> tuple[list[Row], list[Example], str]:
    """Training rows, validation examples, and a line that says what was left out."""
    options = {"chain_style": config.chain_style, "revision": config.revision}
    examples = tasks.load(
        config.data,
        "train",
        limit=config.train_size,
        seed=config.seed,
        chain_order=config.chain_order,
        **options,
    )
    # A file is validated on as a whole, of a data set by name only its validation split.
    split = "test" if config.val_data and config.val_data not in tasks.NAMES else "val"
    val = tasks.load(config.val_data or config.data, split, limit=config.val_size, **options)
    if config.val_data:
        examples = tasks.exclude(examples, val)
    method = METHODS[config.method]
    chained = [e for e in examples if e.steps] if method.needs_chain else examples
    ratio = config.ratio if method.extra_latents else 0
    rows, skipped = encode(chained, tok, longest, ratio)
    if not rows:
        raise UserError(f"--data {config.data}: no example has a chain and fits in {longest} tokens")
    fits = [e for e in val if encode([e], tok, longest - config.max_answer, ratio)[0]]
    if not fits:
        raise UserError(f"all {len(val)} validation examples are longer than {longest} tokens")
    if len(rows) == len(examples) and len(fits) == len(val):
        return rows, fits, ""
    left_out = f"{len(examples) - len(chained)} without a chain, {skipped} longer than {longest} tokens"
    return rows, fits, f"left out: {left_out}, {len(val) - len(fits)} of the validation examples"


def fingerprint(rows: list[Row]) -> int:
    """A checksum of the training data: a run is resumed on no other."""
    crc = 0
    for row in rows:
        crc = zlib.crc32(repr((row.prompt[:-1], row.chain, row.answer)).encode(), crc)
    return crc


def prepare_folder(config: Config, folder: Path) -> None:
    """Make the run folder. A finished or broken run of the same method that is in the way is moved aside."""
    if folder.is_dir() and any(folder.iterdir()):
        if not (folder / "config.json").exists():
            raise UserError(f"{folder} is not empty and no run folder: choose another --out")
        method = checkpoint.read_run(folder)["config"]["method"]
        if method != config.method:
            raise UserError(f"{folder} holds a run of {method}, not of {config.method}: choose another --out")
        n = 1
        while Path(f"{folder}.{n}").exists():
            n += 1
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


# ------------------------------------------------------------------ training


def speed(method: Method, rows: list[Row], kinds: set[str]) -> tuple[float, dict[str, float]]:
    """Seconds a token for one forward and backward pass over a small batch, and seconds for a step of
    each kind of optimizer. Nothing changes: the learning rate is 0."""

    def timed(work) -> float:
        seconds = []
        for _ in range(4):  # the best: the first call warms up, and others may be disturbed
            start = time.perf_counter()
            work()
            if method.device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
        return min(seconds)

    ids = torch.full((min(16, len(rows)), 64), method.tok.eos, device=method.device)

    def passes():
        with method.autocast():
            loss = method.model.logits(method.model(ids)[:, -16:]).logsumexp(-1).sum()
        loss.backward()

    per_token, steps = timed(passes) / ids.numel(), {}
    for kind in kinds:
        trained = {name: p for name, p in method.named_parameters() if p.grad is not None}
        optimizers = make_optimizers(trained, method, 0.0, kind, method.config)
        steps[kind] = timed(lambda optimizers=optimizers: [o.step() for o in optimizers])
    method.zero_grad(set_to_none=True)
    return per_token, steps


def padding(lengths: list[int], epoch: list[list[int]]) -> float:
    """The share of a padded epoch's tokens that is padding."""
    real = sum(lengths[i] for batch in epoch for i in batch)
    return 1 - real / sum(len(batch) * max(lengths[i] for i in batch) for batch in epoch)


def summary(method: Method, stages: list[Stage], rows: list[Row], val: list[Example], left_out: str) -> str:
    """What the run will do, stage by stage, and about how long it takes."""
    config = method.config
    lengths = [len(r.prompt) + len(r.chain) + len(r.tail) for r in rows]
    waste = padding(lengths, batches(lengths, config.batch_size, f"{config.seed} 0 0"))
    size = f"{method.model.num_parameters() / 1e6:.2f} M parameters"
    if config.lora_rank:
        trained = sum(t.numel() for t in checkpoint.own_state(method).values())
        size += f" ({trained / 1e6:.2f} M trained)"
    lines = [
        f"{config.method} on {config.data}: {size}, {len(rows)} training examples "
        f"({sum(lengths) / 1e6:.1f} M tokens, {waste:.1%} padding), {len(val)} to validate on, "
        f"{method.device}, {config.dtype}"
    ]
    lines += [left_out] if left_out else []
    free = method.thinker() is not None and method.decoding()["max_chain"] == config.max_chain
    cut_off = sum(len(r.chain) > config.max_chain * method.ratio for r in rows)
    if free and cut_off:  # not for a method with a fixed number of latents
        share = f"{cut_off / len(rows):.1%} of the chains are longer than --max_chain"
        lines.append(f"{share}: at inference these are cut off")
    kind = {stage.name: stage.optimizer or config.optimizer for stage in stages}
    per_token, per_step = speed(method, rows, set(kind.values()))
    for stage in stages:
        steps = min(stage.steps, config.max_steps) if config.max_steps else stage.steps
        seconds = config.batch_size * stage.tokens * per_token + per_step[kind[stage.name]]
        lines.append(
            f"  {stage.name:15s} {steps:6d} steps, about {steps * seconds / 60:4.1f} min   {stage.about}"
        )
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
    named = parallel.start(config.device)
    pick_device(named)  # a wrong one is refused before anything is loaded
    first = parallel.rank() == 0  # of several processes: it alone writes and speaks
    model, tok, settings, beside = initial_model(config)
    device = pick_device(named, model.num_parameters())
    config.dtype = pick_dtype(config.dtype, device)
    METHODS[config.method].inherit(config, settings)
    if not config.chat:
        tok.chat = ""  # saved with the tokenizer: the run will be asked as it was trained
    longest = min(config.max_tokens or model.config.context, model.config.context)
    rows, val, left_out = load_data(config, tok, longest)
    kept = {"rows": fingerprint(rows)}  # in config.json
    folder = Path(config.out or f"out/{config.method}")
    if config.resume and checkpoint.read_run(folder).get("rows", kept["rows"]) != kept["rows"]:
        raise UserError(
            f"--data {config.data} is not what it was when the run in {folder} began: start a new --out"
        )
    if config.lora_rank:  # it saves adapters only: the model that they belong to
        init = config.init or str(BASE)
        init = str(Path(init).resolve()) if Path(init).is_dir() else init
        kept["base"] = {"init": init, "checksum": checkpoint.checksum(model.state_dict(), "")}
        lora.add_lora(model, config, list(tok.markers.values()))
    model.grad_checkpoint = config.grad_checkpoint
    method = build(config, tok, model, folder if first else None)
    check_room(method)
    if first and not config.resume:
        prepare_folder(config, folder)
        checkpoint.write_config(folder, config, model.config, **kept)
        tok.save(folder)
    parallel.wait()
    method.adopt(beside, settings)
    method.to(device)
    stages = method.stages(rows)
    print(summary(method, stages, rows, val, left_out), flush=True)
    if config.compile:
        model.compile(dynamic=True)
    trainer = Trainer(method, folder)
    if config.resume:
        trainer.resume()
    trainer.fit(stages, val)
    minutes, tokens = trainer.seconds / 60, trainer.tokens / 1e6
    print(f"saved {folder}/model.safetensors after {minutes:.1f} min, {tokens:.1f} M tokens")
    test_data = " --data TEST_FILE"
    if config.data in tasks.NAMES:  # a file has no test split of its own: eval.py takes one
        report_test(method)
        test_data = ""
    print(f"next: python eval.py --ckpt {folder}{test_data}    python sample.py --ckpt {folder}")
    parallel.finish()


def report_test(method: Method) -> None:
    """Judge the final model on the data set's test split, once."""
    config = method.config
    test = fitting(method, tasks.load(config.data, "test", limit=config.test_size, revision=config.revision))
    mine = parallel.shard(test)
    result = parallel.average(method.accuracy(mine), len(mine))
    low, high = wilson(round(result["accuracy"] * len(test)), len(test))
    interval = f"95 % {low:.3f} to {high:.3f}, n {len(test)}"
    shown = f"accuracy {result['accuracy']:.3f} ({interval}), #L {result['mean_len']:.1f}"
    print(f"{config.data} test: {shown}")
