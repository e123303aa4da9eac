"""From settings to a run folder, and from a run folder to a method: the door between core and rest."""

import contextlib
import dataclasses
import shlex
import zlib
from itertools import count
from pathlib import Path

import torch
from torch import Tensor

from . import checkpoint, parallel, tasks
from .backbones import lora
from .backbones.hf_tokenizer import has_number_tokens
from .backbones.pretrained import load_pretrained
from .batch import Row, encode
from .config import PRESETS, Config, Parser, UserError, add_fields, is_a, nearest, preset, wrapped
from .evaluate import fitting, wilson
from .fast import speed_up
from .files import check_no_links, is_temporary, one_writer, remove_temporary
from .machine import pick_device, pick_dtype, use_threads
from .methods import METHODS, Method, Stage, build, owners
from .model import ModelConfig, Transformer
from .tasks import Example
from .tokenizer import FILE as TOKENIZER
from .tokenizer import Tokenizer, mini_tokenizer
from .trainer import Trainer

BASE = Path(__file__).parent / "base"  # mini-base: a CoT-SFT model on mini, from which methods start
MACHINE = ("device", "threads", "timeout", "compile", "attention")
FREE = {"resume", "out", "method", *MACHINE}  # what --resume may be given anew

# ------------------------------------------------------------------ settings


def settings_class(method: str) -> type[Config]:
    """UserError if there is no such method."""
    if not method:
        raise UserError(f"--method is required: {', '.join(METHODS)}")
    if method not in METHODS:
        raise UserError(f"unknown method '{method}'{nearest(method, METHODS)}")
    return METHODS[method].Settings


def parse_args(argv: list[str]) -> dict:
    """The command line of train.py (common options and the method's): what the user gave, by key."""
    first = Parser(add_help=False)
    first.add_argument("--method", default="")
    first.add_argument("--preset", default="mini")
    asked = first.parse_known_args(argv)[0]
    method, cls, shown = asked.method, Config, preset(asked.preset, PRESETS)
    if method or not {"--help", "-h"} & set(argv):
        cls = settings_class(method)
        shown |= preset(asked.preset, METHODS[method].PRESETS)
    parser = Parser(
        prog="train.py",
        usage="python train.py --method METHOD [--key value | --flag | --no-flag ...]",
        description=f"Train a method. In brackets: the defaults of --preset {asked.preset}.",
        epilog=f"methods: {', '.join(METHODS)} (--method NAME --help lists a method's own options)",
    )
    add_fields(parser, cls, title=method, shown=shown)
    parser.owners = owners
    return vars(parser.parse_args(argv))


def resolve(given: dict) -> Config:
    """Defaults < preset < the method's part of the preset < `given`. UserError for what makes no sense."""
    cls, name = settings_class(given.get("method", "")), given.get("preset", "mini")
    known = [each for each in PRESETS if each not in ("gpu", "lora")]  # these two are parts of others
    if name not in known:
        raise UserError(f"unknown preset '{name}'{nearest(name, known)}")
    own = preset(name, METHODS[given["method"]].PRESETS)
    config = cls(**{**preset(name, PRESETS), **own, **given})
    config.check()
    return config


def absolute(init: str) -> str:
    """A folder in --init, wherever a run is resumed from."""
    return str(Path(init).resolve()) if init not in ("", "none") and Path(init).is_dir() else init


def stored_settings(folder: str | Path) -> Config:
    """Those of a run folder; what this version does not know is left out. UserError if they make no sense
    or belong to a method that this version does not know."""
    settings = checkpoint.read_run(folder)["config"]
    name = settings["method"]
    if name not in METHODS:
        raise UserError(f"{folder} holds a run of {name!r:.60}, which this version does not know")
    known = {f.name for f in dataclasses.fields(METHODS[name].Settings)}
    config = METHODS[name].Settings(**{k: v for k, v in settings.items() if k in known})
    try:
        config.check()
    except UserError as error:
        raise UserError(f"{folder}/config.json: {error}") from None
    return config


def resume_config(config: Config, given: dict, folder: Path) -> Config:
    """The settings of the run in --out. Of these only the FREE ones may be given anew."""
    settings = checkpoint.read_run(folder)["config"]
    if settings["method"] != config.method:
        raise UserError(f"{folder} holds a run of {settings['method']}, not of {config.method}")
    for key, value in given.items():
        if key not in FREE and settings.get(key) != value and (key, value) != ("dtype", "auto"):
            was = f"--{key} {settings.get(key)}"
            raise UserError(f"the run in {folder} was started with {was}; --resume cannot change it")
    if strange := set(settings) - {f.name for f in dataclasses.fields(config)}:
        raise UserError(f"{folder}/config.json has a setting that this version does not know: {min(strange)}")
    stored = stored_settings(folder)
    machine = {key: given[key] for key in MACHINE if key in given}  # else the same as before
    return dataclasses.replace(stored, out=str(folder), resume=True, **machine)


# ------------------------------------------------------------------ models and runs


def new_model(config: Config) -> tuple[Transformer, Tokenizer]:
    """Random weights with mini's tokenizer."""
    if config.width % (2 * config.n_head):  # rotary positions turn pairs
        raise UserError(f"--width {config.width} is not an even multiple of --n_head {config.n_head}")
    tok, heads = mini_tokenizer(), config.n_head
    shape = {"n_layer": config.n_layer, "n_head": heads, "n_kv_head": heads, "width": config.width}
    shape |= {"head_dim": config.width // heads, "hidden": config.hidden}
    shape["qk_norm"] = True  # small models learn faster with it
    model = Transformer(ModelConfig(tok.vocab_size, **shape))
    model.init_weights(torch.Generator().manual_seed(config.seed), zero=True)
    return model, tok


def initial_model(config: Config) -> tuple[Transformer, Tokenizer, dict, dict[str, Tensor]]:
    """What --init names: mini-base, a run folder, a Hugging Face folder or hub name, or new weights. With the
    settings of a run folder, and what its method trained beside the model."""
    if config.init == "none":
        found = (*new_model(config), {}, {})
    elif not config.init and not config.data.startswith("mini"):
        raise UserError(f"--data {config.data} needs --init: a run or Hugging Face folder, hub name, or none")
    else:
        found = load_weights(config.init or str(BASE), config.number_tokens)
    if config.number_tokens and not has_number_tokens(found[1].backend):
        raise UserError(f"--number_tokens: {config.init or 'mini-base'} has no tokenizer.json to extend")
    return found


def load_weights(
    name: str, number_tokens: bool = False, above: tuple = (), merge: bool = True
) -> tuple[Transformer, Tokenizer, dict, dict[str, Tensor]]:
    """The same for a folder or hub name. A run of adapters is read with its base, which may be one, too, and
    merged. number_tokens: added to a model that is no run. above: the runs whose base it is."""
    if not checkpoint.is_run(name):
        return (*load_pretrained(name, number_tokens=number_tokens), {}, {})
    folder, own = Path(name), stored_settings(name)
    settings = vars(own)
    if not own.lora_rank:
        model, tok, beside = checkpoint.load_model(folder)
        return model, tok, settings, beside
    base, above = checkpoint.read_run(name).get("base"), (*above, folder.resolve())
    if not (isinstance(base, dict) and is_a(base.get("init"), str) and "checksum" in base):
        raise UserError(f"{folder} holds adapters, and its config.json does not say of which model")
    init = base["init"]
    if Path(init).resolve() in above:
        raise UserError(f"{folder} holds adapters of {init}, which is itself or has it as its base")
    model = new_model(own)[0] if init == "none" else load_weights(init, own.number_tokens, above)[0]
    if checkpoint.checksum(model.state_dict(), "") != base["checksum"]:
        raise UserError(f"{folder} holds adapters of {init}, which is another model now")
    tok, path = Tokenizer.load(folder), folder / "model.safetensors"
    lora.add_lora(model, own, tok.new_ids)
    weights, beside = checkpoint.split_off(checkpoint.load_tensors(path)[0])
    checkpoint.load_own(model, weights, path)
    return lora.merge(model) if merge else model, tok, settings, beside


def load_run(folder: str | Path, device: torch.device) -> Method:
    """The trained method of a run folder, ready to solve. UserError if this version cannot read it."""
    config = stored_settings(folder)
    model, tok, _, beside = load_weights(str(folder), merge=False)
    method = build(config, tok, model)
    tensors = {f"model.{n}": t for n, t in checkpoint.own_state(model).items()} | beside
    checkpoint.load_own(method, tensors, Path(folder) / "model.safetensors")
    return lora.merge(method).to(device).eval()


# ------------------------------------------------------------------ data


def load_data(config: Config, tok: Tokenizer, longest: int) -> tuple[list[Row], list[Example], str]:
    """Training rows, validation examples, and a line that says what was left out."""
    data, style = config.data, config.chain_style
    drawn = {"seed": config.seed, "chain_order": config.chain_order}
    examples = tasks.load(data, "train", limit=config.train_size, chain_style=style, **drawn)
    val = tasks.load(data, "val", limit=config.val_size, chain_style=style)
    method = METHODS[config.method]
    chained = [e for e in examples if e.steps] if method.needs_chain else examples
    ratio = config.ratio if method.extra_latents else 0
    rows, skipped = encode(chained, tok, longest, ratio)
    if not rows:
        raise UserError(f"--data {config.data}: no example has a chain and fits in {longest} tokens")
    fits = [e for e in val if encode([e], tok, longest - config.max_answer, ratio)[0]]
    if not fits:
        raise UserError(f"no validation example leaves room for --max_answer in {longest} tokens")
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


def is_begun(folder: Path) -> bool:
    """Whether there is nothing but what a start leaves that was stopped before it wrote config.json."""
    state = folder / "state"
    held = [*folder.iterdir(), *(state.iterdir() if state.is_dir() else ())]
    return all(p.name in ("state", TOKENIZER) or is_temporary(p.name) for p in held)


def prepare_folder(config: Config, folder: Path) -> None:
    """Make the run folder. An earlier run of the same method that is in the way is moved aside."""
    try:
        if folder.exists() and not is_begun(folder):
            if not (folder / "config.json").exists():
                raise UserError(f"{folder} is not empty and no run folder: choose another --out")
            method = checkpoint.read_run(folder)["config"]["method"]
            if method != config.method:
                raise UserError(f"{folder} holds a run of {method}: choose another --out")
            free = next(n for n in count(1) if not Path(f"{folder}.{n}").exists())
            folder.rename(f"{folder}.{free}")
            print(f"the earlier run in {folder} is now in {folder}.{free}")
        check_no_links(folder)
        (folder / "state").mkdir(parents=True, exist_ok=True)
    except OSError as error:  # --out is a file, or a mounted folder that cannot be moved
        raise UserError(f"--out {folder}: {error.strerror}; choose another") from None


# ------------------------------------------------------------------ training


def summary(method: Method, stages: list[Stage], rows: list[Row], val: list[Example], left_out: str) -> str:
    """What the run will do, stage by stage."""
    config = method.config
    tokens = sum(len(r.prompt) + len(r.chain) + len(r.tail) for r in rows)
    size = f"{method.model.num_parameters() / 1e6:.2f} M parameters"
    if config.lora_rank:
        trained = sum(t.numel() for t in checkpoint.own_state(method).values())
        size += f" ({trained / 1e6:.2f} M trained)"
    lines = [f"{config.method} on {config.data}: {size}, {method.device}, {config.dtype}"]
    lines.append(f"{len(rows)} training examples ({tokens:,} tokens), {len(val)} to validate on")
    lines += [left_out] if left_out else []
    if config.number_tokens:
        new = 0 if checkpoint.is_run(config.init) else len(method.tok.numbers)
        lines.append(f"numbers to 999 are single tokens: {new or 'none'} are new")
    # Not for a method with a fixed number of latents, nor in the smoke preset, which cuts chains on purpose.
    free = method.thinker() is not None and method.decoding()["max_chain"] == config.max_chain
    cut_off = sum(len(r.chain) > config.max_chain * method.ratio for r in rows)
    if free and cut_off and config.preset != "smoke":
        share = f"{cut_off / len(rows):.1%} of the chains are longer than --max_chain"
        lines.append(f"{share}: at inference these are cut off")
    for stage in stages:
        steps = min(stage.steps, config.max_steps) if config.max_steps else stage.steps
        lines.append(f"  {stage.name:15s} {steps:6d} steps   {stage.about}")
    return "\n".join(map(wrapped, lines))


def train(given: dict) -> None:
    """The whole of train.py after its command line: settings that the user gave -> a run folder."""
    given = {key: absolute(value) if key == "init" else value for key, value in given.items()}
    config = resolve(given)
    config.init = absolute(config.init)
    folder = Path(config.out or f"out/{config.method}")
    if config.init != "none" and Path(config.init or BASE).resolve() == folder.resolve():
        raise UserError(f"--out {folder} is what the run starts from: choose another --out")
    if config.resume:
        config = resume_config(config, given, folder)
    device = parallel.start(config.device, config.timeout)
    first = parallel.rank() == 0  # of several processes: it alone writes and speaks
    with one_writer(folder) if first else contextlib.nullcontext():
        if config.resume and (folder / "model.safetensors").exists():
            checkpoint.load_tensors(folder / "model.safetensors")  # it is whole
            print(f"{folder} is finished")
        else:
            train_in(folder, config, pick_device(device), first)
    parallel.finish()


def train_in(folder: Path, config: Config, device: torch.device, first: bool) -> None:
    """Train in a run folder that no other process writes to. first: this process writes to it."""
    use_threads(config.threads)
    before = checkpoint.read_run(folder) if config.resume else {}
    # A checkpoint holds all but what adapters belong to: how the run began does not matter any more.
    going_on = config.resume and not config.lora_rank and (folder / "state" / "resume.safetensors").exists()
    if going_on:
        model, tok = Transformer(checkpoint.model_shape(folder)), Tokenizer.load(folder)
    else:
        model, tok, settings, beside = initial_model(config)
        METHODS[config.method].inherit(config, settings)
    config.dtype = pick_dtype(config.dtype, device)
    longest = min(config.max_tokens or model.config.context, model.config.context)
    rows, val, left_out = load_data(config, tok, longest)
    kept = {"rows": fingerprint(rows)}  # in config.json
    if not going_on:
        kept["start"] = checkpoint.checksum(model.state_dict() | beside, "")
    for key, option in (("rows", f"--data {config.data}"), ("start", f"--init {config.init}")):
        if key in before and key in kept and before[key] != kept[key]:
            raise UserError(f"{option} is not what it was when the run in {folder} began")
    if config.lora_rank:  # it saves adapters only: the model that they belong to
        checksum = checkpoint.checksum(model.state_dict(), "")
        kept["base"] = {"init": config.init or str(BASE), "checksum": checksum}
        lora.add_lora(model, config, tok.new_ids)
    speed_up(model, config, device)
    method = build(config, tok, model, folder if first else None)
    fitting(method, val)  # else no question can be answered
    if not going_on:
        method.adopt(beside, settings)
    method.to(device)
    stages = method.stages(rows)
    if first and not config.resume:
        prepare_folder(config, folder)
        tok.save(folder)
        checkpoint.write_config(folder, config, model.config, **kept)  # from here on it is a run
    if first:
        remove_temporary(folder, folder / "state")
    parallel.wait()
    print(summary(method, stages, rows, val, left_out), flush=True)
    trainer = Trainer(method, folder)
    if config.resume:
        trainer.resume()
    trainer.fit(stages, val)
    print(f"{trainer.tokens:,} tokens in {trainer.seconds / 60:.1f} min\nsaved {folder}/model.safetensors")
    test_data = " --data TEST_FILE"
    if config.data in tasks.NAMES:  # a file has no test split of its own: eval.py takes one
        report_test(method)
        test_data = ""
    ckpt = f"--ckpt {shlex.quote(str(folder))}"
    print(f"next: python eval.py {ckpt}{test_data}\n      python sample.py {ckpt}")


def report_test(method: Method) -> None:
    """Judge the final model on the data set's test split, once."""
    config = method.config
    test = fitting(method, tasks.load(config.data, "test", limit=config.test_size))
    mine = parallel.shard(test)
    print(f"{config.data} test: {len(test)} questions are judged", flush=True)
    result = parallel.average(method.accuracy(mine), len(mine))
    low, high = wilson(round(result["accuracy"] * len(test)), len(test))
    interval = f"95 % {low:.3f} to {high:.3f}, n {len(test)}"
    shown = f"accuracy {result['accuracy']:.3f} ({interval}), #L {result['mean_len']:.1f}"
    print(f"{config.data} test: {shown}")
