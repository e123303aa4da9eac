"""Intervals, verdicts, tables and figures agree with the lines of rows.jsonl."""

import pytest
import torch
from conftest import drawn, made_line
from pytest import approx

from minilatent.files import write_json
from minilatent.study.interventions import INTERVENTIONS
from minilatent.study.measures import to_hex
from results.comparison import claims, figures, verdicts
from results.comparison.claims import SETS, Claim, Trend
from results.comparison.entries import ENTRIES
from results.comparison.verdicts import bootstrap, estimate, numbers, verdict

MINI = ("mini",)


def verdict_of(lines, a, b, **more) -> str:
    return verdict(lines, Trend("", a, b, MINI, **more))[0]


# ------------------------------------------------------------------ numbers


def test_the_bootstrap_on_obvious_cases():
    assert bootstrap([torch.ones(1, 50).double()]) == approx((1, 1, 1))
    sample = torch.tensor([drawn(0.3, 1000, 1)]).double()
    m, low, high = bootstrap([sample])
    assert m == approx(sample.mean().item())
    assert (high - low) / 2 == approx(1.96 * (m * (1 - m) / 1000) ** 0.5, rel=0.1)
    seeds = (
        torch.tensor([0.0, 1.0, 0.0]).double()[:, None].expand(3, 1000)
    )  # the spread of seeds is part of it
    m, low, high = bootstrap([seeds])
    assert m == approx(1 / 3) and low == 0 and high >= 2 / 3
    holes = torch.tensor([[1.0, torch.nan, 1.0, torch.nan]] * 2).double().repeat(1, 20)
    assert bootstrap([holes])[0] == 1
    unequal = [torch.ones(1, 10).double(), torch.zeros(1, 1000).double()]
    assert bootstrap(unequal)[0] == 0.5  # data sets count equally


def test_pairing_sees_a_small_difference_that_unpaired_intervals_would_not():
    b = drawn(0.5, 1000, 3)
    a = [x or i % 50 == 0 for i, x in enumerate(b)]  # one point better
    lines = [made_line("a", correct=a), made_line("b", correct=b)]
    assert verdict_of(lines, "a", "b") == "holds"
    assert verdict_of(lines, "b", "a") == "does not hold"
    assert verdict_of(lines, "b", "a", tolerance=0.05) == "holds"
    assert verdict_of(lines, "a", "b", direction="<") == "does not hold"
    lines[1] = made_line("b", correct=b[::-1])
    assert verdict_of(lines, "a", "b") == "within noise"
    assert verdict_of(lines, "a", "c") == "not run"
    assert verdict(lines, Trend("", "a", "b"))[0] == "not run"  # a data set is missing


def test_the_claims_are_about_the_rows_that_they_name_and_in_the_right_direction():
    """One wrong way round would still get a verdict, and still read well."""
    by_name = lambda trends: {t.name: (t.a, t.b, t.direction, t.measure) for t in trends}
    parts, found = by_name(claims.TRENDS), {}
    assert len(parts) == len(claims.TRENDS) and len(claims.CLAIMS) == 12
    for claim in claims.CLAIMS:
        mine = by_name(claim.trends)
        assert len(mine) == len(claim.trends) > 0
        found |= {(claim.sentence.split()[0], name): rows for name, rows in mine.items()}
    two, six = "latent_sft_2", "latent_sft_6"
    expected = {
        ("Superpositions", "Latent-SFT(2) at least CoT-SFT, within a point"): (two, "cot_sft"),
        ("Superpositions", "its length at most half, within a step"): (two, "cot_sft", "<", "length"),
        ("At", "Latent-SFT(3) above CoLaR-3"): ("latent_sft_3", "colar_3"),
        ("One", "CoLaR-3 at least CoLaR-2, within two points"): ("colar_3", "colar_2"),
        ("Thinking", "Coconut above No-CoT"): ("coconut", "no_cot"),
        ("Thinking", "Latent-RL above No-CoT from scratch"): ("latent_rl", "no_cot_scratch"),
        ("Latents", "CODI above pause tokens"): ("codi", "pause"),
        ("Latents", "CODI above looped"): ("codi", "looped"),
        ("Coconut", "Coconut above no curriculum"): ("coconut", "coconut_no_curriculum"),
        ("No-CoT", "SIM-CoT above Coconut"): ("sim_cot", "coconut"),
        ("RL", "CoLaR-RL gains 3 points on training on without RL"): ("colar_rl", "colar_sentences_more_2"),
        ("RL", "its chains are 30 % shorter"): ("colar_rl", "colar_sentences_more_2", "<", "length"),
        ("RL", "Latent-RL gains on Latent-SFT once more"): ("latent_rl", "latent_sft_more"),
        ("A", "N_eff above both its controls, r = 6"): (six, "", ">", "n_eff_above"),
        ("The", "CODI loses more than half of its answers"): ("codi", "", ">", "swap"),
        ("Latents", "CODI within 3 points of CoT-SFT up to 3 steps"): ("codi", "cot_sft", ">", "short"),
        ("Latents", "CODI below CoT-SFT beyond"): ("codi", "cot_sft", "<", "long"),
        ("Latents", "CODI falls faster with each step than CoT-SFT"): ("codi", "cot_sft", "<", "slope"),
        ("Where", "CODI gains more than CoT-SFT"): ("codi", "cot_sft", ">", "several"),
        ("Where", "CODI gains more than No-CoT from scratch"): ("codi", "no_cot_scratch", ">", "several"),
    }
    of_parts = {
        "Latent-SFT(2) above (6)": (two, six),
        "CoLaR-2 above CoLaR-3": ("colar_2", "colar_3"),
        "superposition above hidden state, r = 6": (six, "latent_sft_6_hidden"),
        "the induction mask helps, r = 2": (two, "latent_sft_2_no_ltim"),
        "the supervision mask helps, r = 6": (six, "latent_sft_6_no_ltsum"),
        "an encoder's labels above uniform mixtures, r = 2": (two, "latent_sft_2_uniform"),
        "Gumbel noise helps": ("latent_sft_2_gumbel", two),
        "√c above mean pooling, c = 3": ("colar_3", "colar_mean_3"),
        "soft-MSE above NLL, c = 2": ("colar_2", "colar_nll_2"),
        "averaging is needed in RL": ("colar_rl", "colar_rl_no_average"),
        "CoLaR-RL shortens the chain": ("colar_rl", "colar_sentences_2", "<", "length"),
        "ECR@10 less its control is larger for r = 6": (six, two, ">", "ecr_gain"),
        "N_eff less its controls is larger for r = 6": (six, two, ">", "n_eff_above"),
    }
    for there, wanted in ((found, expected), (parts, of_parts)):
        for name, rows in wanted.items():
            assert there[name] == (*rows, ">", "accuracy")[: max(4, len(rows))], name
        assert all(len(rows) in (2, 4) for rows in wanted.values())
    everything = [trend for claim in claims.CLAIMS for trend in claim.trends]
    special = {t.name: (t.tolerance, t.times) for t in everything if (t.tolerance, t.times) != (0.0, 1.0)}
    assert special == {
        "Latent-SFT(2) at least CoT-SFT, within a point": (0.01, 1.0),
        "its length at most half, within a step": (1.0, 0.5),
        "CoLaR-3 at least CoLaR-2, within two points": (0.02, 1.0),
        "Pause tokens at least No-CoT, within a point": (0.01, 1.0),
        "SIM-CoT at least CODI, within a point": (0.01, 1.0),
        "SIM-CoT at least CoT-SFT, within a point": (0.01, 1.0),
        "CoLaR-RL gains 3 points on training on without RL": (-0.03, 1.0),
        "its chains are 30 % shorter": (0.0, 0.7),
        "CODI within 3 points of CoT-SFT up to 3 steps": (0.03, 1.0),
    }


def test_only_shared_seeds_and_whole_data_sets_are_compared():
    lines = [made_line("a", 0, correct=[1] * 40), made_line("a", 1, correct=[0] * 40)]
    lines.append(made_line("b", 0, correct=[1] * 40))
    found = estimate(lines, "a", MINI, against="b")
    assert (found.mean, found.seeds, found.questions) == (0, 1, 40)
    lines[2]["skipped"] = 1  # other questions, then
    assert estimate(lines, "a", MINI, against="b") is None


def swapped(correct, judged=None) -> dict:
    questions = {"correct": to_hex(correct), "judged": to_hex(judged or [True] * len(correct))}
    return {"swap": {"questions": questions}}


def test_slope_is_least_squares_and_a_swap_that_destroys_is_seen():
    n = 400
    steps = verdicts.problem_steps("mini", n)
    easy = [bool(s <= 2) for s in steps]
    y, x = torch.tensor(easy).double(), steps.double()
    expected = ((y - y.mean()) * (x - x.mean())).sum() / (x - x.mean()).pow(2).sum()
    assert numbers(made_line(correct=easy), "slope").mean().item() == approx(expected.item())
    always = numbers(made_line(correct=[True] * n), "slope")
    assert always.abs().max() < 1e-9  # no resampling sees a slope
    with_one, with_several = drawn(0.9, n, 2), drawn(0.4, n, 3)
    several = verdicts.has_several("mini", n)
    line = made_line(correct=[b if s else a for a, b, s in zip(with_one, with_several, several)])
    assert -0.7 < numbers(line, "several").mean().item() < -0.3
    only_steps = numbers(made_line(correct=easy), "several")  # explained by the number of steps
    assert only_steps.abs().max() < 1e-9
    short, long = (numbers(made_line(correct=easy), measure) for measure in ("short", "long"))
    assert torch.equal(short.isnan(), steps > 3) and torch.equal(long.isnan(), steps <= 3)
    for share, expected in ((0.02, "holds"), (0.9, "does not hold")):
        lines = [made_line(correct=drawn(0.9, n, 0), interventions=swapped(drawn(share, n, 1)))]
        assert verdict_of(lines, "a", "", measure="swap") == expected


def test_swap_is_judged_question_by_question_those_without_a_donor_apart():
    line = made_line(correct=[1, 1, 0, 0], interventions=swapped([1, 0, 1, 0], [True, True, True, False]))
    values = numbers(line, "swap")
    assert values[:3].tolist() == [-0.5, 0.5, -1.0] and values[3].isnan()
    found = estimate([line], "a", MINI, "swap")
    assert (found.seeds, found.questions) == (1, 3)  # the fourth is not counted
    assert estimate([made_line()], "a", MINI, "swap") is None  # nothing was swapped
    # Paired: where right answers survive, the difference varies less than that of two independent shares.
    own = drawn(0.5, 1000, 4)
    half = [o and i % 3 == 0 for i, o in enumerate(own)]
    paired, apart = (
        estimate([made_line(correct=own, interventions=swapped(hits))], "a", MINI, "swap")
        for hits in (half, sorted(half))
    )
    assert paired.high - paired.low < apart.high - apart.low


def test_a_row_can_be_compared_with_a_multiple_of_another():
    lines = [made_line("a", correct=[1] * 40), made_line("b", correct=[1] * 40)]
    lines[0]["questions"]["len"], lines[1]["questions"]["len"] = [12] * 40, [24] * 40
    length = {"direction": "<", "measure": "length"}
    assert verdict_of(lines, "a", "b", times=0.5, tolerance=1.0, **length) == "holds"
    assert verdict_of(lines, "a", "b", times=0.4, tolerance=1.0, **length) == "does not hold"
    assert verdict_of(lines, "a", "b", **length) == "holds"


def test_the_tables_hold_the_numbers_and_over_what():
    hits = [True] * 30 + [False] * 10
    lines = [made_line("a", seed, name, hits) for seed in (0, 1) for name in SETS]
    text = verdicts.table_text(lines)
    row = text.splitlines()[-1]
    assert row.startswith("| a | 2 | 1.0e+12 | 75.0 ± ") and "questions and seeds" in text
    assert row.endswith("| 5.0 | 15.0 | 60 | 2.0 M | 100 | a CPU |")
    half = float(row.split("±")[1].split("|")[0])  # the same questions in both seeds
    assert half == approx(196 * (0.75 * 0.25 / 40) ** 0.5, rel=0.15)
    trends = [Trend("a is something", "a", ""), Trend("missing", "a", "b")]
    text = verdicts.verdicts_text(lines, [], trends)
    assert "| a is something | +75.0 |" in text and "| 160 | 2 | (holds) |" in text
    assert text.endswith("\n\nNot run: missing.\n")
    many = [made_line("a", 0, name, [True] * 750 + [False] * 250) for name in SETS]
    assert "| 4,000 | 1 | holds, one seed |" in verdicts.verdicts_text(many, [], trends)
    many += [made_line("a", 1, name, [True] * 750 + [False] * 250) for name in SETS]
    assert "| 4,000 | 2 | **holds** |" in verdicts.verdicts_text(many, [], trends)


def test_a_claim_holds_if_all_its_trends_do_and_says_what_was_not_run():
    more, less = [True] * 2000, [True] * 100 + [False] * 1900
    lines = [made_line(row, s, correct=hits) for row, hits in (("a", more), ("b", less)) for s in (0, 1)]
    up, down, level, gone = (
        Trend(name, *rows, MINI)
        for name, *rows in (("up", "a", "b"), ("down", "b", "a"), ("level", "a", "a"), ("gone", "a", "c"))
    )

    def shown(*trends: Trend, of=lines) -> list[str]:
        text = verdicts.claims_text(of, [Claim("a claim", "somebody", "steps", list(trends))])
        assert "### 1. a claim" in text and "Source: somebody." in text
        return [cell.strip() for cell in text.splitlines()[2].split("|")[3:6]]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verdicts, "ENOUGH", 2000)
        assert shown(up) == ["holds", "up: +95.0 points (+94.0 to +96.0)", "2"]
        assert shown(up, of=lines[::2])[0] == "holds, one seed"
        assert shown(up, down)[0] == "does not hold (1 of 2 hold)" and shown(up, down)[1].startswith(
            "down: -95"
        )
        assert shown(up, gone)[0] == "open (1 of 1 hold, 1 not run)"
        assert shown(up, level)[0] == "open (1 of 2 hold)" and shown(gone) == ["not run", "–", "–"]
    assert shown(up)[0] == "(holds)"  # too few questions


# ------------------------------------------------------------------ figures


def made_up(n: int) -> list[dict]:
    """Lines of a whole comparison, made up."""
    strengths = {"base": 0.95, "cot_sft": 0.97, "no_cot": 0.2, "colar_3": 0.35, "latent_sft_2": 0.88}
    lengths = {"cot_sft": 24.0, "pause": 6.0, "colar_3": 5.2, "colar_2": 12.0, "latent_sft_2": 12.2}
    replaced = {"n": n, "accuracy": 0.2, "follows_donor": 0.9}
    lines = []
    for entry in ENTRIES:
        for variant in entry.variants:
            row = entry.name + variant.suffix
            more = {"run": entry.name, "title": variant.title or entry.title}
            more |= {"group": "main" if entry.main else "ablation", "mean_len": lengths.get(row, 0.0)}
            if row in lengths:
                more["interventions"] = {name: replaced for name in INTERVENTIONS}
            for name in SETS:
                hits = drawn(strengths.get(row, 0.5), n, len(lines))
                lines.append(made_line(row, 0, name, hits, **more))
    return lines


def test_all_figures_are_drawn(tmp_path):
    points = [{"index": 0, "step": s, "flops": 1e12 * s, "val_accuracy": s / 9} for s in (2, 4, 6, 8)]
    for run in ("cot_sft", "latent_sft_2"):
        write_json(tmp_path / "curves" / f"{run}-seed0.json", points)
    figures.draw(made_up(n=100), tmp_path)
    for name in ("frontier", "steps", "interventions", "compute", "claims"):
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000, name


@pytest.mark.parametrize("first", ["cot_sft", "colar_2"])
def test_an_intervention_that_does_not_apply_to_every_method_is_in_the_table_with_gaps(first):
    some = {"noise": {"accuracy": 0.25}, "swap": {"accuracy": 0.0, "follows_donor": 0.75}}
    lines = [
        made_line("cot_sft", interventions={**some, "top1": {"accuracy": 0.5}}),
        made_line("colar_2", interventions=some),
    ]
    axes = figures.interventions_figure(sorted(lines, key=lambda l: l["row"] != first)).axes[0]
    shown = [t.get_text() for t in axes.texts]
    assert {t.get_text() for t in axes.get_xticklabels()} >= {"noise", "swap", "top1"}
    assert "50" in shown and shown.count("–") == 1 and shown.count("25") == 2


def test_labels_stay_within_the_axis_apart_from_each_other():
    axes = figures.plt.figure().add_subplot()
    figures.label_points(axes, [(f"{i},\nagain", 1.0, 99.0, "k") for i in range(8)], 1.1, 5.0)
    heights = sorted(label.xyann[1] for label in axes.texts)
    assert min(b - a for a, b in zip(heights, heights[1:])) >= 9.9  # two lines of text each
    assert 0 < heights[0] - 5.0 and heights[-1] + 5.0 <= figures.TOP + 0.1


@pytest.mark.parametrize(
    ("x", "y", "side"), [(2.0, 51.0, "left"), (2.0, 60.0, "right"), (3.0, 51.0, "right")]
)
def test_a_label_that_would_cover_a_point_is_on_the_left(x, y, side):
    assert figures.label_side([("twelve chars", 1.0, 50.0, "k")], [("", x, y, "k")], longest=10.0) == side


def test_few_questions_give_figures_with_gaps(tmp_path):
    figures.draw(made_up(n=20), tmp_path)
    assert (tmp_path / "steps.png").exists()


def test_the_frontier_has_length_and_accuracy_of_the_same_data_sets():
    lines = [made_line("cot_sft", name=name, correct=[True] * 30 + [False] * 10) for name in SETS]
    longer = made_line("cot_sft", name="mini_long", correct=[False] * 40)
    axes = figures.frontier_figure([*lines, {**longer, "mean_len": 50.0}]).axes[0]
    assert axes.lines[0].get_xydata().tolist() == [[5.0, 75.0]]


def test_a_plateau_is_of_each_seeds_longest_run():
    lines = [made_line("a", seed, name, [True] * 20 + [False] * 20) for seed in (0, 1) for name in SETS]
    longer = [made_line("a@2", 1, name, [True] * 40, flops=2e12, gain=0.02) for name in SETS]
    shown = verdicts.plateau_cell([*lines, *longer], "a")
    assert shown.startswith("75.0 ± ") and shown.endswith(", 2.0e+12, rising")  # the mean of 50 and 100
    assert verdicts.plateau_cell(lines, "a").endswith(", 1.0e+12")


def test_figures_of_a_single_row_are_drawn_where_they_can_be(tmp_path):
    figures.draw([made_line("cot_sft", name=name, correct=drawn(0.5, 40, 0)) for name in SETS], tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"frontier.png", "steps.png"}
