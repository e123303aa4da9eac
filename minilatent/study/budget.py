"""How much a run may compute: FLOPs counted, not estimated, and the optimizer steps that they are enough for.

    FLOPs of a run = sum over stages of (steps · FLOPs of one step) + what happens between the stages

A step is the forward and backward pass of one batch of median length, counted by PyTorch's FlopCounterMode, of an RL step
the rollout too. Between the stages Latent-SFT labels its training set. Counted are matrix products (2 FLOPs for a multiplication
and an addition), attention in full and not half of it for being causal. Validation is not counted.
"""

import contextlib
import itertools
import platform
import random
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from .. import tasks
from ..batch import Row, encode
from ..config import UserError, resolve
from ..methods import METHODS
from ..methods.grpo import GRPO
from ..methods.method import Method, Stage
from ..run import initial_model, pick_dtype

SAMPLE = 512  # training examples that costs are measured on
DRAWS = 8


@dataclass
class Cost:
    """One step of each stage, by its name; and what is done once."""

    flops: dict[str, float]
    seconds: dict[str, float]  # of one step on this machine
    once: float  # FLOPs between the stages

    def of(self, steps: dict[str, int]) -> float:
        """FLOPs of a run with so many steps of each stage."""
        return self.once + sum(self.flops[name] * n for name, n in steps.items())

    def time(self, steps: dict[str, int]) -> float:
        return sum(self.seconds[name] * n for name, n in steps.items())


def counted(work) -> float:
    """The FLOPs of work(). Attention as plain matrix products: a fused kernel's are not counted on every device."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())


def step_work(method: Method, stage: Stage, batch_size: int):
    """What one optimizer step of the stage computes, on its `batch_size` items of median length, as the trainer does it."""
    for p in method.parameters():
        p.requires_grad_(False)  # a frozen matrix costs no gradient of its own
    for module in stage.trained:
        module.requires_grad_(True)
    order = sorted(range(len(stage.items)), key=lambda i: stage.lengths[i])
    start = max(0, (len(order) - batch_size) // 2)
    items = [stage.items[i] for i in order[start : start + batch_size]]

    def work(draw: int) -> None:
        batch = {name: t.to(method.device) for name, t in stage.collate(items, random.Random(draw)).items()}
        for _ in range(stage.inner):
            with method.autocast():
                loss, _ = stage.loss(batch, torch.Generator().manual_seed(draw), 0.0)
            loss.backward()
        method.zero_grad(set_to_none=True)

    return work


def measure(method: Method, rows: list[Row], train_size: int) -> Cost:
    """Count and time one step of every stage of an untrained run; what is done between the stages is scaled from these
    rows to `train_size`. A step that draws (CoLaR its factor, RL its samples) is averaged over draws."""
    cost, stages = Cost({}, {}, 0.0), method.stages(rows, [])
    method.train()
    while True:
        found: list[Stage] = []
        cost.once += counted(lambda: found.extend(itertools.islice(stages, 1))) * train_size / len(rows)
        if not found:
            return cost
        work = step_work(method, found[0], method.config.batch_size)
        flops = [counted(lambda: work(draw)) for draw in (0, 1)]
        if flops[0] != flops[1]:
            flops += [counted(lambda: work(draw)) for draw in range(2, DRAWS)]
        start = time.perf_counter()
        work(0)
        if method.device.type == "cuda":
            torch.cuda.synchronize()
        cost.flops[found[0].name], cost.seconds[found[0].name] = (
            sum(flops) / len(flops),
            time.perf_counter() - start,
        )


def untrained(given: dict, device: torch.device) -> tuple[Method, list[Row]]:
    """A run with these settings before its first step, and a sample of its training rows."""
    config = resolve(given)
    config.dtype = pick_dtype(config.dtype, device)
    model, tok, settings, beside = initial_model(config)
    METHODS[config.method].inherit(config, settings)
    method = METHODS[config.method](config, tok, model)
    examples = tasks.load(config.data, "train", limit=min(SAMPLE, config.train_size), seed=config.seed)
    rows, _ = encode([e for e in examples if e.steps], tok, model.config.context, "skip")
    if isinstance(method, GRPO) and not config.init:
        # What it starts from is not trained yet: its chains would never end, and no answer be right. They are given the length that they
        # will have, and every group an advantage.
        config.max_chain = -(-sorted(len(r.chain) for r in rows)[len(rows) // 2] // method.ratio)
        judge = method.judge
        method.judge = lambda batch, rewards: judge(
            {**batch, "whole": torch.ones_like(batch["whole"])},
            torch.arange(rewards.numel(), device=rewards.device).view_as(rewards) % 2.0,
        )
    else:
        method.adopt(beside, settings)
    return method.to(device), rows


def stage_steps(method: Method, rows: list[Row], steps: int) -> dict[str, int]:
    """Steps of every stage when the main one's setting is `steps`; curricula divide them in proportion."""
    method.config.steps = steps
    return {name: n for name, n, *_ in method.plan(rows)}


def affordable(method: Method, rows: list[Row], cost: Cost, budget: float) -> int:
    """The most `steps` whose run costs no more than the budget (FLOPs). UserError if not even one step does."""
    fits = lambda steps: cost.of(stage_steps(method, rows, steps)) <= budget
    if not fits(1):
        raise UserError(
            f"{method.config.method}: the budget of {budget:.2e} FLOPs is not enough for one step of its main stage; "
            f"what comes before it takes {cost.of(stage_steps(method, rows, 1)):.2e}"
        )
    low, high = 1, 2
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def machine(device: torch.device) -> dict:
    """What seconds were measured on, and with which code."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        name = (
            next(line for line in open("/proc/cpuinfo") if line.startswith("model name"))
            .split(":")[1]
            .strip()
        )
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    commit = ""
    with contextlib.suppress(OSError):  # git may not be there
        git = lambda *words: subprocess.run(
            ["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True
        ).stdout.strip()
        commit = git("rev-parse", "--short", "HEAD")
        commit += "+" if commit and git("status", "--porcelain", "-uno", "--", "*.py") else ""  # with changes
    return {
        "hardware": name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "commit": commit,
    }
