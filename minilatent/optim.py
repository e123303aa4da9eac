"""The optimizers and their learning rate: AdamW, and Muon written out."""

import math

import torch
from torch import Tensor, nn

from .checkpoint import frozen
from .config import Config


def learning_rate(step: int, steps: int, peak: float, warmup: float, decay: bool = True) -> float:
    """Linear warm-up over a share `warmup` of the steps, then a cosine to 0, or without decay the peak."""
    rise = max(1, round(warmup * steps))
    if step < rise:
        return peak * (step + 1) / rise
    if not decay:
        return peak
    fall = (step - rise) / max(1, steps - rise)
    return peak * 0.5 * (1 + math.cos(math.pi * fall))


def orthogonalise(G: Tensor) -> Tensor:
    """Newton-Schulz: G (n, R, S), a batch of matrices, with all singular values brought near 1: about U Vᵀ
    for G = U Σ Vᵀ. Each of 5 iterations applies the polynomial
    3.4445 σ - 4.7750 σ³ + 2.0315 σ⁵ to the singular values, which needs matrix products only.
    (n, R, S) -> (n, R, S)"""
    tall = G.shape[1] > G.shape[2]
    X = G.mT if tall else G  # wide: X Xᵀ is the smaller of the two Gram matrices
    X = X / X.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)  # no singular value above 1
    for _ in range(5):
        A = X @ X.mT  # (n, R, R)
        X = 3.4445 * X + (-4.7750 * A + 2.0315 * A @ A) @ X
    return X.mT if tall else X


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised: a step turns a matrix in all its directions at the same rate (Jordan et al.
    2024, "Muon: An optimizer for hidden layers in neural networks"). For matrices inside the layers only.

    Matrices of one shape go through Newton-Schulz together, one product instead of many small ones. In
    bfloat16 on CUDA, as usual; on a CPU in float32, because most CPUs only emulate bfloat16, ten times
    slower. The step is scaled by 0.2 √max(R, S), so that learning rates are those of AdamW (Liu et al.
    2025, "Muon is scalable").
    """

    def __init__(self, params, lr: float = 1e-3, momentum: float = 0.95, weight_decay: float = 0.0):
        super().__init__(list(params), {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    by_shape.setdefault(p.shape, []).append(p)
            for (rows, columns), params in by_shape.items():
                updates = []
                for p in params:
                    m = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
                    m.lerp_(p.grad, 1 - group["momentum"])
                    updates.append(p.grad.lerp(m, group["momentum"]))  # Nesterov's look ahead
                G = torch.stack(updates).to(torch.bfloat16 if params[0].is_cuda else torch.float32)
                for p, update in zip(params, orthogonalise(G)):
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(update.to(p.dtype), alpha=-group["lr"] * 0.2 * math.sqrt(max(rows, columns)))


def train_only(method: nn.Module, names: list[str]) -> dict[str, nn.Parameter]:
    """Freeze all parameters but those of the modules named, and return these. Weights
    under adapters stay frozen."""
    chosen, base = {}, frozen(method)
    for name, p in method.named_parameters():
        inside = any(name.startswith(module + ".") for module in names)
        p.requires_grad_(inside and name not in base)
        if p.requires_grad:
            chosen[name] = p
    return chosen


def make_optimizers(
    named: dict[str, nn.Parameter], method: nn.Module, lr: float, kind: str, config: Config
) -> list[torch.optim.Optimizer]:
    """AdamW for the parameters `named`; or with kind "muon" Muon for the matrices between the embeddings
    and the language head, and AdamW for the rest. Weight decay on matrices only."""
    ends = set()  # embeddings and language head are not hidden layers: Muon skips them
    for name, module in method.named_modules():
        if isinstance(module, nn.Embedding) or name.endswith(".head"):
            ends.add(id(module.weight))
    inner, matrices, vectors = [], [], []
    for name, p in named.items():
        of_the_table = id(p) in ends or name.endswith(".lora_rows")
        if kind == "muon" and p.dim() == 2 and not of_the_table:
            inner.append(p)
        else:
            (matrices if p.dim() >= 2 else vectors).append(p)
    groups, decay = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}], config.weight_decay
    adamw = torch.optim.AdamW(groups, lr=lr, betas=(0.9, config.beta2), weight_decay=decay, fused=True)
    optimizers: list[torch.optim.Optimizer] = [adamw]
    if inner:
        optimizers.append(Muon(inner, lr=lr, weight_decay=config.weight_decay))
    return optimizers
