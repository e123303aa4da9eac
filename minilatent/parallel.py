"""Several processes that train one model: torchrun --nproc_per_node=N train.py ... With one process nothing here does anything.

Every process has the whole model and takes its slice of each batch. What makes N of them equal to one:

  - a loss is a mean over labels, and slices hold unequal numbers of them. Each process multiplies its mean by
    `weight`, its number of labels over the average number, so that the average of the gradients is that of the
    mean over all labels, whatever a method adds up;
  - gradients are averaged before they are clipped, and all processes take the same step;
  - validation and label generation are divided among the processes and put together again.

What is random for the whole batch (CoLaR's factor) is drawn alike in all processes, what is random in each row (noise,
sampled labels, rollouts) by each process for itself: N processes then differ from one as two seeds do.

There is one collective, `total`. Every process has to call it equally often: no loss may branch on its own slice.
"""

import os
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor

from .config import UserError

idle = False  # this process has no row of the present batch: what it computes counts for nothing


def world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def start(device: str) -> str:
    """Join the processes that torchrun started, if it did. The device of this one: a GPU each, or the CPU for all.
    UserError if there are fewer GPUs than processes."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or dist.is_initialized():
        return device
    local = int(os.environ["LOCAL_RANK"])
    gpu = device != "cpu" and torch.cuda.is_available()
    if gpu and local >= torch.cuda.device_count():
        raise UserError(f"process {local} has no GPU of its own: there are {torch.cuda.device_count()}")
    if gpu:
        torch.cuda.set_device(local)
    dist.init_process_group("nccl" if gpu else "gloo")
    return f"cuda:{local}" if gpu else "cpu"


def total(tensor: Tensor) -> Tensor:
    """The sum over all processes, on each of them. UserError if one of them is gone."""
    if world() == 1:
        return tensor
    here = tensor.device
    tensor = tensor.cuda() if dist.get_backend() == "nccl" else tensor.cpu()
    try:
        dist.all_reduce(tensor)
    except RuntimeError as error:
        raise UserError(
            f"another process of this run has ended ({str(error).splitlines()[0][:100]}); the last checkpoint is good, "
            "--resume goes on from there"
        ) from None
    return tensor.to(here)


def wait() -> None:
    """Until all processes are here: for what the first one writes and the others read."""
    total(torch.zeros(1))


def finish() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def shard(items: list) -> list:
    """This process's share of items that need no others."""
    return items[rank() :: world()]


def take(rows: list) -> list:
    """This process's slice of a batch. Where there are fewer rows than processes, one that gets none goes through the
    first row for nothing, because all have to take the same steps."""
    global idle
    mine = shard(rows)
    idle = not mine
    return mine or rows[:1]


def weight(n: int) -> float:
    """What a mean over n labels of this process counts: n over the processes' average."""
    if world() == 1:
        return 1.0
    n = 0 if idle else int(n)
    everyone = total(torch.tensor([float(n)], dtype=torch.float64)).item()
    return n * world() / max(everyone, 1)


def std(x: Tensor) -> Tensor:
    """The standard deviation of all processes' values in each x[l], (L, ..) -> (L,). No gradient."""
    if world() == 1:
        return x.flatten(1).std(1)
    wide = x.detach().flatten(1).double()
    moments = torch.stack([torch.ones_like(wide), wide, wide.pow(2)]).sum(2)  # (3, L)
    n, one, two = total(torch.zeros_like(moments) if idle else moments)
    return ((two - one.pow(2) / n) / (n - 1)).sqrt().to(x.dtype)


def average(values: dict[str, float], weight: float = 1.0) -> dict[str, float]:
    """The mean over all processes of each value, by weight."""
    if world() == 1:
        return values
    sums = total(torch.tensor([weight, *(weight * v for v in values.values())], dtype=torch.float64)).tolist()
    return {name: value / max(sums[0], 1e-12) for name, value in zip(values, sums[1:])}


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """The mean over all processes of every gradient, in place; one that is missing is 0."""
    if world() > 1:
        for p in parameters:
            p.grad = total(torch.zeros_like(p) if p.grad is None else p.grad) / world()
