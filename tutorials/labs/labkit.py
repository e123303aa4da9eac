"""Shared by the tests of all labs: the module under test, and random numbers from one seed.

MINILATENT_LAB_MODULE   the file that is tested: "solution", "skeleton", or a path; default: the student's
                        labN.py
MINILATENT_LAB_SEED     the seed of all tests [0]; a teacher grades with another one
"""

import functools
import importlib.util
import os
import re
import types
from pathlib import Path

import torch
from torch import Tensor

SEED = int(os.environ.get("MINILATENT_LAB_SEED", "0"))
torch.set_num_threads(1)


def generator(salt: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(1_000_003 * SEED + salt)


def randn(*shape: int, salt: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Normal random numbers, in double precision by default: with a tolerance of 1e-9, a misplaced ε is
    seen."""
    return torch.randn(*shape, generator=generator(salt), dtype=torch.float64).to(dtype)


def close(actual: Tensor, expected: Tensor | float, tolerance: float = 1e-9) -> None:
    """Same shape, same dtype, same values, relative to the size of the expected ones."""
    if not isinstance(actual, Tensor):
        raise AssertionError(f"expected a tensor, got {type(actual).__name__}")
    if not isinstance(expected, Tensor):
        expected = torch.tensor(expected, dtype=actual.dtype)
    scale = max(1.0, expected.detach().abs().max().item()) if expected.numel() else 1.0
    values = f"expected {numbers(expected)}, got {numbers(actual)}. "
    told = lambda message: values + " ".join(re.findall("Mismatched.*|Greatest absolute.*", message))
    if actual.dtype != expected.dtype or actual.shape != expected.shape:
        told = None  # its own message names both
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * scale, msg=told)


def numbers(x: Tensor) -> str:
    """The first values of a tensor, for a message."""
    first = ", ".join(f"{v:.6g}" for v in x.detach().flatten()[:6].tolist())
    return f"[{first}{', ..' if x.numel() > 6 else ''}] of shape {tuple(x.shape)}" if x.dim() else first


def load(test_file: str, in_place: tuple[str, ...] = ()) -> "Checked":
    """The module that the tests in `test_file` test."""
    folder = Path(test_file).resolve().parent
    number = re.search(r"\d+", folder.name)[0]
    named = os.environ.get("MINILATENT_LAB_MODULE", f"lab{number}")
    if named == "none":  # the grader sets the module itself
        return Checked(types.ModuleType("none"), in_place)
    path = Path(named) if named.endswith(".py") else folder / f"{named}.py"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist: copy skeleton.py to lab{number}.py and write your answers there"
        )
    spec = importlib.util.spec_from_file_location(f"lab{number}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return Checked(module, in_place)


class Checked:
    """A module whose functions are watched: a call must leave its arguments and the global random state
    unchanged. `in_place` names the functions that are meant to change an argument."""

    def __init__(self, module: types.ModuleType, in_place: tuple[str, ...] = ()):
        self.module, self.in_place = module, in_place

    def __getattr__(self, name: str):
        function = getattr(self.module, name)
        if not callable(function) or isinstance(function, type):
            return function

        @functools.wraps(function)
        def call(*args, **kwargs):
            given = [*args, *kwargs.values()]
            before = snapshot(given)
            state = torch.get_rng_state()
            out = function(*args, **kwargs)
            if not torch.equal(torch.get_rng_state(), state):
                raise AssertionError(
                    f"{name} uses the global random state; use the generator that it is given"
                )
            if name not in self.in_place and not unchanged(given, before):
                raise AssertionError(f"{name} changes one of its arguments")
            if kind := foreign(out):
                raise AssertionError(f"{name} returns a {kind}; tests compare plain tensors and numbers")
            return out

        return call


def foreign(x) -> str | None:
    """A type in a result that could decide by itself what it is equal to: a subclass, or anything unknown."""
    if type(x) in (list, tuple, torch.Size) or type(x).__module__ == "torch.return_types":
        return next(filter(None, map(foreign, x)), None)
    if type(x) is dict:
        return foreign([*x.keys(), *x.values()])
    return None if type(x) in (Tensor, bool, int, float, str, type(None)) else type(x).__name__


def snapshot(x):
    """A copy of the tensors and plain values in lists, tuples, dicts and objects."""
    if isinstance(x, Tensor):
        return x.detach().clone()
    if isinstance(x, (list, tuple)):
        return [snapshot(y) for y in x]
    return {key: snapshot(y) for key, y in parts(x).items()} if parts(x) is not None else x


def parts(x) -> dict | None:
    """The entries of a dict, or the attributes of an object like lab 4's model; it may count its calls."""
    if isinstance(x, dict):
        return x
    return {k: y for k, y in vars(x).items() if k != "calls"} if hasattr(x, "__dict__") else None


def unchanged(x, old) -> bool:
    if isinstance(x, Tensor):
        return x.shape == old.shape and torch.equal(x.detach().nan_to_num(), old.nan_to_num())
    if isinstance(x, (list, tuple)):
        return len(x) == len(old) and all(map(unchanged, x, old))
    if (now := parts(x)) is not None:
        return now.keys() == old.keys() and all(unchanged(now[key], old[key]) for key in old)
    return x is old or bool(x == old)
