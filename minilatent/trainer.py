"""One loop for every method: stages, validation, checkpoints, resume.

Nothing random has a state of its own: the order of an epoch is drawn from (seed, stage, epoch) and the
noise of a step from (seed, stage, step). So a checkpoint is weights, optimizer and a step number, and a
resumed run on a CPU is the uninterrupted one, bit for bit.
"""

import math
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from tqdm import tqdm

from . import checkpoint, parallel
from .config import UserError
from .files import is_still, to_json
from .machine import Moved, trim_memory
from .methods.method import Method, Stage
from .optim import learning_rate, make_optimizers, train_only

TIMED = 20  # steps, from which the time of the others is predicted
TRIM_EVERY = 20  # steps; trimming memory takes a quarter of a step's time


def batches(lengths: list[int], batch_size: int, seed: str) -> list[list[int]]:
    """One epoch of index lists in random order, equal lengths side by side so that little is padded:
    shuffle, sort inside pools of 50 batches, cut, shuffle the batches. The last batch may be short."""
    rng = random.Random(seed)
    order = rng.sample(range(len(lengths)), len(lengths))
    pool, by_length = 50 * batch_size, []
    for at in range(0, len(order), pool):
        by_length += sorted(order[at : at + pool], key=lambda i: lengths[i])
    epoch = [by_length[at : at + batch_size] for at in range(0, len(order), batch_size)]
    rng.shuffle(epoch)
    return epoch


class Trainer:
    def __init__(self, method: Method, folder: Path):
        self.config, self.method, self.folder = method.config, method, folder
        self.state = folder / "state"
        self.interrupted = False
        self.seconds = 0.0  # of all stages, validation included, over all sittings
        self.tokens = 0
        self.at = {"stage": 0, "step": 0, "best": -1.0}  # where to go on
        self.trained: dict = {}  # the stage's trained parameters
        self.optimizers: list = []
        self.norm: float | torch.Tensor = 0.0
        self.scaler = torch.amp.GradScaler(method.device.type, enabled=self.config.dtype == "float16")

    # ------------------------------------------------------------------ the run

    def fit(self, stages: list[Stage], val) -> None:
        """All stages in order, then the final model. KeyboardInterrupt after saving on Ctrl-C."""
        before = signal.signal(signal.SIGINT, self.on_interrupt)
        log = os.devnull if parallel.rank() else self.folder / "metrics.jsonl"  # the first process writes
        try:
            with open(log, "ab", buffering=0) as self.metrics:
                for index, stage in enumerate(stages):
                    self.best_file = self.state / f"best-{stage.name}.safetensors"
                    stage.before()
                    if index >= self.at["stage"]:
                        self.run_stage(index, stage, parallel.shard(val))
                    parallel.wait()
                    weights, _ = checkpoint.load_tensors(self.best_file)
                    checkpoint.load_own(self.method, weights, self.best_file)
                weights = checkpoint.own_state(self.method)
                self.write(self.folder / "model.safetensors", weights, {"method": self.config.method})
        finally:
            signal.signal(signal.SIGINT, before)
        parallel.wait()

    def run_stage(self, index: int, stage: Stage, val) -> None:
        config, method = self.config, self.method
        steps = min(stage.steps, config.max_steps) if config.max_steps else stage.steps
        every = config.eval_every or max(1, -(-steps // 4))
        self.trained = train_only(method, stage.trained)
        kind = stage.optimizer or config.optimizer
        self.optimizers = make_optimizers(self.trained, method, stage.lr, kind, config)
        if self.at["stage"] == index and self.at["step"] > 0:
            self.load_state()
        else:
            self.at = {"stage": index, "step": 0, "best": -1.0}
            if stage.judge_start:
                self.validate(stage, val, f"0/{steps}: ")
        start, epoch, order = self.at["step"], -1, []
        per_epoch = -(-len(stage.items) // config.batch_size)
        quiet = True if parallel.rank() else None  # None: shown on a terminal only
        bar = tqdm(total=steps, initial=start, desc=stage.name, disable=quiet, dynamic_ncols=True)
        method.train()
        before, began = self.seconds, time.perf_counter() - self.seconds
        for step in range(start, steps):
            if step // per_epoch != epoch:
                epoch = step // per_epoch
                order = batches(stage.lengths, config.batch_size, f"{config.seed} {index} {epoch}")
            chosen = [stage.items[i] for i in order[step % per_epoch]]
            lr = learning_rate(step, steps, stage.lr, config.warmup, stage.decay)
            logged = self.step(stage, index, step, chosen, lr)
            done, last = step + 1, step + 1 == steps
            due = last or any(done % n == 0 for n in (config.log_every, config.save_every, every))
            look = due or self.interrupted or method.device.type == "cpu"  # else a GPU would be waited for
            if look:
                logged = self.read(stage, logged)
            self.at["step"], self.seconds = done, time.perf_counter() - began
            bar.update()
            if look:
                shown = {"loss": f"{logged['loss']:.3f}", "tok/s": f"{self.tokens / self.seconds:.0f}"}
                bar.set_postfix(shown, refresh=False)
            if done - start == TIMED and not parallel.rank():  # of all that a step needs, the optimizer's too
                minutes = (self.seconds - before) / TIMED * (steps - done) / 60
                print(f"{stage.name}: {steps - done} steps to go, about {minutes:.1f} min")
            if done % TRIM_EVERY == 0 or done % every == 0:
                trim_memory()
            if done % config.log_every == 0 or last:
                self.log(stage, **logged)
            if done % every == 0 or last:
                self.validate(stage, val, f"{done}/{steps}: loss {logged['loss']:.3f}, ")
                method.train()
                self.seconds = time.perf_counter() - began
            stops = self.interrupted and look  # else it is unknown what would be saved
            if done % config.save_every == 0 or last or stops:
                self.save_state()
            if stops and not last:
                bar.close()
                print(f"stopped after step {done} of {stage.name}; --resume goes on from here")
                raise KeyboardInterrupt
        bar.close()

    def step(self, stage: Stage, index: int, step: int, chosen: list, lr: float) -> dict:
        """One update on the step's batches (of RL: rollouts), or --inner updates. Returns what to log."""
        config, method = self.config, self.method
        # Each process has its own noise for its own rows; the first has that of a single process. A hash of
        # numbers is the same everywhere.
        own = (parallel.rank(),) if parallel.rank() else ()
        noise = torch.Generator().manual_seed(hash((config.seed, index, step, *own)) % 2**63)
        torch.manual_seed(noise.initial_seed())  # dropout's
        make = stage.rollout or stage.collate
        parts, ready = max(1, min(config.accumulate, len(chosen))), []
        for part in range(parts):
            mine = parallel.shard(chosen[part::parts]) or chosen[:1]  # all processes take the same steps
            ready.append(Moved(make(mine, random.Random(f"{config.seed} {index} {step}")), method.device))
        for _ in range(stage.inner):
            logged: dict = {"tokens": 0.0}
            for batch in ready:
                with method.autocast():
                    loss, extra = stage.loss(batch, noise)
                self.scaler.scale(loss / parts).backward()
                for name, value in {"loss": loss.detach(), **extra}.items():
                    logged[name] = logged.get(name, 0.0) + value / parts
                for name in ("ids", "decoder_ids", "teacher_ids"):  # all passes but SIM-CoT's decoder
                    logged["tokens"] += batch[name].numel() if name in batch else 0
            self.update(lr)
            stop = {"stop": float(self.interrupted)}
            logged = parallel.average({**logged, **stop})  # all stop, or none
            self.tokens += round(logged.pop("tokens") * parallel.world())
            self.interrupted = logged.pop("stop") > 0
        return {**logged, "lr": lr, "grad_norm": self.norm}

    def update(self, lr: float) -> None:
        """One step of the optimizers."""
        parallel.average_gradients(self.trained.values())
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.trained.values(), self.config.clip or math.inf)
        self.norm = norm + 0 * self.norm  # once not finite, it stays so until it is read
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr
            self.scaler.step(optimizer)
            optimizer.zero_grad(set_to_none=True)
        self.scaler.update()

    def read(self, stage: Stage, logged: dict) -> dict[str, float]:
        """What a step logged, as numbers. UserError if its loss or a gradient since the last look is not
        finite."""
        logged, self.norm = {name: float(value) for name, value in logged.items()}, 0.0
        loss, norm = logged["loss"], logged["grad_norm"]
        # In float16 the scaler skips a step whose gradient is not finite by itself.
        if not math.isfinite(loss) or not (math.isfinite(norm) or self.scaler.is_enabled()):
            raise UserError(
                f"{stage.name}: the loss is {loss:.4g}, its gradient's norm {norm:.4g} at step "
                f"{self.at['step']}; the last good checkpoint is in {self.state}; try a lower --lr"
            )
        return logged

    def validate(self, stage: Stage, val, shown: str) -> None:
        """Validate, log, and keep the weights if they are the best so far (of equals the later). shown: what
        stands before the score where there is no bar."""
        scores = parallel.average(stage.validate(val), len(val))
        name, score = next(iter(scores.items()))
        self.log(stage, **{f"val_{key}": value for key, value in scores.items()})
        if not sys.stderr.isatty():  # there is no bar
            print(f"{stage.name} step {shown}validation {name} {score:.3f}", flush=True)
        if score >= self.at["best"]:
            self.at["best"] = score
            meta = {"step": self.at["step"], name: score}
            self.write(self.best_file, checkpoint.own_state(self.method), meta)

    def on_interrupt(self, *_):
        if self.interrupted:
            raise KeyboardInterrupt  # the second Ctrl-C does not wait
        self.interrupted = True
        os.write(2, b"\nstopping after this step; once more to stop at once\n")  # print() may be interrupted

    # ------------------------------------------------------------------ files

    def write(self, path: Path, tensors: dict, meta: dict) -> None:
        if parallel.rank() == 0:
            if not is_still(self.metrics, self.folder / "metrics.jsonl"):
                raise UserError(f"{self.folder} was moved or deleted while the run wrote to it")
            checkpoint.save_tensors(path, tensors, meta)

    def save_state(self) -> None:
        meta = {**self.at, "seconds": self.seconds, "tokens": self.tokens, "scaler": self.scaler.state_dict()}
        state = checkpoint.training_state(self.method, self.trained, self.optimizers)
        self.write(self.state / "resume.safetensors", state, meta)

    def load_state(self) -> None:
        path = self.state / "resume.safetensors"
        meta = checkpoint.load_training_state(path, self.method, self.trained, self.optimizers)
        if meta["scaler"]:
            self.scaler.load_state_dict(meta["scaler"])

    def resume(self) -> None:
        """Find out where to go on, and remove from metrics.jsonl what will be done again."""
        path = self.state / "resume.safetensors"
        if path.exists():  # else: killed before the first checkpoint, begin again
            meta = checkpoint.read_progress(path)
            self.at = {key: meta[key] for key in self.at}
            self.seconds, self.tokens = meta["seconds"], meta["tokens"]
        if parallel.rank() == 0:
            checkpoint.shorten_log(self.folder / "metrics.jsonl", self.at["stage"], self.at["step"])

    def log(self, stage: Stage, **values) -> None:
        place = {"stage": stage.name, "index": self.at["stage"], "step": self.at["step"]}
        entry = {**place, **values, "tokens": self.tokens, "seconds": round(self.seconds, 2)}
        self.metrics.write((to_json(entry) + "\n").encode())
