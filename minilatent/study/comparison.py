"""The comparison, from one command: every row trained with the same compute, from the same base unless its name says otherwise.

    python -m minilatent.reproduce --plan                          what would be done, and how long it takes
    python -m minilatent.reproduce --trials [--plan]               first: three learning rates for each method, judged on validation
    python -m minilatent.reproduce [--seeds 0 1 2] [--rows cot_sft latent_sft_2]

Every row gets the FLOPs that Latent-SFT(2) takes with 1,000 steps (times --budget), counted on one batch of each stage
(budget.py): the main stage's steps are as many as these pay for; with a part of it, --budget's or a row's that RL starts from, stage 1
of Latent-SFT is smaller, too. Rows are done one by one: Ctrl-C stops, the same command goes on,
and what is in rows.jsonl is not done again. From rows.jsonl come table.md, verdicts.md and the figures. Several processes may work
on one --out, each on --rows of its own (with --threads 1, or on one GPU).

A method is tuned by --trials: its learning rate times each of TRIED, for a quarter of its main stage's steps, one seed. The trials are kept in
trials.jsonl; once a method's are all there, its rows are trained with the best of them, and the plan says so.
"""

import contextlib
import json
import shutil
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from filelock import FileLock
from tqdm import tqdm

from .. import tasks
from ..config import Config, Parser, SoftThinking, UserError, add_fields, nearest, resolve, run_script
from ..files import replace_file, write_json
from ..run import BASE, load_run, pick_device, train
from . import budget
from .comparison_figures import draw
from .evaluation import evaluate, training_tokens
from .interventions import INTERVENTIONS, applies, intervene
from .verdicts import SETS, table_text, verdicts_text

RUNS = Path("out/reproduce")
# The budget is the compute of this run: a fifth of the preset's steps, so that a row takes some 20 minutes of one core, judging included.
REFERENCE = {"method": "latent_sft", "ratio": 2, "steps": 1000}
INTERVENED = "mini"  # the data set on which latents are replaced in every way; on the others: swap
TRIED, TRIAL_SHARE = (1 / 3, 1.0, 3.0), 0.25  # times a method's own learning rate; of its main stage's steps
SHOWN = [name for name in INTERVENTIONS if name != "keep"]


# ------------------------------------------------------------------ the rows


@dataclass
class Variant:
    """One way to judge a trained run. Its row is named NAME + suffix."""

    suffix: str = ""
    title: str = ""  # instead of the row's
    speed: str = ""  # CoLaR's
    soft: SoftThinking | None = None


@dataclass
class Row:
    name: str
    title: str  # in tables and figures
    group: str  # main | ablation
    train: dict  # settings of Config; none: mini-base as it is
    variants: list[Variant] = field(default_factory=lambda: [Variant()])
    share: float = 1.0  # of the budget that it spends itself
    after: str = ""  # it starts from this row's run, which has spent the rest
    trial: bool = False  # of a learning rate
    instead_of: str = ""  # another way to that row: the better on validation stands for it


def speeds(title: str) -> list[Variant]:
    return [Variant(f"_{c}", title.format(c), speed=str(c)) for c in (5, 2)]


def latent_sft(ratio: int, suffix: str = "", what: str = "", **train) -> Row:
    return Row(
        f"latent_sft_{ratio}{suffix}",
        f"Latent-SFT({ratio}){what}",
        "ablation" if suffix else "main",
        {"method": "latent_sft", "ratio": ratio, **train},
    )


def colar(suffix: str = "", what: str = "", **train) -> Row:
    return Row(
        f"colar{suffix}",
        f"CoLaR{what}",
        "ablation" if suffix else "main",
        {"method": "colar", **train},
        speeds("CoLaR-{}" + what),
    )


def colar_rl(suffix: str = "", what: str = "", **train) -> Row:
    settings = {"method": "colar_rl", **train}
    return Row(
        f"colar_rl{suffix}",
        f"CoLaR-RL{what}",
        "ablation" if suffix else "main",
        settings,
        share=0.5,
        after="colar_nll_half",
    )


# NLL's gradient grows as 1/σ²: with the weight that soft-MSE takes it drowns the rest, and without a floor it has spikes.
NLL = {"latent_loss": "nll", "latent_weight": 1.0, "sigma_floor": 0.1}
ROWS = [
    Row("base", "CoT-SFT, the base", "main", {}),
    Row(
        "cot_sft",
        "CoT-SFT",
        "main",
        {"method": "cot_sft"},
        [Variant(), Variant("_soft", "Soft Thinking", soft=SoftThinking(soft_thinking=True))],
    ),
    Row("no_cot", "No-CoT", "main", {"method": "no_cot"}),
    Row(
        "no_cot_scratch",
        "No-CoT, from scratch",
        "main",
        {"method": "no_cot", "init": "none"},
        instead_of="no_cot",
    ),
    Row("pause", "Pause tokens", "main", {"method": "pause"}),
    Row(
        "pause_scratch",
        "Pause tokens, from scratch",
        "main",
        {"method": "pause", "init": "none"},
        instead_of="pause",
    ),
    Row("icot", "iCoT", "main", {"method": "icot"}),
    Row("coconut", "Coconut", "main", {"method": "coconut"}),
    Row("codi", "CODI", "main", {"method": "codi"}),
    colar(),
    latent_sft(4),
    latent_sft(2),
    Row(
        "colar_nll_half",
        "",
        "ablation",
        {"method": "colar", **NLL},
        speeds("CoLaR-{} before RL, NLL"),
        share=0.5,
    ),
    Row(
        "colar_nll_more",
        "",
        "ablation",
        {"method": "colar", **NLL},
        speeds("CoLaR-{} trained on, NLL"),
        share=0.5,
        after="colar_nll_half",
    ),
    colar_rl(),
    colar_rl("_no_average", ", no averaging", average=False),
    colar("_det", ", deterministic head", latent_loss="mse"),
    colar("_no_labels", ", no compressed labels", compressed_labels=False),
    colar("_mean", ", mean pooling", pooling="mean"),
    colar("_nll", ", NLL", **NLL),
    *(
        row
        for r in (2, 4)
        for row in (
            latent_sft(r, "_no_ltim", ", no induction mask", ltim=False),
            latent_sft(r, "_no_ltsum", ", no supervision mask", ltsum=False),
            latent_sft(r, "_hidden", ", hidden states", latent="hidden"),
        )
    ),
    latent_sft(2, "_gumbel", ", Gumbel noise", gumbel=True),
    latent_sft(2, "_uniform", ", no encoder", labels="uniform"),
    *(latent_sft(2, f"_k{k}", f", k = {k}", k=k) for k in (1, 5, 50)),
    # On mini a step is 7 tokens and a space: one latent a step is Latent-SFT(8). Its equal in #L is (8) cut adaptively.
    *(latent_sft(r, "_adaptive", ", adaptive segments", segmentation="adaptive") for r in (2, 4)),
    latent_sft(8, "_step", ", a latent a step", segmentation="step"),
    latent_sft(8, "_adaptive", ", adaptive segments", segmentation="adaptive"),
    Row(
        "latent_sft_half",
        "Latent-SFT(2) before RL",
        "ablation",
        {"method": "latent_sft", "ratio": 2},
        share=0.5,
    ),
    Row(
        "latent_rl",
        "Latent-RL",
        "main",
        {"method": "latent_rl", "ratio": 2},
        share=0.5,
        after="latent_sft_half",
    ),
]


# ------------------------------------------------------------------ trials


def tuned_as(row: Row) -> str:
    """Rows of one method that start from the same weights share a learning rate: an ablation changes one thing only."""
    return (
        row.train["method"]
        + "_nll" * (row.train.get("latent_loss") == "nll")
        + "_scratch" * (row.train.get("init") == "none")
    )


def trials_of(row: Row) -> list[Row]:
    """What is tried for a row's method: its last main row, with each learning rate."""
    alike = [other for other in ROWS if other.train and tuned_as(other) == tuned_as(row)]
    row = max(alike, key=lambda other: (other.group == "main", ROWS.index(other)))
    lrs = [float(f"{times * resolve(row.train).lr:.6g}") for times in TRIED]
    return [
        replace(row, name=f"{row.name}-lr{lr:g}", train={**row.train, "lr": lr}, trial=True) for lr in lrs
    ]


def tuned(row: Row, args) -> dict:
    """The learning rate that was best on validation, once all of a method's trials are done; before, and for a trial, none."""
    if row.trial:
        return {}
    score = {
        t["lr"]: t["val_accuracy"]
        for t in read_lines(Path(args.out), "trials.jsonl")
        if t["method"] == tuned_as(row)
    }
    tried = [t.train["lr"] for t in trials_of(row)]
    return {"lr": max(tried, key=score.get)} if set(tried) <= set(score) else {}


def do_trial(trial: Row, seed: int, args, total: float) -> None:
    ensure_trained(trial, seed, args, total)
    facts = training_facts(trial, seed, args) | budget.machine(pick_device(args.device))
    add_line(
        Path(args.out),
        {"method": tuned_as(trial), "row": trial.name, "seed": seed, "budget": args.budget, **facts},
        "trials.jsonl",
    )


# ------------------------------------------------------------------ the plan


@dataclass
class Plan:
    settings: dict  # for train()
    stages: dict[str, int]  # optimizer steps
    flops: float
    seconds: float  # of training, about


def settings_of(row: Row, seed: int, args) -> dict:
    """What the row's run is trained with, all but the steps of its main stage."""
    given = {
        **row.train,
        **tuned(row, args),
        "seed": seed,
        "out": str(folder_of(row, seed, args)),
        "test_size": 16,
        "device": args.device,
        "threads": args.threads,
    }
    if row.after:
        given["init"] = str(folder_of(row_named(row.after), seed, args))
    if (
        given["method"] == "latent_sft" and (scale := row.share * args.budget) < 1
    ):  # a smaller copy of the whole recipe
        stages = resolve(given).stage1_steps.split(",")
        given["stage1_steps"] = ",".join(str(max(1, round(int(s) * scale))) for s in stages)
    return given


def full_budget(args) -> float:
    """FLOPs of a whole row: what REFERENCE takes, times --budget."""
    method, rows = budget.untrained(REFERENCE, pick_device(args.device))
    cost = budget.measure(method, rows, method.config.train_size)
    return args.budget * cost.of(budget.stage_steps(method, rows, resolve(REFERENCE).steps))


def plan_of(row: Row, seed: int, args, total: float) -> Plan:
    given = settings_of(row, seed, args)
    ready = not row.after or (Path(given["init"]) / "model.safetensors").exists()
    method, rows = budget.untrained(given if ready else {**given, "init": ""}, pick_device(args.device))
    cost = budget.measure(method, rows, method.config.train_size)
    steps = budget.affordable(method, rows, cost, row.share * total)
    if row.trial:  # what comes before the main stage is not cut short
        steps = max(1, round(TRIAL_SHARE * steps))
    stages = budget.stage_steps(method, rows, steps)
    return Plan({**given, "steps": steps}, stages, cost.of(stages), cost.time(stages))


def print_plan(todo: list[tuple[Row, int]], args, total: float) -> None:
    print(f"{total:.3e} training FLOPs for each row. To do: {len(todo)} runs.\n")
    seconds, known = 0.0, {}
    for row, seed in todo:
        if row.name not in known:  # seeds cost the same
            known[row.name] = plan_of(row, seed, args, total) if row.train else Plan({}, {}, 0.0, 0.0)
        about = known[row.name]
        stages = ", ".join(f"{name} {n}" for name, n in about.stages.items()) or "no training"
        lr = (
            f"  lr {resolve(about.settings).lr:g}{' (best of its trials)' if tuned(row, args) else ''}"
            if row.train
            else ""
        )
        print(
            f"{row.name:24s} seed {seed}  {about.flops:.3e} FLOPs  {about.seconds / 60:5.1f} min  {stages}{lr}",
            flush=True,
        )
        seconds += about.seconds
    print(
        f"\nabout {seconds / 3600:.1f} hours of training at the rate just measured; labelling and judging come on top, on a CPU about half as much again"
    )


# ------------------------------------------------------------------ a row


def row_named(name: str) -> Row:
    if name not in (known := {row.name: row for row in ROWS}):
        raise UserError(f"unknown row '{name}'{nearest(name, known)}")
    return known[name]


def folder_of(row: Row, seed: int, args) -> Path:
    if not row.train:
        return BASE
    return RUNS / (f"{row.name}-seed{seed}" + ("" if args.budget == 1 else f"-budget{args.budget:g}"))


def read_lines(out: Path, name: str = "rows.jsonl") -> list[dict]:
    path = out / name
    try:
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}") from None


def alone(out: Path) -> FileLock:
    """For what only one of the processes that work on `out` may do at a time."""
    out.mkdir(parents=True, exist_ok=True)
    return FileLock(out / ".lock")


def add_line(out: Path, line: dict, name: str = "rows.jsonl") -> None:
    with alone(out):
        lines = [*read_lines(out, name), line]
        replace_file(
            out / name,
            lambda p: p.write_text("".join(json.dumps(l, separators=(",", ":")) + "\n" for l in lines)),
        )


def missing(row: Row, seed: int, lines: list[dict]) -> list[tuple[Variant, str]]:
    """What of a row and seed is not in rows.jsonl yet: how it is judged, and on which data set."""
    have = {(l["row"], l["seed"], l["data"]) for l in lines}
    return [(v, name) for v in row.variants for name in SETS if (row.name + v.suffix, seed, name) not in have]


def ensure_trained(row: Row, seed: int, args, total: float) -> Path:
    """The row's finished run; trained if it is not there, resumed if it was begun. What train() says goes to a log beside it."""
    folder = folder_of(row, seed, args)
    if not row.train or (folder / "model.safetensors").exists():
        return folder
    if row.after:
        ensure_trained(row_named(row.after), seed, args, total)
    if (folder / "config.json").exists():
        settings = {
            "method": row.train["method"],
            "out": str(folder),
            "resume": True,
            "device": args.device,
            "threads": args.threads,
        }
    else:
        if folder.exists():  # stopped before it began
            shutil.rmtree(folder)
        plan = plan_of(row, seed, args, total)
        settings = plan.settings
        write_json(
            folder.with_name(folder.name + ".json"),
            {"stages": plan.stages, "flops": plan.flops, "lr": resolve(settings).lr},
        )
    with open(folder.with_name(folder.name + ".log"), "a") as log, contextlib.redirect_stdout(log):
        train(settings)
    return folder


def training_facts(row: Row, seed: int, args) -> dict:
    """What a run's metrics.jsonl and its plan tell of it, with the run that it started from; its curve goes into the results."""
    folder = folder_of(row, seed, args)
    if not row.train:
        return {
            "train_seconds": 0.0,
            "train_tokens": 0,
            "flops": 0.0,
            "stages": {},
            "lr": 0.0,
            "val_accuracy": 0.0,
        }
    log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    keep = ("stage", "index", "step", "loss", "val_accuracy", "val_compression", "accuracy", "seconds")
    write_json(
        Path(args.out) / "curves" / f"{row.name}-seed{seed}.json",
        [{k: e[k] for k in keep if k in e} for e in log],
    )
    told = json.loads(folder.with_name(folder.name + ".json").read_text())
    best = max(e["val_accuracy"] for e in log if "val_accuracy" in e and e["index"] == log[-1]["index"])
    before = training_facts(row_named(row.after), seed, args) if row.after else {}
    total = {"train_seconds": log[-1]["seconds"], "train_tokens": log[-1]["tokens"], "flops": told["flops"]}
    return {
        **{key: value + before.get(key, 0) for key, value in total.items()},
        "stages": {**before.get("stages", {}), **told["stages"]},
        "lr": told.get("lr"),
        "val_accuracy": best,
    }


def do_row(row: Row, seed: int, args, total: float) -> None:
    """Train a row if need be, judge it, and add its lines, one by one."""
    out = Path(args.out)
    folder = ensure_trained(row, seed, args, total)
    facts = training_facts(row, seed, args) | budget.machine(pick_device(args.device))
    for variant, name in missing(row, seed, read_lines(out)):
        method = load_run(folder, pick_device(args.device), variant.soft)
        method.config.speed = variant.speed or method.config.speed
        examples = tasks.load(name, "test", limit=args.limit)
        line = {
            "row": row.name + variant.suffix,
            "run": row.name,
            "title": variant.title or row.title,
            "group": row.group,
            "seed": seed,
            "instead_of": row.instead_of,
            "budget": args.budget,
            "limit": args.limit,
            **facts,
            **evaluate(method, examples, name, frequent=training_tokens(method), per_question=True),
        }
        if method.thinker() is not None:
            line["interventions"] = intervene(
                method,
                examples,
                [n for n in SHOWN if applies(n, method)] if name == INTERVENED else ["swap"],
                per_question=True,
            )
        add_line(out, line)


def write_results(out: Path) -> None:
    """table.md, verdicts.md and the figures, from rows.jsonl alone."""
    order = {
        row.name + v.suffix: i for i, (row, v) in enumerate((row, v) for row in ROWS for v in row.variants)
    }
    lines = sorted(read_lines(out), key=lambda l: order.get(l["row"], len(order)))
    if not lines:
        return
    spent = max(l["flops"] for l in lines)
    told = f"Budget: {spent:.2e} training FLOPs a row, counted (validation and judging not)."
    with alone(out):
        replace_file(out / "table.md", lambda p: p.write_text(table_text(lines, told)))
        replace_file(out / "verdicts.md", lambda p: p.write_text(verdicts_text(lines)))
        draw(lines, out)


def do_all(todo: list[tuple[Row, int]], work, args) -> None:
    """What work() on each row and seed will be; then, without --plan, the work."""
    total = full_budget(args) if any(row.train for row, _ in todo) else 0.0
    if todo or args.plan:
        print_plan(todo, args, total)
    if args.plan:
        return
    for row, seed in (
        bar := tqdm(todo, desc="trials" if args.trials else "rows", unit="run", dynamic_ncols=True)
    ):
        bar.set_postfix_str(f"{row.name} seed {seed}")
        work(row, seed, args, total)
        write_results(Path(args.out))
    print(f"{len(todo)} runs done; see {args.out}", file=sys.stderr)


def check_mixing(chosen: list[Row], args) -> None:
    """UserError if what --out holds cannot be compared with what would be added, or one row would be judged on two runs."""
    out = Path(args.out)
    lines, otherwise = (
        read_lines(out),
        "take its lines out of rows.jsonl and its run out of the way, or give another --out",
    )
    made = {
        "budget": {l["budget"] for l in lines} | {t["budget"] for t in read_lines(out, "trials.jsonl")},
        "limit": {l["limit"] for l in lines},
    }
    for name, values in made.items():
        if other := values - {getattr(args, name)}:
            raise UserError(
                f"{out} holds what was made with --{name} {other.pop():g}: give that, or another --out"
            )
    for row in chosen if not args.trials else ():
        best = tuned(row, args).get("lr") if row.train else None
        for line in (l for l in lines if l["run"] == row.name):
            if best and line.get("lr") not in (None, best):
                raise UserError(
                    f"{out} holds {row.name} trained at lr {line['lr']:g}, but the best of its trials is {best:g}: {otherwise}"
                )
            if (
                line["seed"] in args.seeds
                and missing(row, line["seed"], lines)
                and not (folder_of(row, line["seed"], args) / "model.safetensors").exists()
            ):
                raise UserError(
                    f"{out} holds only a part of {row.name}, seed {line['seed']}, and its run is not in {RUNS}: {otherwise}"
                )


def main(argv: list[str]) -> None:
    parser = Parser(prog="python -m minilatent.reproduce", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--rows",
        nargs="+",
        metavar="NAME",
        default=[row.name for row in ROWS],
        help="which rows; default: all",
    )
    parser.add_argument("--seeds", nargs="+", type=int, metavar="int", default=[0], help="seeds of each row")
    parser.add_argument(
        "--out", default="results/mini", metavar="DIR", help="where rows.jsonl, tables and figures go"
    )
    parser.add_argument(
        "--budget", type=float, default=1.0, metavar="float", help="times the FLOPs of Latent-SFT(2)"
    )
    parser.add_argument(
        "--limit", type=int, default=1334, metavar="int", help="test questions of each data set"
    )
    parser.add_argument(
        "--plan", action="store_true", help="print the plan and an estimate of the time, and stop"
    )
    parser.add_argument(
        "--trials",
        action="store_true",
        help="tune the rows' methods: three learning rates each, a quarter of the steps",
    )
    parser.add_argument("--figures", action="store_true", help="only write table, verdicts and figures anew")
    add_fields(parser, Config, only=("device", "threads"))
    parser.set_defaults(device="auto", threads=0)
    args = parser.parse_args(argv)
    for name, value, least in (
        ("budget", args.budget, 1e-9),
        ("limit", args.limit, 1),
        ("seeds", min(args.seeds), 0),
        ("threads", args.threads, 0),
    ):
        if not least <= value < float("inf"):
            raise UserError(f"--{name} {value} is out of range")
    if args.threads:
        torch.set_num_threads(args.threads)
    chosen, out = [row_named(name) for name in args.rows], Path(args.out)
    if args.figures:
        return write_results(out)
    check_mixing(chosen, args)
    if args.trials:
        done = {t["row"] for t in read_lines(out, "trials.jsonl")}
        todo = [
            (trial, 0)
            for trial in {t.name: t for row in chosen if row.train for t in trials_of(row)}.values()
            if trial.name not in done
        ]
        return do_all(todo, do_trial, args)
    # Seed by seed, so that one whole table comes first. The base is one model, whatever the seed.
    todo = [
        (row, seed)
        for i, seed in enumerate(args.seeds)
        for row in chosen
        if (row.train or i == 0) and missing(row, seed, read_lines(out))
    ]
    do_all(todo, do_row, args)


if __name__ == "__main__":
    run_script(main)
