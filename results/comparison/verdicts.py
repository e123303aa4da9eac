"""From rows.jsonl to table.md and verdicts.md: means, intervals, and which claims of the field hold here."""

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from minilatent import tasks
from minilatent.study.measures import from_hex

from .claims import CLAIMS, SETS, TRENDS, Claim, Trend

COLUMNS = (*SETS, "mini_long")  # of the table; averages and trends are about SETS
RESAMPLES = 2000
ENOUGH = 4000  # questions for a verdict: three sets of 1,334
PLATEAU = 0.01  # what the last quarter of a training gains on validation, less than that
Line = dict  # a line of rows.jsonl: one row, one seed, one data set

HOW_TO_READ = f"""\
Intervals come from a bootstrap over questions and, where there are several, seeds: both are resampled with
replacement, {RESAMPLES:,} times, in the same way for all rows, so that the difference of two rows is taken
on the same questions and seeds (paired). The data sets count equally. With few seeds such an interval is
rather too narrow; with one seed it covers the questions only. Of twenty intervals, about one misses the true
value by chance.

A trend **holds** if the whole interval is on its side, *does not hold* if it is on the other side, and is
within noise otherwise. A tolerance is part of the trend's name. Verdicts from fewer than {ENOUGH:,} questions
are in brackets; of one seed they are a leaning, no finding. A claim holds if all of its trends hold, and does
not if one of them does not."""


# ------------------------------------------------------------------ one number a question

UNITS = {  # of a measure: its unit, and what a number is multiplied by
    "accuracy": ("points", 100),
    "length": ("steps", 1),
    "short": ("points", 100),
    "long": ("points", 100),
    "slope": ("points a step", 100),
    "several": ("points", 100),
    "ecr_gain": ("tokens", 1),
    "n_eff_above": ("chains", 1),
    "swap": ("points", 100),
}


SHORT = 3  # steps


@lru_cache
def problem_steps(name: str, n: int) -> Tensor:
    """The number of steps of each of the first n test problems, (n,)."""
    return torch.tensor([float(len(e.steps)) for e in tasks.load(name, "test", limit=n)])


@lru_cache
def has_several(name: str, n: int) -> Tensor:
    """1 for each of the first n test problems that has several valid chains, else 0, (n,)."""
    return torch.tensor([float(len(e.chains) > 1) for e in tasks.load(name, "test", limit=n)])


def slope(y: Tensor, x: Tensor, groups: Tensor) -> Tensor:
    """Terms whose mean is the least-squares slope of y over x, both centred within groups, (n,) each: else
    the resampling would also see how high y is. NaN if x is the same throughout each group."""
    for group in groups.unique():
        mine = groups == group
        y = torch.where(mine, y - y[mine].mean(), y)
        x = torch.where(mine, x - x[mine].mean(), x)
    return y * x / x.pow(2).mean()


def numbers(line: Line, measure: str) -> Tensor:
    """The measure of each question (n,), NaN for a question without it; empty if the line lacks the measure.

    short, long  accuracy on problems of at most SHORT steps, of more
    slope        the mean is the least-squares slope of accuracy over the number of steps of the problem
    several      the same over whether it has several valid chains, among problems with equally many steps
    ecr_gain     ECR@10 above its control
    n_eff_above  N_eff above the larger of its controls; not without another question to compare with
    swap         half of a right answer minus an answer that is right with another question's latents: the
                 mean is positive if these destroy more than half of the right answers; not without a donor
    """
    n, questions = line["n"], line["questions"]
    hits = torch.tensor(from_hex(questions["correct"], n)).double()
    if measure == "accuracy":
        return hits
    if measure in ("short", "long", "slope", "several"):
        steps = problem_steps(line["data"], n).double()
        if measure == "slope":
            return slope(hits, steps, torch.zeros(n))
        if measure == "several":
            return slope(hits, has_several(line["data"], n).double(), steps)
        return hits.masked_fill((steps > SHORT) == (measure == "short"), torch.nan)
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


# ------------------------------------------------------------------ verdicts


def margin(trend: Trend, found: Estimate) -> tuple[float, float, float]:
    """By how much the trend holds, mean and interval: below 0 it does not."""
    sign = 1 if trend.direction == ">" else -1
    low, high = sorted((sign * found.low, sign * found.high))
    return sign * found.mean + trend.tolerance, low + trend.tolerance, high + trend.tolerance


def verdict(lines: list[Line], trend: Trend) -> tuple[str, Estimate | None]:
    """holds | does not hold | within noise | not run; and the estimate behind it."""
    found = estimate(lines, trend.a, trend.sets, trend.measure, trend.b, trend.times)
    if found is None:
        return "not run", None
    _, low, high = margin(trend, found)
    if low > 0:
        return "holds", found
    return "does not hold" if high < 0 else "within noise", found


def markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def run_trends(lines: list[Line], trends: list[Trend]) -> list[tuple[Trend, str, Estimate]]:
    """Those of the trends whose rows are there, each with its verdict."""
    all_of_them = [(trend, *verdict(lines, trend)) for trend in trends]
    return [(trend, what, found) for trend, what, found in all_of_them if found]


TREND_HEAD = ["trend", "difference", "95 %", "unit", "questions", "seeds", "verdict"]


def trend_cells(trend: Trend, what: str, found: Estimate) -> list[str]:
    """Name, difference, 95 % interval, unit, questions, seeds, verdict."""
    unit, scale = UNITS[trend.measure]
    digits = 1 if scale == 100 else 2
    mean, low, high = (f"{scale * x:+.{digits}f}" for x in found[:3])
    if found.questions < ENOUGH:
        what = f"({what})"
    elif found.seeds == 1:
        what = f"{what}, one seed"
    elif what == "holds":
        what = "**holds**"
    return [trend.name, mean, f"{low} to {high}", unit, f"{found.questions:,}", str(found.seeds), what]


def weakest(found: list[tuple[Trend, str, Estimate]]) -> tuple[Trend, str, Estimate]:
    """Of a claim's trends the one that is furthest from holding, measured by its interval."""

    def by_its_width(each: tuple[Trend, str, Estimate]) -> float:
        mean, low, high = margin(each[0], each[2])
        return mean / max(high - low, 1e-9)

    return min(found, key=by_its_width)


def claim_cells(claim: Claim, found: list[tuple[Trend, str, Estimate]]) -> list[str]:
    """Verdict on all trends of the claim together; its weakest one; seeds."""
    if not found:
        return ["not run", "–", "–"]
    whats, missing = [what for _, what, _ in found], len(claim.trends) - len(found)
    holding = f"{whats.count('holds')} of {len(whats)} hold" + (f", {missing} not run" if missing else "")
    what = "holds" if set(whats) == {"holds"} and not missing else f"open ({holding})"
    what = f"does not hold ({holding})" if "does not hold" in whats else what
    seeds = min(estimate.seeds for _, _, estimate in found)
    what = f"{what}, one seed" if seeds == 1 else what
    if min(estimate.questions for _, _, estimate in found) < ENOUGH:
        what = f"({what})"

    name, mean, interval, unit, *_ = trend_cells(*weakest(found))
    return [what, f"{name}: {mean} {unit} ({interval})", str(seeds)]


def claims_text(lines: list[Line], claims: list[Claim]) -> str:
    """The claims at a glance, and below each its trends."""
    short, sections = [], []
    for number, claim in enumerate(claims, 1):
        found = run_trends(lines, claim.trends)
        figure = f"[{claim.figure}]({claim.figure}.png)" if claim.figure else "–"
        short.append([str(number), claim.sentence, *claim_cells(claim, found), figure])
        table = markdown(TREND_HEAD, [trend_cells(*each) for each in found]) if found else "Not run.\n"
        sections.append(f"### {number}. {claim.sentence}\n\nSource: {claim.source}.\n\n{table}")
    head = ["", "claim", "verdict", "its weakest trend", "seeds", "figure"]
    return markdown(head, short) + "\n" + "\n".join(sections)


def verdicts_text(lines: list[Line], claims: list[Claim] = CLAIMS, trends: list[Trend] = TRENDS) -> str:
    """verdicts.md"""
    found = run_trends(lines, trends)
    left = {trend.name for trend in trends} - {trend.name for trend, _, _ in found}
    text = f"# Claims\n\n{claims_text(lines, claims)}\n## How to read it\n\n{HOW_TO_READ}\n"
    rows = [trend_cells(*each) for each in found]
    text += f"\n## Appendix: parts of the methods\n\n{markdown(TREND_HEAD, rows)}"
    return text + (f"\nNot run: {'; '.join(sorted(left))}.\n" if left else "")


# ------------------------------------------------------------------ the table


TABLE_NOTE = f"""\
Accuracy in %, ± half of the 95 % bootstrap interval over questions and seeds (one seed: over the questions).
The average is that of the first {len(SETS)} data sets. FLOPs are those of training, without validation: the
main job's for each row (before RL: a share of them), from scratch those of mini-base on top. #L (length of
thought: latents, or chain tokens), on the same data sets. Seconds include validation, and questions a second
the time to keep the distribution of every step: compare them on one machine only.

A row is at its plateau when the last quarter of its last stage gained less than a point on validation. Runs
that had not are trained again with twice the compute, and so on: the average of each seed's longest run, and
the FLOPs of the longest. "rising": a seed's longest run is not yet at a plateau."""


def cell(found: Estimate | None) -> str:
    return f"{100 * found.mean:.1f} ± {50 * (found.high - found.low):.1f}" if found else "–"


def mean_length(lines: list[Line], sets=SETS) -> float:
    """#L of a row, over the same data sets as its average accuracy."""
    found = [line["mean_len"] for line in lines if line["data"] in sets]
    return sum(found) / max(len(found), 1)


def plateau_cell(lines: list[Line], row: str, sets=SETS) -> str:
    """Of each seed's longest run: average accuracy, most FLOPs, and whether one still rose."""
    longest: dict[tuple, Line] = {}  # by seed and data set
    for line in sorted(lines, key=lambda line: line["flops"]):
        if line["row"].partition("@")[0] == row:
            longest[line["seed"], line["data"]] = {**line, "row": row}
    mine = list(longest.values())
    shown = cell(estimate(mine, row, sets)) + f", {max(line['flops'] for line in mine):.1e}"
    return f"{shown}, rising" if any(line["gain"] >= PLATEAU for line in mine) else shown


def table_text(lines: list[Line], columns=COLUMNS) -> str:
    """table.md: rows in the order of the lines."""
    rows, sets = [], columns[: len(SETS)]
    for row in dict.fromkeys(line["row"] for line in lines if "@" not in line["row"]):
        mine = [line for line in lines if line["row"] == row]
        mean = lambda key, mine=mine: sum(line[key] for line in mine) / len(mine)
        average, length = estimate(lines, row, sets), mean_length(mine, sets)
        cells = [mine[0]["title"], str(len({line["seed"] for line in mine})), f"{mine[0]['flops']:.1e}"]
        cells += [cell(estimate(lines, row, (name,))) for name in columns]
        cells += [cell(average), plateau_cell(lines, row, sets), f"{length:.1f}"]
        cells.append(f"{100 * average.mean / length:.1f}" if average and length else "–")
        cells += [f"{mean('train_seconds'):.0f}", f"{mean('train_tokens') / 1e6:.1f} M"]
        cells += [f"{mean('questions_per_second'):.0f}", " and ".join(sorted({l["hardware"] for l in mine}))]
        rows.append(cells)
    head = ["row", "seeds", "FLOPs", *columns, "average", "at its plateau, FLOPs", "#L", "accuracy/#L"]
    head += ["training s", "training tokens", "questions/s", "on"]
    return f"# The comparison\n\n{TABLE_NOTE}\n\n{markdown(head, rows)}"
