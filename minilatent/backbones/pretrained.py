"""Pretrained weights of the GPT-2, Llama, Qwen2 and Qwen3 families, from a Hugging Face folder or the hub.

What config.json asks for is either what `model.py` computes or refused by name; every tensor of the files
must find its place and every place its tensor.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..checkpoint import ROPE_SCALING, check_model
from ..config import UserError
from ..files import check_regular, read_json
from ..model import ModelConfig, Transformer
from ..tokenizer import Tokenizer

HUB_FILES = ["config.json", "generation_config.json", "model*.safetensors", "tokenizer.json"]
HUB_FILES += ["tokenizer_config.json", "chat_template.jinja"]

# What a family has without a key in config.json, and what it has if the key is missing.
GPT2 = {"position": "learned", "norm": "layernorm", "mlp": "gelu", "bias": True, "qkv_bias": True}
GPT2 |= {"tied": True, "norm_eps": 1e-5, "hidden": None}
LLAMA = {"bias": False, "qkv_bias": False, "tied": False, "norm_eps": 1e-6}
LLAMA |= {"n_kv_head": None, "head_dim": None}
DEFAULTS = {
    "gpt2": GPT2,
    "llama": LLAMA,
    "qwen2": LLAMA | {"qkv_bias": True},
    "qwen3": LLAMA | {"qk_norm": True},
}
# Fields of ModelConfig: the keys of config.json in GPT-2's family, and in the three others.
FIELDS = {
    "vocab_size": ("vocab_size", "vocab_size"),
    "n_layer": ("n_layer", "num_hidden_layers"),
    "n_head": ("n_head", "num_attention_heads"),
    "n_kv_head": ("", "num_key_value_heads"),
    "width": ("n_embd", "hidden_size"),
    "head_dim": ("", "head_dim"),
    "hidden": ("n_inner", "intermediate_size"),
    "context": ("n_positions", "max_position_embeddings"),
    "rope_theta": ("", "rope_theta"),
    "norm_eps": ("layer_norm_epsilon", "rms_norm_eps"),
    "tied": ("tie_word_embeddings", "tie_word_embeddings"),
}
# Our modules: theirs, in the same way; {} is the layer. GPT-2 keeps q, k, v in one matrix, and its matrices
# are (in, out).
MODULES = {
    "embed": ("wte", "embed_tokens"),
    "embed_position": ("wpe", ""),
    "blocks.{}.norm1": ("h.{}.ln_1", "layers.{}.input_layernorm"),
    "blocks.{}.attn.q": ("h.{}.attn.c_attn", "layers.{}.self_attn.q_proj"),
    "blocks.{}.attn.k": ("h.{}.attn.c_attn", "layers.{}.self_attn.k_proj"),
    "blocks.{}.attn.v": ("h.{}.attn.c_attn", "layers.{}.self_attn.v_proj"),
    "blocks.{}.attn.o": ("h.{}.attn.c_proj", "layers.{}.self_attn.o_proj"),
    "blocks.{}.attn.q_norm": ("", "layers.{}.self_attn.q_norm"),
    "blocks.{}.attn.k_norm": ("", "layers.{}.self_attn.k_norm"),
    "blocks.{}.norm2": ("h.{}.ln_2", "layers.{}.post_attention_layernorm"),
    "blocks.{}.mlp.up": ("h.{}.mlp.c_fc", "layers.{}.mlp.up_proj"),
    "blocks.{}.mlp.gate": ("", "layers.{}.mlp.gate_proj"),
    "blocks.{}.mlp.down": ("h.{}.mlp.c_proj", "layers.{}.mlp.down_proj"),
    "norm": ("ln_f", "norm"),
    "head": ("lm_head", "lm_head"),
}
MOST_NEW = 10_000  # tokens that a model can have without rows in its embedding
# Buffers that older versions of transformers saved.
NOT_WEIGHTS = re.compile(r"h\.\d+\.attn\.(masked_)?bias|(.+\.)?rotary_emb\.\w+")

# Keys of config.json and their only values that `model.py` implements. A missing key is fine.
ONLY = {
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "hidden_act": ("silu", "swish"),
    "use_sliding_window": (False,),
    "mlp_bias": (False,),
    "rope_type": ("default", "llama3"),
    "partial_rotary_factor": (1,),
    "quantization_config": (),
}


def load_pretrained(
    name: str | Path, dtype: torch.dtype = torch.float32, number_tokens: bool = False
) -> tuple[Transformer, Tokenizer]:
    """Model and tokenizer of a local folder or the hub. The embedding gets rows for the tokens that are new:
    our markers and, with number_tokens, numbers of two and three digits."""
    folder = find_folder(str(name))
    model, tok = load_transformer(folder, dtype), Tokenizer.from_hf(folder, number_tokens)
    if tok.vocab_size > model.config.vocab_size + MOST_NEW:
        raise UserError(f"{folder}: a tokenizer of {tok.vocab_size} tokens is of another model")
    if tok.vocab_size > model.config.vocab_size:
        spelling = {i: [tok.encode(digit)[-1] for digit in tok.decode([i])] for i in tok.numbers}
        resize(model, tok.vocab_size, spelling)
    return model, tok


@torch.no_grad()
def resize(model: Transformer, vocab_size: int, spelling: dict[int, list[int]] | None = None) -> None:
    """Grow the vocabulary. A new row is the mean of the old ones and a tenth of their spread away from it: at
    first as likely as an average token (N(0, 0.02) would stand out among small pretrained embeddings), and no
    two are the same.

    spelling: new ids -> the old ones that they take the place of, 48 -> 4, 8. Instead of the mean of all rows
    these begin at the mean of theirs, in which each weighs twice as much as the next: 48 is not 84, and the
    first digit, which decides the size, is what the pretrained head expects in this place.
    """
    old = model.config.vocab_size
    generator = torch.Generator().manual_seed(0)
    for layer in [model.embed] if model.config.tied else [model.embed, model.head]:
        noise = torch.randn(vocab_size - old, model.config.width, generator=generator).to(layer.weight)
        start = layer.weight.mean(0).repeat(vocab_size - old, 1)
        for i, parts in (spelling or {}).items():
            share = (2.0 ** -torch.arange(len(parts))).to(layer.weight)
            start[i - old] = share / share.sum() @ layer.weight[parts]
        extra = start + 0.1 * layer.weight.std(0) * noise
        layer.weight = torch.nn.Parameter(torch.cat([layer.weight, extra]))
    model.config.vocab_size = vocab_size


def find_folder(name: str) -> Path:
    """A local folder, or the hub's model of that name, downloaded. UserError if neither exists."""
    if Path(name).is_dir():
        return Path(name)
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name):  # a path
        raise UserError(f"{name} is no folder, nor the name of a model on the hub")
    try:
        from huggingface_hub import snapshot_download  # here, because a local folder needs no network

        return Path(snapshot_download(name, allow_patterns=HUB_FILES))
    except Exception as error:  # no network, no such model, no access: errors of many kinds
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{name} is no folder and cannot be had from the hub ({reason}); without the hub, download "
            "config.json, *.safetensors and the tokenizer's files elsewhere and pass their folder"
        ) from None


def column(table: dict[str, tuple[str, str]], family: str) -> dict[str, str]:
    """Ours -> theirs, of FIELDS or MODULES: what the family has."""
    index = 0 if family == "gpt2" else 1
    return {ours: theirs[index] for ours, theirs in table.items() if theirs[index]}


def model_config(path: Path, hf: dict | None = None) -> tuple[ModelConfig, str]:
    """A Hugging Face config.json as ours, and its family. UserError names what we cannot compute.
    hf: the file's content, where it is not written yet."""
    hf = read_json(path) if hf is None else hf
    family = hf.get("model_type") if isinstance(hf, dict) else None
    if not isinstance(family, str) or family not in DEFAULTS:
        raise UserError(f"{path}: model_type {family!r} is not implemented; there is {', '.join(DEFAULTS)}")
    try:
        # transformers 5 writes rope_parameters, older ones rope_theta and rope_scaling (with `type`).
        rope = {"rope_theta": hf.get("rope_theta", 10_000.0)}
        more = hf.get("rope_parameters") or hf.get("rope_scaling") or {}
        rope |= more.get("full_attention", more)  # some write them for each type of layer
        rope.setdefault("rope_type", rope.get("type", "default"))
        given = rope | hf | {"rope_theta": rope["rope_theta"]}
        for key, values in ONLY.items():
            if given.get(key) is not None and given[key] not in values:
                only = f", only {' or '.join(map(repr, values))}" if values else ""
                raise UserError(f"{path}: {key} = {given[key]!r} is not implemented{only}")
        others = {*(hf.get("layer_types") or []), *(key for key in rope if key.endswith("_attention"))}
        if others := sorted(others - {"full_attention"}):
            raise UserError(f"{path}: {others[0]} layers are not implemented, only full_attention")
        fields = dict(DEFAULTS[family])
        for field, key in column(FIELDS, family).items():
            if given.get(key) is not None or field not in fields:
                fields[field] = given[key]
        if given.get("attention_bias") and family != "qwen2":  # which has no such key
            fields |= {"qkv_bias": True, "o_bias": True}
        C, H = fields["width"], fields["n_head"]
        for field, usual in (("n_kv_head", H), ("head_dim", C // H), ("hidden", 4 * C)):
            if fields.get(field) is None:
                fields[field] = usual
        if rope["rope_type"] == "llama3":
            numbers = {key: float(rope[key]) for key in ROPE_SCALING}
            fields["rope_scaling"] = {"rope_type": "llama3", **numbers}
        check_model(config := ModelConfig(**fields), path)
        return config, family
    except KeyError as error:
        raise UserError(f"{path} lacks {error}") from None
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise UserError(f"{path} is damaged: {error}") from None


def read_tensors(folder: Path) -> Iterator[tuple]:
    """The file, the name without the prefix of a model with a head, and a view of the weights, one by one."""
    whole = folder / "model.safetensors"
    files = [whole] if whole.exists() else sorted(folder.glob("model-*.safetensors"))
    if not files:
        raise UserError(
            f"{folder} has no model.safetensors; pickled weights (.bin) are never read: convert them"
        )
    for path in files:
        check_regular(path)
        try:
            with safe_open(path, "pt") as file:
                for name in file.keys():
                    short = re.sub(r"^(transformer|model)\.", "", name)
                    if not NOT_WEIGHTS.fullmatch(short):
                        yield path, short, file.get_slice(name)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} is truncated or no safetensors file ({error})") from None


def tensor_places(config: ModelConfig, family: str, known) -> dict[str, list[str]]:
    """Their tensor -> our parameters: three for a fused q, k, v. Only those whose name is in `known`."""
    places: dict[str, list[str]] = {}
    for ours, theirs in column(MODULES, family).items():
        for layer in range(config.n_layer if "{}" in ours else 1):
            for kind in ("weight", "bias"):
                name = f"{ours.format(layer)}.{kind}"
                if name in known:
                    places.setdefault(f"{theirs.format(layer)}.{kind}", []).append(name)
    return places


def is_transposed(family: str, theirs: str) -> bool:
    return family == "gpt2" and ".c_" in theirs and theirs.endswith("weight")


def load_transformer(folder: Path, dtype: torch.dtype = torch.float32) -> Transformer:
    """The model of a folder. Memory holds it once: the modules are made without weights."""
    config, family = model_config(folder / "config.json")
    with torch.device("meta"):
        model = Transformer(config)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    places = tensor_places(config, family, shapes)
    if config.tied:  # some files hold the embedding twice, some as the head alone
        places["lm_head.weight"] = ["embed.weight"]

    weights: dict[str, Tensor] = {}
    for path, theirs, view in read_tensors(folder):
        if theirs not in places:
            raise UserError(f"{path} has a tensor '{theirs}' without a place in the model, or twice")
        ours, transposed = places.pop(theirs), is_transposed(family, theirs)
        rows = [shapes[name][0] for name in ours]
        shape = (sum(rows), *shapes[ours[0]][1:])
        shape = shape[::-1] if transposed else shape
        there = tuple(view.get_shape())  # asked before it is read
        tensor = view[:] if there == shape else None
        if tensor is None or not tensor.is_floating_point():
            found = f"{view.get_dtype() if tensor is None else tensor.dtype} of shape {there}"
            raise UserError(f"{path}: '{theirs}' is {found}, this model needs floats of shape {shape}")
        tensor = tensor.t() if transposed else tensor
        for name, part in zip(ours, tensor.split(rows)):
            if name in weights and theirs == "lm_head.weight":
                continue
            weights[name] = part.to(dtype, copy=True, memory_format=torch.contiguous_format)
    if missing := [theirs for theirs, ours in places.items() if ours[0] not in weights]:
        raise UserError(f"{folder} lacks the tensor '{missing[0]}'")
    model.load_state_dict(weights, assign=True)
    return model
