"""The tokenizer of a Hugging Face folder, run by the `tokenizers` library."""

import json
import re
from pathlib import Path

import tokenizers

from ..config import UserError
from ..files import read_json
from .chat import CHAT_TOKENS, chat_format


class HuggingFace:
    """A tokenizer.json. In a text, special tokens are spelled in ordinary tokens; added tokens that are not
    special are found, as transformers does."""

    def __init__(self, data: dict):
        """data: the content of tokenizer.json. ValueError if the library cannot read it."""
        self.data = data
        text = json.dumps(data)
        if re.search(r'"Regex": "[^"]*\)[*+{]', text):  # (a+)+ takes for ever
            raise ValueError("a pattern repeats a group")
        if data["model"].get("continuing_subword_prefix"):  # without it in the merges the library aborts
            raise ValueError("continuing_subword_prefix is not implemented")
        if not all(type(i) is int and 0 <= i <= 10**7 for i in data["model"]["vocab"].values()):
            raise ValueError("an id is out of range")  # the library would take memory for all below it
        try:
            self.library = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library has no class of its own for it
            raise ValueError(error) from None
        self.library.encode_special_tokens = True
        self.library.no_truncation()  # the file may hold the settings of its last use
        self.library.no_padding()
        self.size = max(self.library.get_vocab().values()) + 1

    def encode(self, text: str) -> list[int]:
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # half a pair of surrogates
        return self.library.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int]) -> str:
        return self.library.decode(ids, skip_special_tokens=False)

    def to_json(self) -> dict:
        return {"tokenizer": self.data}


def read(folder: Path, markers: tuple[str, ...]) -> dict:
    """The arguments of `Tokenizer` for a folder. UserError if a file is missing or damaged, or if the
    tokenizer is not BPE."""
    try:
        config = read_json(folder / "config.json", {})
        settings = read_json(folder / "tokenizer_config.json", {})
        for key in ("bos_token", "eos_token"):  # the text of a token, or an object that holds it
            if isinstance(settings.get(key), dict):
                settings[key] = settings[key]["content"]
        data = read_json(folder / "tokenizer.json")
        if data["model"].get("type", "BPE") != "BPE":
            raise UserError(f"{folder} has a {data['model']['type']} tokenizer; only BPE is implemented")
        data["added_tokens"] = data.get("added_tokens") or []
        ends = own_ends(folder, config, data, settings)
        control = {*markers, settings.get("bos_token"), *sum(CHAT_TOKENS.values(), ())}
        for token in data["added_tokens"]:  # Qwen3's <think> is not special there, nor is another's end
            token["special"] |= token["content"] in control or token["id"] in ends
        backend = HuggingFace(data)
        vocab = backend.library.get_vocab()
        special = {t["content"]: vocab[t["content"]] for t in data["added_tokens"] if t["special"]}
        own = {marker: special[marker] for marker in markers if marker in special}
        chat = chat_format(folder, settings, special)
        turn = special[CHAT_TOKENS[chat][1]] if chat else None
        ends = sorted(ends, key=lambda end: end != turn)  # of Llama 3's ends, <|eot_id|>
        if free := [end for end in ends if end in special.values() and end not in own.values()]:
            own["<eos>"] = free[0]
        return {
            "backend": backend,
            "markers": own,
            "size": max(backend.size, config.get("vocab_size") or 0),
            "special": special,
            "bos": own_start(backend, settings, special),
            "chat": chat,
        }
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{folder}: its tokenizer is damaged ({type(error).__name__}: {error})") from None


def own_ends(folder: Path, config: dict, data: dict, settings: dict) -> list[int | None]:
    """The ids that end the model's own texts, as the folder's files name them, the likeliest first."""
    ends = []
    for file in (config, read_json(folder / "generation_config.json", {})):
        end = file.get("eos_token_id")
        ends += end if isinstance(end, list) else [end]
    return ends + [t["id"] for t in data["added_tokens"] if t["content"] == settings.get("eos_token")]


def own_start(backend: HuggingFace, settings: dict, special: dict[str, int]) -> int | None:
    """The id that the model's tokenizer puts before every text (Llama 3), or None."""
    plain, whole = backend.encode("x"), backend.library.encode("x").ids
    if whole[:1] != plain[:1]:
        return whole[0]
    return special.get(settings.get("bos_token")) if settings.get("add_bos_token") else None
