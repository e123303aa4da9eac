"""Files that survive: safetensors + JSON, written to a temporary name and renamed, with a checksum inside.

A run folder:
    config.json                  method, settings, model configuration; with LoRA, the base model's checksum
    model.safetensors            the final model; with LoRA, the adapters alone
    minilatent_tokenizer.json    the tokenizer
    metrics.jsonl                one line per logged step and validation
    state/                       what resuming needs: resume.safetensors, a best-STAGE.safetensors per stage
"""

import dataclasses
import json
import zlib
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .config import Config, UserError
from .files import check_no_links, check_regular, read_json, replace_file, write_json
from .model import ModelConfig, Transformer
from .tokenizer import Tokenizer


def checksum(tensors: dict[str, Tensor], meta: str) -> str:
    """CRC-32 over the meta data and all names, types, shapes and bytes: a flipped byte must not go
    unnoticed."""
    crc = zlib.crc32(meta.encode())
    for name in sorted(tensors):
        t = tensors[name].detach().cpu().contiguous()
        crc = zlib.crc32(f"{name} {t.dtype} {tuple(t.shape)}".encode(), crc)
        if t.numel():
            crc = zlib.crc32(t.view(-1).view(torch.uint8).numpy(), crc)
    return f"{crc:08x}"


def save_tensors(path: Path, tensors: dict[str, Tensor], meta: dict | None = None) -> None:
    if not path.parent.is_dir():  # a run's folder that is gone does not come back half empty
        raise UserError(f"{path.parent} does not exist any more")
    tensors = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    text = json.dumps(meta or {})
    # One key: safetensors writes several in any order, and equal runs are to make equal files.
    header = {"minilatent": json.dumps({"checksum": checksum(tensors, text), "meta": text})}
    replace_file(path, lambda p: save_file(tensors, p, header))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict]:
    """Tensors and meta of a file that `save_tensors` wrote. UserError if missing, truncated, damaged or
    foreign."""
    check_regular(path)
    try:
        with safe_open(path, "pt") as f:
            tensors = {name: f.get_tensor(name) for name in f.keys()}
            header = json.loads((f.metadata() or {})["minilatent"])
        if checksum(tensors, header["meta"]) == header["checksum"]:
            return tensors, json.loads(header["meta"])
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is truncated or no safetensors file ({error})") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path} was not written by minilatent, or its header is damaged") from None
    raise UserError(f"{path} is damaged: its checksum does not match its contents")


def load_into(module: torch.nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Every tensor must find its place and every place its tensor; UserError names those that do not."""
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{path} does not fit this model: {reason}") from None


def frozen(module: torch.nn.Module) -> set[str]:
    """Entries of the state dict that belong to the base model under adapters: a run does not save them."""
    names = set()
    for prefix, part in module.named_modules():
        names |= {f"{prefix}.{name}".lstrip(".") for name in getattr(part, "frozen_names", ())}
    return names


def own_state(module: torch.nn.Module) -> dict[str, Tensor]:
    """The state dict without what is frozen for good: the base model's file has that."""
    base = frozen(module)
    return {name: tensor for name, tensor in module.state_dict().items() if name not in base}


def load_own(module: torch.nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
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
    return read_json(path)


def load_model(folder: str | Path) -> tuple[Transformer, Tokenizer, dict[str, Tensor]]:
    """Model and tokenizer of a run folder, and the method's further tensors (a latent head, say)."""
    folder = Path(folder)
    path = folder / "model.safetensors"
    with torch.device("meta"):
        model = Transformer(ModelConfig(**read_run(folder)["model"]))
    model = model.to_empty(device="cpu")
    weights, beside = split_off(load_tensors(path)[0])
    load_into(model, weights, path)
    return model, Tokenizer.load(folder), beside


def split_off(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The model's tensors, by their names in it, and those beside the model."""
    weights = {n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")}
    return weights, {n: t for n, t in tensors.items() if not n.startswith("model.")}


# ------------------------------------------------------------------ what resuming needs


def training_state(
    module: torch.nn.Module, trained: dict[str, Tensor], optimizers: list
) -> dict[str, Tensor]:
    """Weights and the optimizers' moments, in one dict: one file, so that no crash can leave half of it."""
    tensors = {f"method.{n}": t for n, t in own_state(module).items()}
    for name, p in trained.items():
        for optimizer in optimizers:
            for key, value in optimizer.state.get(p, {}).items():  # none: it had no gradient yet
                tensors[f"optimizer.{key}.{name}"] = value
    return tensors


def load_training_state(
    path: Path, module: torch.nn.Module, trained: dict[str, Tensor], optimizers: list
) -> dict:
    """`training_state` back into its place; returns the file's meta."""
    tensors, meta = load_tensors(path)
    weights = {n.removeprefix("method."): t for n, t in tensors.items() if n.startswith("method.")}
    load_own(module, weights, path)
    owner = {p: o for o in optimizers for group in o.param_groups for p in group["params"]}
    for full in (name for name in tensors if name.startswith("optimizer.")):
        _, key, name = full.split(".", 2)
        p = trained[name]  # AdamW counts its steps on the CPU, unless its kernel is CUDA's
        owner[p].state[p][key] = tensors[full].to("cpu" if key == "step" and not p.is_cuda else p.device)
    return meta


def shorten_log(path: Path, stage: int, step: int) -> None:
    """Remove from metrics.jsonl what lies behind a step of a stage, and lines that are half written or
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
