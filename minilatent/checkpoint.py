"""Files that survive: safetensors + JSON, written to a temporary name and renamed, with a checksum inside.

A run folder:
    config.json                    method, settings, model configuration; with LoRA, the base model and its checksum
    model.safetensors              the final model; with LoRA, the adapters alone
    minilatent_tokenizer.json      the tokenizer
    metrics.jsonl                  one line per logged step and validation
    state/                         what resuming needs: resume.safetensors, one best-STAGE.safetensors per stage
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
from .files import replace_file, write_json
from .model import ModelConfig, Transformer
from .tokenizer import Tokenizer


def checksum(tensors: dict[str, Tensor], meta: str) -> str:
    """CRC-32 over the meta data and all names, types, shapes and bytes: a flipped byte must not go unnoticed."""
    crc = zlib.crc32(meta.encode())
    for name in sorted(tensors):
        t = tensors[name].detach().cpu().contiguous()
        crc = zlib.crc32(f"{name} {t.dtype} {tuple(t.shape)}".encode(), crc)
        if t.numel():
            crc = zlib.crc32(t.view(-1).view(torch.uint8).numpy(), crc)
    return f"{crc:08x}"


def save_tensors(path: Path, tensors: dict[str, Tensor], meta: dict | None = None) -> None:
    tensors = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    text = json.dumps(meta or {})
    # One key: safetensors writes several in any order, and equal runs are to make equal files.
    header = {"minilatent": json.dumps({"checksum": checksum(tensors, text), "meta": text})}
    replace_file(path, lambda p: save_file(tensors, p, header))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict]:
    """Tensors and meta of a file that `save_tensors` wrote. UserError if missing, truncated, damaged or foreign."""
    try:
        with safe_open(path, "pt") as f:
            header = f.metadata() or {}
            tensors = {name: f.get_tensor(name) for name in f.keys()}
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is truncated or no safetensors file ({error})") from None
    if "minilatent" not in header:
        raise UserError(f"{path} was not written by minilatent: it has no checksum")
    try:
        header = json.loads(header["minilatent"])
        if checksum(tensors, header["meta"]) == header["checksum"]:
            return tensors, json.loads(header["meta"])
    except (ValueError, KeyError, TypeError, AttributeError):
        pass  # the header itself is damaged
    raise UserError(f"{path} is damaged: its checksum does not match its contents")


def load_into(module: torch.nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Every tensor must find its place and every place its tensor; UserError names the first that does not."""
    own = module.state_dict()
    for name in sorted(own.keys() | tensors.keys()):
        if name not in tensors:
            raise UserError(f"{path} lacks the tensor '{name}'")
        if name not in own:
            raise UserError(f"{path} has a tensor '{name}' that this model does not have")
        if own[name].shape != tensors[name].shape:
            raise UserError(
                f"{path}: '{name}' has shape {tuple(tensors[name].shape)}, this model needs {tuple(own[name].shape)}"
            )
    module.load_state_dict(tensors)


def write_config(folder: Path, config: Config, model: ModelConfig, **more) -> None:
    """more: `rows`, the training data's checksum; `base`, of a run that saves adapters only the model that they belong to."""
    write_json(
        folder / "config.json",
        {
            "minilatent": 1,
            "method": config.method,
            "model": dataclasses.asdict(model),
            "config": dataclasses.asdict(config),
            **more,
        },
    )


def read_config(folder: Path) -> tuple[dict, ModelConfig]:
    """The settings and the model configuration of a run folder."""
    path = Path(folder) / "config.json"
    try:
        data = json.loads(path.read_text())
        if not isinstance(data, dict) or "minilatent" not in data:
            raise UserError(f"{path} is not of a minilatent run")
        return data["config"], ModelConfig(**data["model"])
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{folder} is no run folder: it has no config.json") from None
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is damaged: {error}") from None


def load_model(folder: str | Path) -> tuple[Transformer, Tokenizer, dict, dict[str, Tensor]]:
    """Model, tokenizer and settings of a run folder, and the method's further tensors (a latent head, say)."""
    folder = Path(folder)
    settings, model_config = read_config(folder)
    tokenizer = Tokenizer.load(folder)
    if max(tokenizer.markers.values()) >= model_config.vocab_size:
        raise UserError(f"{folder}: the tokenizer has more tokens than the model's {model_config.vocab_size}")
    tensors, _ = load_tensors(folder / "model.safetensors")
    with torch.device("meta"):
        model = Transformer(model_config)
    model = model.to_empty(device="cpu")
    load_into(
        model,
        {n[len("model.") :]: t for n, t in tensors.items() if n.startswith("model.")},
        folder / "model.safetensors",
    )
    return model, tokenizer, settings, {n: t for n, t in tensors.items() if not n.startswith("model.")}
