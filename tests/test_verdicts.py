"""Intervals, verdicts, tables and figures say what the lines of rows.jsonl say."""

import json
import random

import pytest
import torch
from conftest import drawn, made_line

from minilatent.study import comparison, comparison_figures, verdicts
from minilatent.study.measures import from_hex, to_hex
from minilatent.study.verdicts import Trend

# --- numbers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 4, 5, 1000])
def test_bits_come_back(n):
    flags = drawn(0.5, n, n)
    assert from_hex(to_hex(flags), n) == flags and len(to_hex(flags)) == -(-n // 4)


def test_the_bootstrap_on_obvious_cases():
    assert verdicts.bootstrap([torch.ones(1, 50).double()]) == pytest.approx((1, 1, 1))
    sample = torch.tensor([drawn(0.3, 1000, 1)]).double()
    m, low, high = verdicts.bootstrap([sample])
    assert m == pytest.approx(sample.mean().item()) and (high - low) / 2 == pytest.approx(
        1.96 * (m * (1 - m) / 1000) ** 0.5, rel=0.1
    )
    seeds = torch.stack(
        [torch.zeros(1000), torch.ones(1000), torch.zeros(1000)]
    ).double()  # seeds differ: that is in it
    m, low, high = verdicts.bootstrap([seeds])
    assert m == pytest.approx(1 / 3) and low == 0 and high >= 2 / 3
    holes = torch.tensor([[1.0, float("nan"), 1.0, float("nan")]] * 2).double().repeat(1, 20)
    assert verdicts.bootstrap([holes])[0] == 1
    m, *_ = verdicts.bootstrap(
        [torch.ones(1, 10).double(), torch.zeros(1, 1000).double()]
    )  # data sets count equally
    assert m == 0.5


def test_pairing_sees_a_small_difference_that_unpaired_intervals_would_not():
    b = drawn(0.5, 1000, 3)
    a = [x or i % 50 == 0 for i, x in enumerate(b)]  # one point better
    lines = [made_line("a", correct=a), made_line("b", correct=b)]
    assert verdicts.verdict(lines, Trend("", "a", "b", ("mini",)))[0] == "holds"
    assert verdicts.verdict(lines, Trend("", "b", "a", ("mini",)))[0] == "does not hold"
    assert verdicts.verdict(lines, Trend("", "b", "a", ("mini",), tolerance=0.05))[0] == "holds"
    assert verdicts.verdict(lines, Trend("", "a", "b", ("mini",), "<"))[0] == "does not hold"
    lines[1] = made_line("b", correct=drawn(0.5, 1000, 3)[::-1])
    assert verdicts.verdict(lines, Trend("", "a", "b", ("mini",)))[0] == "within noise"
    assert verdicts.verdict(lines, Trend("", "a", "c", ("mini",)))[0] == "not run"
    assert verdicts.verdict(lines, Trend("", "a", "b"))[0] == "not run"  # a data set is missing


def test_the_claims_are_about_the_rows_that_they_name_and_in_the_right_direction():
    """One wrong way round would still be judged, and still read well."""
    told = {t.name: (t.a, t.b, t.direction, t.measure) for t in verdicts.TRENDS}
    assert len(told) == len(verdicts.TRENDS)
    for name, trend in {
        "superposition at least CoT, within a point": ("latent_sft_2", "cot_sft", ">", "accuracy"),
        "at half the length, within a step": ("latent_sft_2", "cot_sft", "<", "length"),
        "Latent-SFT(2) above (4)": ("latent_sft_2", "latent_sft_4", ">", "accuracy"),
        "Latent-SFT above CoLaR at equal length, 2": ("latent_sft_2", "colar_2", ">", "accuracy"),
        "Latent-SFT(4) above CoLaR-5": ("latent_sft_4", "colar_5", ">", "accuracy"),
        "CoLaR-2 above CoLaR-5": ("colar_2", "colar_5", ">", "accuracy"),
        "coconut above No-CoT": ("coconut", "no_cot", ">", "accuracy"),
        "superposition above hidden state, r = 4": ("latent_sft_4", "latent_sft_4_hidden", ">", "accuracy"),
        "the induction mask helps, r = 2": ("latent_sft_2", "latent_sft_2_no_ltim", ">", "accuracy"),
        "the supervision mask helps, r = 4": ("latent_sft_4", "latent_sft_4_no_ltsum", ">", "accuracy"),
        "an encoder's labels above uniform mixtures": (
            "latent_sft_2",
            "latent_sft_2_uniform",
            ">",
            "accuracy",
        ),
        "Gumbel noise helps": ("latent_sft_2_gumbel", "latent_sft_2", ">", "accuracy"),
        "√c above mean pooling, c = 5": ("colar_5", "colar_mean_5", ">", "accuracy"),
        "soft-MSE above NLL, c = 2": ("colar_2", "colar_nll_2", ">", "accuracy"),
        "ECR@10 less its control is larger for r = 4": ("latent_sft_4", "latent_sft_2", ">", "ecr_gain"),
        "N_eff less its controls is larger for r = 4": ("latent_sft_4", "latent_sft_2", ">", "n_eff_above"),
        "CoLaR-RL shortens the chain": ("colar_rl", "colar_nll_half_2", "<", "length"),
        "averaging is needed in RL": ("colar_rl", "colar_rl_no_average", ">", "accuracy"),
        "accuracy falls faster with the number of steps than CoT's: codi": ("codi", "cot_sft", "<", "slope"),
        "another question's latents destroy more than half of the answers: cot_sft": (
            "cot_sft",
            "",
            ">",
            "swap",
        ),
    }.items():
        assert told[name] == trend, name


def test_only_shared_seeds_and_whole_data_sets_are_compared():
    lines = [
        made_line("a", 0, correct=[1] * 40),
        made_line("a", 1, correct=[0] * 40),
        made_line("b", 0, correct=[1] * 40),
    ]
    m, _, _, seeds, n = verdicts.estimate(lines, "a", ("mini",), against="b")
    assert (m, seeds, n) == (0, 1, 40)
    lines[2]["skipped"] = 1  # other questions, then
    assert verdicts.estimate(lines, "a", ("mini",), against="b") is None


def test_slope_is_least_squares_and_a_swap_that_destroys_is_seen():
    n = 400
    steps = verdicts.problem_steps("mini", n)
    easy = [bool(s <= 2) for s in steps]
    slope = verdicts.slope(made_line(correct=easy)).mean().item()
    y, x = torch.tensor(easy).double(), steps.double()
    assert slope == pytest.approx(
        ((y - y.mean()) * (x - x.mean())).sum().item() / (x - x.mean()).pow(2).sum().item()
    )
    flat = verdicts.slope(made_line(correct=[True] * n))
    assert flat.abs().max() < 1e-9  # always right: no resampling sees a slope
    trend = Trend("", "a", "", ("mini",), measure="swap")
    for share, said in ((0.02, "holds"), (0.9, "does not hold")):
        lines = [made_line(correct=drawn(0.9, n, 0), interventions=swapped(drawn(share, n, 1)))]
        assert verdicts.verdict(lines, trend)[0] == said


def swapped(correct, judged=None) -> dict:
    return {
        "swap": {"questions": {"correct": to_hex(correct), "judged": to_hex(judged or [True] * len(correct))}}
    }


def test_swap_is_judged_question_by_question_those_without_a_donor_apart():
    line = made_line(correct=[1, 1, 0, 0], interventions=swapped([1, 0, 1, 0], [True, True, True, False]))
    assert verdicts.swapped(line)[:3].tolist() == [-0.5, 0.5, -1.0] and verdicts.swapped(line)[3].isnan()
    *_, seeds, n = verdicts.estimate([line], "a", ("mini",), "swap")
    assert (seeds, n) == (1, 3)  # the fourth is not counted
    assert verdicts.estimate([made_line()], "a", ("mini",), "swap") is None  # nothing was swapped
    # Paired: where it is the rightly answered ones that survive, the difference varies less than two independent shares would.
    own = drawn(0.5, 1000, 4)
    half = [o and i % 3 == 0 for i, o in enumerate(own)]
    width = [
        high - low
        for correct in (half, sorted(half))
        for _, low, high, *_ in [
            verdicts.estimate(
                [made_line(correct=own, interventions=swapped(correct))], "a", ("mini",), "swap"
            )
        ]
    ]
    assert width[0] < width[1]


def test_a_row_can_be_held_against_a_multiple_of_another():
    lines = [
        {**made_line(row, correct=[1] * 40), "questions": {"correct": to_hex([1] * 40), "len": [n] * 40}}
        for row, n in (("a", 12), ("b", 24))
    ]
    for times, tolerance, said in ((0.5, 1.0, "holds"), (0.4, 1.0, "does not hold"), (1.0, 0.0, "holds")):
        assert (
            verdicts.verdict(lines, Trend("", "a", "b", ("mini",), "<", tolerance, "length", times))[0]
            == said
        )


def test_the_better_of_two_ways_is_chosen_on_validation():
    lines = [
        made_line("no_cot", correct=[1], val_accuracy=0.2),
        made_line("no_cot_scratch", correct=[0], val_accuracy=0.3, instead_of="no_cot"),
    ]
    (left,) = verdicts.better(lines)
    assert left["row"] == "no_cot" and left["accuracy"] == 0


def test_the_tables_say_the_numbers_and_over_what():
    lines = [
        made_line("a", seed, name, [True] * 30 + [False] * 10) for seed in (0, 1) for name in verdicts.SETS
    ]
    text = verdicts.table_text(lines, "Budget: x.")
    row = text.splitlines()[-1]
    assert (
        row.startswith("| a | 2 | 75.0 ± ")
        and "| 5.0 | 15.0 | 60 | 2.0 M | 100 | a CPU |" in row
        and "questions and seeds" in text
    )
    half = float(row.split("±")[1].split("|")[0])  # the same questions in both seeds
    assert half == pytest.approx(196 * (0.75 * 0.25 / 40) ** 0.5, rel=0.15)
    text = verdicts.verdicts_text(lines, [Trend("a is something", "a", ""), Trend("missing", "a", "b")])
    assert (
        "| a is something | +75.0 |" in text
        and "| 160 | 2 | (holds) |" in text
        and text.endswith("\n\nNot run: missing.\n")
    )
    many = [made_line("a", 0, name, [True] * 750 + [False] * 250) for name in verdicts.SETS]
    assert "| 4,000 | 1 | **holds** |" in verdicts.verdicts_text(
        many, [Trend("", "a", "")]
    )  # enough for a verdict


# --- figures ---------------------------------------------------------------------------------------------------


def made_up(folder, n=1000):
    """Lines of a whole comparison, and curves, out of thin air."""
    strength = {
        "base": 0.95,
        "cot_sft": 0.97,
        "cot_sft_soft": 0.965,
        "no_cot": 0.2,
        "no_cot_scratch": 0.1,
        "pause": 0.22,
        "icot": 0.45,
        "coconut": 0.5,
        "codi": 0.55,
        "colar_5": 0.35,
        "colar_2": 0.6,
        "latent_sft_4": 0.72,
        "latent_sft_2": 0.88,
        "latent_rl": 0.86,
    }
    length = {
        "base": 24,
        "cot_sft": 24,
        "cot_sft_soft": 24,
        "pause": 6,
        "coconut": 6,
        "codi": 6,
        "colar_5": 5.2,
        "colar_2": 12,
        "latent_sft_4": 6.1,
        "latent_sft_2": 12.2,
        "latent_rl": 9.5,
    }
    lines = []
    for row in comparison.ROWS:
        for v in row.variants:
            name = row.name + v.suffix
            base = strength.get(name, 0.5)
            for seed in (0, 1):
                for s, hard in zip(verdicts.SETS, (0, 0.15, 0.2, 0.3)):
                    steps = verdicts.problem_steps(s, n).tolist()
                    rng = random.Random(f"{name} {s} {seed}")
                    hits = [
                        rng.random() < max(0.02, base - hard * base - (1 - base) * 0.15 * (k - 2))
                        for k in steps
                    ]
                    line = made_line(
                        name,
                        seed,
                        s,
                        hits,
                        run=row.name,
                        title=v.title or row.title,
                        group=row.group,
                        instead_of=row.instead_of,
                        mean_len=float(length.get(name, 0)),
                    )
                    if name in length:
                        line["interventions"] = {
                            x: {"n": n, "accuracy": base * rng.random() * 0.5, "follows_donor": base * 0.95}
                            for x in (comparison.SHOWN if s == "mini" else ["swap"])
                        }
                    lines.append(line)
        if not row.train:
            continue
        entries = [
            {
                "stage": "s",
                "index": 0,
                "step": i,
                "loss": 3 * (0.97 + 0.01 * strength.get(row.name, 0)) ** i + 0.1,
                "seconds": 6.0 * i,
            }
            for i in range(0, 200, 5)
        ]
        entries += [
            {
                "stage": "s",
                "index": 0,
                "step": i,
                "val_accuracy": strength.get(row.name, 0.5) * i / 200,
                "seconds": 6.0 * i,
            }
            for i in (50, 100, 150, 200)
        ]
        (folder / "curves").mkdir(exist_ok=True)
        (folder / "curves" / f"{row.name}-seed0.json").write_text(
            json.dumps(sorted(entries, key=lambda e: e["step"]))
        )
    for line in lines:
        if line["row"] in ("latent_sft_2", "latent_sft_4"):
            line["ecr"] = {str(k): 1 + 0.4 * i for i, k in enumerate((1, 2, 5, 10))}
            line["ecr_control"] = {str(k): 0.3 + 0.3 * i for i, k in enumerate((1, 2, 5, 10))}
            line["n_multi"] = 200
            line["n_eff_quantiles"] = {
                key + s: [1 + 0.05 * i + 0.1 * j for i in range(21)]
                for s in ("", "_distinct")
                for j, key in enumerate(("n_eff", "n_eff_control", "n_eff_one_path"))
            }
    return lines


def test_all_figures_are_drawn(tmp_path):
    comparison_figures.draw(made_up(tmp_path, n=200), tmp_path)
    for name in ("frontier", "ablations", "curves", "latents", "steps", "interventions"):
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000, name


@pytest.mark.parametrize("first", ["cot_sft", "colar_2"])
def test_an_intervention_that_does_not_apply_to_every_method_is_in_the_table_with_gaps(first):
    some = {"noise": {"accuracy": 0.25}, "swap": {"accuracy": 0.0, "follows_donor": 0.75}}
    lines = [
        made_line("cot_sft", interventions={**some, "top1": {"accuracy": 0.5}}),
        made_line("colar_2", interventions=some),
    ]
    axes = comparison_figures.interventions_figure(sorted(lines, key=lambda l: l["row"] != first)).axes[0]
    shown = [t.get_text() for t in axes.texts]
    assert {t.get_text() for t in axes.get_xticklabels()} >= {"noise", "swap", "top1"}
    assert "50" in shown and shown.count("–") == 1 and shown.count("25") == 2


def test_figures_of_a_single_row_are_drawn_where_they_can_be(tmp_path):
    comparison_figures.draw(
        [made_line("cot_sft", name=name, correct=drawn(0.5, 40, 0)) for name in verdicts.SETS], tmp_path
    )
    assert {p.name for p in tmp_path.iterdir()} == {"frontier.png", "steps.png"}
