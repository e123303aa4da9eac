"""Examples -> token rows -> padded tensors. The one place that renders a prompt."""
from dataclasses import dataclass, field
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
    ends: list[int] = field(default_factory=list)      # chain tokens up to the end of each step
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
        chain = tok.encode(example.chain)
        ends = [len(tok.encode(" ".join(example.steps[:i]))) for i in range(1, len(example.steps))] + [len(chain)]
        row = Row(encode_question(example.question, tok), chain, [*tok.encode(example.answer), tok.eos], ends, example.question)
        length = len(row.question) + len(row.chain) + len(row.answer) + 2
        if length <= longest:
            rows.append(row)
        elif too_long == "error":
            raise UserError(f"example {number} has {length} tokens, more than {longest}: {example.question[:60]!r}…; "
                            "--too_long skip leaves such examples out")
        else:
            skipped += 1
    return rows, skipped


def pad(rows: list[list[int]], value: int, side: str = "right") -> Tensor:
    """(B, longest) ids, padded on one side."""
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(r, dtype=torch.long) for r in rows], True, value, side)


def cut(ids: Tensor, start: Tensor, count: Tensor, value: int) -> Tensor:
    """ids (B, T) without the count[b] tokens from start[b] on: what follows moves up, `value` fills the end."""
    column = torch.arange(ids.shape[1], device=ids.device)
    source = column + torch.where(column >= start[:, None], count[:, None], 0)     # (B, T)
    return torch.where(source < ids.shape[1], ids.gather(1, source.clamp(max=ids.shape[1] - 1)), value)


def segments(chain: list[int], ratio: int) -> list[list[int]]:
    """S_1..S_N: the chain cut into pieces of `ratio` tokens; the last may be shorter."""
    return [chain[i:i + ratio] for i in range(0, len(chain), ratio)]
