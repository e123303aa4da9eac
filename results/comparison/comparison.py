"""The comparison: all entries trained with the same compute, from the same base unless their name says so.

    python -m results.comparison --plan              print what would be done, and how long it takes
    python -m results.comparison --trials [--plan]   first: tune the learning rates, on validation
    python -m results.comparison [--seeds 0 1 2] [--rows cot_sft latent_sft_2]

Every entry gets the FLOPs of the main job, Latent-SFT(2), times --budget (see budget.py): its main stage runs
for as many steps as these pay for, on as many different examples as it draws, up to EXAMPLES. (Latent-SFT has
to label its examples; it keeps to the preset's number.) Where an entry has only a part of the FLOPs (--budget
below 1, or RL follows), stage 1 of Latent-SFT shrinks with it. Entries are done one by one: Ctrl-C stops, the
same command continues. table.md, verdicts.md and the figures are made from rows.jsonl and curves/. Several
processes may share one --out, each with --rows of its own (and --threads 1, or on one GPU); what two of them
start from is to be trained first.

--plateau 4: a main entry whose last quarter of training still gained a point or more on validation is trained
again, from its start, with twice the compute, and if need be with four times. Its rows end with @2 and @4.
--rows no_cot@3: with three times the compute, whether it rose or not.

--data and --base: the same on other data that train.py knows, from a CoT-SFT run on them. Rows are judged on
the test split of these data alone, and there are no verdicts.

--trials trains each method with its learning rate times each of TRIED, for half of its main stage's steps,
one seed. Once trials.jsonl has all of a method, its entries get the best.
"""

import contextlib
import sys
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from filelock import FileLock
from tqdm import tqdm

from minilatent import tasks
from minilatent.config import Config, Parser, UserError, add_fields, nearest, wrapped
from minilatent.files import one_writer, read_json, write_json
from minilatent.machine import pick_device, use_threads
from minilatent.run import BASE, load_run, resolve, train
from minilatent.study.evaluation import evaluate, training_tokens
from minilatent.study.interventions import INTERVENTIONS, applies, intervene
from minilatent.tools.benchmark import machine

from . import budget
from .entries import ENTRIES, ROWS, Entry, Variant
from .figures import draw
from .records import add_line, curve, last_gain, read_lines, write_text
from .verdicts import COLUMNS, PLATEAU, table_text, verdicts_text

RUNS = Path("out/comparison")
REFERENCE = {"method": "latent_sft", "ratio": 2}  # the budget is the compute of this run, the main job
START = {"method": "cot_sft", "preset": "base"}  # mini-base's
EXAMPLES = 330_000  # different ones in a run, at most
TRIED, TRIAL_SHARE = (1 / 3, 1.0, 3.0), 0.5  # times the method's learning rate; of the main stage's steps


def entry_named(name: str) -> Entry:
    """By its own name or one of its rows'; NAME@3: with three times the compute."""
    name, at, times = name.partition("@")
    known = {row: entry for row, (entry, _) in ROWS.items()} | {entry.name: entry for entry in ENTRIES}
    if name not in known:
        raise UserError(f"unknown row '{name}'{nearest(name, known)}")
    if at and not (times.isdecimal() and int(times) > 1):
        raise UserError(f"'{name}@{times}': a number above 1 must follow the @")
    return known[name].longer(int(times)) if at else known[name]


# ------------------------------------------------------------------ trials


def tuned_as(entry: Entry) -> str:
    """Entries of one method and start share a learning rate: an ablation changes one thing."""
    loss = "_nll" if entry.train.get("latent_loss") == "nll" else ""
    start = "_scratch" if entry.train.get("init") == "none" else ""
    return entry.train["method"] + loss + start


def trials_of(entry: Entry) -> list[Entry]:
    """The trials of an entry's method: its last main entry in the budget, with each learning rate."""
    alike = [other for other in ENTRIES if other.train and tuned_as(other) == tuned_as(entry)]
    chosen = ([other for other in alike if other.main and other.share <= 1] or alike)[-1]
    found = []
    for factor in TRIED:
        lr = float(f"{factor * resolve(chosen.train).lr:.6g}")
        name, settings = f"{chosen.name}-lr{lr:g}", {**chosen.train, "lr": lr}
        found.append(replace(chosen, name=name, train=settings, trial=True))
    return found


# ------------------------------------------------------------------ the comparison


@dataclass
class Plan:
    settings: dict  # for train()
    stages: dict[str, int]  # optimizer steps
    flops: float = 0.0
    seconds: float = 0.0  # of training, roughly
    cost: budget.Cost = field(default_factory=budget.Cost)


@dataclass
class Comparison:
    """What all entries share. An entry and a seed are one run."""

    out: Path
    budget: float = 1.0  # times the FLOPs of REFERENCE
    limit: int = 1334  # test questions of each data set
    device: str = "auto"
    dtype: str = "float32"
    threads: int = 0
    data: str = "mini"
    base: Path = BASE  # a CoT-SFT run on the data

    def __post_init__(self):
        self.rows, self.trials = self.out / "rows.jsonl", self.out / "trials.jsonl"
        self.on_mini = self.data == "mini"
        self.sets = COLUMNS if self.on_mini else (self.data,)

    def place(self, entry: Entry, seed: int) -> Path:
        """What stands for the entry and seed where processes share them: one at a time works on each."""
        part = "" if self.budget == 1 else f"-budget{self.budget:g}"
        world = "" if self.on_mini else f"{self.data}-"
        return RUNS / f"{world}{entry.name}{entry.again}-seed{seed}{part}"

    def folder(self, entry: Entry, seed: int) -> Path:
        return self.place(entry, seed) if entry.train else self.base

    def is_trained(self, entry: Entry, seed: int) -> bool:
        return (self.folder(entry, seed) / "model.safetensors").exists()

    def missing(self, entry: Entry, variant: Variant, seed: int, lines: list[dict]) -> list[str]:
        """The data sets of a row that are not among the lines of rows.jsonl yet."""
        have = {l["data"] for l in lines if (l["row"], l["seed"]) == (entry.row(variant), seed)}
        return [name for name in self.sets if name not in have]

    def due(self, chosen: list[Entry], seeds: list[int], most_times: int) -> list[tuple[Entry, int]]:
        """The runs to do now, seed by seed, so that one whole table comes first. An entry that is done and
        still rose is due with twice the compute, up to `most_times` as much."""
        lines, found = read_lines(self.rows), []
        gains = {(line["row"], line["seed"]): line["gain"] for line in lines}
        for number, seed in enumerate(seeds):
            for entry in chosen:
                if not entry.train:  # the base is one model, whatever the seed
                    if number or not any(self.missing(entry, v, 0, lines) for v in entry.variants):
                        continue
                    found.append((entry, 0))
                    continue
                while not any(self.missing(entry, variant, seed, lines) for variant in entry.variants):
                    rises = max(gains[entry.row(variant), seed] for variant in entry.variants) >= PLATEAU
                    if not (rises and entry.main and 2 * entry.times <= most_times):
                        break
                    entry = entry.longer()
                else:
                    found.append((entry, seed))
        return found

    # -------------------------------------------------------------- the plan

    def best_lr(self, entry: Entry) -> float | None:
        """The learning rate that was best on validation, once all trials of the method are done."""
        if entry.trial or not entry.train:
            return None
        done = [t for t in read_lines(self.trials) if t["method"] == tuned_as(entry)]
        score = {t["lr"]: t["val_accuracy"] for t in done}
        tried = [trial.train["lr"] for trial in trials_of(entry)]
        return max(tried, key=score.get) if set(tried) <= set(score) else None

    def settings(self, entry: Entry, seed: int) -> dict:
        """The settings of the run, except for the steps of its main stage."""
        given = {"val_size": 1000, **self.common, **entry.train}  # a plateau is a matter of one point
        given |= {"seed": seed, "out": str(self.folder(entry, seed)), "test_size": 16}
        if lr := self.best_lr(entry):
            given["lr"] = lr
        if entry.after:
            given["init"] = str(self.folder(entry_named(entry.after), seed))
        scale = entry.share * self.budget
        if given["method"] == "latent_sft" and scale < 1:  # a smaller copy of the whole recipe
            steps = [max(1, round(int(s) * scale)) for s in resolve(given).stage1_steps.split(",")]
            given["stage1_steps"] = ",".join(map(str, steps))
        return given

    @property
    def common(self) -> dict:
        """The settings of all runs: the machine, and what data and base; on mini these are the defaults."""
        start = {} if self.on_mini else {"data": self.data, "init": str(self.base)}
        return start | {"device": self.device, "dtype": self.dtype, "threads": self.threads}

    def flops(self, given: dict) -> float:
        """Of a run with these settings."""
        method, rows = budget.untrained(given, pick_device(self.device))
        return budget.measure(method, rows).of(budget.stage_steps(method, rows, resolve(given).steps))

    @cached_property
    def total(self) -> float:
        """FLOPs of a whole entry."""
        return self.budget * self.flops({**self.common, **REFERENCE})

    @cached_property
    def of_base(self) -> float:
        of_it = START if self.on_mini else read_json(self.base / "config.json")["config"]
        return self.budget * self.flops({**of_it, "dtype": self.dtype})

    def paid(self, entry: Entry) -> float:
        """The FLOPs of its run."""
        return entry.share * self.total + (entry.times * self.of_base if entry.with_base else 0.0)

    def plan(self, entry: Entry, seed: int) -> Plan:
        if not entry.train:
            return Plan({}, {})
        if entry.after and not self.is_trained(start := entry_named(entry.after), seed):
            # What a step of RL costs depends on its start. Until that is trained: as fast as the start.
            seconds = self.plan(start, seed).seconds * entry.share / start.share
            return Plan({}, {}, self.paid(entry), seconds)
        given = self.settings(entry, seed)
        method, rows = budget.untrained(given, pick_device(self.device))
        cost = budget.measure(method, rows)
        steps = budget.affordable(method, rows, cost, self.paid(entry))
        if entry.trial:  # what comes before the main stage is not shortened
            steps = max(1, round(TRIAL_SHARE * steps))
        given["steps"] = steps
        if given["method"] != "latent_sft":
            given.setdefault("train_size", min(EXAMPLES, steps * method.config.batch_size))
        stages = budget.stage_steps(method, rows, steps)
        return Plan(given, stages, cost.of(stages), cost.time(stages), cost)

    def print_plan(self, todo: list[tuple[Entry, int]]) -> None:
        print(f"{self.total:.3e} training FLOPs for each row. To do: {len(todo)} runs.\n")
        seconds, plans = 0.0, {}
        for entry, seed in todo:
            key = entry.name + entry.again
            if key not in plans:  # seeds cost the same
                plans[key] = self.plan(entry, seed)
            plan = plans[key]
            stages = ", ".join(f"{name} {n}" for name, n in plan.stages.items())
            stages = stages or (f"after {entry.after}" if entry.after else "no training")
            lr = f"  lr {resolve(plan.settings).lr:g}" if plan.settings else ""
            best = " (best of its trials)" if self.best_lr(entry) else ""
            cost = f"{plan.flops:.3e} FLOPs  {plan.seconds / 60:5.1f} min"
            print(wrapped(f"{key:24s} seed {seed}  {cost}  {stages}{lr}{best}", 26), flush=True)
            seconds += plan.seconds
        print(f"\nabout {seconds / 3600:.1f} hours of training at the speed just measured; labelling and")
        print("evaluation come on top, on a CPU about half as much again")

    # -------------------------------------------------------------- a run

    def train(self, entry: Entry, seed: int) -> Path:
        """The finished run: trained if need be, resumed if it was interrupted, with a log beside it."""
        folder = self.folder(entry, seed)
        if not entry.train:
            return folder
        if self.is_trained(entry, seed):
            used, best = read_json(folder.with_name(folder.name + ".json"))["lr"], self.best_lr(entry)
            if best and used != best:
                held = f"{folder} was trained at lr {used:g}, but the best of its trials is {best:g}"
                raise UserError(f"{held}: move it away, and take its lines out of rows.jsonl")
            return folder
        if entry.after:
            self.train(entry_named(entry.after), seed)
        if (folder / "config.json").exists():
            settings = {"method": entry.train["method"], "out": str(folder), "resume": True}
            settings |= {"device": self.device, "threads": self.threads}
        else:
            plan = self.plan(entry, seed)
            settings, kept = plan.settings, {"stages": plan.stages, "flops": plan.flops}
            kept |= {"step_flops": plan.cost.flops, "once": plan.cost.once}
            write_json(folder.with_name(folder.name + ".json"), kept | {"lr": resolve(settings).lr})
        with open(f"{folder}.log", "a", encoding="utf-8") as log, contextlib.redirect_stdout(log):
            train(settings)
        return folder

    def facts(self, entry: Entry, seed: int) -> dict:
        """What metrics.jsonl and plan of the run and of its start say. Its curve goes into the results."""
        facts = {"train_seconds": 0.0, "train_tokens": 0, "flops": 0.0, "stages": {}}
        if not entry.train:
            return facts | {"flops": self.of_base, "lr": 0.0, "val_accuracy": 0.0, "gain": 0.0}
        if entry.after:
            facts = self.facts(entry_named(entry.after), seed)
        folder = self.folder(entry, seed)
        log, plan = read_lines(folder / "metrics.jsonl"), read_json(folder.with_name(folder.name + ".json"))
        write_json(
            self.out / "curves" / f"{entry.name}{entry.again}-seed{seed}.json",
            curve(log, plan, facts["flops"]),
        )
        best, gain = last_gain(log)
        stages = {**facts["stages"], **plan["stages"]}
        return {
            "train_seconds": facts["train_seconds"] + log[-1]["seconds"],
            "train_tokens": facts["train_tokens"] + log[-1]["tokens"],
            "flops": facts["flops"] + plan["flops"],
            "stages": {n: plan["stages"].get(n, 0) + facts["stages"].get(n, 0) for n in stages},
            "lr": plan["lr"],
            "val_accuracy": best,
            "gain": gain,
        }

    def add_trial(self, entry: Entry, seed: int) -> None:
        if entry.name in {trial["row"] for trial in read_lines(self.trials)}:
            return  # another process was faster
        self.train(entry, seed)
        line = {"method": tuned_as(entry), "row": entry.name, "seed": seed}
        line |= {"budget": self.budget, "dtype": self.dtype}
        facts = self.facts(entry, seed) | machine(pick_device(self.device))
        add_line(self.trials, line | facts)

    def add_rows(self, entry: Entry, seed: int) -> None:
        """Train the entry if need be, evaluate it, and add its lines, one by one."""
        folder, device = self.train(entry, seed), pick_device(self.device)
        facts = self.facts(entry, seed) | machine(device)
        for variant in entry.variants:
            if names := self.missing(entry, variant, seed, read_lines(self.rows)):
                method = load_run(folder, device)
                if variant.speed:
                    method.config.speed = variant.speed
                frequent = training_tokens(method)
            group = "longer" if entry.times > 1 else "main" if entry.main else "ablation"
            named = entry.train or self.on_mini
            shown = {"title": entry.title_of(variant) if named else self.base.name, "group": group}
            line = {"row": entry.row(variant), "run": entry.name, **shown, "seed": seed}
            line |= {"budget": self.budget, "limit": self.limit, "dtype": self.dtype}
            for name in names:
                found = self.judge(method, name, frequent, intervened=entry.times == 1)
                add_line(self.rows, line | facts | found)

    def judge(self, method, name: str, frequent, intervened: bool) -> dict:
        examples = tasks.load(name, "test", limit=self.limit, chain_style=method.config.chain_style)
        found = evaluate(method, examples, name, frequent=frequent, per_question=True)
        if intervened and method.thinker() is not None:
            names = [n for n in INTERVENTIONS if n != "keep" and applies(n, method)]
            names = names if name == self.sets[0] else ["swap"]  # all of them on one data set only
            found["interventions"] = intervene(method, examples, names, per_question=True)
        return found

    # -------------------------------------------------------------- all of them

    def run(self, todo: list[tuple[Entry, int]], add) -> None:
        for entry, seed in (bar := tqdm(todo, unit="run", dynamic_ncols=True)):
            bar.set_postfix_str(f"{entry.name}{entry.again} seed {seed}")
            with one_writer(self.place(entry, seed)):
                add(entry, seed)
            self.write_results()
        print(f"{len(todo)} runs done; see {self.out}", file=sys.stderr)

    def write_results(self) -> None:
        """table.md and, of mini, verdicts.md and the figures, from rows.jsonl alone."""
        if not self.rows.exists():
            return
        order = {row: i for i, row in enumerate(ROWS)}
        with FileLock(self.out / ".lock"):
            lines = sorted(read_lines(self.rows), key=lambda l: order.get(l["row"], len(order)))
            write_text(self.out / "table.md", table_text(lines, self.sets))
            if self.on_mini:
                write_text(self.out / "verdicts.md", verdicts_text(lines))
                draw(lines, self.out)

    def check_mixing(self, chosen: list[Entry]) -> None:
        """UserError if --out holds what cannot be compared with what would be added."""
        lines, trials = read_lines(self.rows), read_lines(self.trials)
        both = [*lines, *trials]
        for option, held in (("budget", both), ("dtype", both), ("limit", lines)):
            for other in {line[option] for line in held} - {getattr(self, option)}:
                raise UserError(f"{self.out} holds --{option} {other}: give that, or another --out")
        for other in {line["data"] for line in lines} - set(self.sets):
            raise UserError(f"{self.out} holds rows judged on {other}: give another --out")
        for entry in chosen:
            best = self.best_lr(entry)
            used = {line["lr"] for line in lines if best and line["run"] == entry.name}
            for lr in used - {best}:
                held = f"{self.out} holds {entry.name} trained at lr {lr:g}"
                way_out = "take its lines out of rows.jsonl and move its run away"
                raise UserError(f"{held}, but the best of its trials is {best:g}: {way_out}")


def main(argv: list[str]) -> None:
    parser = Parser(prog="python -m results.comparison", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--rows", nargs="+", metavar="NAME", help="entries to train and evaluate [all]")
    add("--seeds", nargs="+", type=int, metavar="int", default=[0], help="seeds of each entry [0]")
    add("--data", default="mini", help="data to train and judge on, as train.py's [mini]")
    add("--base", metavar="FOLDER", help="a CoT-SFT run on these data, to start from [mini-base]")
    add("--out", metavar="DIR", help="folder of the results [results/DATA]")
    add("--budget", type=float, metavar="float", default=1.0, help="times the main job's FLOPs [1]")
    add("--plateau", type=int, metavar="int", default=1, help="train up to so many times as long [1]")
    add("--limit", type=int, metavar="int", default=1334, help="test questions of each data set [1334]")
    add("--plan", action="store_true", help="print the plan and an estimate of the time, and stop")
    add("--trials", action="store_true", help="tune the learning rates of the entries' methods")
    add("--figures", action="store_true", help="write tables and figures from rows.jsonl, and stop")
    add_fields(parser, Config, only=("device", "dtype", "threads"))
    parser.set_defaults(device="auto", dtype="float32", threads=0)  # one precision, whatever the machine
    args = parser.parse_args(argv)
    if args.budget <= 0 or min(args.limit, args.plateau) < 1 or min(args.seeds) < 0:
        raise UserError(
            "out of range: --budget is above 0, --limit and --plateau 1 or more, --seeds 0 or more"
        )
    if (args.data == "mini") == bool(args.base):
        raise UserError("--data and --base go together: other data, and a CoT-SFT run (train.py) on them")
    use_threads(args.threads)
    out, base = Path(args.out or f"results/{args.data}"), Path(args.base or BASE)
    shared = (args.budget, args.limit, args.device, args.dtype, args.threads)
    comparison = Comparison(out, *shared, args.data, base)
    if args.figures:
        if not comparison.rows.exists():
            raise UserError(f"there is no {comparison.rows}")
        return comparison.write_results()
    chosen = [entry_named(name) for name in args.rows] if args.rows else ENTRIES
    comparison.check_mixing([] if args.trials else chosen)
    if args.trials:
        done = {t["row"] for t in read_lines(comparison.trials)}
        trials = {trial.name: trial for entry in chosen if entry.train for trial in trials_of(entry)}
        todo = [(trial, 0) for name, trial in trials.items() if name not in done]
    else:
        todo = comparison.due(chosen, args.seeds, args.plateau)
    if todo or args.plan:
        comparison.print_plan(todo)
    while todo and not args.plan:
        comparison.run(todo, comparison.add_trial if args.trials else comparison.add_rows)
        todo = [] if args.trials else comparison.due(chosen, args.seeds, args.plateau)
