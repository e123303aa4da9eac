"""How a chat model is asked."""

from ..tokenizer import Tokenizer

# How a chat model is asked (backbones/hf_tokenizer.py finds which format is a model's): one message, no
# system prompt. Each is what the family's own template makes of it; {} is the question.
CHATS = {
    "": "{}",
    "chatml": "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n",
    "llama3": "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
}


def chat_template(tok: Tokenizer) -> str:
    """`batch.encode_prompt` as a Jinja template, for transformers' apply_chat_template."""
    names = {i: name for name, i in tok.special.items()}
    bos = "" if tok.bos is None else names[tok.bos]
    message = "{{ messages[-1]['content'] | trim }}"
    return bos + CHATS[tok.chat].replace("{}", message) + names.get(tok.think, "<think>")
