"""A Hugging Face folder's byte-level BPE tokenizer as the arguments of our `Tokenizer`: what tiktoken needs. And back.

A BPE tokenizer is a list of byte strings in the order in which they were learnt, and a regex that first cuts text
into pieces, across which nothing is merged. The files spell both in their own way: bytes as visible letters, merges as
pairs, the regex as a chain of pre-tokenizers.
"""

import json
from pathlib import Path

from ..config import UserError

# How byte-level BPE cuts text into pieces before it merges bytes, as one regex each.
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# The same after digits were cut out (SmolLM2, StarCoder): a digit is a piece without its space, and white space in
# front of a digit now stands at the end of what GPT-2's regex sees, so that `\s+(?!\S)` takes all of it.
DIGITS_PATTERN = r"\p{N}|'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"


# A chat model's format: the special tokens that open a message and end it, as its prompts need them (batch.py).
CHAT_TOKENS = {"chatml": ("<|im_start|>", "<|im_end|>"), "llama3": ("<|start_header_id|>", "<|eot_id|>")}


def read(folder: Path) -> dict:
    """Pattern, ranks, ids, markers, size and normalizer, from `tokenizer.json` or `vocab.json` + `merges.txt`.
    UserError if they are missing, damaged, or of a kind that is not byte-level BPE."""
    source = folder / "tokenizer.json"
    if not source.exists():
        source = folder / "vocab.json"
    try:
        pattern, normalizer, model, added, processor = read_tokenizer_files(folder)
        vocab, merges = model["vocab"], model["merges"]
        if model.get("ignore_merges"):  # Llama 3: a piece that is a token needs no merge to become it
            merges = [*merges, *([t] for t in vocab if len(t) > 1 and t not in added)]
        letters = byte_letters()
        # A token's rank is its first merge; a tokenizer.json made from tiktoken ranks lists all its merges.
        tokens = dict.fromkeys("".join(m.split(" ") if isinstance(m, str) else m) for m in merges)
        ranks = [bytes([i]) for i in range(256)] + [bytes(letters.index(c) for c in t) for t in tokens]
        unknown = vocab[model["unk_token"]] if model.get("unk_token") else -1
        ids = [vocab.get(c, unknown) for c in letters] + [vocab[t] for t in tokens]
        size = max(
            read_json(folder / "config.json", {}).get("vocab_size", 0),
            *(i + 1 for i in vocab.values()),
            *(i + 1 for i in added.values()),
        )
        markers = {m: added[m] for m in ("<think>", "</think>", "<latent>", "<pad>") if m in added}
        made = set(ids)
        for eos in own_ends(folder, vocab | added):
            if eos is not None and 0 <= eos < size and eos not in made and eos not in markers.values():
                markers.setdefault("<eos>", eos)
        special = {token: i for token, i in added.items() if i not in made}
        return {
            "pattern": pattern,
            "ranks": ranks,
            "ids": ids,
            "markers": markers,
            "size": size,
            "normalizer": normalizer,
            "special": special,
            "bos": own_start(folder, processor, special),
            "chat": chat_format(folder, special),
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{source} is damaged or no byte-level BPE tokenizer ({type(error).__name__}: {error})"
        ) from None


def read_json(path: Path, default=None):
    """UserError if the file is not JSON, or if it is missing and there is no default."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        if default is not None:
            return default
        raise UserError(f"{path} does not exist") from None
    except ValueError as error:
        raise UserError(f"{path} is truncated or no JSON ({error})") from None


def byte_letters() -> str:
    """letters[byte]: GPT-2 writes a byte as the character of that number where it is visible, the others as the
    characters from 256 on (a space is Ġ)."""
    visible = {*range(33, 127), *range(161, 173), *range(174, 256)}
    hidden = [b for b in range(256) if b not in visible]
    return "".join(chr(b) if b in visible else chr(256 + hidden.index(b)) for b in range(256))


def read_tokenizer_files(folder: Path) -> tuple[str, str | None, dict, dict[str, int], dict]:
    """Pattern, Unicode form, the BPE model as tokenizer.json has it, added tokens (those that no merge makes), and
    the post-processor, which may put tokens around a text."""
    settings = read_json(folder / "tokenizer_config.json", {})
    added = {t["content"]: int(i) for i, t in settings.get("added_tokens_decoder", {}).items()}
    added |= read_json(folder / "added_tokens.json", {})
    if (folder / "tokenizer.json").exists():
        path = folder / "tokenizer.json"
        data = read_json(path)
        model = data["model"]
        if (
            model.get("type", "BPE") != "BPE"
            or model.get("byte_fallback")
            or model.get("end_of_word_suffix")
            or model.get("continuing_subword_prefix")
        ):
            raise UserError(
                f"{path} is a {model.get('type')} tokenizer, not byte-level BPE, which is what there is"
            )
        added |= {t["content"]: t["id"] for t in data.get("added_tokens") or []}
        return (
            split_pattern(data.get("pre_tokenizer"), path),
            unicode_form(data.get("normalizer"), path),
            model,
            added,
            data.get("post_processor") or {},
        )
    if not (folder / "merges.txt").exists():
        raise UserError(
            f"{folder} has no byte-level BPE tokenizer: neither tokenizer.json nor vocab.json + merges.txt"
        )
    kind = settings.get("tokenizer_class", "GPT2Tokenizer").removesuffix("Fast")
    if kind not in ("GPT2Tokenizer", "PreTrainedTokenizer") or settings.get("add_prefix_space"):
        raise UserError(
            f"{folder}: vocab.json and merges.txt do not say how {kind} splits text; add its tokenizer.json"
        )
    lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")
    merges = [line.rstrip("\r") for line in lines if line.strip() and not line.startswith("#version:")]
    return GPT2_PATTERN, None, {"vocab": read_json(folder / "vocab.json"), "merges": merges}, added, {}


def split_pattern(steps: dict | None, path: Path) -> str:
    """tokenizer.json's pre-tokenizer as one regex. UserError names one that we have no regex for."""
    steps = (steps or {}).get("pretokenizers") or [steps or {}]
    kinds = [s.get("type") for s in steps]
    use_regex, prefix = steps[-1].get("use_regex", True), steps[-1].get("add_prefix_space", True)
    if kinds[-1:] == ["ByteLevel"] and not prefix:
        if kinds == ["ByteLevel"] and use_regex:
            return GPT2_PATTERN
        if kinds == ["Digits", "ByteLevel"] and use_regex:
            single = steps[0].get("individual_digits")
            return DIGITS_PATTERN if single else DIGITS_PATTERN.replace(r"\p{N}|", r"\p{N}+|", 1)
        if (
            kinds == ["Split", "ByteLevel"]
            and not use_regex
            and "Regex" in steps[0]["pattern"]
            and steps[0].get("behavior") == "Isolated"
            and not steps[0].get("invert")
        ):
            own = steps[0]["pattern"]["Regex"]
            return (
                rf"{own}|(?:(?!{own})[\s\S])+"  # what lies between matches is a piece too; tiktoken drops it
            )
    raise UserError(
        f"{path} splits text by {' + '.join(map(str, kinds))}"
        f"{' with add_prefix_space' if prefix and kinds[-1] == 'ByteLevel' else ''}; there is "
        "ByteLevel, Digits + ByteLevel, Split(Regex, Isolated) + ByteLevel, without add_prefix_space"
    )


def unicode_form(normalizer: dict | None, path: Path) -> str | None:
    steps = [] if normalizer is None else normalizer.get("normalizers", [normalizer])
    kinds = [s.get("type") for s in steps]
    if not kinds or (len(kinds) == 1 and kinds[0] in ("NFC", "NFD", "NFKC", "NFKD")):
        return kinds[0] if kinds else None
    raise UserError(f"{path} normalizes text by {' + '.join(map(str, kinds))}; there is NFC, NFD, NFKC, NFKD")


def own_ends(folder: Path, vocab: dict[str, int]) -> list[int | None]:
    """The ids that end the model's own texts, as the folder's files name them, the likeliest first."""
    ends = []
    for name in ("config.json", "generation_config.json"):
        eos = read_json(folder / name, {}).get("eos_token_id")
        ends += eos if isinstance(eos, list) else [eos]
    return [*ends, vocab.get(token_text(read_json(folder / "tokenizer_config.json", {}).get("eos_token")))]


def token_text(token: str | dict | None) -> str | None:
    """tokenizer_config.json has a token as its text, or as an object that holds it."""
    return token["content"] if isinstance(token, dict) else token


def own_start(folder: Path, processor: dict, special: dict[str, int]) -> int | None:
    """The id that the family's tokenizer puts before every text (Llama 3), or None."""
    for step in processor.get("processors", [processor]):
        first = step["single"][0] if step.get("type") == "TemplateProcessing" else {}
        if "SpecialToken" in first:
            return special[first["SpecialToken"]["id"]]
    settings = read_json(folder / "tokenizer_config.json", {})
    return special.get(token_text(settings.get("bos_token"))) if settings.get("add_bos_token") else None


def chat_format(folder: Path, special: dict[str, int]) -> str:
    """The format of CHAT_TOKENS that the folder's chat template is written in; without a template, the one whose
    end of message is the end of the model's texts. "": a model that was never taught to chat."""
    settings = read_json(folder / "tokenizer_config.json", {})
    template, file = json.dumps(settings.get("chat_template") or ""), folder / "chat_template.jinja"
    if file.exists():
        template = file.read_text(encoding="utf-8")
    for name, (start, end) in CHAT_TOKENS.items():
        if (
            start in special
            and end in special
            and (start in template if len(template) > 2 else token_text(settings.get("eos_token")) == end)
        ):
            return name
    return ""


def write(tok) -> dict:
    """`read` the other way: our `Tokenizer` as a tokenizer.json, its special tokens and markers as added tokens.

    tiktoken merges the two neighbours whose joint bytes have the lowest rank. As a list of merges that is every way to
    cut a token in two tokens, in the order of the ranks; a piece that is a token needs none (`ignore_merges`).
    UserError if several bytes share one id, the unknown token's: `tokenizers` would have to know which.
    """
    letters = byte_letters()
    texts = ["".join(letters[byte] for byte in token) for token in tok.ranks]
    vocab = {text: i for text, i in zip(texts, tok.to_id.tolist()) if i >= 0}
    if len(set(vocab.values())) < len(vocab):
        raise UserError(
            "several bytes have the same id in this tokenizer: it cannot be written as a tokenizer.json"
        )
    merges = [
        [t[:i], t[i:]]
        for t in texts
        if t in vocab
        for i in range(1, len(t))
        if t[:i] in vocab and t[i:] in vocab
    ]
    added = {
        i: name for name, i in [*tok.markers.items(), *tok.special.items()]
    }  # an id's own name goes first
    bos = [{"SpecialToken": {"id": added[tok.bos], "type_id": 0}}] if tok.bos is not None else []
    template = (
        {
            "type": "TemplateProcessing",
            "single": [*bos, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [*bos, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {
                added[tok.bos]: {"id": added[tok.bos], "ids": [tok.bos], "tokens": [added[tok.bos]]}
            },
        }
        if bos
        else None
    )
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": i,
                "content": added[i],
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for i in sorted(added)
        ],
        "normalizer": tok.normalizer and {"type": tok.normalizer},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": tok.pattern}, "behavior": "Isolated", "invert": False},
                byte_level,
            ],
        },
        "post_processor": template,
        "decoder": byte_level,
        # In the vocabulary too: `tokenizers` numbers an added token that it does not find there by itself.
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,
            "vocab": vocab | {name: i for i, name in added.items()},
            "merges": merges,
        },
    }
