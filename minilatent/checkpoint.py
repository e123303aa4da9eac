"""Files that survive: safetensors + JSON, written to a temporary name and renamed, with a checksum inside.

A run folder:
    config.json                  method, settings, model configuration; with LoRA, the base model's checksum
    model.safetensors            the final model; with LoRA, the adapters alone
    minilatent_tokenizer.json    the tokenizer
    metrics.jsonl                one line per logged step and validation
    state/                       what resuming needs: resume.safetensors, a best-STAGE.safetensors per stage,
                                 Latent-SFT's labels.safetensors
"""

import dataclasses
import json
import zlib
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .config import Config, UserError, check_fields, is_a
from .files import check_no_links, check_regular, read_json, replace_file, write_json
from .model import ATTENTION, ModelConfig, Transformer
from .tokenizer import Tokenizer

# What config.json may ask for.
KINDS = {"position": ("rope", "learned"), "norm": ("rmsnorm", "layernorm"), "mlp": ("swiglu", "gelu")}
KINDS["attention"] = tuple(ATTENTION)
MOST = {"n_layer": 1000}
ROPE_SCALING = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


def checksum(tensors: dict[str, Tensor], meta: str) -> str:
    """CRC-32 over the meta data and all names, types, shapes and bytes: no flipped byte goes unnoticed."""
    crc = zlib.crc32(meta.encode())
    for name in sorted(tensors):
        t = tensors[name].detach().cpu().contiguous()
        crc = zlib.crc32(f"{name} {t.dtype} {tuple(t.shape)}".encode(), crc)
        if t.numel():
            crc = zlib.crc32(t.view(-1).view(torch.uint8).numpy(), crc)
    return f"{crc:08x}"


def save_tensors(path: Path, tensors: dict[str, Tensor], meta: dict | None = None) -> None:
    if not path.parent.parent.is_dir():  # a run folder that is gone does not come back half empty
        raise UserError(f"{path.parent.parent} does not exist any more")
    tensors = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    text = json.dumps(meta or {})
    # One key: safetensors writes several in any order, and equal runs are to make equal files.
    header = {"minilatent": json.dumps({"checksum": checksum(tensors, text), "meta": text})}
    replace_file(path, lambda p: save_file(tensors, p, header))


def load_tensors(path: Path, like: dict[str, Tensor] | None = None) -> tuple[dict[str, Tensor], dict]:
    """Tensors and meta of a file that `save_tensors` wrote. UserError if missing, truncated, damaged or
    foreign. like: shapes that the tensors of these names must have; asked before any tensor is read."""
    check_regular(path)
    try:
        with safe_open(path, "pt") as f:
            for name in set(f.keys()) & set(like or {}):
                if (found := f.get_slice(name).get_shape()) != (needed := list(like[name].shape)):
                    raise UserError(f"{path}: size mismatch for {name}: {found}, this model needs {needed}")
            tensors = {n: f.get_tensor(n).clone() for n in f.keys()}  # Windows replaces no mapped file
            header = json.loads((f.metadata() or {})["minilatent"])
        if checksum(tensors, header["meta"]) == header["checksum"]:
            return tensors, dict(json.loads(header["meta"], parse_constant=int))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is truncated or no safetensors file ({error})") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{path} was not written by minilatent, or its header is damaged") from None
    raise UserError(f"{path} is damaged: its checksum does not match its contents")


def load_into(module: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Every tensor must find its place and every place its tensor; UserError names those that do not."""
    for name, place in module.state_dict().items():
        if name in tensors and tensors[name].is_floating_point() != place.is_floating_point():
            raise UserError(f"{path} does not fit this model: {name} is {tensors[name].dtype}")
        if name in tensors and not tensors[name].isfinite().all():
            raise UserError(f"{path}: {name} holds what is not a number: the training had diverged")
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{path} does not fit this model: {reason}") from None


def frozen(module: nn.Module) -> set[str]:
    """Entries of the state dict that belong to the base model under adapters: a run does not save them."""
    names = set()
    for prefix, part in module.named_modules():
        names |= {f"{prefix}.{name}".lstrip(".") for name in getattr(part, "frozen_names", ())}
    return names


def own_state(module: nn.Module) -> dict[str, Tensor]:
    """The state dict without what is frozen for good: the base model's file has that."""
    base = frozen(module)
    return {name: tensor for name, tensor in module.state_dict().items() if name not in base}


def load_own(module: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """`own_state` back into its place. UserError names a tensor that is missing, left over or misshapen."""
    base, state = frozen(module), module.state_dict()
    load_into(module, {**{name: state[name] for name in base}, **tensors}, path)


def write_config(folder: Path, config: Config, model: ModelConfig, **more) -> None:
    """more: `rows`, the training data's checksum; `base`, of adapters the model that they belong to."""
    settings, shape = dataclasses.asdict(config), dataclasses.asdict(model)
    data = {"minilatent": 2, "method": config.method, "model": shape, "config": settings, **more}
    write_json(folder / "config.json", data)


def is_run(folder: str | Path) -> bool:
    """Whether this is a run folder of ours, and not a Hugging Face folder or a name on the hub."""
    data = read_json(Path(folder) / "config.json", {})
    return isinstance(data, dict) and "minilatent" in data


def read_run(folder: str | Path) -> dict:
    """config.json of a run folder. UserError if there is none, or if it is damaged or not ours."""
    path = Path(folder) / "config.json"
    check_no_links(Path(folder))
    if not path.exists():
        raise UserError(f"{folder} is no run folder: it has no config.json")
    if not is_run(folder):
        raise UserError(f"{path} is not of a minilatent run")
    data = read_json(path)
    whole = all(isinstance(data.get(key), dict) for key in ("config", "model"))
    if not whole or not isinstance(data["config"].get("method"), str):
        raise UserError(f"{path} is damaged: it lacks settings, method or the model's shape")
    return data


def check_model(config: ModelConfig, path: Path) -> None:
    """UserError if what a file asks for is no model: before any layer is built."""
    check_fields(config, f"{path}: ")
    for name, value in vars(config).items():
        known = KINDS.get(name, (value,))
        if value not in known or type(value) is int and value > MOST.get(name, 10**7):
            raise UserError(f"{path}: {name} = {value!r:.60} belongs to no model")
    scaling = config.rope_scaling
    factors = [scaling.get(key) for key in ROPE_SCALING] if isinstance(scaling, dict) else [scaling]
    if scaling is not None and not all(is_a(factor, float) for factor in factors):
        raise UserError(f"{path}: rope_scaling needs the numbers {', '.join(ROPE_SCALING)}")
    if config.n_head % config.n_kv_head or config.head_dim % 2 and config.position == "rope":
        raise UserError(f"{path}: n_head, n_kv_head and head_dim do not fit together")


def model_shape(folder: Path) -> ModelConfig:
    """That of a run folder's model. UserError if it is damaged."""
    try:
        config = ModelConfig(**read_run(folder)["model"])
    except TypeError as error:  # a field that is missing or unknown
        raise UserError(f"{folder}/config.json is damaged: {error}") from None
    check_model(config, folder / "config.json")
    return config


def load_model(folder: str | Path) -> tuple[Transformer, Tokenizer, dict[str, Tensor]]:
    """Model and tokenizer of a run folder, and the method's further tensors (a latent head, say)."""
    folder, tok = Path(folder), Tokenizer.load(folder)
    path = folder / "model.safetensors"
    with torch.device("meta"):
        model = Transformer(model_shape(folder))
    if tok.vocab_size > model.config.vocab_size:
        raise UserError(f"{folder}: the tokenizer has {tok.vocab_size} tokens, more than the model")
    like = {f"model.{name}": t for name, t in model.state_dict().items()}
    weights, beside = split_off(load_tensors(path, like)[0])
    model = model.to_empty(device="cpu")
    load_into(model, weights, path)
    return model, tok, beside


def split_off(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The model's tensors, by their names in it, and those beside the model."""
    weights = {n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")}
    return weights, {n: t for n, t in tensors.items() if not n.startswith("model.")}


# ------------------------------------------------------------------ what resuming needs

MOMENTS = {"AdamW": {"step", "exp_avg", "exp_avg_sq"}, "Muon": {"momentum_buffer"}}


def training_state(module: nn.Module, trained: dict[str, Tensor], optimizers: list) -> dict[str, Tensor]:
    """Weights and the optimizers' moments, in one dict: one file, so that no crash can leave half of it."""
    tensors = {f"method.{n}": t for n, t in own_state(module).items()}
    for name, p in trained.items():
        for optimizer in optimizers:
            for key, value in optimizer.state.get(p, {}).items():  # none: it had no gradient yet
                tensors[f"optimizer.{key}.{name}"] = value
    return tensors


def load_training_state(path: Path, module: nn.Module, trained: dict[str, Tensor], optimizers: list) -> dict:
    """`training_state` back into its place; returns the file's meta."""
    tensors, meta = load_tensors(path)
    weights = {n.removeprefix("method."): t for n, t in tensors.items() if n.startswith("method.")}
    load_own(module, weights, path)
    owner = {p: o for o in optimizers for group in o.param_groups for p in group["params"]}
    left = {name: t for name, t in tensors.items() if name.startswith("optimizer.")}
    for name, p in trained.items():
        keys = MOMENTS[type(owner[p]).__name__]
        held = {key: left.pop(full) for key in keys if (full := f"optimizer.{key}.{name}") in left}
        for key, value in held.items():
            place = torch.zeros(()) if key == "step" else p
            if held.keys() != keys or (value.shape, value.dtype) != (place.shape, place.dtype):
                raise UserError(f"{path}: the optimizer's {key} of {name} is damaged, or what belongs to it")
            # AdamW counts its steps on the CPU, unless its kernel is CUDA's.
            owner[p].state[p][key] = value.to("cpu" if key == "step" and not p.is_cuda else p.device)
    if left:
        raise UserError(f"{path}: {min(left)} belongs to nothing that is trained")
    return meta


def load_labels(path: Path, kinds: dict, places: dict[str, Tensor], vocab_size: int) -> dict[str, Tensor]:
    """What a run kept between its stages: `kinds`, name -> dtype, one row per latent, and `places`."""
    labels, rows = load_tensors(path)[0], int(places["count"].sum())
    same = labels.keys() == kinds.keys() | places.keys()
    same = same and all(labels[n].dtype == t.dtype and labels[n].equal(t) for n, t in places.items())
    same = same and all(labels[n].dtype == kinds[n] and labels[n].shape[:1] == (rows,) for n in kinds)
    ids = labels.get("ids", torch.zeros(1))
    if not same or ids.min() < 0 or ids.max() >= vocab_size:
        raise UserError(f"{path} is not of this run's training data")
    return labels


def read_progress(path: Path) -> dict:
    """The meta of a checkpoint: where to go on. UserError if it is damaged."""
    _, meta = load_tensors(path)
    kinds = {"stage": int, "step": int, "tokens": int, "seconds": float, "best": float, "scaler": dict}
    whole = all(is_a(meta.get(key), kind) for key, kind in kinds.items())
    scaler = meta["scaler"] if whole else {}
    whole = whole and all(is_a(value, float) for value in scaler.values())
    whole = whole and set(scaler) in (set(), set(torch.amp.GradScaler("cpu").state_dict()))
    if not whole or min(meta[key] for key in list(kinds)[:4]) < 0:
        raise UserError(f"{path} does not say where the run was")
    return meta


def shorten_log(path: Path, stage: int, step: int) -> None:
    """Remove from metrics.jsonl what comes after a step of a stage, and lines that are half written or
    damaged: it is a log, and no reason to lose a run."""
    lines, damaged = [], 0
    written = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    for line in written.splitlines():
        try:
            entry = json.loads(line)
            if step and (entry["index"], entry["step"]) <= (stage, step):
                lines.append(line + "\n")
        except (ValueError, KeyError, TypeError, RecursionError):
            damaged += 1
    if damaged:
        print(f"{path}: {damaged} damaged lines removed")
    replace_file(path, lambda p: p.write_text("".join(lines), encoding="utf-8"))
