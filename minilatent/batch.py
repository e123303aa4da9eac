"""Examples -> token rows -> padded tensors. The one place that writes a prompt, `<think>` and `</think>`."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .backbones.chat import CHATS
from .tasks.answers import Example
from .tokenizer import Tokenizer

Batch = dict[str, Tensor]
IGNORE = -100  # a label that no loss counts; latent slots in an input have a token id of their own


@dataclass
class Row:
    """One example in tokens, unpadded: `prompt chain tail` is what explicit chain-of-thought reads."""

    prompt: list[int]  # question <think>
    chain: list[int]
    tail: list[int]  # </think> answer <eos>
    ends: list[int] = field(default_factory=list)  # number of chain tokens up to the end of each step
    text: str = ""  # the question, for a method whose prompt says more than it
    chains: tuple[tuple[str, ...], ...] = ()  # the steps of all valid chains, where these are known

    @property
    def answer(self) -> list[int]:
        """answer <eos>"""
        return self.tail[1:]


def encode_prompt(question: str, tok: Tokenizer, speed: int | str | None = None) -> list[int]:
    """`question <think>`: what the model reads before it thinks, in training and at inference.

    speed: the compression factor that CoLaR is asked for, a number or "auto"; it belongs to the user's
    message. The template is cut at its special tokens before the message is put in, so that a special
    token that is written out in the question stays text.
    """
    message = question.strip() + (f" Let's think {speed} times faster:" if speed else "")
    ids = [] if tok.bos is None else [tok.bos]
    for piece in re.split(r"(<\|\w+\|>)", CHATS[tok.chat]):
        ids += [tok.special[piece]] if piece in tok.special else tok.encode(piece.replace("{}", message))
    return [*ids, tok.think]


def tail(answer: list[int], tok: Tokenizer) -> list[int]:
    """`</think> answer`: with <eos> if the answer has it, and `</think>` alone if it is empty."""
    return [tok.end_think, *answer]


def encode(examples: Iterable[Example], tok: Tokenizer, longest: int, ratio=0) -> tuple[list[Row], int]:
    """Rows, and how many examples were skipped because `prompt chain tail` is longer than `longest` tokens.
    ratio: also leave room for a latent after every `ratio` chain tokens (stage 1 of Latent-SFT)."""
    rows, skipped = [], 0
    for example in examples:
        chain = tok.encode_chain(example.chain)
        ends = [len(tok.encode_chain(" ".join(example.steps[:i]))) for i in range(1, len(example.steps))]
        answer = [*tok.encode(example.answer), tok.eos]
        prompt = encode_prompt(example.question, tok)
        row = Row(prompt, chain, tail(answer, tok), [*ends, len(chain)], example.question, example.chains)
        latents = -(-len(chain) // ratio) if ratio else 0
        if len(row.prompt) + len(row.chain) + len(row.tail) + latents <= longest:
            rows.append(row)
        else:
            skipped += 1
    return rows, skipped


def pad(rows: list[list[int]], value: int, side: str = "right") -> Tensor:
    """(B, longest) ids, padded on one side."""
    tensors = [torch.tensor(r, dtype=torch.long) for r in rows]
    return torch.nn.utils.rnn.pad_sequence(tensors, True, value, side)


def causal_batch(given: list[list[int]], target: list[list[int]], padding: int) -> Batch:
    """Rows `given target` to predict the target from: ids (B, T - 1), and labels (B, T - 1), the next
    token where it belongs to the target."""
    ids = pad([g + t for g, t in zip(given, target)], padding)  # (B, T)
    labels = pad([[IGNORE] * (len(g) - 1) + t for g, t in zip(given, target)], IGNORE)
    return {"ids": ids[:, :-1], "labels": labels}


def segments(chain: list[int], ratio: int) -> list[list[int]]:
    """S_1..S_N: the chain cut into pieces of `ratio` tokens; the last may be shorter."""
    return [chain[i : i + ratio] for i in range(0, len(chain), ratio)]
