"""Pretrained weights of the GPT-2, Llama, Qwen2 and Qwen3 families, from a Hugging Face folder or the hub.

A folder is config.json, safetensors and a tokenizer. What config.json asks for is either what `model.py` computes or
refused by name; every tensor of the files must find its place and every place its tensor.
"""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..config import UserError
from ..model import ModelConfig, Transformer
from ..tokenizer import Tokenizer
from .hf_tokenizer import read_json

HUB_FILES = [
    "config.json",
    "generation_config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
]

# Their module -> ours; {} is the layer. GPT-2 keeps q, k, v in one matrix, and its matrices (in, out).
GPT2_NAMES = {
    "wte": "embed",
    "wpe": "embed_position",
    "h.{}.ln_1": "blocks.{}.norm1",
    "h.{}.attn.c_attn": "blocks.{}.attn.q blocks.{}.attn.k blocks.{}.attn.v",
    "h.{}.attn.c_proj": "blocks.{}.attn.o",
    "h.{}.ln_2": "blocks.{}.norm2",
    "h.{}.mlp.c_fc": "blocks.{}.mlp.up",
    "h.{}.mlp.c_proj": "blocks.{}.mlp.down",
    "ln_f": "norm",
    "lm_head": "head",
}
LLAMA_NAMES = {
    "embed_tokens": "embed",
    "layers.{}.input_layernorm": "blocks.{}.norm1",
    "layers.{}.self_attn.q_proj": "blocks.{}.attn.q",
    "layers.{}.self_attn.k_proj": "blocks.{}.attn.k",
    "layers.{}.self_attn.v_proj": "blocks.{}.attn.v",
    "layers.{}.self_attn.o_proj": "blocks.{}.attn.o",
    "layers.{}.self_attn.q_norm": "blocks.{}.attn.q_norm",
    "layers.{}.self_attn.k_norm": "blocks.{}.attn.k_norm",
    "layers.{}.post_attention_layernorm": "blocks.{}.norm2",
    "layers.{}.mlp.up_proj": "blocks.{}.mlp.up",
    "layers.{}.mlp.gate_proj": "blocks.{}.mlp.gate",
    "layers.{}.mlp.down_proj": "blocks.{}.mlp.down",
    "norm": "norm",
    "lm_head": "head",
}
NAMES = {"gpt2": GPT2_NAMES, "llama": LLAMA_NAMES, "qwen2": LLAMA_NAMES, "qwen3": LLAMA_NAMES}
ROPE_KEYS = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
NOT_WEIGHTS = re.compile(
    r"h\.\d+\.attn\.(masked_)?bias|layers\.\d+\.self_attn\.rotary_emb\.inv_freq"
)  # old buffers

# Keys of config.json and the only values with which `model.py` computes what they ask for. A missing key is fine.
ONLY = {
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
    "hidden_act": ("silu", "swish"),
    "use_sliding_window": (False,),
    "rope_type": ("default", "linear", "llama3"),
    "partial_rotary_factor": (1,),
    "quantization_config": (),
}


def load_pretrained(
    name_or_folder: str | Path, dtype: torch.dtype = torch.float32
) -> tuple[Transformer, Tokenizer]:
    """Model and tokenizer of a local folder or, by its name, of the hub; the embedding has rows for our markers."""
    folder = find_folder(str(name_or_folder))
    model, tok = load_transformer(folder, dtype), Tokenizer.from_hf(folder)
    size = model.config.vocab_size
    if tok.to_id.max() >= size:
        raise UserError(
            f"{folder}: the tokenizer makes ids up to {tok.to_id.max()}, the model knows {size}: "
            "they do not belong together"
        )
    if tok.vocab_size > size:
        model.resize(tok.vocab_size)
    return model, tok


def find_folder(name: str) -> Path:
    """A local folder, or the hub's model of that name, downloaded. UserError if there is neither, or none that we can compute."""
    if Path(name).is_dir():
        return Path(name)
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name):
        raise UserError(f"{name} is no folder, nor the name of a model on the hub")
    try:
        from huggingface_hub import (
            snapshot_download,
        )  # only a named hub model needs the network, or this library

        model_config(
            Path(snapshot_download(name, allow_patterns=["config.json"])) / "config.json"
        )  # before gigabytes of what we refuse
        return Path(snapshot_download(name, allow_patterns=HUB_FILES))
    except UserError:
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{name} is no folder and cannot be had from the hub ({reason}); to do without the hub, "
            "download config.json, *.safetensors and the tokenizer's files elsewhere and pass their folder"
        ) from None


def model_config(path: Path, hf: dict | None = None) -> tuple[ModelConfig, str]:
    """A Hugging Face config.json as ours, and its family. UserError names what we cannot compute.
    hf: what the file holds, where it is not written yet."""
    hf = read_json(path) if hf is None else hf
    family = hf.get("model_type") if isinstance(hf, dict) else None
    if family not in NAMES:
        raise UserError(f"{path}: model_type {family!r} is not implemented; there is {', '.join(NAMES)}")
    # transformers 5 writes rope_parameters, older ones rope_theta and rope_scaling (whose type was called `type`)
    rope = {"rope_theta": hf.get("rope_theta", 10_000.0)} | (
        hf.get("rope_parameters") or hf.get("rope_scaling") or {}
    )
    rope.setdefault("rope_type", rope.get("type", "default"))
    for key, values in ONLY.items():
        value = hf.get(key, rope.get(key))
        if value is not None and value not in values:
            raise UserError(
                f"{path}: {key} = {value!r} is not implemented"
                + (f", only {' or '.join(map(repr, values))}" if values else "")
            )
    if "sliding_attention" in (hf.get("layer_types") or []):
        raise UserError(f"{path}: sliding_attention layers are not implemented, only full_attention")
    bias, mlp_bias = hf.get("attention_bias", False), hf.get("mlp_bias", False)
    if bias != mlp_bias:
        raise UserError(
            f"{path}: attention_bias = {bias} with mlp_bias = {mlp_bias} is not implemented, "
            "only both or none"
        )
    try:
        if family == "gpt2":
            C, H = hf["n_embd"], hf["n_head"]
            config = ModelConfig(
                vocab_size=hf["vocab_size"],
                n_layer=hf["n_layer"],
                n_head=H,
                n_kv_head=H,
                width=C,
                head_dim=C // H,
                hidden=hf.get("n_inner") or 4 * C,
                context=hf["n_positions"],
                position="learned",
                norm="layernorm",
                mlp="gelu",
                bias=True,
                qkv_bias=True,
                tied=hf.get("tie_word_embeddings", True),
                norm_eps=hf.get("layer_norm_epsilon", 1e-5),
            )
        else:
            C, H = hf["hidden_size"], hf["num_attention_heads"]
            config = ModelConfig(
                vocab_size=hf["vocab_size"],
                n_layer=hf["num_hidden_layers"],
                n_head=H,
                n_kv_head=hf.get("num_key_value_heads") or H,
                width=C,
                head_dim=hf.get("head_dim") or C // H,
                hidden=hf["intermediate_size"],
                context=hf["max_position_embeddings"],
                bias=bias,
                qkv_bias=bias or family == "qwen2",
                qk_norm=family == "qwen3",
                tied=hf.get("tie_word_embeddings", False),
                rope_theta=rope["rope_theta"],
                rope_scaling=rope_scaling(rope),
                norm_eps=hf.get("rms_norm_eps", 1e-6),
            )
    except KeyError as error:
        raise UserError(f"{path} lacks {error}") from None
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise UserError(f"{path} is damaged: {error}") from None
    for field in dataclasses.fields(ModelConfig):
        value = getattr(config, field.name)
        if field.type is int and not (isinstance(value, int) and value > 0):
            raise UserError(f"{path} is damaged: {field.name} would be {value!r}")
    return config, family


def rope_scaling(rope: dict) -> dict | None:
    """What of Hugging Face's rope parameters `model.rope_frequencies` needs. KeyError if it is not there."""
    kind = rope["rope_type"]
    return (
        {"rope_type": kind} | {key: float(rope[key]) for key in ROPE_KEYS[kind]} if ROPE_KEYS[kind] else None
    )


def weight_files(folder: Path) -> list[Path]:
    """model.safetensors, or the shards that the index lists."""
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").exists():
        return [folder / "model.safetensors"]
    if index.exists():
        try:
            return [folder / name for name in sorted(set(read_json(index)["weight_map"].values()))]
        except (KeyError, TypeError, AttributeError):
            raise UserError(f"{index} has no weight_map of tensors to files") from None
    if list(folder.glob("*.bin")):
        raise UserError(
            f"{folder} has its weights only as pickle (.bin), which can run code and is never read here; "
            "convert them to safetensors: save_pretrained of any recent transformers writes it"
        )
    raise UserError(f"{folder} has no model.safetensors")


def read_tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """The weights of one file, one by one, under the names of the tables. Opened anew for each: the pages of a mapped
    file that were read stay in memory until it is closed."""
    try:
        with safe_open(path, "pt") as file:
            names = list(file.keys())
        for name in names:
            short = re.sub(
                r"^(transformer|model)\.", "", name
            )  # a model saved without its head has no prefix
            if not NOT_WEIGHTS.fullmatch(short):
                with safe_open(path, "pt") as file:
                    yield short, file.get_tensor(name)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is truncated or no safetensors file ({error})") from None


def tensor_places(config: ModelConfig, family: str, known) -> dict[str, list[str]]:
    """Their tensor -> our parameters: three for a fused q, k, v. Only those whose name is in `known`."""
    places = {}
    for theirs, ours in NAMES[family].items():
        for layer in range(config.n_layer if "{}" in theirs else 1):
            for kind in ("weight", "bias"):
                names = [f"{name}.{kind}".replace("{}", str(layer)) for name in ours.split()]
                if names[0] in known:
                    places[f"{theirs}.{kind}".replace("{}", str(layer))] = names
    return places


def is_transposed(family: str, theirs: str) -> bool:
    return family == "gpt2" and ".c_" in theirs and theirs.endswith("weight")


def load_transformer(folder: Path, dtype: torch.dtype = torch.float32) -> Transformer:
    """The model of a folder. Memory holds one copy of it: the modules are made without weights, then given theirs."""
    config, family = model_config(folder / "config.json")
    with torch.device("meta"):
        model = Transformer(config)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    if config.tied:
        shapes["head.weight"] = shapes["embed.weight"]  # some files hold it all the same
    places = tensor_places(config, family, shapes)

    weights: dict[str, Tensor] = {}
    for path in weight_files(folder):
        for theirs, tensor in read_tensors(path):
            if theirs not in places:
                raise UserError(
                    f"{path} has a tensor '{theirs}' that this model does not have, or has it twice"
                )
            ours, transposed = places.pop(theirs), is_transposed(family, theirs)
            rows = [shapes[name][0] for name in ours]
            shape = (sum(rows), *shapes[ours[0]][1:])[:: -1 if transposed else 1]
            if tensor.shape != shape or not tensor.is_floating_point():
                raise UserError(
                    f"{path}: '{theirs}' is {tensor.dtype} of shape {tuple(tensor.shape)}, "
                    f"this model needs floats of shape {shape}"
                )
            tensor = tensor.t() if transposed else tensor
            for name, part in zip(ours, tensor.split(rows)):
                weights[name] = part.to(dtype, copy=True, memory_format=torch.contiguous_format)
    if config.tied:
        places.pop("lm_head.weight", None)
        head = weights.pop("head.weight", None)
        if head is not None and not torch.equal(head, weights.get("embed.weight", head)):
            raise UserError(
                f"{folder}: config.json says that the head is the embedding, but lm_head.weight "
                "differs from it"
            )
    if places:
        raise UserError(f"{folder} lacks the tensor '{next(iter(places))}'")
    model.load_state_dict(weights, assign=True)
    return model
