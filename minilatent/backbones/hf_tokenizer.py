"""The tokenizer of a Hugging Face folder, run by the `tokenizers` library."""

import json
import re
from pathlib import Path

import tokenizers

from ..config import UserError
from ..files import read_json
from .chat import CHAT_TOKENS, chat_format

# Numbers as Llama 3 has them: groups of up to three digits from the left, each one token.
GROUPS = [f"{i:0{digits}}" for digits in (1, 2, 3) for i in range(10**digits)]
THREES = "[0-9]{1,3}"


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


def read(folder: Path, markers: tuple[str, ...], number_tokens: bool = False) -> dict:
    """The arguments of `Tokenizer` for a folder. UserError if a file is missing or damaged, or if the
    tokenizer is not BPE. number_tokens: see `add_numbers`."""
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
        backend, numbers = HuggingFace(data), []
        size = max(backend.size, config.get("vocab_size") or 0)
        if number_tokens and not has_number_tokens(backend):
            backend, numbers = add_numbers(backend, size)
            if not has_number_tokens(backend):
                raise UserError(f"{folder}: --number_tokens cannot change how its tokenizer cuts numbers")
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
            "size": size + len(numbers),
            "special": special,
            "bos": own_start(backend, settings, special),
            "chat": chat,
            "numbers": numbers,
        }
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{folder}: its tokenizer is damaged ({type(error).__name__}: {error})") from None


def own_ends(folder: Path, config: dict, data: dict, settings: dict) -> list[int | None]:
    """The ids that end the model's own texts, as the folder's files name them, the most likely first."""
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


def has_number_tokens(backend) -> bool:
    """Whether every number is cut into groups of up to three digits from the left, each one token."""
    text = "1234567890 " + ", ".join(GROUPS)
    ids = backend.encode(text)
    found = [piece for piece in (backend.decode([i]) for i in ids) if re.search("[0-9]", piece)]
    return found == re.findall(THREES, text) and backend.decode(ids) == text


def add_numbers(backend: HuggingFace, size: int) -> tuple[HuggingFace, list[int]]:
    """A tokenizer with a token for every group of up to three digits, and the ids of the new ones, from
    `size` on. 007 and 00 are such groups, too: 12000 is 120, 00.

    They are tokens of the BPE model and no added tokens, which would cut the text around them before
    anything else sees it (Llama 2 then puts a space before each piece). Every way to cut a group in two is a
    merge; a group is a piece of its own, so whichever comes first, they end at the whole group.
    """
    model = backend.data["model"]
    new = [group for group in GROUPS if len(group) > 1 and group not in model["vocab"]]
    vocab = model["vocab"] | {group: size + i for i, group in enumerate(new)}
    merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    halves = [[group[:i], group[i:]] for group in GROUPS for i in range(1, len(group))]
    merges += [pair for pair in halves if vocab.keys() >= {*pair}]
    last = {"type": "Split", "pattern": {"Regex": THREES}, "behavior": "Isolated", "invert": False}

    def in_threes(step: dict) -> dict:
        """`step`, but with three digits where it takes one. Other numerals, such as ½, stay alone."""
        if step["type"] == "Sequence":
            return step | {"pretokenizers": [in_threes(part) for part in step["pretokenizers"]]}
        if step["type"] == "Digits" and step.get("individual_digits"):  # SmolLM2's
            return last | {"pattern": {"Regex": THREES + r"|\p{N}"}}
        if step["type"] == "Split" and "Regex" in step["pattern"]:  # Qwen's has \p{N} among its choices
            regex = re.sub(r"(?<![^|])(\\p{N}|\\d)(?![^|])", THREES + r"|\1", step["pattern"]["Regex"])
            return step | {"pattern": {"Regex": regex}}
        return step

    steps = [step for step in (backend.data.get("pre_tokenizer"), last) if step]
    cutter = in_threes({"type": "Sequence", "pretokenizers": steps})
    data = backend.data | {"model": model | {"vocab": vocab, "merges": merges}, "pre_tokenizer": cutter}
    return HuggingFace(data), [vocab[group] for group in new]
