"""The comparison's machinery: entries are trained once and evaluated as they say. FLOPs: test_budget.py.
Intervals, verdicts and figures: test_verdicts.py."""

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import made_line, the_message
from pytest import approx
from test_budget import SMALL, STAGE1, TINY

from minilatent import config, run
from minilatent.study.measures import from_hex
from results.comparison import comparison, entries, records, verdicts
from results.comparison.comparison import Comparison, entry_named
from results.comparison.entries import Entry

RUN = {**TINY, "log_every": 1, "save_every": 2}
RUN.pop("seed")
COLAR = {**RUN, "method": "colar", "c_max": 2}
AFTER = {key: value for key, value in RUN.items() if key != "init"}  # that of another entry
SMALL_ENTRIES = [
    Entry("cot_sft", "CoT-SFT", {**RUN, "method": "cot_sft"}),
    Entry("colar", "CoLaR", COLAR, variants=entries.speeds("CoLaR-{}")),
    Entry("half", "before RL", {**COLAR, "latent_loss": "nll"}, main=False, share=0.5),
    Entry(
        "rl", "RL", {**AFTER, "method": "colar_rl", "latent_loss": "nll", "group": 2}, share=0.5, after="half"
    ),
]


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write(path: Path, lines: list[dict]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


@pytest.fixture
def call(monkeypatch, tmp_path, capsys, tok):
    """python -m results.comparison with tiny entries: exit code, stdout, stderr, of a wrong call
    its one message."""
    monkeypatch.setattr(run, "mini_tokenizer", lambda: tok)
    monkeypatch.setattr(comparison, "ENTRIES", SMALL_ENTRIES)
    monkeypatch.setattr(comparison, "ROWS", {e.row(v): (e, v) for e in SMALL_ENTRIES for v in e.variants})
    monkeypatch.setattr(comparison, "REFERENCE", {**RUN, "method": "cot_sft", "steps": 6})
    monkeypatch.setattr(comparison, "START", {**RUN, "method": "cot_sft", "steps": 6})
    monkeypatch.setattr(comparison, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(comparison.budget, "DRAWS", 2)
    monkeypatch.setattr(comparison, "draw", lambda lines, out: None)
    monkeypatch.setattr(comparison, "training_tokens", lambda method: None)  # takes seconds

    def run_it(*argv) -> tuple[int, str, str]:
        given = ["--out", tmp_path / "results", "--limit", 4, "--device", "cpu", *argv]
        monkeypatch.setattr(sys, "argv", ["comparison", *map(str, given)])
        with pytest.raises(SystemExit) as caught:
            config.run_script(comparison.main)
        code, (out, err) = caught.value.code or 0, capsys.readouterr()
        if code == 2:  # a bar may stand before it
            err = the_message("error: " + f"\n{err}".rpartition("\nerror: ")[2])
        return code, out, err

    return run_it


# ------------------------------------------------------------------ the command


def test_the_plan_is_printed_and_nothing_is_done(call, tmp_path):
    code, out, _ = call("--plan", "--seeds", 0, 1, "--rows", "cot_sft", "colar")
    assert code == 0 and "cot_sft" in out and "seed 1" in out and "cot 6" in out and "hours" in out
    assert not (tmp_path / "runs").exists() and not (tmp_path / "results").exists()


def test_an_entry_is_trained_once_evaluated_on_all_sets_and_then_skipped(call, tmp_path, monkeypatch):
    assert call("--rows", "colar")[0] == 0
    path = tmp_path / "results/rows.jsonl"
    lines = read(path)
    wanted = {(row, name) for row in ("colar_3", "colar_2") for name in verdicts.COLUMNS}
    assert {(line["row"], line["data"]) for line in lines} == wanted
    facts = {"seed", "train_seconds", "train_tokens", "flops", "lr", "ci95", "mean_len"}
    facts |= {"gain", "hardware", "gflops_float32", "threads", "torch", "commit"}
    assert all(facts <= line.keys() for line in lines)
    assert len(from_hex(lines[0]["questions"]["correct"], 4)) == 4
    assert (tmp_path / "results/table.md").exists()
    points = json.loads((tmp_path / "results/curves/colar-seed0.json").read_text(encoding="utf-8"))
    assert points[-1]["flops"] == approx(lines[0]["flops"], rel=1e-3) and "val_accuracy" in points[-1]
    with monkeypatch.context() as patch:
        patch.setattr(comparison, "train", lambda given: pytest.fail("trained again"))
        patch.setattr(comparison, "evaluate", lambda *_, **__: pytest.fail("evaluated again"))
        assert call("--rows", "colar")[0] == 0
    write(path, lines[:3])  # what is missing of a row is added from its run
    assert call("--rows", "colar")[0] == 0 and len(read(path)) == len(lines)


def test_an_entry_is_evaluated_in_each_way_that_it_names_with_all_interventions_on_mini(call, monkeypatch):
    ways, replaced = [], []
    evaluate, intervene = comparison.evaluate, comparison.intervene

    def judge(method, examples, name, **more):
        ways.append((name, getattr(method.config, "speed", "")))
        return evaluate(method, examples, name, **more)

    def replace(method, examples, names, **more):
        replaced.append((method.config.method, ways[-1][0], set(names)))
        return intervene(method, examples, names, **more)

    monkeypatch.setattr(comparison, "evaluate", judge)
    monkeypatch.setattr(comparison, "intervene", replace)
    assert call("--rows", "cot_sft", "colar")[0] == 0
    assert ways == [(name, speed) for speed in ("", "3", "2") for name in verdicts.COLUMNS]
    everything = {"noise", "swap", "zeros", "mean", "shuffle", "truncate"}
    assert len(replaced) == len(ways)
    for method, name, names in replaced:
        on_mini = everything | ({"top1"} if method == "cot_sft" else set())
        assert names == (on_mini if name == "mini" else {"swap"})


def test_an_interrupted_run_is_resumed_not_begun_again(call, tmp_path, monkeypatch):
    real, fit, given = comparison.train, run.Trainer.fit, []

    def interrupt(*_):
        raise KeyboardInterrupt

    def interrupted(settings):
        given.append(settings)
        if len(given) == 1:  # Ctrl-C right after the run folder was made
            monkeypatch.setattr(run.Trainer, "fit", interrupt)
        real(settings)

    monkeypatch.setattr(comparison, "train", interrupted)
    assert call("--rows", "cot_sft")[0] == 130
    monkeypatch.setattr(run.Trainer, "fit", fit)
    assert call("--rows", "cot_sft")[0] == 0
    assert "resume" not in given[0] and given[1]["resume"] and given[0]["steps"] == 6
    assert len(read(tmp_path / "results/rows.jsonl")) == len(verdicts.COLUMNS)


def test_an_entry_after_another_trains_that_first_and_counts_it(call, tmp_path):
    code, out, err = call("--rows", "rl", "--budget", 8)
    assert code == 0 and "after half" in out, err
    lines, runs = read(tmp_path / "results/rows.jsonl"), tmp_path / "runs"
    assert {line["row"] for line in lines} == {"rl"} and set(lines[0]["stages"]) == {"colar", "colar_rl"}
    assert (runs / "half-seed0-budget8/model.safetensors").exists()
    spent = [
        json.loads((runs / f"{name}-seed0-budget8.json").read_text(encoding="utf-8"))["flops"]
        for name in ("half", "rl")
    ]
    assert lines[0]["flops"] == sum(spent)
    points = json.loads((tmp_path / "results/curves/rl-seed0.json").read_text(encoding="utf-8"))
    assert points[0]["flops"] > 0.99 * spent[0] and points[-1]["flops"] == approx(sum(spent), rel=1e-3)
    start = Comparison(tmp_path / "results", 8).settings(entry_named("rl"), 1)["init"]
    assert start == str(runs / "half-seed1-budget8")
    assert call("--rows", "half", "--budget", 8)[0] == 0  # it is only evaluated now


def test_the_base_is_one_model_whatever_the_seeds(tmp_path):
    base, cot = entry_named("base"), entry_named("cot_sft")
    due = Comparison(tmp_path).due
    assert due([base, cot], [1, 2], 1) == [(base, 0), (cot, 1), (cot, 2)]
    write(tmp_path / "rows.jsonl", [made_line("base", 0, name) for name in verdicts.COLUMNS])
    assert due([base, cot], [1], 1) == [(cot, 1)]


def test_a_row_names_its_entry():
    assert entry_named("colar_3") is entry_named("colar") and entry_named("icot").name == "icot"


def test_several_processes_add_to_one_file_and_no_line_is_lost(tmp_path):
    path = tmp_path / "rows.jsonl"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: records.add_line(path, {"row": i}), range(40)))
    assert sorted(line["row"] for line in records.read_lines(path)) == list(range(40))


def test_a_row_that_still_rises_is_trained_again_with_twice_the_compute_up_to_the_cap(
    call, tmp_path, monkeypatch
):
    real, given = comparison.train, []
    monkeypatch.setattr(comparison, "train", lambda settings: (given.append(settings), real(settings)))
    gains = iter([0.01, 0.2, 0.3])
    judged = ("data", "n", "skipped", "accuracy", "mean_len", "questions_per_second", "questions")
    found = made_line(correct=[True])
    monkeypatch.setattr(
        Comparison, "judge", lambda _, m, name, *__, **___: {**{k: found[k] for k in judged}, "data": name}
    )
    monkeypatch.setattr(comparison, "last_gain", lambda log: (0.5, next(gains)))
    assert call("--rows", "cot_sft")[0] == 0
    assert call("--rows", "cot_sft", "--plateau", 3)[0] == 0
    assert [s["steps"] for s in given] == [6, 12]  # four times would be too long
    assert call("--rows", "cot_sft", "--plateau", 4)[0] == 0
    assert [s["steps"] for s in given] == [6, 12, 24] and all("init" in s for s in given)
    lines = read(tmp_path / "results/rows.jsonl")
    rows = {line["row"]: line for line in lines}
    assert list(rows) == ["cot_sft", "cot_sft@2", "cot_sft@4"]
    assert rows["cot_sft@4"]["flops"] == approx(4 * rows["cot_sft"]["flops"])
    assert (tmp_path / "results/curves/cot_sft@4-seed0.json").exists()
    assert call("--rows", "cot_sft", "--plateau", 4)[0] == 0 and len(given) == 3  # nothing is done again
    table = (tmp_path / "results/table.md").read_text(encoding="utf-8").splitlines()
    assert sum(line.startswith("| CoT-SFT |") for line in table) == 1
    assert f", {rows['cot_sft@4']['flops']:.1e}, rising |" in table[-1]


@pytest.mark.parametrize("gain, longer", [(0.009, False), (0.01, True)])
def test_a_plateau_is_a_gain_of_less_than_a_point(tmp_path, gain, longer):
    line = made_line("cot_sft", gain=gain)
    write(tmp_path / "rows.jsonl", [{**line, "data": name} for name in verdicts.COLUMNS])
    (due,) = Comparison(tmp_path).due([entry_named("cot_sft")], [0], 2) or [(None, 0)]
    assert (due[0] is not None) is longer and (not longer or due[0].times == 2)


def test_what_the_last_quarter_gained():
    log = [{"index": 0, "step": 8, "val_accuracy": 0.9}, {"index": 1, "step": 2, "val_accuracy": 0.5}]
    log += [{"index": 1, "step": s, "val_accuracy": a} for s, a in ((4, 0.625), (6, 0.75), (8, 0.875))]
    assert records.last_gain([*log, {"index": 1, "step": 8, "loss": 1.0}]) == (0.875, 0.125)
    falls = [*log[:-1], {"index": 1, "step": 8, "val_accuracy": 0.25}]
    assert records.last_gain(falls) == (0.75, 0.0)
    quarters = zip((251, 502, 753, 1001), (0.25, 0.5, 0.75, 0.875))  # of 1,001 steps, as the trainer has them
    log = [{"index": 0, "step": step, "val_accuracy": score} for step, score in quarters]
    assert records.last_gain(log) == (0.875, 0.125)
    assert records.last_gain(log[:1]) == (0.25, 0.25)  # one validation says nothing of a plateau


def test_a_run_from_random_weights_has_the_compute_of_the_base_on_top(call, monkeypatch):
    plain = Entry("plain", "", {**RUN, "method": "no_cot"})
    scratch = Entry("scratch", "", {**RUN, "method": "no_cot"}, with_base=True)
    monkeypatch.setattr(comparison, "START", {**RUN, "method": "cot_sft", "steps": 12})
    paid = Comparison(Path("x"), device="cpu").paid
    assert paid(scratch) == approx(3 * paid(plain))
    assert paid(scratch.longer()) == approx(2 * paid(scratch))


def test_a_run_has_as_many_different_examples_as_it_draws_unless_it_labels_them(call, monkeypatch):
    def planned(most: int, **settings) -> tuple[int, int | None]:
        entry = Entry("x", "", {key: v for key, v in {**RUN, **settings}.items() if key != "train_size"})
        monkeypatch.setattr(comparison, "ENTRIES", [entry])
        monkeypatch.setattr(comparison, "EXAMPLES", most)
        given = Comparison(Path("x"), 2.0, device="cpu").plan(entry, 0).settings
        return given["steps"] * RUN["batch_size"], given.get("train_size")

    drawn, size = planned(1000, method="cot_sft")
    assert size == drawn > 40 and planned(40, method="cot_sft") == (drawn, 40)
    assert planned(40, method="latent_sft", labels="uniform")[1] is None  # the preset's


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--rows", "latnt"], "unknown row 'latnt'"),
        (["--budget", 0], "--budget"),
        (["--seeds", -1], "--seeds"),
        (["--limit", 0], "--limit"),
        (["--plateau", 0], "--plateau"),
        (["--sedes", 1], "did you mean '--seeds'"),
        (["--data", "mini_prosqa"], "--base"),
        (["--base", "out/cot_sft"], "--data"),
    ],
)
def test_bad_input_is_one_clear_line(call, argv, message):
    code, _, err = call(*argv)
    assert code == 2 and message in err


@pytest.mark.parametrize("option, held", [("budget", 0.25), ("dtype", "bfloat16")])
def test_rows_of_another_budget_or_precision_do_not_mix(call, tmp_path, option, held):
    path = tmp_path / "results/rows.jsonl"
    write(path, [made_line(**{"limit": 4, option: held})])
    code, _, err = call("--plan")
    assert code == 2 and f"--{option} {held}" in err


def test_the_same_on_other_data_from_a_base_of_its_own(call, tmp_path, monkeypatch):
    base, start = tmp_path / "my_base", {"method": "cot_sft", "data": "mini_prosqa", "steps": 2}
    run.train({**RUN, **start, "test_size": 2, "out": str(base), "device": "cpu"})
    own = [Entry("base", "mini-base", {}), Entry("no_cot", "No-CoT", {**SMALL, "method": "no_cot"})]
    monkeypatch.setattr(comparison, "ENTRIES", own)
    monkeypatch.setattr(comparison, "ROWS", {e.row(v): (e, v) for e in own for v in e.variants})
    monkeypatch.setattr(comparison, "REFERENCE", {**SMALL, "method": "cot_sft", "steps": 4})
    given, train = [], comparison.train
    monkeypatch.setattr(comparison, "train", lambda settings: given.append(settings) or train(settings))
    code, _, err = call("--data", "mini_prosqa", "--base", base)
    assert code == 0, err
    assert [(g["data"], g["init"]) for g in given] == [("mini_prosqa", str(base))]
    assert (tmp_path / "runs/mini_prosqa-no_cot-seed0/model.safetensors").exists()
    lines = read(tmp_path / "results/rows.jsonl")
    assert [(line["title"], line["data"]) for line in lines] == [
        ("my_base", "mini_prosqa"),
        ("No-CoT", "mini_prosqa"),
    ]
    assert lines[0]["flops"] > 0 and "swap" in lines[0]["interventions"]
    assert "mini_prosqa" in (tmp_path / "results/table.md").read_text(encoding="utf-8")
    assert not (tmp_path / "results/verdicts.md").exists()
    code, _, err = call("--rows", "no_cot")  # mini's rows would be another table
    assert code == 2 and "mini_prosqa" in err and "--out" in err


# ------------------------------------------------------------------ trials


def test_trials_are_done_once_and_the_best_learning_rate_is_used(call, tmp_path, monkeypatch):
    real, given = comparison.train, []
    monkeypatch.setattr(comparison, "train", lambda settings: (given.append(settings), real(settings)))
    results, cot = tmp_path / "results", ("--rows", "cot_sft", "--budget", 4)
    assert call("--trials", *cot)[0] == 0
    trials, own = read(results / "trials.jsonl"), run.resolve({"method": "cot_sft"}).lr
    assert [t["lr"] for t in trials] == [s["lr"] for s in given] == approx([own / 3, own, 3 * own])
    assert {(t["budget"], t["dtype"]) for t in trials} == {(4.0, "float32")} and {
        s["steps"] for s in given
    } == {12}  # half of 24
    assert not (results / "rows.jsonl").exists()
    assert (results / f"curves/cot_sft-lr{own:g}-seed0.json").exists()
    assert call("--trials", *cot)[0] == 0 and len(given) == 3  # nothing is done again

    def make_best(best: int) -> float:
        """One of the trials becomes the best on validation."""
        scores = [{**t, "val_accuracy": 0.9 if i == best else 0.1} for i, t in enumerate(trials)]
        write(results / "trials.jsonl", scores)
        return trials[best]["lr"]

    for best in range(3):
        lr = make_best(best)
        assert Comparison(results).best_lr(SMALL_ENTRIES[0]) == lr
    out = call("--plan", "--rows", "cot_sft", "colar", "--budget", 4)[1]
    assert f"lr {lr:g} (best of its trials)" in out and out.count("best of its trials") == 1
    assert call(*cot)[0] == 0 and given[-1]["lr"] == lr and given[-1]["steps"] == 24
    assert read(results / "rows.jsonl")[0]["lr"] == lr
    other = make_best(0)
    code, _, err = call(*cot)  # tuned and untuned do not mix
    assert code == 2 and f"trained at lr {lr:g}, but the best of its trials is {other:g}" in err
    (results / "rows.jsonl").unlink()  # nor is an old run judged again
    code, _, err = call(*cot)
    assert code == 2 and f"trained at lr {lr:g}, but the best of its trials is {other:g}" in err
    write(results / "trials.jsonl", trials[:1])  # one of three is not enough
    assert Comparison(results).best_lr(SMALL_ENTRIES[0]) is None
    assert call("--trials", "--plan", *cot)[1].count("cot_sft-lr") == 2  # the others are left to do


def test_a_part_of_the_budget_has_small_stages(monkeypatch, tmp_path):
    settings = {**RUN, **STAGE1, "method": "latent_sft", "stage1_steps": "8,4,40"}
    half = Entry("half", "", settings, share=0.5)
    monkeypatch.setattr(comparison, "ENTRIES", [half])
    phases = lambda budget, entry: Comparison(tmp_path, budget).settings(entry, 0)["stage1_steps"]
    assert phases(1.0, half) == "4,2,20" and phases(0.5, half) == "2,1,10"
    assert phases(1.0, Entry("whole", "", settings)) == "8,4,40"


def test_a_row_that_another_process_works_on_is_refused_by_its_number(call, tmp_path):
    from test_folders import held_elsewhere

    with held_elsewhere(tmp_path / "runs" / "cot_sft-seed0") as other:
        code, _, err = call("--rows", "cot_sft")
    assert code == 2 and f"in use by process {other.pid} on" in err
    assert not (tmp_path / "results").exists() and not list((tmp_path / "runs").glob("cot*"))
