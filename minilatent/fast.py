"""Speed on a GPU, beside the path that is read. A model whose `fast` is set gives the same numbers:

training   the blocks are compiled, for few lengths: a batch is padded to the next of them. Nobody sees
           padding on the right, and it is cut off again. Masks may become FlexAttention's.
decoding   every step has the same shapes at the same places in memory, so that CUDA can record it as a
           graph. Finished rows stay until decode() looks for them, which means to wait for the GPU.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from torch.utils.checkpoint import checkpoint

from .cache import KVCache
from .config import Config, UserError
from .model import ATTENTION, Transformer, attention


def padded(length: int) -> int:
    """The next multiple of 32; above 256 of 64, above 512 of 128, and so on."""
    step = max(32, 2 ** (length - 1).bit_length() // 8)
    return -(-length // step) * step


def flex(q: Tensor, k: Tensor, v: Tensor, mask) -> Tensor:
    """`attention` of model.py, under a block mask where Fast has made one (not in decoding)."""
    if isinstance(mask, BlockMask):
        return flex_attention(q, k, v, block_mask=mask, enable_gqa=k.shape[1] < q.shape[1])
    return attention(q, k, v, mask)


ATTENTION["flex"] = flex


def block_mask(mask: Tensor) -> BlockMask:
    """Of a mask (B or 1, 1, T, T). Blocks in which nobody sees anybody are skipped."""
    sees = lambda row, head, i, j: mask[row, 0, i, j]
    return create_block_mask(sees, mask.shape[0], None, *mask.shape[2:], mask.device)


class Fast:
    """compiled: what is said above, by torch.compile's `backend`. recompute: the blocks' activations."""

    def __init__(self, compiled: bool = False, recompute: bool = False, backend: str = "inductor"):
        self.compiled, self.recompute, self.look_every = compiled, recompute, 1  # steps of decoding
        self.run = lambda block, x, mask, rope: block(x, mask, rope, None, 0, None, None)
        if compiled:
            torch._dynamo.config.recompile_limit = 64  # lengths · (masked or not) · (frozen or not)
            self.run, self.look_every = torch.compile(self.run, backend=backend, dynamic=False), 8

    def __call__(self, model: Transformer, x: Tensor, mask, rope, states: list | None) -> Tensor:
        """All blocks, one after the other: x (B, T, C) -> (B, T, C). mask (B or 1, 1, T, T) or None."""
        T, recompute = x.shape[1], self.recompute and model.training
        more = padded(T) - T if self.compiled else 0
        cut = lambda x: x[:, :T] if more else x
        if more:
            longer = (0, 0, 0, more)
            x, rope = F.pad(x, longer), rope and tuple(F.pad(angles, longer) for angles in rope)
            if mask is not None:  # padding is seen by nobody, and sees all: it has to see somebody
                mask = F.pad(F.pad(mask, (0, more)), longer, value=True)
        if mask is not None and model.config.attention == "flex":
            mask = block_mask(mask)
        for block in [*model.blocks] * model.config.loops:
            args = block, x, mask, rope
            x = checkpoint(self.run, *args, use_reentrant=False) if recompute else self.run(*args)
            if states is not None:
                states.append(cut(x))
        return cut(x)


def speed_up(model: Transformer, config: Config, device: torch.device) -> None:
    """Set `fast` as the settings ask for it. UserError where PyTorch cannot compile (it needs a C++ compiler,
    for a GPU Triton), and for FlexAttention where it has no backward pass."""
    if config.compile:
        try:
            torch.compile(lambda x: x + 1)(torch.zeros(8, device=device))
        except (RuntimeError, ImportError, OSError) as error:
            reason = str(error).partition("\n")[0]
            raise UserError(f"--compile: PyTorch cannot compile here ({reason[:150]})") from None
    if config.attention == "flex" and device.type != "cuda":
        raise UserError("--attention flex needs a GPU: a CPU has no backward pass for it")
    model.config.attention = config.attention
    if config.compile or config.grad_checkpoint or config.attention == "flex":
        model.fast = Fast(config.compile, config.grad_checkpoint)


class OneToken:
    """A step of decoding, feed (b, C) -> hidden state (b, C). fixed: all places of the cache count as used,
    and CUDA replays what it has recorded, anew when finished rows have gone."""

    def __init__(self, model: Transformer, cache: KVCache, fixed: bool):
        self.model, self.cache, self.feed = model, cache, torch.empty(0)
        cache.fixed = fixed

    def step(self, feed: Tensor) -> Tensor:
        lengths = self.cache.lengths
        hidden = self.model(embeds=feed[:, None], cache=self.cache)[:, 0]
        self.cache.lengths = lengths.copy_(self.cache.lengths)  # where they were
        return hidden

    def __call__(self, feed: Tensor) -> Tensor:
        if not (self.cache.fixed and feed.is_cuda):
            return self.step(feed)
        if feed.shape != self.feed.shape:
            self.record(feed.clone(), self.cache.lengths.clone())
        self.feed.copy_(feed)
        self.graph.replay()
        return self.hidden

    def record(self, feed: Tensor, lengths: Tensor) -> None:
        """After a trial, in which CUDA loads what it needs; what that wrote is overwritten."""
        self.feed, self.graph = feed, torch.cuda.CUDAGraph()
        self.step(feed)
        self.cache.lengths.copy_(lengths)
        with torch.cuda.graph(self.graph):
            self.hidden = self.step(feed)
