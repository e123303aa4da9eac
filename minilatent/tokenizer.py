"""Text <-> ids. Five markers are single tokens in every tokenizer: <think>, </think>, <latent>, <pad>, <eos>.

Text never becomes a marker: a question that has "</think>" written in it is spelled in ordinary tokens.
mini's runs on tiktoken, that of a Hugging Face folder on the `tokenizers` library.
"""

import base64
import json
import re
from pathlib import Path

import tiktoken

from . import tasks
from .backbones import hf_tokenizer
from .backbones.chat import CHATS
from .config import UserError
from .files import read_json, replace_file

BYTES = {bytes([i]) for i in range(256)}
MARKERS = ("<think>", "</think>", "<latent>", "<pad>", "<eos>")
FILE = "minilatent_tokenizer.json"
OPTIONAL = ("special", "bos", "chat", "opening", "numbers")  # what files of earlier versions may lack

# Words carry the spaces around them, so that a number is the same bare token in a question and in a chain:
# "Ava has 12 apples." -> "Ava ", "has ", "12", " apples", "."
# A step is six tokens, and the chain's first "<<" is left to <think>:
# "<<12*3=36>> <<36%8=4>>" -> "12", "*", "3", "=", "36", ">> <<", "36", "%", "8", "=", "4", ">>"
MINI_PATTERN = r">> <<|<<|>>|[0-9]{1,2}| ?[A-Za-z]+ ?|[.,?] ?|\s|[^\sA-Za-z0-9]"
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
# A file may name these only, two of them earlier versions': a pattern that matches nothing, or for ever, is
# no error that tiktoken reports.
PATTERNS = (MINI_PATTERN, MINI_PATTERN.removeprefix(">> <<|"), GPT2_PATTERN)
PATTERNS += (r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",)


class Tiktoken:
    """Byte-level BPE by tiktoken."""

    def __init__(self, pattern: str, ranks: list[bytes]):
        """pattern: the regex that cuts a text into pieces, across which nothing is merged. ranks: byte
        strings in the order of their merges, the 256 bytes among them; a token's id is its rank."""
        self.pattern, self.ranks, self.size = pattern, ranks, len(ranks)
        ids = {token: i for i, token in enumerate(ranks)}
        self.encoding = tiktoken.Encoding("ours", pat_str=pattern, mergeable_ranks=ids, special_tokens={})

    def encode(self, text: str) -> list[int]:
        return self.encoding.encode_ordinary(text)

    def decode(self, ids: list[int]) -> str:
        return b"".join(self.ranks[i] for i in ids if i < self.size).decode("utf-8", "replace")

    def to_json(self) -> dict:
        return {"pattern": self.pattern, "ranks": [base64.b64encode(token).decode() for token in self.ranks]}


class Tokenizer:
    """A backend, `Tiktoken` or `HuggingFace`, for text, and the markers."""

    def __init__(
        self, backend, markers=None, size=None, special=None, bos=None, chat="", opening="", numbers=()
    ):
        """
        markers  those that the model has already, {name: id}; the others get the ids after its own
        size     number of the model's own ids, the rows of its embedding (default: the backend's tokens)
        special  the model's special tokens, {name: id}
        bos      id that every text begins with, or None; `batch.encode_prompt` adds it, `encode` does not
        chat     the format that questions are put in, a key of `chat.CHATS`
        opening  what every chain begins with; <think> stands for it, so that no token is spent on it
        numbers  ids below `size` that --number_tokens added to the model's own
        """
        self.backend = backend
        self.base_size = backend.size if size is None else size
        missing = [name for name in MARKERS if name not in (markers or {})]
        self.markers = (markers or {}) | {name: self.base_size + i for i, name in enumerate(missing)}
        self.vocab_size = max(self.base_size, *(i + 1 for i in self.markers.values()))
        self.think, self.end_think, self.latent, self.pad, self.eos = (self.markers[m] for m in MARKERS)
        self.special, self.bos, self.chat, self.opening = special or {}, bos, chat, opening
        self.numbers = list(numbers)
        self.new_ids = [*self.markers.values(), *self.numbers]  # adapters train their rows, too
        self.names = {i: name for name, i in [*self.special.items(), *self.markers.items()]}
        self.never = sorted({self.latent, self.pad})  # can enter no superposition, are never decoded

    def encode(self, text: str) -> list[int]:
        markers = set(self.markers.values())  # one may be the model's token for unknown characters
        return [i for i in self.backend.encode(text) if i not in markers]

    def encode_chain(self, text: str) -> list[int]:
        return self.encode(text.removeprefix(self.opening))

    def decode(self, ids) -> str:
        """Markers and special tokens are left out."""
        return self.backend.decode([int(i) for i in ids if int(i) not in self.names])

    def name(self, i: int) -> str:
        """How one token is shown: a marker's name, or its text with the spaces made visible."""
        if i in self.names:
            return self.names[i]
        # What a second one adds to a first: some tokenizers drop the space at the beginning of a text.
        text = self.backend.decode([i, i])[len(self.backend.decode([i])) :]
        return text.replace(" ", "·").replace("\n", "⏎") or f"[{i}]"

    def save(self, folder: str | Path) -> None:
        data = self.backend.to_json() | {"markers": self.markers, "size": self.base_size}
        data |= {name: getattr(self, name) for name in OPTIONAL}
        replace_file(Path(folder) / FILE, lambda path: path.write_text(json.dumps(data), encoding="utf-8"))

    @classmethod
    def load(cls, folder: str | Path) -> "Tokenizer":
        """The tokenizer of a run folder. UserError if it is missing, damaged or not one of ours."""
        path = Path(folder) / FILE
        if not path.exists():
            raise UserError(f"{folder} has no {FILE}: not a run folder of minilatent")
        data = read_json(path)
        try:
            if "tokenizer" in data:
                backend = hf_tokenizer.HuggingFace(data["tokenizer"])
            else:
                ranks = [base64.b64decode(token) for token in data["ranks"]]
                if data["pattern"] not in PATTERNS or not BYTES <= set(ranks) or len(set(ranks)) < len(ranks):
                    raise ValueError("its pattern or its tokens are of no tokenizer of ours")
                backend = Tiktoken(data["pattern"], ranks)
            optional = {key: data[key] for key in OPTIONAL if key in data}
            found = cls(backend, data["markers"], data["size"], **optional)
            ids = [found.base_size, *found.names, *([] if found.bos is None else [found.bos])]
            ids += found.numbers
            size = max([backend.size, *(i + 1 for i in found.numbers)])
            if not all(type(i) is int and 0 <= i <= 10**7 for i in ids) or found.base_size < size:
                raise ValueError("an id is out of range")
            if set(found.markers) != set(MARKERS) or found.chat not in CHATS:
                raise ValueError("its markers or its chat are none of ours")
            found.encode_chain("")  # the opening is a text
            return found
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{path} is damaged or not ours: {error}") from None

    @classmethod
    def from_hf(cls, folder: str | Path, number_tokens: bool = False) -> "Tokenizer":
        """The tokenizer of a Hugging Face folder, tokenizer.json; for GPT-2's weights alone, tiktoken's
        encoding. UserError if it is missing or damaged. The model's own <think>, </think>, <pad> and end of
        sequence serve as our markers if it has them. number_tokens: see `hf_tokenizer.add_numbers`."""
        folder = Path(folder)
        has_files = any((folder / name).exists() for name in ("tokenizer.json", "vocab.json", "merges.txt"))
        weights_alone = not has_files and not number_tokens
        if weights_alone and read_json(folder / "config.json", {}).get("model_type") == "gpt2":
            return gpt2_tokenizer()
        return cls(**hf_tokenizer.read(folder, MARKERS, number_tokens))


def gpt2_tokenizer() -> Tokenizer:
    """GPT-2's, which tiktoken has from the network or from its cache."""
    try:
        gpt2 = tiktoken.get_encoding("gpt2")
    except Exception as error:  # no network: requests' and urllib3's errors, of many kinds
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        way_out = "put tokenizer.json into the model's folder, or point TIKTOKEN_CACHE_DIR to a filled cache"
        raise UserError(f"tiktoken cannot get GPT-2's tokenizer ({reason[:200]}); {way_out}") from None
    ranks = sorted(gpt2._mergeable_ranks, key=gpt2._mergeable_ranks.get)
    end = gpt2.eot_token
    return Tokenizer(Tiktoken(GPT2_PATTERN, ranks), {"<eos>": end}, gpt2.n_vocab, {"<|endoftext|>": end})


def mini_tokenizer() -> Tokenizer:
    """mini's own: the 256 bytes (so that any text round-trips), the numbers 0..99, and every word of the
    grammar with the spaces around it. Longer numbers are read two digits at a time."""
    pieces = {str(i) for i in range(100)}
    for name in tasks.GENERATED:
        for e in tasks.load(name, "train", limit=2000):
            pieces.update(re.findall(MINI_PATTERN, e.question + e.chain))
    tokens = sorted((p for p in pieces if len(p) > 1), key=lambda p: (not p.isdigit(), len(p), p))
    ranks = [bytes([i]) for i in range(256)] + [token.encode() for token in tokens]
    return Tokenizer(Tiktoken(MINI_PATTERN, ranks), opening="<<")
