"""Pretrained weights of the GPT-2, Llama, Qwen2 and Qwen3 families, from a Hugging Face folder or the hub.

A folder is config.json, safetensors and a tokenizer. What config.json asks for is either what `model.py`
computes or refused by name; every tensor of the files must find its place and every place its tensor.
"""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..config import UserError
from ..files import read_json
from ..model import ModelConfig, Transformer
from ..tokenizer import Tokenizer

HUB_FILES = (
    "config.json generation_config.json model*.safetensors model.safetensors.index.json tokenizer.json "
    "tokenizer_config.json vocab.json merges.txt chat_template.jinja"
).split()

# Keys of config.json -> fields of ModelConfig.
GPT2_KEYS = {
    "vocab_size": "vocab_size",
    "n_layer": "n_layer",
    "n_head": "n_head",
    "n_embd": "width",
    "n_inner": "hidden",
    "n_positions": "context",
    "layer_norm_epsilon": "norm_eps",
    "tie_word_embeddings": "tied",
}
LLAMA_KEYS = {
    "vocab_size": "vocab_size",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "num_key_value_heads": "n_kv_head",
    "hidden_size": "width",
    "head_dim": "head_dim",
    "intermediate_size": "hidden",
    "max_position_embeddings": "context",
    "attention_bias": "bias",
    "rope_theta": "rope_theta",
    "rms_norm_eps": "norm_eps",
    "tie_word_embeddings": "tied",
}
KEYS = {"gpt2": GPT2_KEYS, "llama": LLAMA_KEYS, "qwen2": LLAMA_KEYS, "qwen3": LLAMA_KEYS}
OPTIONAL = ("n_inner", "num_key_value_heads", "head_dim", "attention_bias", "tie_word_embeddings")
OPTIONAL += ("layer_norm_epsilon", "rms_norm_eps")
# What a family has without a key in config.json, and what it has if the key is missing.
GPT2 = {"position": "learned", "norm": "layernorm", "mlp": "gelu", "bias": True, "qkv_bias": True}
LLAMA = {"bias": False, "qkv_bias": False, "tied": False, "norm_eps": 1e-6}
DEFAULTS = {
    "gpt2": GPT2 | {"tied": True, "norm_eps": 1e-5},
    "llama": LLAMA,
    "qwen2": LLAMA | {"qkv_bias": True},
    "qwen3": LLAMA | {"qk_norm": True},
}

# Their modules -> ours; {} is the layer. GPT-2 keeps q, k, v in one matrix, and its matrices (in, out).
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
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
# Buffers that older versions of transformers saved.
NOT_WEIGHTS = re.compile(r"h\.\d+\.attn\.(masked_)?bias|layers\.\d+\.self_attn\.rotary_emb\.inv_freq")

# Keys of config.json and their only values that `model.py` implements. A missing key is fine.
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
    """Model and tokenizer of a local folder or the hub. The embedding gets rows for our markers."""
    folder = find_folder(str(name_or_folder))
    model, tok = load_transformer(folder, dtype), Tokenizer.from_hf(folder)
    if tok.vocab_size > model.config.vocab_size:
        resize(model, tok.vocab_size)
    return model, tok


def resize(model: Transformer, vocab_size: int) -> None:
    """Grow the vocabulary. A new row is the mean of the old ones and a tenth of their spread away from it: at
    first as likely as an average token (N(0, 0.02) would stand out among small pretrained embeddings), and no
    two are the same."""
    old = model.config.vocab_size
    if vocab_size < old:
        raise ValueError(f"cannot shrink the vocabulary from {old} to {vocab_size}")
    generator = torch.Generator().manual_seed(0)
    for layer in [model.embed] if model.config.tied else [model.embed, model.head]:
        noise = torch.randn(vocab_size - old, model.config.width, generator=generator).to(layer.weight)
        extra = layer.weight.mean(0) + 0.1 * layer.weight.std(0) * noise
        layer.weight = torch.nn.Parameter(torch.cat([layer.weight, extra]))
    model.embed.num_embeddings = model.config.vocab_size = vocab_size
    if not model.config.tied:
        model.head.out_features = vocab_size


def find_folder(name: str) -> Path:
    """A local folder, or the hub's model of that name, downloaded. UserError if neither exists, or if the
    model is not implemented."""
    if Path(name).is_dir():
        return Path(name)
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name):
        raise UserError(f"{name} is no folder, nor the name of a model on the hub")
    try:
        from huggingface_hub import snapshot_download  # here, because a local folder needs no network

        config = Path(snapshot_download(name, allow_patterns=["config.json"])) / "config.json"
        model_config(config)  # may refuse it, before gigabytes are downloaded
        return Path(snapshot_download(name, allow_patterns=HUB_FILES))
    except UserError:
        raise
    except Exception as error:  # no network, no such model, no access: errors of many kinds
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{name} is no folder and cannot be had from the hub ({reason}); to do without the hub, "
            "download config.json, *.safetensors and the tokenizer's files elsewhere and pass their folder"
        ) from None


def model_config(path: Path, hf: dict | None = None) -> tuple[ModelConfig, str]:
    """A Hugging Face config.json as ours, and its family. UserError names what we cannot compute.
    hf: the file's content, where it is not written yet."""
    hf = read_json(path) if hf is None else hf
    family = hf.get("model_type") if isinstance(hf, dict) else None
    if family not in NAMES:
        raise UserError(f"{path}: model_type {family!r} is not implemented; there is {', '.join(NAMES)}")
    # transformers 5 writes rope_parameters, older ones rope_theta and rope_scaling (with `type`).
    rope = {"rope_theta": hf.get("rope_theta", 10_000.0)}
    rope |= hf.get("rope_parameters") or hf.get("rope_scaling") or {}
    rope.setdefault("rope_type", rope.get("type", "default"))
    given = rope | hf | {"rope_theta": rope["rope_theta"]}
    for key, values in ONLY.items():
        if given.get(key) is not None and given[key] not in values:
            only = f", only {' or '.join(map(repr, values))}" if values else ""
            raise UserError(f"{path}: {key} = {given[key]!r} is not implemented{only}")
    if "sliding_attention" in (hf.get("layer_types") or []):
        raise UserError(f"{path}: sliding_attention layers are not implemented, only full_attention")
    if hf.get("attention_bias", False) != hf.get("mlp_bias", False):
        raise UserError(f"{path}: one of attention_bias and mlp_bias is not implemented, only both or none")
    try:
        fields = dict(DEFAULTS[family])
        for key, field in KEYS[family].items():
            if given.get(key) is not None or key not in OPTIONAL:
                fields[field] = given[key]
        C, H = fields["width"], fields["n_head"]
        fields = {"n_kv_head": H, "head_dim": C // H, "hidden": 4 * C} | fields
        fields["qkv_bias"] = fields["qkv_bias"] or fields["bias"]
        if rope["rope_type"] != "default":
            numbers = {key: float(rope[key]) for key in ROPE_KEYS[rope["rope_type"]]}
            fields["rope_scaling"] = {"rope_type": rope["rope_type"], **numbers}
        config = ModelConfig(**fields)
    except KeyError as error:
        raise UserError(f"{path} lacks {error}") from None
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise UserError(f"{path} is damaged: {error}") from None
    for field in dataclasses.fields(ModelConfig):
        value = getattr(config, field.name)
        if field.type is int and not (isinstance(value, int) and value > 0):
            raise UserError(f"{path} is damaged: {field.name} would be {value!r}")
    return config, family


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
    """The weights of one file, one by one, under the names of the tables. The file is opened anew for each:
    pages of a mapped file that were read stay in memory until it is closed."""
    try:
        with safe_open(path, "pt") as file:
            names = list(file.keys())
        for name in names:
            short = re.sub(r"^(transformer|model)\.", "", name)  # a model without its head has no prefix
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
    """The model of a folder. Memory holds it once: the modules are made without weights."""
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
                    f"{path} has a tensor '{theirs}' that has no place in the model, or a second one"
                )
            ours, transposed = places.pop(theirs), is_transposed(family, theirs)
            rows = [shapes[name][0] for name in ours]
            shape = (sum(rows), *shapes[ours[0]][1:])
            shape = shape[::-1] if transposed else shape
            if tensor.shape != shape or not tensor.is_floating_point():
                found = f"{tensor.dtype} of shape {tuple(tensor.shape)}"
                raise UserError(f"{path}: '{theirs}' is {found}, this model needs floats of shape {shape}")
            tensor = tensor.t() if transposed else tensor
            for name, part in zip(ours, tensor.split(rows)):
                weights[name] = part.to(dtype, copy=True, memory_format=torch.contiguous_format)
    if config.tied:
        places.pop("lm_head.weight", None)
        head = weights.pop("head.weight", None)
        if head is not None and not torch.equal(head, weights.get("embed.weight", head)):
            raise UserError(
                f"{folder}: config.json ties head and embedding, but lm_head.weight differs from it"
            )
    if places:
        raise UserError(f"{folder} lacks the tensor '{next(iter(places))}'")
    model.load_state_dict(weights, assign=True)
    return model
