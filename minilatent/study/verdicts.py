"""From rows.jsonl to table.md and verdicts.md: means, intervals, and which claims of the field hold here."""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from .. import tasks
from .entries import LATENT_ROWS, ROWS
from .measures import from_hex

SETS = ("mini", "mini_hard", "mini_svamp", "mini_multiarith")  # the columns
RESAMPLES = 2000
ENOUGH = 4000  # questions for a verdict
Line = dict  # a line of rows.jsonl: one row, one seed, one data set

HOW_TO_READ = f"""\
Intervals come from a bootstrap over questions and, where there are several, seeds: both are resampled with
replacement, {RESAMPLES:,} times, in the same way for all rows, so that the difference of two rows is taken
on the same questions and seeds (paired). The data sets count equally. With few seeds such an interval is
rather too narrow; with one seed it covers the questions only. Of twenty trends, one can miss by chance.

A trend **holds** if the whole interval is on its side, *does not hold* if it is on the other side, and is
within noise otherwise. A tolerance is part of the trend's name. Verdicts from fewer than {ENOUGH:,} questions
are in brackets."""


# ------------------------------------------------------------------ one number a question

UNITS = {  # of a measure: its unit, and what a number is multiplied by
    "accuracy": ("points", 100),
    "length": ("steps", 1),
    "slope": ("points a step", 100),
    "ecr_gain": ("tokens", 1),
    "n_eff_above": ("chains", 1),
    "swap": ("points", 100),
}


@lru_cache
def problem_steps(name: str, n: int) -> Tensor:
    """The number of steps of each of the first n test problems, (n,)."""
    return torch.tensor([float(len(e.steps)) for e in tasks.load(name, "test", limit=n)])


def numbers(line: Line, measure: str) -> Tensor:
    """The measure of each question (n,), NaN for a question without it; empty if the line lacks the measure.

    slope        the mean is the least-squares slope of accuracy over the number of steps of the problem; both
                 are centred, or the resampling would also see how high the accuracy is
    ecr_gain     ECR@10 above its control
    n_eff_above  N_eff above the larger of its controls; not without another question to compare with
    swap         half of a right answer minus an answer that is right with another question's latents: the
                 mean is positive if these destroy more than half of the right answers; not without a donor
    """
    n, questions = line["n"], line["questions"]
    hits = torch.tensor(from_hex(questions["correct"], n)).double()
    if measure == "accuracy":
        return hits
    if measure == "slope":
        steps = problem_steps(line["data"], n).double()
        away = steps - steps.mean()
        return (hits - hits.mean()) * away / away.pow(2).mean()  # NaN if all problems are equally long
    if measure == "swap":
        if not (swap := line.get("interventions", {}).get("swap", {}).get("questions")):
            return torch.tensor([])
        judged, others = (torch.tensor(from_hex(swap[key], n)) for key in ("judged", "correct"))
        return (hits / 2 - others.double()).masked_fill(~judged, torch.nan)
    found = questions.get("len" if measure == "length" else measure, [])
    found = torch.tensor([torch.nan if v is None else v for v in found]).double()
    if measure == "n_eff_above" and len(found):  # only the judged ones are listed
        judged = torch.tensor(from_hex(questions["n_eff_judged"], n))
        return torch.full((n,), torch.nan).double().masked_scatter(judged, found)
    return found


def by_seed(lines: list[Line], row: str, data: str, measure: str) -> dict[int, Tensor]:
    """The numbers of a row on one data set, by seed."""
    mine = [l for l in lines if l["row"] == row and l["data"] == data and not l["skipped"]]
    found = {line["seed"]: numbers(line, measure) for line in mine}
    return {seed: values for seed, values in found.items() if not values.isnan().all()}


# ------------------------------------------------------------------ the bootstrap


class Estimate(NamedTuple):
    mean: float
    low: float
    high: float
    seeds: int
    questions: int  # with a value


@lru_cache
def resamples(n: int, seed: int) -> Tensor:
    """How often each of n items is chosen when n are chosen with replacement, (RESAMPLES, n)."""
    chosen = torch.randint(n, (RESAMPLES, n), generator=torch.Generator().manual_seed(seed))
    return torch.zeros(RESAMPLES, n).scatter_add_(1, chosen, torch.ones(RESAMPLES, n)).double()


def bootstrap(samples: list[Tensor]) -> tuple[float, float, float]:
    """Mean and 95 % interval. samples: for each data set (S, n), seeds by questions, NaN where there is no
    value. All data sets have the same seeds."""
    seeds, means, resampled = resamples(len(samples[0]), 0), [], []  # (RESAMPLES, S)
    for i, sample in enumerate(samples, 1):
        real, known = ~sample.isnan(), sample.nan_to_num(0.0)
        questions = resamples(sample.shape[1], i)  # (RESAMPLES, n)
        total = ((seeds @ known) * questions).sum(1)
        resampled.append(total / ((seeds @ real.double()) * questions).sum(1).clamp(min=1))
        means.append(known.sum() / real.sum().clamp(min=1))
    low, high = torch.stack(resampled).mean(0).quantile(torch.tensor([0.025, 0.975]).double()).tolist()
    return torch.stack(means).mean().item(), low, high


def estimate(
    lines: list[Line], row: str, sets=SETS, measure: str = "accuracy", against: str = "", times: float = 1.0
) -> Estimate | None:
    """The measure of a row, or its difference from `times` that of the row `against`, on the seeds and
    questions that both have. None where a data set is missing."""
    samples: list[dict[int, Tensor]] = []
    for data in sets:
        values = by_seed(lines, row, data, measure)
        if against:
            others = by_seed(lines, against, data, measure)
            values = {seed: values[seed] - times * others[seed] for seed in values if seed in others}
        samples.append(values)
    seeds = sorted(set.intersection(*(set(values) for values in samples)))
    if not seeds:
        return None
    stacked = [torch.stack([values[seed] for seed in seeds]) for values in samples]  # (S, n) each
    return Estimate(*bootstrap(stacked), len(seeds), sum(int((~s.isnan()).any(0).sum()) for s in stacked))


# ------------------------------------------------------------------ trends


@dataclass
class Trend:
    """A claim: `measure` of row a is above (below) row b's, or 0 where b is "", by more than -tolerance."""

    name: str
    a: str
    b: str
    sets: tuple[str, ...] = SETS
    measure: str = "accuracy"
    direction: str = ">"
    tolerance: float = 0.0  # in the measure's own unit, accuracy in 0..1
    times: float = 1.0  # row b's measure is multiplied by this


SEVERAL = SETS[:3]  # problems of several lengths, some with several valid chains: not so in mini_multiarith


def all_trends() -> list[Trend]:
    two, six, rl, longer = "latent_sft_2", "latent_sft_6", "colar_rl", "colar_nll_more_2"
    found = [
        Trend("superposition at least CoT, within a point", two, "cot_sft", tolerance=0.01),
        Trend("at half the length, within a step", two, "cot_sft", SETS, "length", "<", 1.0, times=0.5),
        Trend("Latent-SFT(2) above (6)", two, six),
        Trend("Latent-SFT above CoLaR at equal length, 2", two, "colar_2"),
        Trend("Latent-SFT above CoLaR at equal length, 3", "latent_sft_3", "colar_3"),
        Trend("CoLaR-2 above CoLaR-3", "colar_2", "colar_3"),
    ]
    for plain, title in (("no_cot", "No-CoT"), ("no_cot_scratch", "No-CoT from scratch")):
        found += [Trend(f"{row} above {title}", row, plain) for row in ("icot", *LATENT_ROWS)]
    found += [Trend(f"{row} above pause tokens", row, "pause") for row in LATENT_ROWS]
    found += [Trend(v.claim, v.parent, row) for row, (_, v) in ROWS.items() if v.claim]
    found += [
        Trend("Gumbel noise helps", f"{two}_gumbel", two),
        Trend("ECR@10 above its control, r = 2", two, "", SETS, "ecr_gain"),
        Trend("ECR@10 above its control, r = 6", six, "", SETS, "ecr_gain"),
        Trend("ECR@10 less its control is larger for r = 6", six, two, SETS, "ecr_gain"),
        Trend("N_eff above both its controls, r = 2", two, "", SEVERAL, "n_eff_above"),
        Trend("N_eff above both its controls, r = 6", six, "", SEVERAL, "n_eff_above"),
        Trend("N_eff less its controls is larger for r = 6", six, two, SEVERAL, "n_eff_above"),
    ]
    starts = {"CoLaR-RL": (rl, "colar_nll_half_2"), "Latent-RL": ("latent_rl", "latent_sft_half")}
    for title, (row, start) in starts.items():
        found.append(Trend(f"{title} shortens the chain", row, start, SETS, "length", "<"))
        found.append(Trend(f"{title} keeps the accuracy, within a point", row, start, tolerance=0.01))
    shorter = "CoLaR-RL's chains are 30 % shorter than without RL"
    found.append(Trend("CoLaR-RL gains 3 points on training on without RL", rl, longer, tolerance=-0.03))
    found.append(Trend(shorter, rl, longer, SETS, "length", "<", times=0.7))
    falls = "accuracy falls faster with the number of steps than CoT's"
    found += [Trend(f"{falls}: {row}", row, "cot_sft", SEVERAL, "slope", "<") for row in LATENT_ROWS]
    destroy = "another question's latents destroy more than half of the answers"
    # Pause tokens are the same for every question: nothing to swap.
    found += [Trend(f"{destroy}: {row}", row, "", SETS, "swap") for row in ("cot_sft", *LATENT_ROWS)]
    return found


TRENDS = all_trends()


def verdict(lines: list[Line], trend: Trend) -> tuple[str, Estimate | None]:
    """holds | does not hold | within noise | not run; and the estimate behind it."""
    found = estimate(lines, trend.a, trend.sets, trend.measure, trend.b, trend.times)
    if found is None:
        return "not run", None
    sign = 1 if trend.direction == ">" else -1
    low, high = sorted(sign * edge + trend.tolerance for edge in (found.low, found.high))
    if low > 0:
        return "holds", found
    return "does not hold" if high < 0 else "within noise", found


def markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def verdicts_text(lines: list[Line], trends: list[Trend] = TRENDS) -> str:
    """verdicts.md"""
    rows, not_run = [], []
    for trend in trends:
        what, found = verdict(lines, trend)
        if not found:
            not_run.append(trend.name)
            continue
        unit, scale = UNITS[trend.measure]
        digits = 1 if scale == 100 else 2
        mean, low, high = (f"{scale * x:+.{digits}f}" for x in found[:3])
        if found.questions < ENOUGH:
            what = f"({what})"
        elif what == "holds":
            what = "**holds**"
        count = [f"{found.questions:,}", str(found.seeds)]
        rows.append([trend.name, mean, f"{low} to {high}", unit, *count, what])
    head = ["trend", "difference", "95 %", "unit", "questions", "seeds", "verdict"]
    text = f"# Trends\n\n{HOW_TO_READ}\n\n{markdown(head, rows)}"
    return text + (f"\nNot run: {'; '.join(not_run)}.\n" if not_run else "")


# ------------------------------------------------------------------ the table


TABLE_NOTE = """\
Accuracy in %, ± half of the 95 % bootstrap interval over questions and seeds (one seed: over the questions).
#L (length of thought: latents, or chain tokens), seconds, tokens and questions a second are means over data
sets and seeds. Seconds include validation, and questions a second the time to keep the distribution of every
step: compare them on one machine only."""


def cell(found: Estimate | None) -> str:
    return f"{100 * found.mean:.1f} ± {50 * (found.high - found.low):.1f}" if found else "–"


def table_text(lines: list[Line], budget: str = "") -> str:
    """table.md: rows in the order of the lines."""
    rows = []
    for row in dict.fromkeys(line["row"] for line in lines):
        mine = [line for line in lines if line["row"] == row]
        mean = lambda key, mine=mine: sum(line[key] for line in mine) / len(mine)
        average, length = estimate(lines, row), mean("mean_len")
        cells = [mine[0]["title"], str(len({line["seed"] for line in mine}))]
        cells += [cell(estimate(lines, row, (name,))) for name in SETS]
        cells += [cell(average), f"{length:.1f}"]
        cells.append(f"{100 * average.mean / length:.1f}" if average and length else "–")
        cells += [f"{mean('train_seconds'):.0f}", f"{mean('train_tokens') / 1e6:.1f} M"]
        cells += [f"{mean('questions_per_second'):.0f}", " and ".join(sorted({l["hardware"] for l in mine}))]
        rows.append(cells)
    head = ["row", "seeds", *SETS, "average", "#L", "accuracy/#L"]
    head += ["training s", "training tokens", "questions/s", "on"]
    return f"# The comparison\n\n{TABLE_NOTE} {budget}\n\n{markdown(head, rows)}"
