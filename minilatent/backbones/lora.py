"""LoRA by hand (Hu et al., arXiv 2106.09685): a frozen model, with a small trained product at each matrix.

    W' = W + (α / rank) · B A        W (out, in) frozen, A (rank, in), B (out, rank)

B starts at 0: at first the model is unchanged. Only A and B have gradients and AdamW's moments, and only
they are saved; `merge` adds them to W, after which inference is as fast as without them.

The new tokens' rows of the embedding and the head are trained, too: the markers' and those of
--number_tokens. `resize` puts a new row near the mean of the others, and a point inside their hull is never
the argmax: frozen, `</think>` could not be predicted.
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
        return self.base(x) + F.linear(self.scale * low, self.lora_b)  # to scale what is narrow is cheaper

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


class TrainedRows(nn.Module):
    """An embedding or a language head, (V, C), of which only the rows `index` are trained."""

    def __init__(self, base: nn.Embedding | nn.Linear, index: list[int]):
        super().__init__()
        self.base = base
        place = torch.full((len(base.weight),), -1)  # (V,): an id's place among the trained rows
        place[index] = torch.arange(len(index))
        self.register_buffer("index", torch.tensor(index), persistent=False)  # (M,)
        self.register_buffer("place", place, persistent=False)
        self.lora_rows = nn.Parameter(base.weight.detach()[index].clone())  # (M, C)

    @property
    def weight(self) -> Tensor:
        return PutRows.apply(self.base.weight, self.lora_rows, self.index)

    def forward(self, ids: Tensor) -> Tensor:
        place = self.place[ids]  # (...)
        own = self.lora_rows[place]  # (..., C): any row where the id has none
        return torch.where(place[..., None] >= 0, own, self.base(ids))

    def merged(self) -> nn.Embedding | nn.Linear:
        self.base.weight[self.index] = self.lora_rows
        return self.base


def add_lora(model: Transformer, config: Config, rows: list[int]) -> None:
    """Freeze the model and put adapters into it, as --lora_rank, --lora_alpha and --lora_dropout say.
    rows: the tokens whose rows of the embedding and the head are trained."""
    rank, dropout = config.lora_rank, config.lora_dropout
    generator = torch.Generator().manual_seed(config.seed)
    alpha = config.lora_alpha or 2 * rank
    model.requires_grad_(False)
    for module in list(model.blocks.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, LoRALinear(child, rank, alpha, dropout, generator))
    model.embed = TrainedRows(model.embed, rows)
    if not model.config.tied:
        model.head = TrainedRows(model.head, rows)
    adapters = ("lora_a", "lora_b", "lora_rows")
    model.frozen_names = {name for name in model.state_dict() if not name.endswith(adapters)}
    model.train(model.training)  # the new modules too


@torch.no_grad()
def merge(model: nn.Module) -> nn.Module:
    """Add all adapters to the weights, in place: ordinary modules again, all of them trainable."""
    for module in list(model.modules()):
        if isinstance(module, Transformer):
            module.frozen_names = set()
        for name, child in list(module.named_children()):
            if isinstance(child, (LoRALinear, TrainedRows)):
                setattr(module, name, child.merged())
    return model.train(model.training).requires_grad_(True)
