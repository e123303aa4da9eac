"""Examples -> token rows -> padded tensors. The one place that renders a prompt."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .config import UserError
from .tasks.answers import Example
from .tokenizer import Tokenizer

IGNORE = -100  # a label that no loss counts; latent slots in an input have a token id of their own


@dataclass
class Row:
    """One example in tokens. The answer ends with the end-of-sequence token; no row holds padding."""

    question: list[int]
    chain: list[int]
    answer: list[int]
    ends: list[int] = field(default_factory=list)  # chain tokens up to the end of each step
    cuts: list[int] = field(
        default_factory=list
    )  # and up to the end of each segment, where cut_evenly has cut it
    text: str = ""  # the question, for a method whose prompt says more than it

    def explicit(self, tok: Tokenizer) -> tuple[list[int], int]:
        """`Q <think> chain </think> answer <eos>`, and where the prompt `Q <think>` ends."""
        return [*self.question, tok.think, *self.chain, tok.end_think, *self.answer], len(self.question) + 1


# How a chat model is asked (hf_tokenizer.CHAT_TOKENS says which is a model's): one message, no system prompt. Each
# stands for what the family's own template makes of it; {} is the question.
CHATS = {
    "": "{}",
    "chatml": "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n",
    "llama3": "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
}


def encode_question(question: str, tok: Tokenizer, speed: int | str | None = None) -> list[int]:
    """What the model reads before `<think>`, in training and at inference. speed: the compression factor that is asked
    of CoLaR, a number or "auto"; it belongs to the user's message. The template is cut at its special tokens before
    the message is put in, so that one that is written out in the question stays text."""
    message = question.strip() + (f" Let's think {speed} times faster:" if speed else "")
    ids = [] if tok.bos is None else [tok.bos]
    for piece in re.split(r"(<\|\w+\|>)", CHATS[tok.chat]):
        ids += [tok.special[piece]] if piece in tok.special else tok.encode(piece.replace("{}", message))
    return ids


def chat_template(tok: Tokenizer) -> str:
    """`encode_question` and `<think>` as a Jinja template, for transformers' apply_chat_template."""
    bos = [name for name, i in tok.special.items() if i == tok.bos]
    own = {i: name for name, i in tok.special.items()}
    return (
        "".join(bos)
        + CHATS[tok.chat].replace("{}", "{{ messages[-1]['content'] | trim }}")
        + own.get(tok.think, "<think>")
    )


def encode(
    examples: Iterable[Example], tok: Tokenizer, longest: int, too_long: str = "skip", ratio: int = 0
) -> tuple[list[Row], int]:
    """Rows, and how many examples were skipped because `Q <think> chain </think> answer <eos>` is longer than
    `longest` tokens. UserError instead of skipping with too_long="error".
    ratio    also leave room for a latent behind every `ratio` tokens of the chain: Latent-SFT's stage 1 reads both"""
    rows, skipped = [], 0
    for number, example in enumerate(examples, 1):
        chain = tok.encode(example.chain)
        ends = [len(tok.encode(" ".join(example.steps[:i]))) for i in range(1, len(example.steps))] + [
            len(chain)
        ]
        row = Row(
            encode_question(example.question, tok),
            chain,
            [*tok.encode(example.answer), tok.eos],
            ends,
            text=example.question,
        )
        length = (
            len(row.question)
            + len(row.chain)
            + len(row.answer)
            + 2
            + (-(-len(chain) // ratio) if ratio else 0)
        )
        if length <= longest:
            rows.append(row)
        elif too_long == "error":
            raise UserError(
                f"example {number} has {length} tokens, more than {longest}: {example.question[:60]!r}…; "
                "--too_long skip leaves such examples out"
            )
        else:
            skipped += 1
    return rows, skipped


def pad(rows: list[list[int]], value: int, side: str = "right") -> Tensor:
    """(B, longest) ids, padded on one side."""
    return torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(r, dtype=torch.long) for r in rows], True, value, side
    )


def cut(ids: Tensor, start: Tensor, count: Tensor, value: int) -> Tensor:
    """ids (B, T) without the count[b] tokens from start[b] on: what follows moves up, `value` fills the end."""
    column = torch.arange(ids.shape[1], device=ids.device)
    source = column + torch.where(column >= start[:, None], count[:, None], 0)  # (B, T)
    return torch.where(source < ids.shape[1], ids.gather(1, source.clamp(max=ids.shape[1] - 1)), value)


def segments(chain: list[int], ratio: int) -> list[list[int]]:
    """S_1..S_N: the chain cut into pieces of `ratio` tokens; the last may be shorter."""
    return [chain[i : i + ratio] for i in range(0, len(chain), ratio)]


def cut_chain(row: Row, segmentation: str, ratio: int) -> list[list[int]]:
    """S_1..S_N of a row's chain: pieces of `ratio` tokens ("fixed"), its steps ("step"), or as many pieces as fixed
    ones would be, cut where row.cuts says ("adaptive")."""
    if segmentation == "fixed":
        return segments(row.chain, ratio)
    ends = row.ends if segmentation == "step" else row.cuts
    if row.chain and not ends:
        raise ValueError(f"a row that nobody has cut for --segmentation {segmentation}")
    return [row.chain[start:end] for start, end in zip([0, *ends], ends) if end > start]


def cut_evenly(weight: Tensor, length: Tensor, pieces: Tensor) -> list[list[int]]:
    """Cut each row into `pieces` of nearly the same weight, none empty: where they end. weight (B, T) of every token,
    above 0 and 0 behind the row's length; length (B,), pieces (B,) at most as many.

    Token t lies at the middle of its stretch of the running sum; piece i ends before the first one at or behind i/N of
    the whole. Where single tokens are so heavy that pieces would be empty, ends move by as little as it takes.
    """
    total = weight.double().cumsum(1)  # (B, T)
    i = torch.arange(1, int(pieces.max()) + 1, device=weight.device)  # (N,)
    goal = total[:, -1:] * i / pieces[:, None]  # (B, N)
    end = torch.searchsorted(total - weight.double() / 2, goal)
    end = (end - i).clamp(min=0).cummax(1).values + i  # each end behind the one before,
    end = torch.minimum(end, (length - pieces)[:, None] + i)  # with a token left for each to come
    return [row[:n] for row, n in zip(end.tolist(), pieces.tolist())]
