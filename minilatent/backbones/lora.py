"""LoRA by hand (Hu et al., arXiv 2106.09685): a frozen model, and beside each of its matrices a small one
that learns.

    W' = W + (α / rank) · B A        W (out, in) frozen, A (rank, in), B (out, rank)

B starts at 0: at first the model is the one it was. Only A and B have gradients and AdamW's moments, and
only they are saved; `merge` adds them to W, after which nothing is slower than before.

The markers are new words, and the papers freeze the embedding. A new row near the mean of the others, as
`resize` makes it, can never be the argmax (the mean of points is inside their hull), so a frozen
`</think>` would never be said. So the markers' rows are learned too, they alone of the embedding and of
the head.
"""

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import Config, UserError
from ..model import Transformer

TARGETS = ("q", "k", "v", "o", "up", "gate", "down")


class LoRALinear(nn.Linear):
    """y = W x + b + (α / rank) · B A dropout(x). (..., in) -> (..., out)"""

    def __init__(self, base: nn.Linear, rank: int, alpha: float, dropout: float, generator: torch.Generator):
        super().__init__(base.in_features, base.out_features, base.bias is not None, device="meta")
        self.weight, self.bias = base.weight, base.bias
        bound = 1 / math.sqrt(base.in_features)
        low = torch.empty(rank, base.in_features).uniform_(-bound, bound, generator=generator)
        self.lora_a = nn.Parameter(low)
        self.lora_b = nn.Parameter(torch.zeros(base.out_features, rank))
        self.scale, self.dropout = alpha / rank, dropout

    def forward(self, x: Tensor) -> Tensor:
        low = F.linear(F.dropout(x, self.dropout, self.training), self.lora_a)  # (..., rank)
        return super().forward(x) + self.scale * F.linear(low, self.lora_b)

    def merged(self) -> Tensor:
        return self.weight + self.scale * (self.lora_b @ self.lora_a).to(self.weight)

    def __deepcopy__(self, memo):
        """A copy has an adapter of its own and shares what is frozen: Latent-SFT's encoder costs no
        second model."""
        memo |= {id(p): p for p in (self.weight, self.bias) if p is not None}
        new = memo[id(self)] = LoRALinear.__new__(LoRALinear)
        new.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return new


class PutRows(torch.autograd.Function):
    """The table with `rows` at `index`, written in place: to copy a whole vocabulary at every call would
    cost more than all the rest. Of the table's gradient, which the head's product makes anyway, the rows
    take theirs."""

    @staticmethod
    def forward(ctx, table, rows, index):
        ctx.save_for_backward(index)
        table.data[index] = rows.data  # .data: no call of this step saw other values
        return table.detach()

    @staticmethod
    def backward(ctx, grad):
        return None, grad[ctx.saved_tensors[0]], None


class MarkerRows(nn.Module):
    """An embedding or a language head, (V, C), of which only the markers' rows learn."""

    def __init__(self, table: nn.Parameter, markers: list[int]):
        super().__init__()
        self.table = table
        self.register_buffer("markers", torch.tensor(markers), persistent=False)  # (M,)
        self.lora_rows = nn.Parameter(table.detach()[markers].clone())  # (M, C)

    @property
    def weight(self) -> Tensor:
        return PutRows.apply(self.table, self.lora_rows, self.markers)

    def forward(self, ids: Tensor) -> Tensor:
        is_marker = ids[..., None] == self.markers  # (..., M)
        own = self.lora_rows[is_marker.int().argmax(-1)]  # (..., C): any row where none is
        return torch.where(is_marker.any(-1, keepdim=True), own, F.embedding(ids, self.table))


def add_lora(model: Transformer, config: Config, markers: list[int]) -> None:
    """Freeze the model and put adapters into it, as --lora_rank, --lora_alpha and --lora_dropout say.
    UserError if they make no sense."""
    rank, dropout = config.lora_rank, config.lora_dropout
    if rank < 1 or not 0 <= dropout < 1:
        raise UserError(
            f"--lora_rank {rank} --lora_dropout {dropout}: a rank is at least 1, a dropout in 0..1"
        )
    generator = torch.Generator().manual_seed(config.seed)
    alpha = config.lora_alpha or 2 * rank
    model.requires_grad_(False)
    for block in model.blocks:
        for part in (block.attn, block.mlp):
            for name in TARGETS:
                if hasattr(part, name):  # GPT-2 has no gate
                    setattr(part, name, LoRALinear(getattr(part, name), rank, alpha, dropout, generator))
    model.embed = MarkerRows(model.embed.weight, markers)
    if not model.config.tied:
        model.head = MarkerRows(model.head.weight, markers)
    adapters = ("lora_a", "lora_b", "lora_rows")
    model.frozen_names = {name for name in model.state_dict() if not name.endswith(adapters)}
    model.train(model.training)  # the new modules too


@torch.no_grad()
def merge(model: Transformer) -> Transformer:
    """Add the adapters to the weights, in place: an ordinary model again, all of it trainable."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, LoRALinear):
                has_bias = child.bias is not None
                plain = nn.Linear(child.in_features, child.out_features, has_bias, device="meta")
                plain.weight = nn.Parameter(child.merged())
                if child.bias is not None:  # a copy of the model may share it
                    plain.bias = nn.Parameter(child.bias.clone())
                setattr(module, name, plain)
    for name in ("embed", "head"):
        rows = getattr(model, name, None)
        if isinstance(rows, MarkerRows):
            V, C = rows.table.shape
            plain = nn.Linear(C, V, bias=False, device="meta")
            if name == "embed":
                plain = nn.Embedding(V, C, device="meta")
            plain.weight = nn.Parameter(rows.weight.detach())
            setattr(model, name, plain)
    model.frozen_names = set()
    return model.train(model.training).requires_grad_(True)
