"""How much a run may compute: FLOPs, counted and not estimated, and the optimizer steps that they pay for.

    FLOPs of a run = sum over stages of (what happens when the stage starts + steps · FLOPs of one step)

A step is the forward and backward pass of a batch of median length, of RL with the rollout, counted by
PyTorch's FlopCounterMode; where it draws something (CoLaR its factor), the mean over some draws. When stage 2
of Latent-SFT starts, the training set is labelled. Counted are matrix products (2 FLOPs a multiply-add),
attention in full. Validation and the optimizer (Muon: a tenth) are not.
"""

import bisect
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from minilatent import tasks
from minilatent.batch import Row, encode
from minilatent.config import UserError
from minilatent.machine import pick_dtype
from minilatent.methods import METHODS, Method, Stage, build
from minilatent.optim import train_only
from minilatent.run import initial_model, resolve
from minilatent.tools.benchmark import seconds

SAMPLE = 512  # training examples that costs are measured on
DRAWS = 8  # of a step that samples something (CoLaR its factor, RL its chains)


@dataclass
class Cost:
    """One step of each stage, by its name, and what is done once."""

    flops: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)  # on this machine
    once: float = 0.0  # FLOPs when stages start
    wait: float = 0.0  # the seconds that these take

    def of(self, steps: dict[str, int]) -> float:
        """FLOPs of a run with this number of steps of each stage."""
        return self.once + sum(self.flops[name] * n for name, n in steps.items())

    def time(self, steps: dict[str, int]) -> float:
        return self.wait + sum(self.seconds[name] * n for name, n in steps.items())


def counted(work: Callable, *args) -> float:
    """The FLOPs of work(*args). Attention as plain products: a fused kernel's are not counted everywhere."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work(*args)
    return float(counter.get_total_flops())


def one_step(method: Method, stage: Stage) -> Callable[[int], None]:
    """A step of the stage on a batch of median length, as the trainer does it, without the update."""
    train_only(method, stage.trained)  # a frozen matrix costs no gradient of its own
    order, size = sorted(range(len(stage.items)), key=stage.lengths.__getitem__), method.config.batch_size
    start, make = max(0, (len(order) - size) // 2), stage.rollout or stage.collate
    items = [stage.items[i] for i in order[start : start + size]]

    def step(seed: int) -> None:
        batch = {name: t.to(method.device) for name, t in make(items, random.Random(seed)).items()}
        for _ in range(stage.inner):
            with method.autocast():
                loss, _ = stage.loss(batch, torch.Generator().manual_seed(seed))
            loss.backward()
        method.zero_grad(set_to_none=True)

    return step


def measure(method: Method, rows: list[Row]) -> Cost:
    """Count and time one step of each stage of an untrained run; what is done once is scaled to all rows."""
    cost, scale = Cost(), method.config.train_size / len(rows)
    for stage in method.stages(rows):
        began = time.perf_counter()
        cost.once += scale * counted(stage.before)
        cost.wait += scale * (time.perf_counter() - began)
        method.train()
        step = one_step(method, stage)
        flops = [counted(step, seed) for seed in (0, 1)]
        if flops[0] != flops[1]:  # the step samples something
            flops += [counted(step, seed) for seed in range(2, DRAWS)]
        cost.flops[stage.name] = sum(flops) / len(flops)
        cost.seconds[stage.name] = seconds(step, 0)
    return cost


def untrained(given: dict, device: torch.device) -> tuple[Method, list[Row]]:
    """A run with these settings before its first step, and a sample of its training rows."""
    config = resolve(given)
    config.dtype = pick_dtype(config.dtype, device)
    model, tok, settings, beside = initial_model(config)
    METHODS[config.method].inherit(config, settings)
    method = build(config, tok, model)
    drawn = {"seed": config.seed, "chain_style": config.chain_style, "chain_order": config.chain_order}
    examples = tasks.load(config.data, "train", limit=min(SAMPLE, config.train_size), **drawn)
    rows, _ = encode([e for e in examples if e.steps], tok, model.config.context)
    method.adopt(beside, settings)
    return method.to(device), rows


def stage_steps(method: Method, rows: list[Row], steps: int) -> dict[str, int]:
    """Steps of every stage when the main one's setting is `steps`; curricula divide them."""
    method.config.steps = steps
    return {stage.name: stage.steps for stage in method.stages(rows)}


def affordable(method: Method, rows: list[Row], cost: Cost, budget: float) -> int:
    """The most `steps` whose run costs no more than the budget (FLOPs). UserError if even one costs more."""
    spent = lambda steps: cost.of(stage_steps(method, rows, steps))
    steps = bisect.bisect_right(range(1, 10**7), budget, key=spent)
    if not steps:
        raise UserError(f"{method.config.method}: {budget:.2e} FLOPs are not enough for one step")
    return steps
