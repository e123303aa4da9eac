"""How a chat model is asked: one message, no system prompt."""

from pathlib import Path

from ..files import MOST_TEXT, check_regular

# What each family's own template makes of a message; {} is the question.
CHATS = {
    "": "{}",
    "chatml": "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n",
    "llama3": "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
}
# The special tokens that begin and end a message.
CHAT_TOKENS = {"chatml": ("<|im_start|>", "<|im_end|>"), "llama3": ("<|start_header_id|>", "<|eot_id|>")}


def chat_format(folder: Path, settings: dict, special: dict[str, int]) -> str:
    """The key of CHATS that the folder's chat template is written in; without a template, the one whose end
    of message ends the model's texts. "": the model was not trained to chat."""
    template, file = str(settings.get("chat_template") or ""), folder / "chat_template.jinja"
    if file.exists():
        check_regular(file, MOST_TEXT)
        template = file.read_text(encoding="utf-8")
    for name, (start, end) in CHAT_TOKENS.items():
        known = start in special and end in special
        if known and (start in template if template else settings.get("eos_token") == end):
            return name
    return ""


def chat_template(tok) -> str:
    """What `batch.encode_prompt` does with this `Tokenizer`, as a Jinja template for transformers'
    apply_chat_template."""
    names = {i: name for name, i in tok.special.items()}
    bos = "" if tok.bos is None else names[tok.bos]
    message = "{{ messages[-1]['content'] | trim }}"
    return bos + CHATS[tok.chat].replace("{}", message) + names.get(tok.think, "<think>")
