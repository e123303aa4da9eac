"""The comparison's machinery: equal compute, rows done once, intervals and verdicts that say what the numbers say."""
import json
import random
import sys
from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from minilatent import budget, config, data, reproduce, reproduce_figures, setup, verdicts
from minilatent.batch import cut_chain, encode
from minilatent.config import UserError
from minilatent.metrics import from_hex, to_hex
from minilatent.reproduce import Row
from minilatent.verdicts import Trend

TINY = {"init": "none", "n_layer": 1, "width": 32, "n_head": 2, "hidden": 32, "train_size": 64, "val_size": 8, "batch_size": 8,
        "max_chain": 8, "stage1_steps": "1,1,1", "log_every": 1, "save_every": 2, "eval_every": 2, "seed": 0}
CPU = torch.device("cpu")


def made_line(row="a", seed=0, name="mini", correct=(True,), **more) -> dict:
    """A line of rows.jsonl, of so many questions, without having trained anything."""
    correct, n = list(correct), len(correct)
    return {"row": row, "run": row, "title": row, "group": "main", "seed": seed, "instead_of": "", "budget": 1.0, "limit": n, "method": "latent_sft",
            "data": name, "n": n, "skipped": 0, "accuracy": sum(correct) / n, "mean_len": 5.0, "questions_per_second": 100.0,
            "train_seconds": 60.0, "train_tokens": 2_000_000, "flops": 1e12, "val_accuracy": 0.5, "ecr": None, "n_multi": 0,
            "questions": {"correct": to_hex(correct), "len": [5] * n}, **more}


def drawn(p: float, n: int, seed: int) -> list[bool]:
    rng = random.Random(seed)
    return [rng.random() < p for _ in range(n)]


# --- compute ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("method", ["cot_sft", "icot", "coconut", "latent_sft"])
def test_the_steps_spend_the_budget_to_within_one_step(method, monkeypatch, tok):
    monkeypatch.setattr(setup, "mini_tokenizer", lambda: tok)
    run, rows = budget.untrained({**TINY, "method": method}, CPU)
    cost = budget.measure(run, rows, 64)
    total = cost.of(budget.stage_steps(run, rows, 1)) + 40 * max(cost.flops.values())
    steps = budget.affordable(run, rows, cost, total)
    assert cost.of(budget.stage_steps(run, rows, steps)) <= total < cost.of(budget.stage_steps(run, rows, steps + 1))
    # A curriculum divides its steps: one more step is one more of some stage, give or take a rounding.
    stages = len(cost.flops)
    assert total - cost.of(budget.stage_steps(run, rows, steps)) <= stages * max(cost.flops.values())


@pytest.mark.parametrize("method", ["colar_rl", "latent_rl"])
def test_an_rl_step_whose_start_is_not_trained_yet_is_counted_with_the_pass_of_every_sample(method, monkeypatch, tok):
    """Random weights are never right: all groups would be silent, and a step look cheaper than it will be."""
    monkeypatch.setattr(setup, "mini_tokenizer", lambda: tok)
    run, rows = budget.untrained({**{key: value for key, value in TINY.items() if key != "init"}, "method": method, "group": 3}, CPU)
    batch = run.rollout(rows[:2], random.Random(0))
    assert len(run.heard(batch)["ids"]) == len(batch["ids"]) == 6


def test_the_count_is_that_of_the_matrices():
    """6 FLOPs for each weight and token, forward and backward, are most of it."""
    run, rows = budget.untrained({"method": "cot_sft", "train_size": 128, "batch_size": 16}, CPU)
    stage = next(run.stages(rows, []))
    order = sorted(range(len(rows)), key=stage.lengths.__getitem__)
    start = (len(order) - 16) // 2
    tokens = sum(t.numel() for name, t in stage.collate([stage.items[i] for i in order[start:start + 16]], None).items() if name == "ids")
    inner = sum(p.numel() for name, p in run.model.named_parameters() if p.dim() == 2 and "embed" not in name)
    flops = budget.measure(run, rows, 128).flops["cot"]
    assert 6 * inner * tokens < flops < 1.6 * 6 * inner * tokens


def test_frozen_parameters_cost_no_gradient_and_labelling_is_counted(monkeypatch, tok):
    monkeypatch.setattr(setup, "mini_tokenizer", lambda: tok)
    run, rows = budget.untrained({**TINY, "method": "latent_sft"}, CPU)
    cost, twice = budget.measure(run, rows, 64), budget.measure(*budget.untrained({**TINY, "method": "latent_sft"}, CPU), 128)
    assert cost.flops["stage1-encoder"] < cost.flops["stage1-both"] and cost.flops["stage1-decoder"] < cost.flops["stage1-both"]
    assert cost.once > 0 and twice.once == pytest.approx(2 * cost.once)


def test_a_budget_that_is_too_small_says_so(monkeypatch, tok):
    monkeypatch.setattr(setup, "mini_tokenizer", lambda: tok)
    run, rows = budget.untrained({**TINY, "method": "cot_sft"}, CPU)
    with pytest.raises(UserError, match="not enough for one step"):
        budget.affordable(run, rows, budget.measure(run, rows, 64), 10.0)


# --- rows ------------------------------------------------------------------------------------------------------

@pytest.fixture
def call(monkeypatch, tmp_path, capsys, tok):
    """python -m minilatent.reproduce with tiny rows: exit code, stdout, stderr."""
    monkeypatch.setattr(setup, "mini_tokenizer", lambda: tok)
    tiny = {k: v for k, v in TINY.items() if k != "seed"}
    without_init = {k: v for k, v in tiny.items() if k != "init"}
    monkeypatch.setattr(reproduce, "ROWS", [Row("cot_sft", "CoT-SFT", "main", {**tiny, "method": "cot_sft"}),
                                            Row("colar", "CoLaR", "main", {**tiny, "method": "colar", "c_max": 2},
                                                reproduce.speeds("CoLaR-{}")),
                                            Row("half", "before RL", "ablation", {**tiny, "method": "colar", "latent_loss": "nll", "c_max": 2},
                                                share=0.5),
                                            Row("rl", "RL", "main", {**without_init, "method": "colar_rl", "latent_loss": "nll", "group": 2},
                                                share=0.5, after="half")])
    monkeypatch.setattr(reproduce, "REFERENCE", {**tiny, "method": "cot_sft", "steps": 6})
    monkeypatch.setattr(reproduce, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(reproduce, "draw", lambda lines, out: None)

    def run(*argv) -> tuple[int, str, str]:
        given = ["--out", tmp_path / "results", "--limit", 4, "--device", "cpu", *argv]
        monkeypatch.setattr(sys, "argv", ["reproduce", *map(str, given)])
        with pytest.raises(SystemExit) as caught:
            config.run(reproduce.main)
        return caught.value.code or 0, *capsys.readouterr()
    return run


def test_the_plan_is_printed_and_nothing_is_done(call, tmp_path):
    code, out, _ = call("--plan", "--seeds", 0, 1, "--rows", "cot_sft", "colar")
    assert code == 0 and "cot_sft" in out and "seed 1" in out and "cot 6" in out and "hours" in out
    assert not (tmp_path / "runs").exists() and not (tmp_path / "results").exists()


def test_a_row_is_trained_once_judged_on_all_sets_and_then_skipped(call, tmp_path, monkeypatch):
    assert call("--rows", "colar")[0] == 0
    lines = [json.loads(l) for l in (tmp_path / "results/rows.jsonl").read_text().splitlines()]
    assert {(l["row"], l["data"]) for l in lines} == {(r, d) for r in ("colar_5", "colar_2") for d in verdicts.SETS}
    for key in ("seed", "train_seconds", "train_tokens", "flops", "hardware", "threads", "torch", "commit", "ci95", "mean_len"):
        assert all(key in l for l in lines), key
    assert len(from_hex(lines[0]["questions"]["correct"], 4)) == 4
    assert (tmp_path / "results/table.md").exists() and (tmp_path / "results/curves/colar-seed0.json").exists()
    monkeypatch.setattr(reproduce, "train", lambda given: pytest.fail("trained again"))
    monkeypatch.setattr(reproduce, "evaluate", lambda *_, **__: pytest.fail("judged again"))
    assert call("--rows", "colar")[0] == 0


def test_an_interrupted_row_is_resumed_not_begun_again(call, tmp_path, monkeypatch):
    real, given = reproduce.train, []

    def interrupted(settings):
        given.append(settings)
        if len(given) == 1:                              # Ctrl-C right after the run folder was made
            monkeypatch.setattr(setup.Trainer, "fit", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        real(settings)
    fit = setup.Trainer.fit
    monkeypatch.setattr(reproduce, "train", interrupted)
    assert call("--rows", "cot_sft")[0] == 130
    monkeypatch.setattr(setup.Trainer, "fit", fit)
    assert call("--rows", "cot_sft")[0] == 0
    assert "resume" not in given[0] and given[1]["resume"] and given[0]["steps"] == 6
    assert len((tmp_path / "results/rows.jsonl").read_text().splitlines()) == len(verdicts.SETS)


def test_a_row_after_another_trains_that_first_and_counts_it(call, tmp_path):
    code, _, said = call("--rows", "rl", "--budget", 20)
    assert code == 0, said
    lines = [json.loads(l) for l in (tmp_path / "results/rows.jsonl").read_text().splitlines()]
    assert {l["row"] for l in lines} == {"rl"} and set(lines[0]["stages"]) == {"colar", "colar_rl"}
    assert (tmp_path / "runs/half-seed0-budget20/model.safetensors").exists()
    told = [json.loads((tmp_path / f"runs/{name}-seed0-budget20.json").read_text())["flops"] for name in ("half", "rl")]
    assert lines[0]["flops"] == sum(told)
    assert call("--rows", "half", "--budget", 20)[0] == 0            # it is only judged now


def test_several_processes_add_to_one_file_and_no_line_is_lost(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: reproduce.add_line(tmp_path, {"row": i}), range(40)))
    assert sorted(line["row"] for line in reproduce.read_lines(tmp_path)) == list(range(40))


def test_trials_are_done_once_and_the_best_learning_rate_is_the_rows(call, tmp_path, monkeypatch):
    real, given = reproduce.train, []
    monkeypatch.setattr(reproduce, "train", lambda settings: (given.append(settings), real(settings)))
    assert call("--trials", "--rows", "cot_sft", "--budget", 4)[0] == 0
    path = tmp_path / "results/trials.jsonl"
    trials = [json.loads(l) for l in path.read_text().splitlines()]
    own = config.resolve({"method": "cot_sft"}).lr
    assert [t["lr"] for t in trials] == [s["lr"] for s in given] == pytest.approx([own / 3, own, 3 * own])
    assert {t["budget"] for t in trials} == {4.0} and {s["steps"] for s in given} == {6}                  # a quarter of 24
    assert not (tmp_path / "results/rows.jsonl").exists() and (tmp_path / f"results/curves/cot_sft-lr{own:g}-seed0.json").exists()
    assert call("--trials", "--rows", "cot_sft", "--budget", 4)[0] == 0 and len(given) == 3              # nothing is done again
    for best, trial in enumerate(trials):                                                                # whichever is best on validation
        path.write_text("".join(json.dumps({**t, "val_accuracy": 0.9 if i == best else 0.1}) + "\n" for i, t in enumerate(trials)))
        _, out, _ = call("--plan", "--rows", "cot_sft", "colar", "--budget", 4)
        assert f"lr {trial['lr']:g} (best of its trials)" in out and out.count("best of its trials") == 1
    assert call("--rows", "cot_sft", "--budget", 4)[0] == 0 and given[-1]["lr"] == trials[-1]["lr"] and given[-1]["steps"] == 24
    line = json.loads((tmp_path / "results/rows.jsonl").read_text().splitlines()[0])
    assert line["lr"] == trials[-1]["lr"]
    path.write_text("".join(json.dumps({**t, "val_accuracy": 0.9 if i == 0 else 0.1}) + "\n" for i, t in enumerate(trials)))
    code, _, err = call("--rows", "cot_sft", "--budget", 4)                                              # tuned and untuned do not mix
    assert code == 2 and f"trained at lr {trials[-1]['lr']:g}, but the best of its trials is {trials[0]['lr']:g}" in err
    path.write_text(json.dumps(trials[0]) + "\n")                                                        # one of three is not enough
    assert "best of" not in call("--plan", "--rows", "colar", "--budget", 4)[1]
    assert call("--trials", "--plan", "--rows", "cot_sft", "--budget", 4)[1].count("cot_sft-lr") == 2    # the others are left to do


def test_every_method_gets_as_many_trials_and_they_follow_its_preset(monkeypatch):
    families = {reproduce.tuned_as(row): [t.train for t in reproduce.trials_of(row)] for row in reproduce.ROWS if row.train}
    assert set(families) >= set(config.METHODS) and all(len(trials) == len(reproduce.TRIED) for trials in families.values())
    assert {t["ratio"] for t in families["latent_sft"]} == {2} and "latent_loss" not in families["colar"][0]      # the main row's
    monkeypatch.setitem(config.PRESETS["mini"], "cot_sft", {"lr": 0.375})
    assert [t.train["lr"] for t in reproduce.trials_of(reproduce.row_named("cot_sft"))] == pytest.approx([0.125, 0.375, 1.125])


@pytest.mark.parametrize("argv, said", [(["--rows", "latnt"], "unknown row 'latnt'"), (["--budget", 0], "--budget"), (["--seeds", -1], "--seeds"),
                                        (["--limit", 0], "--limit"), (["--sedes", 1], "did you mean '--seeds'")])
def test_bad_input_is_one_clear_line(call, argv, said):
    code, _, err = call(*argv)
    assert code == 2 and said in err and err.count("\n") == 1


def test_rows_of_another_budget_do_not_mix(call, tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results/rows.jsonl").write_text(json.dumps(made_line(limit=4, budget=0.25)) + "\n")
    code, _, err = call("--plan")
    assert code == 2 and "--budget 0.25" in err and err.count("\n") == 1
    (tmp_path / "results/rows.jsonl").write_text("{half a li")
    code, _, err = call("--plan")
    assert code == 2 and "damaged" in err


def test_every_row_of_the_comparison_can_be_resolved_and_every_trend_is_about_rows_that_there_are():
    names = [row.name + v.suffix for row in reproduce.ROWS for v in row.variants]
    assert len(set(names)) == len(names)
    for row in reproduce.ROWS:
        assert not row.train or config.resolve(row.train)
        assert not row.after or reproduce.row_named(row.after).share + row.share == 1
        assert not row.instead_of or reproduce.row_named(row.instead_of)
    for trend in verdicts.TRENDS:
        assert trend.a in names and (trend.b in names or not trend.b), trend


def test_on_mini_a_latent_a_step_is_a_latent_for_eight_tokens(tok):
    """But for the space between two steps. So its fixed partner of equal #L is itself; it is compared with adaptive segments."""
    for name in verdicts.SETS:
        for row in encode(data.load(name, "test", limit=200), tok, 512)[0]:
            step, fixed = (list(map(tok.decode, cut_chain(row, how, 8))) for how in ("step", "fixed"))
            assert [s.strip() for s in step] == [s.strip() for s in fixed]


def test_rl_is_planned_before_what_it_starts_from_is_trained_and_a_part_of_the_budget_has_small_stages(monkeypatch, tok, tmp_path):
    monkeypatch.setattr(setup, "mini_tokenizer", lambda: tok)
    monkeypatch.setattr(reproduce, "RUNS", tmp_path)
    args = Namespace(budget=1.0, trials=False, device="cpu", threads=1, out=str(tmp_path))
    tiny = {k: v for k, v in TINY.items() if k != "seed"}
    half = Row("half", "", "ablation", {**tiny, "method": "latent_sft", "stage1_steps": "8,4,40"}, share=0.5)
    rl = Row("rl", "", "main", {**{k: v for k, v in tiny.items() if k != "init"}, "method": "latent_rl", "group": 2}, share=0.5, after="half")
    monkeypatch.setattr(reproduce, "ROWS", [half, rl])
    assert reproduce.settings_of(half, 0, args)["stage1_steps"] == "4,2,20"          # half of the whole recipe
    assert reproduce.settings_of(half, 0, Namespace(**{**vars(args), "budget": 0.5}))["stage1_steps"] == "2,1,10"
    whole = Row("whole", "", "main", half.train)
    assert reproduce.settings_of(whole, 0, args)["stage1_steps"] == "8,4,40"
    plan = reproduce.plan_of(rl, 0, args, 1e13)
    assert plan.stages["latent_rl"] >= 1 and plan.flops <= 0.5e13


# --- numbers ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("n", [1, 4, 5, 1000])
def test_bits_come_back(n):
    flags = drawn(0.5, n, n)
    assert from_hex(to_hex(flags), n) == flags and len(to_hex(flags)) == -(-n // 4)


def test_the_bootstrap_on_obvious_cases():
    assert verdicts.bootstrap([torch.ones(1, 50).double()]) == pytest.approx((1, 1, 1))
    sample = torch.tensor([drawn(0.3, 1000, 1)]).double()
    m, low, high = verdicts.bootstrap([sample])
    assert m == pytest.approx(sample.mean().item()) and (high - low) / 2 == pytest.approx(1.96 * (m * (1 - m) / 1000) ** 0.5, rel=0.1)
    seeds = torch.stack([torch.zeros(1000), torch.ones(1000), torch.zeros(1000)]).double()       # seeds differ: that is in it
    m, low, high = verdicts.bootstrap([seeds])
    assert m == pytest.approx(1 / 3) and low == 0 and high >= 2 / 3
    holes = torch.tensor([[1.0, float("nan"), 1.0, float("nan")]] * 2).double().repeat(1, 20)
    assert verdicts.bootstrap([holes])[0] == 1
    m, *_ = verdicts.bootstrap([torch.ones(1, 10).double(), torch.zeros(1, 1000).double()])      # data sets count equally
    assert m == 0.5


def test_pairing_sees_a_small_difference_that_unpaired_intervals_would_not():
    b = drawn(0.5, 1000, 3)
    a = [x or i % 50 == 0 for i, x in enumerate(b)]                                              # one point better
    lines = [made_line("a", correct=a), made_line("b", correct=b)]
    assert verdicts.verdict(lines, Trend("", "a", "b", ("mini",)))[0] == "holds"
    assert verdicts.verdict(lines, Trend("", "b", "a", ("mini",)))[0] == "does not hold"
    assert verdicts.verdict(lines, Trend("", "b", "a", ("mini",), tolerance=0.05))[0] == "holds"
    assert verdicts.verdict(lines, Trend("", "a", "b", ("mini",), "<"))[0] == "does not hold"
    lines[1] = made_line("b", correct=drawn(0.5, 1000, 3)[::-1])
    assert verdicts.verdict(lines, Trend("", "a", "b", ("mini",)))[0] == "within noise"
    assert verdicts.verdict(lines, Trend("", "a", "c", ("mini",)))[0] == "not run"
    assert verdicts.verdict(lines, Trend("", "a", "b"))[0] == "not run"                          # a data set is missing


def test_only_shared_seeds_and_whole_data_sets_are_compared():
    lines = [made_line("a", 0, correct=[1] * 40), made_line("a", 1, correct=[0] * 40), made_line("b", 0, correct=[1] * 40)]
    m, _, _, seeds, n = verdicts.estimate(lines, "a", ("mini",), against="b")
    assert (m, seeds, n) == (0, 1, 40)
    lines[2]["skipped"] = 1                                                                      # other questions, then
    assert verdicts.estimate(lines, "a", ("mini",), against="b") is None


def test_slope_is_least_squares_and_a_swap_that_destroys_is_seen():
    n = 400
    steps = verdicts.problem_steps("mini", n)
    easy = [bool(s <= 2) for s in steps]
    slope = verdicts.slope(made_line(correct=easy)).mean().item()
    y, x = torch.tensor(easy).double(), steps.double()
    assert slope == pytest.approx(((y - y.mean()) * (x - x.mean())).sum().item() / (x - x.mean()).pow(2).sum().item())
    flat = verdicts.slope(made_line(correct=[True] * n))
    assert flat.abs().max() < 1e-9                                   # always right: no resampling sees a slope
    trend = Trend("", "a", "", ("mini",), measure="swap")
    for share, said in ((0.02, "holds"), (0.9, "does not hold")):
        lines = [made_line(correct=drawn(0.9, n, 0), interventions=swapped(drawn(share, n, 1)))]
        assert verdicts.verdict(lines, trend)[0] == said


def swapped(correct, judged=None) -> dict:
    return {"swap": {"questions": {"correct": to_hex(correct), "judged": to_hex(judged or [True] * len(correct))}}}


def test_swap_is_judged_question_by_question_those_without_a_donor_apart():
    line = made_line(correct=[1, 1, 0, 0], interventions=swapped([1, 0, 1, 0], [True, True, True, False]))
    assert verdicts.swapped(line)[:3].tolist() == [-0.5, 0.5, -1.0] and verdicts.swapped(line)[3].isnan()
    *_, seeds, n = verdicts.estimate([line], "a", ("mini",), "swap")
    assert (seeds, n) == (1, 3)                                                                  # the fourth is not counted
    assert verdicts.estimate([made_line()], "a", ("mini",), "swap") is None                      # nothing was swapped
    # Paired: where it is the rightly answered ones that survive, the difference varies less than two independent shares would.
    own = drawn(0.5, 1000, 4)
    half = [o and i % 3 == 0 for i, o in enumerate(own)]
    width = [high - low for correct in (half, sorted(half)) for _, low, high, *_ in
             [verdicts.estimate([made_line(correct=own, interventions=swapped(correct))], "a", ("mini",), "swap")]]
    assert width[0] < width[1]


def test_a_row_can_be_held_against_a_multiple_of_another():
    lines = [{**made_line(row, correct=[1] * 40), "questions": {"correct": to_hex([1] * 40), "len": [n] * 40}} for row, n in (("a", 12), ("b", 24))]
    for times, tolerance, said in ((0.5, 1.0, "holds"), (0.4, 1.0, "does not hold"), (1.0, 0.0, "holds")):
        assert verdicts.verdict(lines, Trend("", "a", "b", ("mini",), "<", tolerance, "length", times))[0] == said


def test_the_better_of_two_ways_is_chosen_on_validation():
    lines = [made_line("no_cot", correct=[1], val_accuracy=0.2), made_line("no_cot_scratch", correct=[0], val_accuracy=0.3, instead_of="no_cot")]
    (left,) = verdicts.better(lines)
    assert left["row"] == "no_cot" and left["accuracy"] == 0


def test_the_tables_say_the_numbers_and_over_what():
    lines = [made_line("a", seed, name, [True] * 30 + [False] * 10) for seed in (0, 1) for name in verdicts.SETS]
    text = verdicts.table_text(lines, "Budget: x.")
    row = text.splitlines()[-1]
    assert row.startswith("| a | 2 | 75.0 ± ") and "| 5.0 | 15.0 | 60 | 2.0 M | 100 |" in row and "questions and seeds" in text
    half = float(row.split("±")[1].split("|")[0])                                                # the same questions in both seeds
    assert half == pytest.approx(196 * (0.75 * 0.25 / 40) ** 0.5, rel=0.15)
    text = verdicts.verdicts_text(lines, [Trend("a is something", "a", ""), Trend("missing", "a", "b")])
    assert "| a is something | +75.0 |" in text and "| 160 | 2 | (holds) |" in text and text.endswith("\n\nNot run: missing.\n")
    many = [made_line("a", 0, name, [True] * 750 + [False] * 250) for name in verdicts.SETS]
    assert "| 4,000 | 1 | **holds** |" in verdicts.verdicts_text(many, [Trend("", "a", "")])             # enough for a verdict


# --- figures ---------------------------------------------------------------------------------------------------

def made_up(folder, n=1000):
    """Lines of a whole comparison, and curves, out of thin air."""
    strength = {"base": 0.95, "cot_sft": 0.97, "cot_sft_soft": 0.965, "no_cot": 0.2, "no_cot_scratch": 0.1, "pause": 0.22, "icot": 0.45,
                "coconut": 0.5, "codi": 0.55, "colar_5": 0.35, "colar_2": 0.6, "latent_sft_4": 0.72, "latent_sft_2": 0.88, "latent_rl": 0.86}
    length = {"base": 24, "cot_sft": 24, "cot_sft_soft": 24, "pause": 6, "coconut": 6, "codi": 6, "colar_5": 5.2, "colar_2": 12,
              "latent_sft_4": 6.1, "latent_sft_2": 12.2, "latent_rl": 9.5}
    lines = []
    for row in reproduce.ROWS:
        for v in row.variants:
            name = row.name + v.suffix
            base = strength.get(name, 0.5)
            for seed in (0, 1):
                for s, hard in zip(verdicts.SETS, (0, 0.15, 0.2, 0.3)):
                    steps = verdicts.problem_steps(s, n).tolist()
                    rng = random.Random(f"{name} {s} {seed}")
                    hits = [rng.random() < max(0.02, base - hard * base - (1 - base) * 0.15 * (k - 2)) for k in steps]
                    line = made_line(name, seed, s, hits, run=row.name, title=v.title or row.title, group=row.group, instead_of=row.instead_of,
                                     mean_len=float(length.get(name, 0)))
                    if name in length:
                        line["interventions"] = {x: {"n": n, "accuracy": base * rng.random() * 0.5, "follows_donor": base * 0.95}
                                                 for x in (reproduce.SHOWN if s == "mini" else ["swap"])}
                    lines.append(line)
        if not row.train:
            continue
        entries = [{"stage": "s", "index": 0, "step": i, "loss": 3 * (0.97 + 0.01 * strength.get(row.name, 0)) ** i + 0.1, "seconds": 6.0 * i} for i in range(0, 200, 5)]
        entries += [{"stage": "s", "index": 0, "step": i, "val_accuracy": strength.get(row.name, 0.5) * i / 200, "seconds": 6.0 * i}
                    for i in (50, 100, 150, 200)]
        (folder / "curves").mkdir(exist_ok=True)
        (folder / "curves" / f"{row.name}-seed0.json").write_text(json.dumps(sorted(entries, key=lambda e: e["step"])))
    for line in lines:
        if line["row"] in ("latent_sft_2", "latent_sft_4"):
            line["ecr"] = {str(k): 1 + 0.4 * i for i, k in enumerate((1, 2, 5, 10))}
            line["ecr_control"] = {str(k): 0.3 + 0.3 * i for i, k in enumerate((1, 2, 5, 10))}
            line["n_multi"] = 200
            line["n_eff_quantiles"] = {key + s: [1 + 0.05 * i + 0.1 * j for i in range(21)] for s in ("", "_distinct")
                                       for j, key in enumerate(("n_eff", "n_eff_control", "n_eff_one_path"))}
    return lines


def test_all_figures_are_drawn(tmp_path):
    reproduce_figures.draw(made_up(tmp_path, n=200), tmp_path)
    for name in ("frontier", "ablations", "curves", "latents", "steps", "interventions"):
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000, name


@pytest.mark.parametrize("first", ["cot_sft", "colar_2"])
def test_an_intervention_that_does_not_apply_to_every_method_is_in_the_table_with_gaps(first):
    some = {"noise": {"accuracy": 0.25}, "swap": {"accuracy": 0.0, "follows_donor": 0.75}}
    lines = [made_line("cot_sft", interventions={**some, "top1": {"accuracy": 0.5}}), made_line("colar_2", interventions=some)]
    axes = reproduce_figures.interventions_figure(sorted(lines, key=lambda l: l["row"] != first)).axes[0]
    shown = [t.get_text() for t in axes.texts]
    assert {t.get_text() for t in axes.get_xticklabels()} >= {"noise", "swap", "top1"}
    assert "50" in shown and shown.count("–") == 1 and shown.count("25") == 2


def test_figures_of_a_single_row_are_drawn_where_they_can_be(tmp_path):
    reproduce_figures.draw([made_line("cot_sft", name=name, correct=drawn(0.5, 40, 0)) for name in verdicts.SETS], tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"frontier.png", "steps.png"}
