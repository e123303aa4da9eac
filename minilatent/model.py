"""The transformer, from scratch, in one file: GPT-2 and Qwen/Llama families by configuration.

A forward pass goes ids or embeddings -> hidden states; logits are a second call, made only at the
positions that somebody wants (`model.logits(hidden[:, -1])`), because a latent method reads few of them.

Symbols: B rows, T new positions, S keys (cached ones included), C width, H heads, G key/value heads,
D head size, V vocabulary.

                 GPT-2          Qwen2          Qwen3, mini    Llama, SmolLM2
    position     learned        rope           rope           rope
    norm         layernorm      rmsnorm        rmsnorm        rmsnorm
    mlp          gelu           swiglu         swiglu         swiglu
    bias         everywhere     q, k, v        none           none
    qk_norm      no             no             yes            no
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass
class ModelConfig:
    vocab_size: int
    n_layer: int = 3
    n_head: int = 4
    n_kv_head: int = 4  # fewer than n_head: grouped-query attention
    width: int = 128
    head_dim: int = 32
    hidden: int = 352  # width of the MLP's inner layer
    context: int = 512  # longest sequence
    position: str = "rope"  # rope | learned
    norm: str = "rmsnorm"  # rmsnorm | layernorm
    mlp: str = "swiglu"  # swiglu | gelu
    bias: bool = False  # on the output projection, the MLP and layernorms
    qkv_bias: bool = False
    o_bias: bool = False  # the output projection alone
    qk_norm: bool = False  # RMSNorm on each head's q and k (Qwen3, mini)
    tied: bool = True  # the language head is the input embedding
    rope_theta: float = 10_000.0
    rope_scaling: dict | None = None  # angles slowed down for a longer context: see rope_frequencies
    norm_eps: float = 1e-5
    attention: str = "sdpa"  # sdpa | naive (the same, written out) | flex (fast.py)
    loops: int = 1  # how often the blocks run (methods/looped.py)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """q (B, H, T, D), k and v (B, G, S, D), mask (B or 1, 1, T, S) True = may attend, None = causal."""
    if mask is not None and q.is_cuda:  # CUDA's fast kernel for masks wants a key and value for every head
        k, v = repeat_heads(k, q), repeat_heads(v, q)
    grouped, causal = k.shape[1] < q.shape[1], mask is None
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=grouped)


def repeat_heads(x: Tensor, q: Tensor) -> Tensor:
    """(B, G, S, D) -> (B, H, S, D): H / G neighbouring heads share one key and value."""
    return x.repeat_interleave(q.shape[1] // x.shape[1], dim=1)


def naive_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """`attention` as the textbook has it: softmax(q kᵀ / √D) v."""
    if mask is None:
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
    k, v = repeat_heads(k, q), repeat_heads(v, q)
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])  # (B, H, T, S)
    return scores.masked_fill(~mask, float("-inf")).softmax(-1) @ v  # (B, H, T, D)


ATTENTION = {"sdpa": attention, "naive": naive_attention}


def rope_frequencies(config: ModelConfig, device=None) -> Tensor:
    """θ^(-2i/D), the angle of a position for each pair of a head's dimensions, (D/2,).

    `rope_scaling`, Llama 3's, stretches the context: it leaves alone the pairs that turn at least
    high_freq_factor times within the original context, slows by `factor` those that turn less than
    low_freq_factor times, and blends in between.
    """
    even = torch.arange(0, config.head_dim, 2, device=device).float()  # 2i
    frequency = config.rope_theta ** (-even / config.head_dim)  # (D/2,)
    scaling = config.rope_scaling
    if scaling is None:
        return frequency
    slow = frequency / scaling["factor"]
    turns = scaling["original_max_position_embeddings"] * frequency / (2 * math.pi)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    return torch.lerp(slow, frequency, ((turns - low) / (high - low)).clamp(0, 1))


def rope_angles(positions: Tensor, config: ModelConfig) -> tuple[Tensor, Tensor]:
    """cos and sin of position · frequency, each (B or 1, 1, T, D): both halves of a head have the same."""
    angle = positions[:, None, :, None].float() * rope_frequencies(config, positions.device)  # (B, 1, T, D/2)
    angle = torch.cat([angle, angle], dim=-1)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (x_i, x_{i+D/2}) of every head by their position's angle. x (B, H, T, D)."""
    a, b = x.chunk(2, dim=-1)
    return x * cos.to(x.dtype) + torch.cat([-b, a], dim=-1) * sin.to(x.dtype)


def make_norm(config: ModelConfig, width: int) -> nn.Module:
    if config.norm == "layernorm":
        return nn.LayerNorm(width, eps=config.norm_eps, bias=config.bias)
    return nn.RMSNorm(width, eps=config.norm_eps)


class Attention(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        C, D = config.width, config.head_dim
        self.q = nn.Linear(C, config.n_head * D, bias=config.qkv_bias)
        self.k = nn.Linear(C, config.n_kv_head * D, bias=config.qkv_bias)
        self.v = nn.Linear(C, config.n_kv_head * D, bias=config.qkv_bias)
        self.o = nn.Linear(config.n_head * D, C, bias=config.bias or config.o_bias)
        if config.qk_norm:
            self.q_norm, self.k_norm = make_norm(config, D), make_norm(config, D)

    def forward(self, x, mask, rope, cache, layer, slots, end):
        """slots (B, T): places in the cache for the new keys; end: places in use afterwards."""
        B, T, _ = x.shape
        split = lambda y: y.view(B, T, -1, self.config.head_dim)
        q, k, v = split(self.q(x)), split(self.k(x)), split(self.v(x))  # (B, T, H | G | G, D)
        if self.config.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, H | G | G, T, D)
        if rope is not None:
            q, k = rotate(q, *rope), rotate(k, *rope)
        if cache is not None:
            k, v = cache.write(layer, k, v, slots, end)  # (B, G, S, D)
        y = self.attend(q, k, v, mask)  # (B, H, T, D)
        return self.o(y.transpose(1, 2).reshape(B, T, -1))  # (B, T, C)

    def attend(self, q, k, v, mask):
        """In training on a CPU always in float32: bfloat16's backward pass is four times slower there. (RL
        compares passes without gradient with those that have one: the same holds for both.)"""
        attention = ATTENTION[self.config.attention]
        if self.training and q.device.type == "cpu" and q.dtype == torch.bfloat16:
            with torch.autocast("cpu", enabled=False):
                return attention(q.float(), k.float(), v.float(), mask).to(q.dtype)
        return attention(q, k, v, mask)


class MLP(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.gated = config.mlp == "swiglu"
        self.up = nn.Linear(config.width, config.hidden, bias=config.bias)
        if self.gated:
            self.gate = nn.Linear(config.width, config.hidden, bias=config.bias)
        self.down = nn.Linear(config.hidden, config.width, bias=config.bias)

    def forward(self, x):
        if self.gated:
            return self.down(F.silu(self.gate(x)) * self.up(x))
        return self.down(F.gelu(self.up(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.norm1, self.attn = make_norm(config, config.width), Attention(config)
        self.norm2, self.mlp = make_norm(config, config.width), MLP(config)

    def forward(self, x, *attention_args):
        x = x + self.attn(self.norm1(x), *attention_args)
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.frozen_names: set[str] = set()  # what adapters leave as it is (backbones/lora.py)
        self.fast = None  # a fast.Fast, which then calls the blocks
        self.embed = nn.Embedding(config.vocab_size, config.width)
        if config.position == "learned":
            self.embed_position = nn.Embedding(config.context, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = make_norm(config, config.width)
        if not config.tied:
            self.head = nn.Linear(config.width, config.vocab_size, bias=False)

    def init_weights(self, generator: torch.Generator, zero: bool = False) -> None:
        """GPT-2's: N(0, 0.02), the projections into the residual stream divided by √(2 · layers). zero: these
        begin at 0, so that each block is at first the identity (as in speed-runs of small GPTs)."""
        for name, p in self.named_parameters():
            residual = name.endswith(("o.weight", "down.weight"))
            std = 0.02 / math.sqrt(2 * self.config.n_layer) if residual else 0.02
            if name.endswith("bias") or residual and zero:
                nn.init.zeros_(p)
            elif p.dim() > 1:  # norms stay 1
                nn.init.normal_(p, 0.0, std, generator=generator)

    def forward(
        self,
        ids: Tensor | None = None,
        embeds: Tensor | None = None,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
        cache=None,  # cache.KVCache or unroll.GrowingCache
        states: list[Tensor] | None = None,
    ) -> Tensor:
        """Hidden states after the final norm, (B, T, C).

        ids        (B, T) token ids, or
        embeds     (B, T, C) input embeddings, without the position embedding
        mask       (T, S) or (B, T, S), True = may attend, at least one in every row; None = causal
        positions  (T,) or (B, T); default 0..T-1, after the cached ones when there is a cache
        cache      keys and values of earlier positions; the T new ones are appended
        states     a list that gets every block's output, (B, T, C) each, the first block's first
        """
        x = self.embed(ids) if embeds is None else embeds  # (B, T, C)
        B, T, _ = x.shape
        step = torch.arange(T, device=x.device)
        slots = end = None
        if cache is not None:
            end = cache.end(T)
            if end > T:  # else it was empty: the fast path
                slots = cache.lengths[:, None] + step  # (B, T)
                positions = slots if positions is None else positions
                if mask is None:
                    mask = torch.arange(end, device=x.device) <= slots[:, :, None]  # (B, T, S)
        positions = (step if positions is None else positions).view(-1, T)  # (B or 1, T)
        if mask is not None:
            mask = mask[None, None] if mask.dim() == 2 else mask[:, None]  # (B or 1, 1, T, S)

        rope = None
        if self.config.position == "learned":
            x = x + self.embed_position(positions)
        else:
            cos, sin = rope_angles(positions, self.config)  # once, not in every layer
            rope = cos.to(x.dtype), sin.to(x.dtype)
        if self.fast is not None and cache is None:
            return self.norm(self.fast(self, x, mask, rope, states))
        for layer, block in enumerate([*self.blocks] * self.config.loops):
            x = block(x, mask, rope, cache, layer, slots, end)
            if states is not None:
                states.append(x)
        if cache is not None:
            cache.lengths = cache.lengths + T
        return self.norm(x)

    @property
    def head_weight(self) -> Tensor:
        """(V, C): row v of the language head."""
        return self.embed.weight if self.config.tied else self.head.weight

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., C) -> (..., V). Call it on the positions you need, not on all."""
        return hidden @ self.head_weight.T

    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.parameters())
