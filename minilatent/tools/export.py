"""Write a trained model as a Hugging Face folder that `transformers` loads, with the same logits.

    python -m minilatent.tools.export out/cot_sft my_model
    AutoModelForCausalLM.from_pretrained("my_model")

Only the model goes there: no loop that feeds latents back, nothing that a method trains beside the model.
The markers are added tokens of the tokenizer; its chat template is the prompt of the model's training
(without CoLaR's speed).
"""

import dataclasses
import json
from pathlib import Path

import tokenizers
import torch
from safetensors.torch import save_file
from tokenizers import models, pre_tokenizers
from tokenizers.implementations import ByteLevelBPETokenizer

from ..backbones.chat import chat_template
from ..backbones.pretrained import FIELDS, column, is_transposed, model_config, tensor_places
from ..config import Parser, UserError, run_script
from ..files import replace_file, write_json
from ..model import ModelConfig, Transformer
from ..run import load_run
from ..tokenizer import Tiktoken, Tokenizer


def hf_config(config: ModelConfig) -> dict:
    """A model configuration as Hugging Face's config.json. UserError if no family computes the same."""
    if config.position == "learned":
        family = "gpt2"
        more = {"activation_function": "gelu_new", "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    else:
        family = "qwen3" if config.qk_norm else "qwen2" if config.qkv_bias and not config.o_bias else "llama"
        more = {"hidden_act": "silu", "mlp_bias": config.bias, "rope_scaling": config.rope_scaling}
        more |= {"attention_bias": config.o_bias}
    name = "GPT2LMHeadModel" if family == "gpt2" else f"{family.capitalize()}ForCausalLM"
    hf = {"architectures": [name], "model_type": family, **more}
    hf |= {key: getattr(config, field) for field, key in column(FIELDS, family).items()}
    back, _ = model_config(Path("config.json"), hf)
    if back != dataclasses.replace(config, attention=back.attention):
        raise UserError("no family of transformers computes what this model does: it cannot be exported")
    return hf


def from_tiktoken(backend: Tiktoken) -> dict:
    """The content of a tokenizer.json. tiktoken merges the two neighbours whose joint bytes have the lowest
    rank: as a list of merges, every way to cut a token in two, in the order of the ranks. A piece that is a
    token needs no merge (`ignore_merges`)."""
    letters = byte_letters()
    vocab = {"".join(letters[byte] for byte in token): i for i, token in enumerate(backend.ranks)}
    merges = []
    for text in vocab:
        halves = [(text[:i], text[i:]) for i in range(1, len(text))]
        merges += [(a, b) for a, b in halves if a in vocab and b in vocab]
    library = ByteLevelBPETokenizer(vocab, merges)
    library.model = models.BPE(vocab=vocab, merges=merges, ignore_merges=True)
    split = pre_tokenizers.Split(tokenizers.Regex(backend.pattern), "isolated")
    in_letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    library.pre_tokenizer = pre_tokenizers.Sequence([split, in_letters])
    return json.loads(library.to_str())


def byte_letters() -> list[str]:
    """letters[byte]: how byte-level BPE writes a byte as a visible letter (a space is Ġ)."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    hidden = iter(letter for letter in alphabet if ord(letter) > 255)  # of the bytes that are not visible
    return [chr(byte) if chr(byte) in alphabet else next(hidden) for byte in range(256)]


def tokenizer_json(tok: Tokenizer) -> dict:
    """The content of a tokenizer.json, in which special tokens and markers are added tokens. UserError if
    an ordinary token has such a name."""
    data = from_tiktoken(tok.backend) if isinstance(tok.backend, Tiktoken) else tok.backend.data
    added = {token["id"]: token for token in data["added_tokens"]}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    for name, i in [*tok.special.items(), *tok.markers.items()]:  # an id's own name goes first
        added.setdefault(i, {"id": i, "content": name, **flags})
    vocab, names = data["model"]["vocab"], {token["content"]: i for i, token in added.items()}
    if clash := [name for name, i in names.items() if vocab.get(name, i) != i]:
        raise UserError(f"the tokenizer has an ordinary token '{clash[0]}': it cannot be exported")
    # In the vocabulary, too: the library numbers an added token by itself if it does not find it there.
    model = data["model"] | {"vocab": vocab | names}
    return data | {"added_tokens": [added[i] for i in sorted(added)], "model": model}


def export(model: Transformer, tok: Tokenizer, folder: str | Path) -> None:
    """Write config.json, model.safetensors and the tokenizer. UserError if the folder is not empty, or if the
    model is of no family of theirs."""
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is not empty: export to a new folder")
    config, ours, tensors = hf_config(model.config), model.state_dict(), {}
    family = config["model_type"]
    prefix = "transformer." if family == "gpt2" else "model."
    for theirs, names in tensor_places(model.config, family, ours).items():
        tensor = torch.cat([ours[name] for name in names])
        tensor = tensor.t() if is_transposed(family, theirs) else tensor
        name = theirs if theirs.startswith("lm_head") else prefix + theirs
        tensors[name] = tensor.contiguous().cpu()

    tokenizer = tokenizer_json(tok)
    names = {token["id"]: token["content"] for token in tokenizer["added_tokens"]}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": names[tok.eos],
        "pad_token": names[tok.pad],
        "bos_token": names.get(tok.bos),
        "add_bos_token": tok.bos is not None,
        "model_max_length": model.config.context,
        "clean_up_tokenization_spaces": False,
        "chat_template": chat_template(tok),
    }
    ids = {"eos_token_id": tok.eos, "pad_token_id": tok.pad, "bos_token_id": tok.bos}
    dtype = str(model.embed.weight.dtype).removeprefix("torch.")
    write_json(folder / "config.json", config | ids | {"dtype": dtype})
    write_json(folder / "generation_config.json", ids)
    write_json(folder / "tokenizer_config.json", settings)
    replace_file(folder / "tokenizer.json", lambda p: p.write_text(json.dumps(tokenizer), encoding="utf-8"))
    replace_file(folder / "model.safetensors", lambda p: save_file(tensors, p, {"format": "pt"}))


def main(argv: list[str]) -> None:
    parser = Parser(prog="python -m minilatent.tools.export", description=__doc__.splitlines()[0])
    parser.add_argument("run", help="run folder of train.py")
    parser.add_argument("folder", help="Hugging Face folder to write")
    args = parser.parse_args(argv)
    method = load_run(args.run, torch.device("cpu"))
    export(method.model, method.tok, args.folder)
    beside = sorted({name.split(".")[0] for name in method.state_dict()} - {"model"})
    print(f"{args.folder} is for transformers" + (f"; left out: {', '.join(beside)}" if beside else ""))


if __name__ == "__main__":
    run_script(main)
