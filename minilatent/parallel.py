"""Several processes that train one model: torchrun --nproc_per_node=N train.py ... Only the trainer knows.

Every process has the whole model and takes its slice of each batch; gradients are averaged over the processes
before they are clipped, and all take the same step. Each slice's mean counts the same, so where slices hold
unequal numbers of labels the step is not exactly that of one process, as is common practice. Validation
examples are divided among the processes; labels made between stages are made by each process for itself.

What is random for the whole batch (CoLaR's factor) is equal in all processes; what is random in each row
(noise, rollouts) is each process's own: N processes differ from one as two seeds do.
"""

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from .config import UserError


def world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


@contextlib.contextmanager
def answered() -> Iterator[None]:
    """UserError where another process has died, or is silent for --timeout minutes."""
    try:
        yield
    except RuntimeError as error:  # of gloo or NCCL
        fault = f"another process of this run has died or hangs ({str(error)[:150]})"
        raise UserError(f"{fault}; the same command with --resume goes on") from None


def start(device: str, minutes: float) -> str:
    """Join the processes that torchrun started, if it did; all but the first are silent from now on.
    Returns the device of this one: a GPU each, or the CPU for all. minutes: how long each waits for the
    others. UserError if there are fewer GPUs than processes."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or dist.is_initialized():
        return device
    local = int(os.environ["LOCAL_RANK"])
    gpu = device != "cpu" and torch.cuda.is_available()
    if gpu and local >= torch.cuda.device_count():
        raise UserError(f"process {local} has no GPU of its own: there are {torch.cuda.device_count()}")
    if gpu:
        torch.cuda.set_device(local)
    os.environ.setdefault("TORCH_NCCL_BLOCKING_WAIT", "1")  # else NCCL kills the process at a timeout
    with answered():
        dist.init_process_group("nccl" if gpu else "gloo", timeout=timedelta(minutes=minutes))
    if rank() > 0:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")
    return f"cuda:{local}" if gpu else "cpu"


def total(tensor: Tensor) -> Tensor:
    """The sum over all processes, on each of them."""
    if world() == 1:
        return tensor
    here = tensor.device
    tensor = tensor.cuda() if dist.get_backend() == "nccl" else tensor.cpu()
    with answered():
        dist.all_reduce(tensor)
        return tensor.to(here)


def wait() -> None:
    """Until all processes are here: for what the first one writes and the others read."""
    total(torch.zeros(1))


def finish() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def shard(items: list) -> list:
    """This process's share of the items."""
    return items[rank() :: world()]


def average(values: dict[str, float], weight: float = 1.0) -> dict[str, float]:
    """The mean over all processes of each value, by weight."""
    if world() == 1:
        return values
    weighted = [weight, *(weight * v for v in values.values())]
    sums = total(torch.tensor(weighted, dtype=torch.float64)).tolist()
    return {name: value / max(sums[0], 1e-12) for name, value in zip(values, sums[1:])}


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """The mean over all processes of every gradient, in place; one that is missing is 0."""
    if world() > 1:
        for p in parameters:
            p.grad = total(torch.zeros_like(p) if p.grad is None else p.grad) / world()
