"""Given in lab 4: a small transformer with random weights, and the slow decoding that yours has to equal."""

import torch
from torch import Tensor


class Toy:
    """Layers of attention with one head and an MLP, in double precision. It is not trained, and its weights
    are large, so that a wrong mask or position changes the result.

    `table` (V, C) holds the input embeddings. `calls` records the shape (B, T) of every forward pass.
    """

    def __init__(self, vocab: int = 8, width: int = 12, layers: int = 2, context: int = 64, seed: int = 0):
        g = torch.Generator().manual_seed(seed)
        draw = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)
        self.layers, self.calls = layers, []
        self.table, self.place = draw(vocab, width), draw(context, width)
        self.qkvo = [[draw(width, width) / width**0.5 for _ in range(4)] for _ in range(layers)]
        self.mlp = [
            (draw(width, 2 * width) / width**0.5, draw(2 * width, width) / width**0.5) for _ in range(layers)
        ]

    def __call__(self, embeds: Tensor, positions: Tensor, mask: Tensor, store=None) -> Tensor:
        """Hidden states (B, T, C) of T new positions.

        embeds (B, T, C), positions (B, T), mask bool (B, T, S) True = may attend
        store   called once per layer with its number and the keys and values of the new positions, (B, T, C)
                each; it returns all keys and values that the mask refers to, (B, S, C) each. None: the new
                ones are all (S = T).
        """
        self.calls.append(tuple(embeds.shape[:2]))
        x = embeds + self.place[positions]  # (B, T, C)
        for layer in range(self.layers):
            Q, K, V, O = self.qkvo[layer]
            h = self.norm(x)
            k, v = h @ K, h @ V
            if store is not None:
                k, v = store(layer, k, v)  # (B, S, C)
            scores = (2 * h @ Q) @ k.transpose(1, 2) / x.shape[-1] ** 0.5  # (B, T, S)
            x = x + scores.masked_fill(~mask, float("-inf")).softmax(-1) @ v @ O
            up, down = self.mlp[layer]
            x = x + torch.relu(self.norm(x) @ up) @ down
        return self.norm(x)

    @staticmethod
    def norm(x: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., C) -> (..., V)"""
        return hidden @ self.table.T


def superpose(logits: Tensor, table: Tensor, k: int, never: list[int]) -> Tensor:
    """Lab 2: the mixture of the k most likely embeddings, none of them in `never`. (..., V) -> (..., C)."""
    logits = logits.index_fill(-1, torch.tensor(never, dtype=torch.long), float("-inf"))
    best, ids = logits.topk(min(k, logits.shape[-1] - len(never)), dim=-1)
    return (best.softmax(-1)[..., None] * table[ids]).sum(-2)


def naive_decode(
    model: Toy, prompt: Tensor, k: int, end: int, eos: int, never: list[int], max_chain: int, max_answer: int
) -> tuple[int, list[int], Tensor]:
    """One question, no cache, everything recomputed at each step: slow, but simple and right.
    prompt (n, C), the embeddings of `Q <think>` -> number of latents, answer tokens, the latents (steps,
    C)."""
    x, latents, answer, thinking = prompt, [], [], True  # x (T, C)
    while True:
        T = len(x)
        hidden = model(x[None], torch.arange(T)[None], torch.ones(1, T, T, dtype=torch.bool).tril())[0, -1]
        logits = model.logits(hidden).index_fill(0, torch.tensor(never, dtype=torch.long), float("-inf"))
        token = int(logits.argmax())
        if thinking and token != end and len(latents) < max_chain:
            latents.append(superpose(logits, model.table, k, never))
            x = torch.cat([x, latents[-1][None]])
        elif thinking:  # the collapse: </think> is fed
            thinking = False
            x = torch.cat([x, model.table[end][None]])
        else:
            answer.append(token)
            if token == eos or len(answer) == max_answer:
                return len(latents), answer, torch.stack(latents) if latents else x[:0]
            x = torch.cat([x, model.table[token][None]])
