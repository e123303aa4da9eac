"""From rows.jsonl to table.md and verdicts.md: means, intervals, and which of the field's claims hold here.

An interval is a bootstrap's over questions and, where there are several, seeds: both are drawn anew, with replacement, DRAWS
times, for all rows alike, so that a difference of two rows is taken on the same questions and seeds (paired). The data
sets count equally. With few seeds such an interval is rather too narrow; with one it is over the questions only.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from .. import tasks
from .measures import from_hex

SETS = ("mini", "mini_hard", "mini_svamp", "mini_multiarith")  # the columns
DRAWS = 2000
ENOUGH = 4000  # questions for a verdict: with fewer it is a leaning
NAN = float("nan")
Line = dict  # one of rows.jsonl: a row, a seed, a data set


# ------------------------------------------------------------------ what a question contributes


@lru_cache
def problem_steps(name: str, n: int) -> Tensor:
    """How many steps each of the first n test problems takes, (n,)."""
    return torch.tensor([float(len(e.steps)) for e in tasks.load(name, "test", limit=n)])


def right(line: Line) -> Tensor:
    return torch.tensor(from_hex(line["questions"]["correct"], line["n"])).double()


def slope(line: Line) -> Tensor:
    """The mean of these is the slope of accuracy over the problem's number of steps (least squares). Both are centred, or a
    resampling would also see how high the accuracy is."""
    steps, hits = problem_steps(line["data"], line["n"]).double(), right(line)
    away = steps - steps.mean()
    return (hits - hits.mean()) * away / away.pow(2).mean() if away.any() else torch.full_like(steps, NAN)


def listed(key: str) -> Callable[[Line], Tensor]:
    return lambda line: torch.tensor(
        [NAN if v is None else float(v) for v in line["questions"].get(key, [])]
    ).double()


def n_eff_above(line: Line) -> Tensor:
    """N_eff above the larger of its controls. NaN for a question without several chains, or without another to compare with."""
    told = line["questions"]
    if "n_eff_judged" not in told:
        return torch.tensor([])
    judged = torch.tensor(from_hex(told["n_eff_judged"], line["n"]))
    return (
        torch.full((line["n"],), NAN)
        .double()
        .masked_scatter(judged, torch.tensor(told["n_eff_above"]).double())
    )


def swapped(line: Line) -> Tensor:
    """Half of a right answer less one that is right with another question's latents: positive on average if these destroy more
    than half of the answers. NaN for a question without a donor."""
    swap = line.get("interventions", {}).get("swap", {}).get("questions")
    if swap is None:
        return torch.tensor([])
    judged, hits = (torch.tensor(from_hex(swap[key], line["n"])) for key in ("judged", "correct"))
    return (right(line) / 2 - hits.double()).masked_fill(~judged, NAN)


# Of a line, one number a question, (n,); NaN where the question has none.
MEASURES: dict[str, Callable[[Line], Tensor]] = {
    "accuracy": right,
    "length": listed("len"),
    "slope": slope,
    "ecr_gain": listed("ecr_gain"),
    "n_eff_above": n_eff_above,
    "swap": swapped,
}
UNITS = {
    "accuracy": ("points", 100),
    "length": ("steps", 1),
    "slope": ("points a step", 100),
    "ecr_gain": ("tokens", 1),
    "n_eff_above": ("chains", 1),
    "swap": ("points", 100),
}


def values(lines: list[Line], row: str, name: str, measure: str) -> dict[int, Tensor]:
    """By seed, one number a question of data set `name`, (n,)."""
    found = {
        l["seed"]: MEASURES[measure](l)
        for l in lines
        if l["row"] == row and l["data"] == name and not l["skipped"]
    }
    return {seed: v for seed, v in found.items() if len(v) and not v.isnan().all()}


# ------------------------------------------------------------------ the bootstrap


@lru_cache
def resamples(n: int, key: int) -> Tensor:
    """How often each of n is drawn when n are drawn with replacement: (DRAWS, n), the same for every row that asks."""
    drawn = torch.randint(n, (DRAWS, n), generator=torch.Generator().manual_seed(key))
    return torch.zeros(DRAWS, n).scatter_add_(1, drawn, torch.ones(DRAWS, n)).double()


def bootstrap(samples: list[Tensor]) -> tuple[float, float, float]:
    """Mean and 95 % interval. samples: for each data set (S, n), seeds by questions, NaN where there is no value. Every
    data set has the same seeds."""
    seeds = (
        resamples(len(samples[0]), 0) if len(samples[0]) > 1 else torch.ones(DRAWS, 1).double()
    )  # (DRAWS, S)
    means, drawn = [], []
    for i, sample in enumerate(samples, 1):
        real, known = ~sample.isnan(), sample.nan_to_num(0.0)
        questions = resamples(sample.shape[1], i)  # (DRAWS, n)
        total = ((seeds @ known) * questions).sum(1)
        drawn.append(total / ((seeds @ real.double()) * questions).sum(1).clamp(min=1))
        means.append(known.sum() / real.sum().clamp(min=1))
    low, high = torch.stack(drawn).mean(0).quantile(torch.tensor([0.025, 0.975]).double()).tolist()
    return torch.stack(means).mean().item(), low, high


def estimate(
    lines: list[Line], row: str, sets=SETS, measure: str = "accuracy", against: str = "", times: float = 1.0
) -> tuple[float, float, float, int, int] | None:
    """Mean, interval, seeds, questions (those with a value) of a row, or of its difference from `times` the row `against` on
    what both have. None where a data set is missing."""
    samples = []
    for name in sets:
        ours, theirs = (
            values(lines, row, name, measure),
            values(lines, against, name, measure) if against else {},
        )
        shared = sorted(s for s in ours if not against or s in theirs and len(theirs[s]) == len(ours[s]))
        samples.append({s: ours[s] - times * theirs[s] if against else ours[s] for s in shared})
    seeds = sorted(set.intersection(*(set(s) for s in samples)))
    samples = [[s[seed] for seed in seeds] for s in samples]
    if not seeds or any(len({len(v) for v in s}) > 1 for s in samples):
        return None
    stacked = [torch.stack(s) for s in samples]
    return *bootstrap(stacked), len(seeds), sum(int((~s.isnan()).any(0).sum()) for s in stacked)


# ------------------------------------------------------------------ trends


@dataclass
class Trend:
    """A claim: `measure` of row a is above (or below) that of row b, or above 0 where b is "", by more than -tolerance."""

    name: str
    a: str
    b: str
    sets: tuple[str, ...] = SETS
    direction: str = ">"
    tolerance: float = 0.0  # in the measure's own unit, accuracy in 0..1
    measure: str = "accuracy"
    times: float = 1.0  # that of row b


LATENT = ("coconut", "codi", "colar_5", "colar_2", "colar_rl", "latent_sft_4", "latent_sft_2", "latent_rl")
SEVERAL = SETS[:3]  # problems of several lengths, some with several valid chains: not so in mini_multiarith
RL = {
    "CoLaR-RL": ("colar_rl", "colar_nll_half_2"),
    "Latent-RL": ("latent_rl", "latent_sft_half"),
}  # and what it starts from
TRENDS = (
    Trend("superposition at least CoT, within a point", "latent_sft_2", "cot_sft", tolerance=0.01),
    Trend(
        "at half the length, within a step",
        "latent_sft_2",
        "cot_sft",
        direction="<",
        tolerance=1.0,
        measure="length",
        times=0.5,
    ),
    Trend("Latent-SFT(2) above (4)", "latent_sft_2", "latent_sft_4"),
    Trend("Latent-SFT above CoLaR at equal length, 2", "latent_sft_2", "colar_2"),
    Trend("Latent-SFT(4) above CoLaR-5", "latent_sft_4", "colar_5"),
    Trend("CoLaR-2 above CoLaR-5", "colar_2", "colar_5"),
    *(Trend(f"{row} above No-CoT", row, "no_cot") for row in ("icot", "cot_sft_soft", *LATENT)),
    *(Trend(f"{row} above pause tokens", row, "pause") for row in LATENT),
    *(
        trend
        for r in (2, 4)
        for trend in (
            Trend(f"superposition above hidden state, r = {r}", f"latent_sft_{r}", f"latent_sft_{r}_hidden"),
            Trend(f"the induction mask helps, r = {r}", f"latent_sft_{r}", f"latent_sft_{r}_no_ltim"),
            Trend(f"the supervision mask helps, r = {r}", f"latent_sft_{r}", f"latent_sft_{r}_no_ltsum"),
        )
    ),
    Trend("an encoder's labels above uniform mixtures", "latent_sft_2", "latent_sft_2_uniform"),
    *(
        Trend(
            f"adaptive segments above {what} at equal #L", f"latent_sft_{r}_adaptive", f"latent_sft_{other}"
        )
        for r, other, what in (
            (2, "2", "fixed ones, r = 2,"),
            (4, "4", "fixed ones, r = 4,"),
            (8, "8_step", "a latent a step"),
        )
    ),
    Trend("Gumbel noise helps", "latent_sft_2_gumbel", "latent_sft_2"),
    *(
        trend
        for c in (2, 5)
        for trend in (
            Trend(f"√c above mean pooling, c = {c}", f"colar_{c}", f"colar_mean_{c}"),
            Trend(
                f"a latent head with a σ above a deterministic one, c = {c}", f"colar_{c}", f"colar_det_{c}"
            ),
            Trend(f"compressed labels help, c = {c}", f"colar_{c}", f"colar_no_labels_{c}"),
            Trend(f"soft-MSE above NLL, c = {c}", f"colar_{c}", f"colar_nll_{c}"),
        )
    ),
    *(Trend(f"ECR@10 above its control, r = {r}", f"latent_sft_{r}", "", measure="ecr_gain") for r in (2, 4)),
    Trend("ECR@10 less its control is larger for r = 4", "latent_sft_4", "latent_sft_2", measure="ecr_gain"),
    *(
        Trend(
            f"N_eff above both its controls, r = {r}", f"latent_sft_{r}", "", SEVERAL, measure="n_eff_above"
        )
        for r in (2, 4)
    ),
    Trend(
        "N_eff less its controls is larger for r = 4",
        "latent_sft_4",
        "latent_sft_2",
        SEVERAL,
        measure="n_eff_above",
    ),
    *(
        trend
        for name, (row, before) in RL.items()
        for trend in (
            Trend(f"{name} shortens the chain", row, before, direction="<", measure="length"),
            Trend(f"{name} keeps the accuracy, within a point", row, before, tolerance=0.01),
        )
    ),
    Trend(
        "CoLaR-RL gains 3 points on training on without RL", "colar_rl", "colar_nll_more_2", tolerance=-0.03
    ),
    Trend(
        "CoLaR-RL's chains are 30 % shorter than without RL",
        "colar_rl",
        "colar_nll_more_2",
        direction="<",
        measure="length",
        times=0.7,
    ),
    Trend("averaging is needed in RL", "colar_rl", "colar_rl_no_average"),
    *(
        Trend(
            f"accuracy falls faster with the number of steps than CoT's: {row}",
            row,
            "cot_sft",
            SEVERAL,
            "<",
            measure="slope",
        )
        for row in LATENT
    ),
    *(
        Trend(
            f"another question's latents destroy more than half of the answers: {row}",
            row,
            "",
            measure="swap",
        )
        for row in ("cot_sft", *LATENT)
    ),  # a chain of words must be needed; all pause tokens are one and the same
)


def verdict(lines: list[Line], trend: Trend) -> tuple[str, tuple | None]:
    """holds | does not hold | within noise | not run; and the estimate that says so."""
    found = estimate(lines, trend.a, trend.sets, trend.measure, trend.b, trend.times)
    if found is None:
        return "not run", None
    sign = 1 if trend.direction == ">" else -1
    low, high = sorted(sign * edge + trend.tolerance for edge in found[1:3])
    return "holds" if low > 0 else "does not hold" if high < 0 else "within noise", found


def better(lines: list[Line]) -> list[Line]:
    """Of a row and its alternatives (trained from scratch, say) only the one that was better on validation, under the
    row's name. So no test set has a say in it."""
    names = {l["row"]: l.get("instead_of") or l["row"] for l in lines}
    score = {row: [l["val_accuracy"] for l in lines if l["row"] == row] for row in names}
    mean = {row: sum(s) / len(s) for row, s in score.items()}
    best = {name: max((row for row in names if names[row] == name), key=mean.get) for name in names.values()}
    return [{**l, "row": names[l["row"]]} for l in lines if best[names[l["row"]]] == l["row"]]


def verdicts_text(lines: list[Line], trends=TRENDS) -> str:
    """verdicts.md"""
    text = [
        "# Trends\n",
        __doc__.split("\n\n")[1].replace("DRAWS", f"{DRAWS:,}"),
        "\nA trend **holds** if the whole interval is on its side, *does not hold* if it is on the "
        f"other, and is within noise else. A tolerance is in the trend's name. In brackets: fewer than {ENOUGH:,} questions, which is a "
        "leaning and no verdict.\n",
        "| trend | difference | 95 % | unit | questions | seeds | verdict |",
        "|---|---|---|---|---|---|---|",
    ]
    lines, not_run = better(lines), []
    for trend in trends:
        what, found = verdict(lines, trend)
        if not found:
            not_run.append(trend.name)
            continue
        unit, scale = UNITS[trend.measure]
        digits = 1 if scale == 100 else 2
        m, low, high, seeds, n = found
        what = f"({what})" if n < ENOUGH else "**holds**" if what == "holds" else what
        text.append(
            f"| {trend.name} | {scale * m:+.{digits}f} | {scale * low:+.{digits}f} to {scale * high:+.{digits}f} | {unit} | {n:,} | {seeds} | {what} |"
        )
    if not_run:
        text.append("\nNot run: " + "; ".join(not_run) + ".")
    return "\n".join(text) + "\n"


# ------------------------------------------------------------------ the table


def cell(found, scale: float = 100) -> str:
    if found is None:
        return "–"
    m, low, high, *_ = found
    return f"{scale * m:.1f} ± {scale * (high - low) / 2:.1f}"


def table_text(lines: list[Line], budget: str = "") -> str:
    """table.md: rows in the lines' order."""
    text = [
        "# The comparison\n",
        f"Accuracy in %, ± half of the 95 % bootstrap interval over questions and seeds (one seed: over the "
        f"questions). #L, seconds, tokens and questions a second are means over data sets and seeds; seconds hold the validations, "
        f"questions a second the keeping of every step's distribution: compare them on one machine only. {budget}\n",
        "| row | seeds | "
        + " | ".join(SETS)
        + " | average | #L | accuracy/#L | training s | training tokens | questions/s | on |",
        "|---" * (len(SETS) + 9) + "|",
    ]
    for row in dict.fromkeys(l["row"] for l in lines):
        mine = [l for l in lines if l["row"] == row]
        mean = lambda key: sum(l[key] for l in mine) / len(mine)
        average, length = estimate(lines, row), mean("mean_len")
        cells = [
            mine[0]["title"],
            str(len({l["seed"] for l in mine})),
            *(cell(estimate(lines, row, (name,))) for name in SETS),
            cell(average),
            f"{length:.1f}",
            f"{100 * average[0] / length:.1f}" if average and length else "–",
            f"{mean('train_seconds'):.0f}",
            f"{mean('train_tokens') / 1e6:.1f} M",
            f"{mean('questions_per_second'):.0f}",
            " and ".join(sorted({l["hardware"] for l in mine})),
        ]
        text.append("| " + " | ".join(cells) + " |")
    return "\n".join(text) + "\n"
