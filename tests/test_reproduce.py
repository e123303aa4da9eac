"""The comparison's machinery: equal compute, rows done once and judged as they say. Intervals, verdicts and figures: test_verdicts.py."""

import json
import random
import sys
from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest import made_line

from minilatent import config, run, tasks
from minilatent.batch import cut_chain, encode
from minilatent.config import SoftThinking, UserError
from minilatent.study import budget, comparison, verdicts
from minilatent.study.comparison import Row, Variant
from minilatent.study.measures import from_hex

TINY = {
    "init": "none",
    "n_layer": 1,
    "width": 32,
    "n_head": 2,
    "hidden": 32,
    "train_size": 64,
    "val_size": 8,
    "batch_size": 8,
    "max_chain": 8,
    "stage1_steps": "1,1,1",
    "log_every": 1,
    "save_every": 2,
    "eval_every": 2,
    "seed": 0,
}
CPU = torch.device("cpu")


# --- compute ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["cot_sft", "icot", "coconut", "latent_sft"])
def test_the_steps_spend_the_budget_to_within_one_step(method, monkeypatch, tok):
    monkeypatch.setattr(run, "mini_tokenizer", lambda: tok)
    run, rows = budget.untrained({**TINY, "method": method}, CPU)
    cost = budget.measure(run, rows, 64)
    total = cost.of(budget.stage_steps(run, rows, 1)) + 40 * max(cost.flops.values())
    steps = budget.affordable(run, rows, cost, total)
    assert (
        cost.of(budget.stage_steps(run, rows, steps))
        <= total
        < cost.of(budget.stage_steps(run, rows, steps + 1))
    )
    # A curriculum divides its steps: one more step is one more of some stage, give or take a rounding.
    stages = len(cost.flops)
    assert total - cost.of(budget.stage_steps(run, rows, steps)) <= stages * max(cost.flops.values())


@pytest.mark.parametrize("method", ["colar_rl", "latent_rl"])
def test_an_rl_step_whose_start_is_not_trained_yet_is_counted_with_the_pass_of_every_sample(
    method, monkeypatch, tok
):
    """Random weights are never right: all groups would be silent, and a step look cheaper than it will be."""
    monkeypatch.setattr(run, "mini_tokenizer", lambda: tok)
    run, rows = budget.untrained(
        {**{key: value for key, value in TINY.items() if key != "init"}, "method": method, "group": 3}, CPU
    )
    batch = run.rollout(rows[:2], random.Random(0))
    assert len(run.heard(batch)["ids"]) == len(batch["ids"]) == 6


def test_the_count_is_that_of_the_matrices():
    """6 FLOPs for each weight and token, forward and backward, are most of it."""
    run, rows = budget.untrained({"method": "cot_sft", "train_size": 128, "batch_size": 16}, CPU)
    stage = next(run.stages(rows, []))
    order = sorted(range(len(rows)), key=stage.lengths.__getitem__)
    start = (len(order) - 16) // 2
    tokens = sum(
        t.numel()
        for name, t in stage.collate([stage.items[i] for i in order[start : start + 16]], None).items()
        if name == "ids"
    )
    inner = sum(p.numel() for name, p in run.model.named_parameters() if p.dim() == 2 and "embed" not in name)
    flops = budget.measure(run, rows, 128).flops["cot"]
    assert 6 * inner * tokens < flops < 1.6 * 6 * inner * tokens


def test_frozen_parameters_cost_no_gradient_and_labelling_is_counted(monkeypatch, tok):
    monkeypatch.setattr(run, "mini_tokenizer", lambda: tok)
    run, rows = budget.untrained({**TINY, "method": "latent_sft"}, CPU)
    cost, twice = (
        budget.measure(run, rows, 64),
        budget.measure(*budget.untrained({**TINY, "method": "latent_sft"}, CPU), 128),
    )
    assert (
        cost.flops["stage1-encoder"] < cost.flops["stage1-both"]
        and cost.flops["stage1-decoder"] < cost.flops["stage1-both"]
    )
    assert cost.once > 0 and twice.once == pytest.approx(2 * cost.once)


def test_a_budget_that_is_too_small_says_so(monkeypatch, tok):
    monkeypatch.setattr(run, "mini_tokenizer", lambda: tok)
    run, rows = budget.untrained({**TINY, "method": "cot_sft"}, CPU)
    with pytest.raises(UserError, match="not enough for one step"):
        budget.affordable(run, rows, budget.measure(run, rows, 64), 10.0)


# --- rows ------------------------------------------------------------------------------------------------------


@pytest.fixture
def call(monkeypatch, tmp_path, capsys, tok):
    """python -m minilatent.reproduce with tiny rows: exit code, stdout, stderr."""
    monkeypatch.setattr(run, "mini_tokenizer", lambda: tok)
    tiny = {k: v for k, v in TINY.items() if k != "seed"}
    without_init = {k: v for k, v in tiny.items() if k != "init"}
    soft = Variant("_soft", "Soft Thinking", soft=SoftThinking(soft_thinking=True))
    monkeypatch.setattr(
        reproduce,
        "ROWS",
        [
            Row("cot_sft", "CoT-SFT", "main", {**tiny, "method": "cot_sft"}, [Variant(), soft]),
            Row(
                "colar",
                "CoLaR",
                "main",
                {**tiny, "method": "colar", "c_max": 2},
                comparison.speeds("CoLaR-{}"),
            ),
            Row(
                "half",
                "before RL",
                "ablation",
                {**tiny, "method": "colar", "latent_loss": "nll", "c_max": 2},
                share=0.5,
            ),
            Row(
                "rl",
                "RL",
                "main",
                {**without_init, "method": "colar_rl", "latent_loss": "nll", "group": 2},
                share=0.5,
                after="half",
            ),
        ],
    )
    monkeypatch.setattr(comparison, "REFERENCE", {**tiny, "method": "cot_sft", "steps": 6})
    monkeypatch.setattr(comparison, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(comparison, "draw", lambda lines, out: None)

    def run(*argv) -> tuple[int, str, str]:
        given = ["--out", tmp_path / "results", "--limit", 4, "--device", "cpu", *argv]
        monkeypatch.setattr(sys, "argv", ["reproduce", *map(str, given)])
        with pytest.raises(SystemExit) as caught:
            config.run_script(comparison.main)
        return caught.value.code or 0, *capsys.readouterr()

    return run


def test_the_plan_is_printed_and_nothing_is_done(call, tmp_path):
    code, out, _ = call("--plan", "--seeds", 0, 1, "--rows", "cot_sft", "colar")
    assert code == 0 and "cot_sft" in out and "seed 1" in out and "cot 6" in out and "hours" in out
    assert not (tmp_path / "runs").exists() and not (tmp_path / "results").exists()


def test_a_row_is_trained_once_judged_on_all_sets_and_then_skipped(call, tmp_path, monkeypatch):
    assert call("--rows", "colar")[0] == 0
    lines = [json.loads(l) for l in (tmp_path / "results/rows.jsonl").read_text().splitlines()]
    assert {(l["row"], l["data"]) for l in lines} == {
        (r, d) for r in ("colar_5", "colar_2") for d in verdicts.SETS
    }
    for key in (
        "seed",
        "train_seconds",
        "train_tokens",
        "flops",
        "hardware",
        "threads",
        "torch",
        "commit",
        "ci95",
        "mean_len",
    ):
        assert all(key in l for l in lines), key
    assert len(from_hex(lines[0]["questions"]["correct"], 4)) == 4
    assert (tmp_path / "results/table.md").exists() and (
        tmp_path / "results/curves/colar-seed0.json"
    ).exists()
    monkeypatch.setattr(comparison, "train", lambda given: pytest.fail("trained again"))
    monkeypatch.setattr(comparison, "evaluate", lambda *_, **__: pytest.fail("judged again"))
    assert call("--rows", "colar")[0] == 0


def test_what_is_missing_of_a_row_is_not_judged_on_another_run(call, tmp_path):
    """The run went with the machine: trained anew it is another model, and one row would be of two."""
    assert call("--rows", "colar")[0] == 0
    path = tmp_path / "results/rows.jsonl"
    lines = path.read_text().splitlines(True)
    path.write_text("".join(lines[:3]))
    assert call("--rows", "colar")[0] == 0 and len(path.read_text().splitlines()) == len(
        lines
    )  # it is still there
    path.write_text("".join(lines[:3]))
    (tmp_path / "runs/colar-seed0").rename(tmp_path / "gone")
    code, _, err = call("--rows", "colar")
    assert (
        code == 2
        and "only a part of colar, seed 0" in err
        and err.count("\n") == 1
        and not (tmp_path / "runs/colar-seed0").exists()
    )
    assert call("--rows", "colar", "--seeds", 1, "--plan")[0] == 0


def test_a_row_is_judged_in_each_way_that_it_names_with_all_interventions_on_mini(call, monkeypatch):
    ways, replaced = [], []
    evaluate, intervene = comparison.evaluate, comparison.intervene

    def judge(method, examples, name, **more):
        ways.append((method.config.method, name, method.config.speed, bool(getattr(method, "soft", None))))
        return evaluate(method, examples, name, **more)

    def replace(method, examples, names, **more):
        replaced.append((ways[-1][1], names))
        return intervene(method, examples, names, **more)

    monkeypatch.setattr(comparison, "evaluate", judge)
    monkeypatch.setattr(comparison, "intervene", replace)
    assert call("--rows", "cot_sft", "colar")[0] == 0
    default = config.Config().speed
    assert ways == (
        [("cot_sft", name, default, soft) for soft in (False, True) for name in verdicts.SETS]
        + [("colar", name, speed, False) for speed in ("5", "2") for name in verdicts.SETS]
    )
    everything = {"noise", "loud", "swap", "zeros", "mean", "shuffle", "truncate", "extend"}
    assert len(replaced) == len(ways)
    for (method, *_), (name, names) in zip(ways, replaced):
        assert set(names) == (
            {"swap"} if name != "mini" else everything | ({"top1"} if method == "cot_sft" else set())
        )


def test_an_interrupted_row_is_resumed_not_begun_again(call, tmp_path, monkeypatch):
    real, given = comparison.train, []

    def interrupted(settings):
        given.append(settings)
        if len(given) == 1:  # Ctrl-C right after the run folder was made
            monkeypatch.setattr(run.Trainer, "fit", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        real(settings)

    fit = run.Trainer.fit
    monkeypatch.setattr(comparison, "train", interrupted)
    assert call("--rows", "cot_sft")[0] == 130
    monkeypatch.setattr(run.Trainer, "fit", fit)
    assert call("--rows", "cot_sft")[0] == 0
    assert "resume" not in given[0] and given[1]["resume"] and given[0]["steps"] == 6
    assert len((tmp_path / "results/rows.jsonl").read_text().splitlines()) == 2 * len(verdicts.SETS)


def test_a_row_after_another_trains_that_first_and_counts_it(call, tmp_path, monkeypatch):
    monkeypatch.setattr(
        reproduce, "print_plan", lambda *_: None
    )  # which counts with mini-base what is not trained yet: too dear
    code, _, said = call("--rows", "rl", "--budget", 20)
    assert code == 0, said
    lines = [json.loads(l) for l in (tmp_path / "results/rows.jsonl").read_text().splitlines()]
    assert {l["row"] for l in lines} == {"rl"} and set(lines[0]["stages"]) == {"colar", "colar_rl"}
    assert (tmp_path / "runs/half-seed0-budget20/model.safetensors").exists()
    told = [
        json.loads((tmp_path / f"runs/{name}-seed0-budget20.json").read_text())["flops"]
        for name in ("half", "rl")
    ]
    assert lines[0]["flops"] == sum(told)
    assert call("--rows", "half", "--budget", 20)[0] == 0  # it is only judged now


def test_several_processes_add_to_one_file_and_no_line_is_lost(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: comparison.add_line(tmp_path, {"row": i}), range(40)))
    assert sorted(line["row"] for line in comparison.read_lines(tmp_path)) == list(range(40))


def test_trials_are_done_once_and_the_best_learning_rate_is_the_rows(call, tmp_path, monkeypatch):
    real, given = comparison.train, []
    monkeypatch.setattr(comparison, "train", lambda settings: (given.append(settings), real(settings)))
    assert call("--trials", "--rows", "cot_sft", "--budget", 4)[0] == 0
    path = tmp_path / "results/trials.jsonl"
    trials = [json.loads(l) for l in path.read_text().splitlines()]
    own = config.resolve({"method": "cot_sft"}).lr
    assert [t["lr"] for t in trials] == [s["lr"] for s in given] == pytest.approx([own / 3, own, 3 * own])
    assert {t["budget"] for t in trials} == {4.0} and {s["steps"] for s in given} == {6}  # a quarter of 24
    assert (
        not (tmp_path / "results/rows.jsonl").exists()
        and (tmp_path / f"results/curves/cot_sft-lr{own:g}-seed0.json").exists()
    )
    assert (
        call("--trials", "--rows", "cot_sft", "--budget", 4)[0] == 0 and len(given) == 3
    )  # nothing is done again
    for best, trial in enumerate(trials):  # whichever is best on validation
        path.write_text(
            "".join(
                json.dumps({**t, "val_accuracy": 0.9 if i == best else 0.1}) + "\n"
                for i, t in enumerate(trials)
            )
        )
        _, out, _ = call("--plan", "--rows", "cot_sft", "colar", "--budget", 4)
        assert f"lr {trial['lr']:g} (best of its trials)" in out and out.count("best of its trials") == 1
    assert (
        call("--rows", "cot_sft", "--budget", 4)[0] == 0
        and given[-1]["lr"] == trials[-1]["lr"]
        and given[-1]["steps"] == 24
    )
    line = json.loads((tmp_path / "results/rows.jsonl").read_text().splitlines()[0])
    assert line["lr"] == trials[-1]["lr"]
    path.write_text(
        "".join(
            json.dumps({**t, "val_accuracy": 0.9 if i == 0 else 0.1}) + "\n" for i, t in enumerate(trials)
        )
    )
    code, _, err = call("--rows", "cot_sft", "--budget", 4)  # tuned and untuned do not mix
    assert (
        code == 2
        and f"trained at lr {trials[-1]['lr']:g}, but the best of its trials is {trials[0]['lr']:g}" in err
    )
    path.write_text(json.dumps(trials[0]) + "\n")  # one of three is not enough
    assert "best of" not in call("--plan", "--rows", "colar", "--budget", 4)[1]
    assert (
        call("--trials", "--plan", "--rows", "cot_sft", "--budget", 4)[1].count("cot_sft-lr") == 2
    )  # the others are left to do


def test_every_method_gets_as_many_trials_and_they_follow_its_preset(monkeypatch):
    families = {
        comparison.tuned_as(row): [t.train for t in comparison.trials_of(row)]
        for row in comparison.ROWS
        if row.train
    }
    assert set(families) >= set(config.METHODS) and all(
        len(trials) == len(comparison.TRIED) for trials in families.values()
    )
    assert {t["ratio"] for t in families["latent_sft"]} == {2} and "latent_loss" not in families["colar"][
        0
    ]  # the main row's
    monkeypatch.setitem(config.PRESETS["mini"], "cot_sft", {"lr": 0.375})
    assert [t.train["lr"] for t in comparison.trials_of(comparison.row_named("cot_sft"))] == pytest.approx(
        [0.125, 0.375, 1.125]
    )


@pytest.mark.parametrize(
    "argv, said",
    [
        (["--rows", "latnt"], "unknown row 'latnt'"),
        (["--budget", 0], "--budget"),
        (["--seeds", -1], "--seeds"),
        (["--limit", 0], "--limit"),
        (["--sedes", 1], "did you mean '--seeds'"),
    ],
)
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
    names = [row.name + v.suffix for row in comparison.ROWS for v in row.variants]
    assert len(set(names)) == len(names)
    for row in comparison.ROWS:
        assert not row.train or config.resolve(row.train)
        assert not row.after or comparison.row_named(row.after).share + row.share == 1
        assert not row.instead_of or comparison.row_named(row.instead_of)
    for trend in verdicts.TRENDS:
        assert trend.a in names and (trend.b in names or not trend.b), trend


def test_an_ablation_differs_from_its_row_in_what_its_name_says_and_in_nothing_else():
    nll = {"latent_loss": "nll", "latent_weight": 1.0, "sigma_floor": 0.1}
    differs = {
        "no_ltim": {"ltim": False},
        "no_ltsum": {"ltsum": False},
        "hidden": {"latent": "hidden"},
        "gumbel": {"gumbel": True},
        "uniform": {"labels": "uniform"},
        "k1": {"k": 1},
        "k5": {"k": 5},
        "k50": {"k": 50},
        "adaptive": {"segmentation": "adaptive"},
        "step": {"segmentation": "step"},
        "det": {"latent_loss": "mse"},
        "no_labels": {"compressed_labels": False},
        "mean": {"pooling": "mean"},
        "nll": nll,
        "nll_half": nll,
        "nll_more": nll,
        "half": {},
        "no_average": {"average": False},
        "": {},
    }
    parents = {
        "latent_sft_2": {"ratio": 2},
        "latent_sft_4": {"ratio": 4},
        "latent_sft_8": {"ratio": 8},
        "latent_sft": {"ratio": 2},
        "colar_rl": {},
        "colar": {},
    }
    for row in comparison.ROWS:
        parent = next((p for p in parents if row.name == p or row.name.startswith(p + "_")), "")
        if parent:
            changed = differs[row.name.removeprefix(parent).removeprefix("_")]
            assert row.train == {"method": row.train["method"], **parents[parent], **changed}, row.name
    others = {"no_cot_scratch", "pause_scratch"}
    assert {row.name for row in comparison.ROWS if row.train.get("init")} == others
    assert all(
        row.train == {"method": row.instead_of, "init": "none"}
        for row in comparison.ROWS
        if row.name in others
    )


def test_on_mini_a_latent_a_step_is_a_latent_for_eight_tokens(tok):
    """But for the space between two steps. So its fixed partner of equal #L is itself; it is compared with adaptive segments."""
    for name in verdicts.SETS:
        for row in encode(tasks.load(name, "test", limit=200), tok, 512)[0]:
            step, fixed = (list(map(tok.decode, cut_chain(row, how, 8))) for how in ("step", "fixed"))
            assert [s.strip() for s in step] == [s.strip() for s in fixed]


def test_rl_is_planned_before_what_it_starts_from_is_trained_and_a_part_of_the_budget_has_small_stages(
    monkeypatch, tok, tmp_path
):
    monkeypatch.setattr(run, "mini_tokenizer", lambda: tok)
    monkeypatch.setattr(comparison, "RUNS", tmp_path)
    args = Namespace(budget=1.0, trials=False, device="cpu", threads=1, out=str(tmp_path))
    tiny = {k: v for k, v in TINY.items() if k != "seed"}
    half = Row("half", "", "ablation", {**tiny, "method": "latent_sft", "stage1_steps": "8,4,40"}, share=0.5)
    rl = Row(
        "rl",
        "",
        "main",
        {**{k: v for k, v in tiny.items() if k != "init"}, "method": "latent_rl", "group": 2},
        share=0.5,
        after="half",
    )
    monkeypatch.setattr(comparison, "ROWS", [half, rl])
    assert comparison.settings_of(half, 0, args)["stage1_steps"] == "4,2,20"  # half of the whole recipe
    assert (
        comparison.settings_of(half, 0, Namespace(**{**vars(args), "budget": 0.5}))["stage1_steps"]
        == "2,1,10"
    )
    whole = Row("whole", "", "main", half.train)
    assert comparison.settings_of(whole, 0, args)["stage1_steps"] == "8,4,40"
    plan = comparison.plan_of(rl, 0, args, 1e13)
    assert plan.stages["latent_rl"] >= 1 and plan.flops <= 0.5e13
