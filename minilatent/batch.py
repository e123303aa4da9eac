"""Examples -> token rows -> padded tensors. The one place that renders a prompt."""
from dataclasses import dataclass
from typing import Iterable

import torch
from torch import Tensor

from .config import UserError
from .example import Example
from .tokenizer import Tokenizer

IGNORE = -100        # a label that no loss counts; latent slots in an input have a token id of their own


@dataclass
class Row:
    """One example in tokens. The answer ends with the end-of-sequence token; no row holds padding."""
    question: list[int]
    chain: list[int]
    answer: list[int]
    text: str = ""               # the question, for a method whose prompt says more than it

    def explicit(self, tok: Tokenizer) -> tuple[list[int], int]:
        """`Q <think> chain </think> answer <eos>`, and where the prompt `Q <think>` ends."""
        return [*self.question, tok.think, *self.chain, tok.end_think, *self.answer], len(self.question) + 1


def render_prompt(question: str, speed: int | str | None = None) -> str:
    """What the model reads before `<think>`, in training and at inference. speed: the compression factor that is
    asked of CoLaR, a number or "auto"."""
    return question.strip() + (f" Let's think {speed} times faster:" if speed else "")


def encode_question(question: str, tok: Tokenizer, speed: int | str | None = None) -> list[int]:
    return tok.encode(render_prompt(question, speed))


def encode(examples: Iterable[Example], tok: Tokenizer, longest: int, too_long: str = "skip") -> tuple[list[Row], int]:
    """Rows, and how many examples were skipped because `Q <think> chain </think> answer <eos>` is longer than
    `longest` tokens. UserError instead of skipping with too_long="error"."""
    rows, skipped = [], 0
    for number, example in enumerate(examples, 1):
        row = Row(encode_question(example.question, tok), tok.encode(example.chain), [*tok.encode(example.answer), tok.eos],
                  example.question)
        length = len(row.question) + len(row.chain) + len(row.answer) + 2
        if length <= longest:
            rows.append(row)
        elif too_long == "error":
            raise UserError(f"example {number} has {length} tokens, more than {longest}: {example.question[:60]!r}…; "
                            "--too_long skip leaves such examples out")
        else:
            skipped += 1
    return rows, skipped


def pad(rows: list[list[int]], value: int) -> Tensor:
    """(B, longest) ids, padded on the right."""
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(r, dtype=torch.long) for r in rows], True, value)


def segments(chain: list[int], ratio: int) -> list[list[int]]:
    """S_1..S_N: the chain cut into pieces of `ratio` tokens; the last may be shorter."""
    return [chain[i:i + ratio] for i in range(0, len(chain), ratio)]
