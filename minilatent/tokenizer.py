"""Text <-> ids, by tiktoken. Four markers are single tokens, always: `<think>`, `</think>`, the latent and padding.

Text never becomes a marker: a question that has "</think>" written in it is spelled out in ordinary tokens.
"""

import base64
import json
import re
import unicodedata
from pathlib import Path

import numpy as np
import tiktoken

from .backbones import hf_tokenizer
from .config import UserError
from .files import replace_file
from .tasks import words

MARKERS = ("<think>", "</think>", "<latent>", "<pad>", "<eos>")
FILE = "minilatent_tokenizer.json"

# Words carry the spaces around them, so that a number is the same bare token in a question and in a chain:
# "Ava has 12 apples." -> "Ava ", "has ", "12", " apples", "."      "<<12*3=36>>" -> "<<", "12", "*", "3", "=", "36", ">>"
MINI_PATTERN = r"<<|>>|[0-9]{1,2}| ?[A-Za-z]+ ?|[.,?] ?|\s|[^\sA-Za-z0-9]"


class Tokenizer:
    """A tiktoken encoding, and the markers added behind it.

    ids 0 .. n-1 are the encoding's (through `ids`, where a model numbers its tokens in another order than
    their merge ranks), then come the markers that the encoding does not have.
    """

    def __init__(
        self,
        pattern: str,
        ranks: list[bytes],
        ids: list[int] | None = None,
        markers: dict[str, int] | None = None,
        size: int | None = None,
        normalizer: str | None = None,
        special: dict[str, int] | None = None,
        bos: int | None = None,
        chat: str = "",
    ):
        """ranks: byte strings in the order of their merges (the 256 bytes first). ids[rank]: the model's token id,
        default the rank; -1: it has none, and drops this byte. markers: those that the model has already, with
        their ids. size: the model's vocabulary. normalizer: the Unicode form that text is brought to (NFC, ...).
        special: the model's other special tokens. bos: the one that every text begins with, chat: the template that
        questions are rendered in; both are for `batch.encode_question`, `encode` adds nothing."""
        if not set(ranks).issuperset(bytes([i]) for i in range(256)) or len(set(ranks)) != len(ranks):
            raise ValueError("a byte is missing or a token is there twice")
        if ids is not None and len(ids) != len(ranks):
            raise ValueError(f"{len(ranks)} tokens but {len(ids)} ids")
        self.pattern, self.ranks, self.normalizer = pattern, ranks, normalizer
        self.encoding = tiktoken.Encoding(
            "minilatent",
            pat_str=pattern,
            special_tokens={},
            mergeable_ranks={token: i for i, token in enumerate(ranks)},
        )
        self.to_id = np.array(range(len(ranks)) if ids is None else ids)
        base = int(self.to_id.max()) + 1 if size is None else size
        self.markers = dict(markers or {})
        for marker in MARKERS:
            if marker not in self.markers:
                self.markers[marker] = base
                base += 1
        self.base_size = int(self.to_id.max()) + 1 if size is None else size
        self.vocab_size = max(base, self.base_size, *(i + 1 for i in self.markers.values()))
        self.think, self.end_think, self.latent, self.pad, self.eos = (self.markers[m] for m in MARKERS)
        self.special, self.bos, self.chat = dict(special or {}), bos, chat
        self.names = {i: m for m, i in [*self.special.items(), *self.markers.items()]}
        self.to_rank = {int(i): rank for rank, i in enumerate(self.to_id) if i >= 0}
        self.never = sorted({self.latent, self.pad})  # can enter no superposition, are never decoded

    def encode(self, text: str) -> list[int]:
        if not text:
            return []
        if self.normalizer:
            text = unicodedata.normalize(self.normalizer, text)
        ids = self.to_id[self.encoding.encode_ordinary(text)]
        return ids[ids >= 0].tolist()

    def decode(self, ids) -> str:
        """Markers and special tokens are left out."""
        return b"".join(self.ranks[self.to_rank[int(i)]] for i in ids if int(i) in self.to_rank).decode(
            "utf-8", "replace"
        )

    def name(self, i: int) -> str:
        """How one token is shown: a marker's name, or its text with the spaces made visible."""
        if i in self.names:
            return self.names[i]
        if i not in self.to_rank:
            return f"[{i}]"
        return self.ranks[self.to_rank[i]].decode("utf-8", "replace").replace(" ", "·").replace("\n", "⏎")

    def save(self, folder: str | Path) -> None:
        ranks = [base64.b64encode(token).decode() for token in self.ranks]
        data = {
            "pattern": self.pattern,
            "markers": self.markers,
            "size": self.base_size,
            "ids": self.to_id.tolist(),
            "ranks": ranks,
            "normalizer": self.normalizer,
            "special": self.special,
            "bos": self.bos,
            "chat": self.chat,
        }
        replace_file(Path(folder) / FILE, lambda path: path.write_text(json.dumps(data)))

    @classmethod
    def load(cls, folder: str | Path) -> "Tokenizer":
        """The tokenizer of a run folder. UserError if it is not there or not one of ours."""
        path = Path(folder) / FILE
        try:
            data = json.loads(path.read_text())
            return cls(
                data["pattern"],
                [base64.b64decode(token) for token in data["ranks"]],
                data["ids"],
                data["markers"],
                data["size"],
                data.get("normalizer"),
                data.get("special"),
                data.get("bos"),
                data.get("chat", ""),
            )
        except FileNotFoundError:
            raise UserError(f"{folder} has no {FILE}: not a run folder of minilatent") from None
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged or not ours: {error}") from None

    @classmethod
    def from_hf(cls, folder: str | Path) -> "Tokenizer":
        """The byte-level BPE tokenizer of a Hugging Face folder: `tokenizer.json`, or `vocab.json` + `merges.txt`.
        UserError if it is missing, damaged, or of a kind that is not byte-level BPE.

        It encodes ordinary text only: a special token that is written out in the text is spelled like any other
        word. The model's own <think>, </think> and end of sequence serve as our markers if it has them; every
        other marker gets a new id, behind both the tokenizer's ids and the rows of the model's embedding.
        """
        folder = Path(folder)
        if (
            not any((folder / name).exists() for name in ("tokenizer.json", "vocab.json", "merges.txt"))
            and hf_tokenizer.read_json(folder / "config.json", {}).get("model_type") == "gpt2"
        ):
            return gpt2_tokenizer()
        try:
            return cls(**hf_tokenizer.read(folder))
        except ValueError as error:  # tiktoken's, about the regex
            raise UserError(
                f"{folder}: its tokenizer is damaged or of a kind that tiktoken lacks ({error})"
            ) from None


def gpt2_tokenizer() -> Tokenizer:
    """GPT-2's, by tiktoken, which has it from the network or from its cache: for a folder that holds weights alone."""
    try:
        gpt2 = tiktoken.get_encoding("gpt2")
    except Exception as error:  # no network: requests' and urllib3's errors, of many kinds
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"GPT-2's tokenizer cannot be had through tiktoken ({reason[:200]}); put tokenizer.json, or vocab.json and "
            "merges.txt, into the model's folder, or point TIKTOKEN_CACHE_DIR to a filled cache"
        ) from None
    ranks = sorted(gpt2._mergeable_ranks, key=gpt2._mergeable_ranks.get)
    return Tokenizer(
        gpt2._pat_str,
        ranks,
        markers={"<eos>": gpt2.eot_token},
        size=gpt2.n_vocab,
        special={"<|endoftext|>": gpt2.eot_token},
    )


def mini_tokenizer() -> Tokenizer:
    """mini's own: the 256 bytes (so that any text round-trips), the numbers 0..99, and every word that the
    grammar can write, with the spaces around it. Longer numbers are read two digits at a time."""
    pieces = {str(i) for i in range(100)}
    for name in words.TEST_SETS:
        for e in words.load(name, "train", 2000):
            pieces.update(re.findall(MINI_PATTERN, e.question + e.chain))
    tokens = sorted((p for p in pieces if len(p) > 1), key=lambda p: (not p.isdigit(), len(p), p))
    return Tokenizer(MINI_PATTERN, [bytes([i]) for i in range(256)] + [w.encode() for w in tokens])
