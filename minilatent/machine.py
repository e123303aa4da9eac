"""The machine: which device and precision to use, and memory."""

import contextlib
import ctypes

import torch

from .config import UserError

# Parameters. A smaller model only waits for the launches of a laptop's GPU: the CPU is faster (our guess).
SMALL = 20_000_000


def pick_device(name: str, parameters: int = 0) -> torch.device:
    """`auto` is CUDA where there is any; Apple's mps only for a model that is large enough; else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
        if name == "cpu" and parameters > SMALL and torch.backends.mps.is_available():
            name = "mps"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name}: no such device") from None
    if device.type not in ("cpu", "cuda", "mps"):
        raise UserError(f"--device {name}: cpu, cuda, cuda:N or mps")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError(f"--device {name}: this machine has no Apple GPU; try --device cpu")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"--device {name}: no CUDA on this machine or in this PyTorch; try --device cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"--device {name}: there are {torch.cuda.device_count()} CUDA devices, counted from 0"
        )
    return device


def pick_dtype(name: str, device: torch.device) -> str:
    """`auto` is bfloat16 where the hardware multiplies it, else float32: elsewhere it would be slower."""
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    has = getattr(torch.cpu, "get_capabilities", dict)() if device.type == "cpu" else {}
    return "bfloat16" if has.get("avx512_bf16") or has.get("amx_bf16") else "float32"


def trim_memory() -> None:
    """Give freed memory back to the system. glibc keeps it, and since batches of ever different lengths
    rarely fit into what earlier ones have left, a long run on a CPU would grow to three times what it
    needs."""
    with contextlib.suppress(OSError, TypeError, AttributeError):  # other C libraries do without
        ctypes.CDLL(None).malloc_trim(0)
