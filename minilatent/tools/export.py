"""The way back: a trained model as a Hugging Face folder that `transformers` loads, with the same logits.

    python -m minilatent.export out/cot_sft my_model       then AutoModelForCausalLM.from_pretrained("my_model")

It is the model alone: the loop that feeds latents back, and what a method trains beside the model, stay here. The
markers are added tokens of the tokenizer, and its chat template is the prompt that the model was trained on (CoLaR's but for
the speed, which ends the question).
"""

import dataclasses
import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from ..backbones.hf_tokenizer import write
from ..backbones.pretrained import is_transposed, model_config, tensor_places
from ..batch import chat_template
from ..config import Parser, UserError, run_script
from ..files import replace_file, write_json
from ..model import ModelConfig, Transformer
from ..run import load_run
from ..tokenizer import Tokenizer

CLASSES = {
    "gpt2": "GPT2LMHeadModel",
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}


def hf_config(config: ModelConfig) -> dict:
    """A model configuration as Hugging Face's config.json. UserError if no family of theirs computes the same."""
    if config.position == "learned":
        family = "gpt2"
        hf = {
            "n_embd": config.width,
            "n_layer": config.n_layer,
            "n_head": config.n_head,
            "n_inner": config.hidden,
            "n_positions": config.context,
            "activation_function": "gelu_new",
            "layer_norm_epsilon": config.norm_eps,
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
        }
    else:
        family = "qwen3" if config.qk_norm else "qwen2" if config.qkv_bias and not config.bias else "llama"
        hf = {
            "hidden_size": config.width,
            "num_hidden_layers": config.n_layer,
            "num_attention_heads": config.n_head,
            "num_key_value_heads": config.n_kv_head,
            "head_dim": config.head_dim,
            "intermediate_size": config.hidden,
            "max_position_embeddings": config.context,
            "hidden_act": "silu",
            "rms_norm_eps": config.norm_eps,
            "attention_bias": config.bias,
            "mlp_bias": config.bias,
            "rope_theta": config.rope_theta,
            "rope_scaling": config.rope_scaling,
        }
    hf = {
        "architectures": [CLASSES[family]],
        "model_type": family,
        "vocab_size": config.vocab_size,
        **hf,
        "tie_word_embeddings": config.tied,
    }
    back, _ = model_config(Path("config.json"), hf)
    if back != dataclasses.replace(config, attention=back.attention):
        raise UserError("no family of transformers computes what this model does: it cannot be exported")
    return hf


def export(model: Transformer, tok: Tokenizer, folder: str | Path) -> None:
    """Write config.json, model.safetensors and the tokenizer. UserError if there is something in the folder already,
    or if the model is of no family of theirs."""
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is not empty: export to a new folder")
    ids = {"eos_token_id": tok.eos, "pad_token_id": tok.pad, "bos_token_id": tok.bos}
    config = hf_config(model.config) | ids | {"dtype": str(model.embed.weight.dtype).removeprefix("torch.")}
    family, ours = config["model_type"], model.state_dict()
    tensors = {}
    for theirs, names in tensor_places(model.config, family, ours).items():
        tensor = torch.cat([ours[name] for name in names])
        prefix = "" if theirs.startswith("lm_head") else "transformer." if family == "gpt2" else "model."
        tensors[prefix + theirs] = (
            (tensor.t() if is_transposed(family, theirs) else tensor).contiguous().cpu()
        )

    tokenizer = write(tok)
    names = {t["id"]: t["content"] for t in tokenizer["added_tokens"]}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": names[tok.eos],
        "pad_token": names[tok.pad],
        "bos_token": names.get(tok.bos),
        "model_max_length": model.config.context,
        "clean_up_tokenization_spaces": False,
        "chat_template": chat_template(tok),
    }
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", ids)
    write_json(folder / "tokenizer_config.json", settings)
    replace_file(
        folder / "tokenizer.json",
        lambda p: p.write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8"),
    )
    replace_file(folder / "model.safetensors", lambda p: save_file(tensors, p, {"format": "pt"}))


def main(argv: list[str]) -> None:
    parser = Parser(prog="python -m minilatent.export", description=__doc__.splitlines()[0])
    parser.add_argument("run", help="run folder of train.py")
    parser.add_argument("folder", help="the Hugging Face folder to write")
    args = parser.parse_args(argv)
    method = load_run(args.run, torch.device("cpu"))
    export(method.model, method.tok, args.folder)
    beside = sorted({name.split(".")[0] for name in method.state_dict()} - {"model"})
    print(f"{args.folder} is for transformers" + (f"; left out: {', '.join(beside)}" if beside else ""))


if __name__ == "__main__":
    run_script(main)
