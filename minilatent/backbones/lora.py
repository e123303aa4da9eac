"""LoRA by hand (Hu et al., arXiv 2106.09685): a frozen model, with a small trained product at each matrix.

    W' = W + (α / rank) · B A        W (out, in) frozen, A (rank, in), B (out, rank)

B starts at 0: at first the model is unchanged. Only A and B have gradients and AdamW's moments, and only
they are saved; `merge` adds them to W, after which inference is as fast as without them.

The markers' rows of the embedding and the head are trained, too. `resize` puts a new row near the mean of
the others, and a point inside their hull is never the argmax: frozen, `</think>` could not be predicted.
"""

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import Config
from ..model import Transformer


class LoRALinear(nn.Module):
    """y = W x + b + (α / rank) · B A dropout(x). (..., in) -> (..., out)"""

    def __init__(self, base: nn.Linear, rank: int, alpha: float, dropout: float, generator: torch.Generator):
        super().__init__()
        self.base, self.scale, self.dropout = base, alpha / rank, dropout
        bound = 1 / math.sqrt(base.in_features)
        low = torch.empty(rank, base.in_features).uniform_(-bound, bound, generator=generator)
        self.lora_a = nn.Parameter(low)
        self.lora_b = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        low = F.linear(F.dropout(x, self.dropout, self.training), self.lora_a)  # (..., rank)
        return self.base(x) + self.scale * F.linear(low, self.lora_b)

    def merged(self) -> nn.Linear:
        plain = copy.deepcopy(self.base)  # another model's adapters may share it
        plain.weight += self.scale * (self.lora_b @ self.lora_a).to(plain.weight)
        return plain

    def __deepcopy__(self, memo):
        """A copy has its own adapter and shares the frozen part: Latent-SFT's encoder costs no second
        model."""
        memo[id(self.base)] = self.base
        new = memo[id(self)] = LoRALinear.__new__(LoRALinear)
        new.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return new


class PutRows(torch.autograd.Function):
    """The table with `rows` at `index`, written in place: copying a whole vocabulary at every call would be
    slow. The rows take their part of the table's gradient, which the head computes anyway."""

    @staticmethod
    def forward(ctx, table, rows, index):
        ctx.save_for_backward(index)
        table.data[index] = rows.data  # .data: no call of this step saw other values
        return table.detach()

    @staticmethod
    def backward(ctx, grad):
        return None, grad[ctx.saved_tensors[0]], None


class MarkerRows(nn.Module):
    """An embedding or a language head, (V, C), of which only the markers' rows are trained."""

    def __init__(self, base: nn.Embedding | nn.Linear, markers: list[int]):
        super().__init__()
        self.base = base
        self.register_buffer("markers", torch.tensor(markers), persistent=False)  # (M,)
        self.lora_rows = nn.Parameter(base.weight.detach()[markers].clone())  # (M, C)

    @property
    def weight(self) -> Tensor:
        return PutRows.apply(self.base.weight, self.lora_rows, self.markers)

    def forward(self, ids: Tensor) -> Tensor:
        is_marker = ids[..., None] == self.markers  # (..., M)
        own = self.lora_rows[is_marker.int().argmax(-1)]  # (..., C): any row where none is
        return torch.where(is_marker.any(-1, keepdim=True), own, self.base(ids))

    def merged(self) -> nn.Embedding | nn.Linear:
        self.base.weight[self.markers] = self.lora_rows
        return self.base


def add_lora(model: Transformer, config: Config, markers: list[int]) -> None:
    """Freeze the model and put adapters into it, as --lora_rank, --lora_alpha and --lora_dropout say."""
    rank, dropout = config.lora_rank, config.lora_dropout
    generator = torch.Generator().manual_seed(config.seed)
    alpha = config.lora_alpha or 2 * rank
    model.requires_grad_(False)
    for module in list(model.blocks.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, LoRALinear(child, rank, alpha, dropout, generator))
    model.embed = MarkerRows(model.embed, markers)
    if not model.config.tied:
        model.head = MarkerRows(model.head, markers)
    adapters = ("lora_a", "lora_b", "lora_rows")
    model.frozen_names = {name for name in model.state_dict() if not name.endswith(adapters)}
    model.train(model.training)  # the new modules too


@torch.no_grad()
def merge(model: Transformer) -> Transformer:
    """Add the adapters to the weights, in place: an ordinary model again, all of it trainable."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, (LoRALinear, MarkerRows)):
                setattr(module, name, child.merged())
    model.frozen_names = set()
    return model.train(model.training).requires_grad_(True)
