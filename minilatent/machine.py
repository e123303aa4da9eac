"""The machine: which device and precision to use, memory, and what goes from the host to the device."""

import contextlib
import ctypes

import torch
from torch import Tensor

from .config import Config, UserError


def pick_device(name: str) -> torch.device:
    """`auto` is CUDA where there is any, else the CPU. UserError if this machine has no such device."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError):  # not a device's name, or a device that is not there
        raise UserError(f"--device {name}: this machine has none; try --device cpu") from None


def pick_dtype(name: str, device: torch.device) -> str:
    """`auto` is bfloat16 where the hardware multiplies it, else float32: elsewhere it would be slower."""
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    has = getattr(torch.cpu, "get_capabilities", dict)() if device.type == "cpu" else {}
    return "bfloat16" if has.get("avx512_bf16") or has.get("amx_bf16") else "float32"


def use_threads(n: int) -> None:
    """0: PyTorch's choice. UserError if it makes no sense."""
    Config(threads=n).check()
    if n:
        torch.set_num_threads(n)


def trim_memory() -> None:
    """Give freed memory back to the system. glibc keeps it, and since batches of ever different lengths
    rarely fit into what earlier ones have left, a long run on a CPU would need three times as much."""
    with contextlib.suppress(OSError, TypeError, AttributeError):  # other C libraries do without
        ctypes.CDLL(None).malloc_trim(0)


class Moved(dict):
    """A batch on the device that keeps what it was on the host."""

    def __init__(self, host: dict[str, Tensor], device: torch.device):
        super().__init__({name: send(t, device) for name, t in host.items()})
        self.host = host


def send(t: Tensor, device: torch.device) -> Tensor:
    """From the host to the device. A GPU fetches pinned memory by itself, when it gets there."""
    if device.type == "cuda" and t.device.type == "cpu":
        return t.pin_memory().to(device, non_blocking=True)
    return t.to(device)


def host(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The batch as it was on the host."""
    return getattr(batch, "host", batch)


def note(x: Tensor) -> float | Tensor:
    """A number to be logged: a GPU keeps it until it is read."""
    return x.item() if x.device.type == "cpu" else x.detach()


def indices(mask: Tensor, device: torch.device) -> tuple[Tensor, ...]:
    """Indices of what is True, (n,) each. Give it a mask on the host: to know n on a GPU, one has to wait
    until all its work is done."""
    return tuple(send(index, device) for index in mask.nonzero(as_tuple=True))
