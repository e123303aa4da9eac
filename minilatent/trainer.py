"""One loop for every method: stages, validation, checkpoints, resume.

Nothing random has a state of its own: the order of an epoch is drawn from (seed, stage, epoch) and the noise of a
step from (seed, stage, step). So a checkpoint is weights, optimizer and a step number, and a resumed run on CPU
is the interrupted one, bit for bit.
"""

import contextlib
import ctypes
import json
import math
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from . import checkpoint, parallel
from .backbones.lora import frozen, load_own, own_state
from .config import Config, UserError
from .files import replace_file
from .methods.method import Method, Stage

TRIM_EVERY = 20  # steps; a trim takes a quarter of a step's time


def batches(lengths: list[int], batch_size: int, seed: str) -> list[list[int]]:
    """One epoch of index lists in random order, equal lengths side by side so that little is padded: shuffle,
    sort inside pools of 50 batches, cut, shuffle the batches. Every index occurs once; the last batch of the epoch
    may be short."""
    rng = random.Random(seed)
    order = rng.sample(range(len(lengths)), len(lengths))
    pool = 50 * batch_size
    order = [
        i
        for at in range(0, len(order), pool)
        for i in sorted(order[at : at + pool], key=lambda i: lengths[i])
    ]
    cut = [order[at : at + batch_size] for at in range(0, len(order), batch_size)]
    rng.shuffle(cut)
    return cut


def padding(lengths: list[int], cut: list[list[int]]) -> float:
    """The share of a padded epoch's tokens that is padding."""
    real = sum(lengths[i] for batch in cut for i in batch)
    return 1 - real / sum(len(batch) * max(lengths[i] for i in batch) for batch in cut)


def learning_rate(step: int, steps: int, peak: float, warmup: float, floor: float) -> float:
    """Linear warm-up over a share `warmup` of the steps, then a cosine down to peak · floor."""
    rise = max(1, round(warmup * steps))
    if step < rise:
        return peak * (step + 1) / rise
    fall = (step - rise) / max(1, steps - rise)
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * fall)))


def make_optimizers(
    named: dict[str, nn.Parameter], method: nn.Module, lr: float, kind: str, config: Config
) -> list:
    """AdamW for all parameters; or Muon (Jordan et al. 2024; torch's, with learning rates on AdamW's scale) for the matrices
    between the embeddings and the language head, and AdamW for the rest. Weight decay on matrices only."""
    ends = {
        id(m.weight)
        for n, m in method.named_modules()
        if isinstance(m, nn.Embedding) or n.endswith("model.head")
    }
    inner = [p for p in named.values() if p.dim() == 2 and id(p) not in ends] if kind == "muon" else []
    rest = [p for p in named.values() if not any(p is q for q in inner)]
    optimizers = [
        torch.optim.AdamW(
            [
                {"params": [p for p in rest if p.dim() >= 2], "weight_decay": config.weight_decay},
                {"params": [p for p in rest if p.dim() < 2], "weight_decay": 0.0},
            ],
            lr=lr,
            betas=(0.9, config.beta2),
            fused=True,
        )
    ]
    if inner:
        optimizers.append(
            torch.optim.Muon(inner, lr=lr, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw")
        )
    return optimizers


def trim_memory() -> None:
    """Give freed memory back to the system. glibc keeps it, and since batches of ever different lengths rarely fit into what the
    ones before have left, a long run on a CPU would grow to three times what it needs."""
    with contextlib.suppress(OSError, TypeError, AttributeError):  # other C libraries do without
        ctypes.CDLL(None).malloc_trim(0)


class Trainer:
    def __init__(self, config: Config, method: Method, folder: Path):
        self.config, self.method, self.folder = config, method, folder
        self.state = folder / "state"
        self.device = method.device
        self.interrupted = False
        self.seconds = 0.0  # of training, over all sittings
        self.tokens = 0
        self.at = {"stage": 0, "step": 0}  # where to go on
        self.metrics = None
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.dtype == "float16")

    # ------------------------------------------------------------------ the run

    def fit(self, train, val) -> None:
        """All stages in order, then the final model. KeyboardInterrupt after saving on Ctrl-C."""
        before = signal.signal(signal.SIGINT, self.on_interrupt)
        if parallel.world() > 1:
            signal.signal(signal.SIGTERM, self.on_terminate)
        try:  # of several processes the first writes
            with open(
                os.devnull if parallel.rank() else self.folder / "metrics.jsonl", "ab", buffering=0
            ) as self.metrics:
                for index, stage in enumerate(self.method.stages(train, val)):
                    if index >= self.at["stage"]:
                        self.run_stage(index, stage)
                    self.load_best(stage)
        finally:
            signal.signal(signal.SIGINT, before)
        self.write(self.folder / "model.safetensors", own_state(self.method), {"method": self.config.method})
        parallel.wait()

    def on_interrupt(self, *_):
        if self.interrupted:
            raise KeyboardInterrupt  # the second Ctrl-C does not wait
        self.interrupted = True
        os.write(
            2, b"\nstopping after this step; once more to stop at once\n"
        )  # print() may be what was interrupted

    def on_terminate(self, *_):
        raise UserError(
            f"stopped from outside, most likely because another process of this run has ended; {self.state} has the "
            "last checkpoint, --resume goes on from there"
        )

    def run_stage(self, index: int, stage: Stage) -> None:
        config, method = self.config, self.method
        steps = min(stage.steps, config.max_steps) if config.max_steps else stage.steps
        every = config.eval_every or max(1, -(-steps // 4))
        for p in method.parameters():
            p.requires_grad_(False)
        named, base = {}, frozen(method)  # the trained parameters; a tied head is there once
        for name, p in method.named_parameters():
            if name not in base and any(p is q for module in stage.trained for q in module.parameters()):
                named[name] = p.requires_grad_(True)
        optimizers = make_optimizers(named, method, stage.lr, stage.optimizer or config.optimizer, config)
        start, best = 0, -1.0
        if self.at["stage"] == index and self.at["step"] > 0:
            start, best = self.at["step"], self.at["best"]
            self.load_optimizers(optimizers, named)

        elif stage.judge_start:
            best = self.judge(index, stage, 0, best, {})
        method.train()
        epoch, cut = -1, []
        per_epoch = -(-len(stage.items) // config.batch_size)
        bar = tqdm(
            total=steps,
            initial=start,
            desc=stage.name,
            disable=True if parallel.rank() else None,
            dynamic_ncols=True,
        )
        clock, shown = time.perf_counter(), {}
        for step in range(start, steps):
            if step // per_epoch != epoch:
                epoch = step // per_epoch
                cut = batches(stage.lengths, config.batch_size, f"{config.seed} {index} {epoch}")
            chosen = [stage.items[i] for i in cut[step % per_epoch]]
            own = (
                (parallel.rank(),) if parallel.rank() else ()
            )  # each process has its own noise for its own rows
            noise = torch.Generator().manual_seed(
                hash((config.seed, index, step, *own)) % 2**63
            )  # of numbers: the same in every process
            torch.manual_seed(noise.initial_seed())  # dropout's
            lr = learning_rate(step, steps, stage.lr, config.warmup, config.min_lr)
            for group in (g for optimizer in optimizers for g in optimizer.param_groups):
                group["lr"] = lr

            parts = max(1, min(config.accumulate, len(chosen)))
            # Of an RL step this is the rollout. Each part remembers whether this process has rows in it.
            ready = [
                (
                    stage.collate(
                        parallel.take(chosen[part::parts]), random.Random(f"{config.seed} {index} {step}")
                    ),
                    parallel.idle,
                )
                for part in range(parts)
            ]
            for _ in range(stage.inner):
                logged: dict[str, float] = {"tokens": 0.0}
                for batch, idle in ready:
                    parallel.idle = idle  # read by the losses' means
                    batch = {name: t.to(self.device) for name, t in batch.items()}
                    with method.autocast():
                        loss, extra = stage.loss(batch, noise, step / steps)
                    self.scaler.scale(loss / parts).backward()
                    for name, value in {"loss": loss.item(), **extra}.items():
                        logged[name] = logged.get(name, 0.0) + float(value) / parts
                    logged["tokens"] += sum(
                        t.numel() for n, t in batch.items() if n in ("ids", "decoder_ids", "teacher_ids")
                    )  # all passes
                parallel.average_gradients(named.values())
                logged = parallel.average({**logged, "stop": float(self.interrupted)})  # all stop, or none
                self.tokens += round(logged.pop("tokens") * parallel.world())
                self.interrupted = logged.pop("stop") > 0
                for optimizer in optimizers:
                    self.scaler.unscale_(optimizer)
                norm = torch.nn.utils.clip_grad_norm_(named.values(), config.clip)
                # A finite loss may have a gradient that is not; in float16 the scaler skips such a step by itself.
                if not math.isfinite(logged["loss"]) or not (norm.isfinite() or self.scaler.is_enabled()):
                    raise UserError(
                        f"{stage.name}: the loss is {logged['loss']:.4g}, its gradient's norm {norm:.4g} at step {step}; "
                        f"the last good checkpoint is in {self.state}; try a lower --lr"
                    )
                for optimizer in optimizers:
                    self.scaler.step(optimizer)
                    optimizer.zero_grad(set_to_none=True)
                self.scaler.update()

            done, now = step + 1, time.perf_counter()
            self.seconds, clock = self.seconds + now - clock, now
            bar.update()
            bar.set_postfix(
                {"loss": f"{logged['loss']:.3f}", "tok/s": f"{self.tokens / self.seconds:.0f}", **shown},
                refresh=False,
            )
            if done % TRIM_EVERY == 0 or done % every == 0:
                trim_memory()
            if done % config.log_every == 0 or done == steps:
                self.log(index, stage, done, **logged, lr=lr, grad_norm=float(norm))
            if done % every == 0 or done == steps:
                best = self.judge(index, stage, done, best, shown)
                method.train()
                now = time.perf_counter()
                self.seconds, clock = self.seconds + now - clock, now
            if done % config.save_every == 0 or done == steps or self.interrupted:
                self.save(index, done, best, optimizers, named)
            if self.interrupted and done < steps:
                bar.close()
                if parallel.rank() == 0:
                    print(f"stopped after step {done} of {stage.name}; --resume goes on from here")
                raise KeyboardInterrupt
        bar.close()

    def judge(self, index: int, stage: Stage, step: int, best: float, shown: dict) -> float:
        """Validate, log, and keep the weights if they are the best so far; the best score. shown: for the bar"""
        scores = stage.validate()
        score = next(iter(scores.values()))
        shown["val"] = f"{score:.3f}"
        self.log(index, stage, step, **{f"val_{name}": value for name, value in scores.items()})
        if not sys.stderr.isatty() and parallel.rank() == 0:  # there is no bar to say so
            print(f"{stage.name} step {step}: validation {next(iter(scores))} {score:.3f}", flush=True)
        if score >= best:  # of equals the later one, which has seen more
            best = score
            self.write(
                self.best_file(stage), own_state(self.method), {"step": step, next(iter(scores)): best}
            )
        return best

    # ------------------------------------------------------------------ files

    def best_file(self, stage: Stage) -> Path:
        return self.state / f"best-{stage.name}.safetensors"

    def write(self, path: Path, tensors: dict, meta: dict) -> None:
        if parallel.rank() == 0:
            checkpoint.save_tensors(path, tensors, meta)

    def load_best(self, stage: Stage) -> None:
        parallel.wait()
        tensors, _ = checkpoint.load_tensors(self.best_file(stage))
        load_own(self.method, tensors, self.best_file(stage))

    def save(self, stage: int, step: int, best: float, optimizers, named) -> None:
        """Weights, the optimizers' momenta, and where we are, in one file: no crash can leave half of it."""
        tensors = {f"method.{n}": t for n, t in own_state(self.method).items()}
        for name, p in named.items():
            for key, value in next(
                (o.state[p] for o in optimizers if p in o.state), {}
            ).items():  # {}: it had no gradient yet
                tensors[f"optimizer.{key}.{name}"] = value
        self.write(
            self.state / "resume.safetensors",
            tensors,
            {
                "stage": stage,
                "step": step,
                "best": best,
                "seconds": self.seconds,
                "tokens": self.tokens,
                "scaler": self.scaler.state_dict(),
            },
        )

    def load_optimizers(self, optimizers, named) -> None:
        tensors, meta = checkpoint.load_tensors(self.state / "resume.safetensors")
        weights = {n[len("method.") :]: t for n, t in tensors.items() if n.startswith("method.")}
        load_own(self.method, weights, self.state / "resume.safetensors")
        owner = {p: o for o in optimizers for group in o.param_groups for p in group["params"]}
        for full in (n for n in tensors if n.startswith("optimizer.")):
            _, key, name = full.split(".", 2)
            p = named[name]  # AdamW counts its steps on the CPU, unless its kernel is CUDA's
            owner[p].state[p][key] = tensors[full].to("cpu" if key == "step" and not p.is_cuda else p.device)
        if meta["scaler"]:
            self.scaler.load_state_dict(meta["scaler"])

    def resume(self) -> None:
        """Find out where to go on, and cut from metrics.jsonl what will be done again."""
        path, metrics = self.state / "resume.safetensors", self.folder / "metrics.jsonl"
        if path.exists():  # else: killed before the first checkpoint, begin again
            _, self.at = checkpoint.load_tensors(path)
            self.seconds, self.tokens = self.at["seconds"], self.at["tokens"]
        if parallel.rank():
            return
        lines = []
        for line in metrics.read_text().splitlines() if metrics.exists() else []:
            with contextlib.suppress(ValueError):  # the last line may be half written
                entry = json.loads(line)
                if self.at["step"] and (entry["index"], entry["step"]) <= (self.at["stage"], self.at["step"]):
                    lines.append(line + "\n")
        replace_file(metrics, lambda p: p.write_text("".join(lines)))

    def log(self, index: int, stage: Stage, step: int, **values) -> None:
        entry = {
            "stage": stage.name,
            "index": index,
            "step": step,
            **values,
            "tokens": self.tokens,
            "seconds": round(self.seconds, 2),
        }
        try:
            self.metrics.write((json.dumps(entry) + "\n").encode())
        except OSError as error:
            raise UserError(
                f"cannot write {self.folder / 'metrics.jsonl'}: {error.strerror}; the last good checkpoint is in {self.state}, "
                "--resume goes on from there"
            ) from None
