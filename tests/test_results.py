"""README says what results/ says."""

import json
import re
import sys

import pytest
import torch
from conftest import ROOT, made_line, tiny_model

sys.path.insert(0, str(ROOT))
from minilatent import config, tasks  # noqa: E402
from minilatent.config import UserError, resolve  # noqa: E402
from minilatent.evaluate import accuracy  # noqa: E402
from minilatent.methods import METHODS  # noqa: E402
from minilatent.study.verdicts import SETS  # noqa: E402
from results import table, where_lost  # noqa: E402


@pytest.mark.parametrize("page", table.PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_marked_number_is_that_of_the_results(page):
    assert table.written(page.read_text())[1] == [], "python -m results.table puts it right"


def test_no_measured_share_stands_in_the_readme_without_a_mark():
    """What is no measurement of ours: a definition, or a share of the data."""
    plain = table.MARK.sub("", table.PAGES[0].read_text())
    assert re.findall(r"\d[\d.,]* ?(?:±|% (?:right|of the answers|of cases|on))", plain) == []


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """results/ with two seeds of two rows, a run of eval.py and a page."""
    (tmp_path / "mini").mkdir()
    share = lambda n: [True] * n + [False] * (40 - n)
    lines = [
        made_line(row, seed, name, share(n + 2 * seed), mean_len=12.0 if row == "a" else 3.0)
        for row, n in (("a", 30), ("b", 10))
        for seed in (0, 1)
        for name in SETS
    ]
    lines.append({**made_line("c", 0, "mini", share(1)), "group": "ablation"})
    (tmp_path / "mini/rows.jsonl").write_text("".join(json.dumps(l) + "\n" for l in lines))
    (tmp_path / "mini/run.json").write_text(
        json.dumps([{"data": "mini", "n": 40, "small": -0.0045, "deep": {"accuracy": 0.018}}])
    )
    for seed, length in ((0, 6.0), (1, 7.0)):
        (tmp_path / f"mini/speed-seed{seed}.json").write_text(json.dumps([{"mean_len": length}]))
    (tmp_path / "log.jsonl").write_text('{"seconds": 60}\n{"seconds": 1830}\n')
    monkeypatch.setattr(table, "HERE", tmp_path)
    monkeypatch.setattr(table, "PAGES", (tmp_path / "README.md",))
    return tmp_path


def mark(name, text=""):
    return f"<!-- results:{name} -->{text}<!-- /results -->"


@pytest.mark.parametrize(
    "name, expected",
    [
        ("mini:a mini accuracy", "77.5"),
        ("mini:a average accuracy", "77.5"),
        ("mini:b mini mean_len", "3.0"),
        ("mini:a mini n", "40"),
        ("mini:a@0 mini accuracy", "75.0"),
        ("mini:b-a mini accuracy", "-50.0"),
        ("mini:a-b average accuracy", "+50.0"),
        ("mini:c-a mini accuracy", "-72.5"),
        ("mini:a-a mini interval", "0.0 to 0.0"),
        ("mini/run.json 0.deep.accuracy", "1.8"),
        ("mini/run.json 0.small", "-0.0045"),
        ("mini/speed-seed*.json 0.mean_len", "6.5"),
        ("log.jsonl -1.seconds", "1,830"),
        ("log.jsonl 1.seconds/60", "30"),
    ],
)
def test_numbers_are_found_and_are_means_over_seeds(folder, name, expected):
    assert table.quoted(name) == expected


@pytest.mark.parametrize(
    "name",
    [
        "nothing",
        "a mini accuracy",
        "long:a mini accuracy",
        "mini:d mini accuracy",
        "mini:a mini_long accuracy",
        "mini:c average accuracy",
        "mini:a@2 mini accuracy",
        "mini:c-a average accuracy",
        "mini:b-a mini mean_len",
        "mini:a mini acuracy",
        "table:long",
        "log.jsonl 7.seconds",
        "no.json 0",
        "no*.json 0",
    ],
)
def test_a_mark_without_a_number_is_an_error(folder, name):
    with pytest.raises(UserError):
        table.quoted(name)


def test_blocks_hold_the_rows(folder):
    text = table.quoted("table:mini")
    assert (
        text.startswith("\n| row |")
        and text.endswith("|\n")
        and "| a | 2 | 77.5 ± " in text
        and text.count("\n") == 5
    )  # c is no main row
    assert len({row.count("|") for row in text.strip().splitlines()}) == 1 and text.splitlines()[1].endswith(
        "| #L |"
    )


def test_the_command_writes_what_differs_and_check_only_tells(folder, monkeypatch, capsys):
    def call(*argv):
        monkeypatch.setattr(sys, "argv", ["table", *argv])
        with pytest.raises(SystemExit) as caught:
            config.run_script(table.main)
        return caught.value.code or 0, capsys.readouterr().err

    page = folder / "README.md"
    before = f"Right: {mark('mini:a mini accuracy', '99.9')} %, kept: {mark('mini:b mini mean_len', '3.0')}.\n{mark('table:mini')}\nEnd 5 %."
    page.write_text(before)
    code, said = call("--check")
    assert (
        code == 2
        and "mini:a mini accuracy, table:mini" in said
        and "mean_len" not in said
        and page.read_text() == before
    )
    assert call()[0] == 0
    assert (
        f"Right: {mark('mini:a mini accuracy', '77.5')} %" in page.read_text()
        and page.read_text().endswith("End 5 %.")
    )
    assert call("--check")[0] == 0
    written = page.read_text()
    assert call()[0] == 0 and page.read_text() == written  # nothing is left to write


@pytest.mark.parametrize("ratio", [2, 4])
def test_without_a_given_latent_where_lost_tells_the_models_own_accuracy(tmp_path, monkeypatch, ratio):
    run = tmp_path / "run"
    run.train(
        {
            "method": "latent_sft",
            "preset": "smoke",
            "ratio": ratio,
            "out": str(run),
            "max_steps": 2,
            "test_size": 8,
            "threads": 1,
            "train_size": 64,
            "eval_every": 1,
        }
    )
    monkeypatch.setattr(
        sys,
        "argv",
        ["where_lost", "--ckpt", str(run), "--questions", "16", "--json", str(tmp_path / "lost.json")],
    )
    where_lost.main()
    told = json.loads((tmp_path / "lost.json").read_text())
    method, examples = run.load_run(run, torch.device("cpu")), tasks.load("mini", "test", limit=16)
    assert told["accuracy"][0] > 0.2
    assert told["accuracy"][0] == pytest.approx(accuracy(method, examples)["accuracy"], abs=1e-4)
    longest = max(len(method.segments(row)) for row in method.gold(examples))
    assert len(told["accuracy"]) == longest + 1
    assert [len(t) for t in told["told"]] == [ratio] * (8 // ratio)


def test_what_a_latent_tells_is_counted_at_its_place_in_the_step(tok, monkeypatch):
    """A decoder that knows nothing but one token of a step is right at that token's place alone."""
    method = METHODS["latent_sft"](
        resolve({"method": "latent_sft", "ratio": 2}), tok, tiny_model(tok.vocab_size, context=512)
    )
    rows = method.gold(tasks.load("mini", "test", limit=20))
    one = tok.encode("<<1+1=2>>")[-1]  # `>>`, which opens the last segment of each step: Z_3 has to tell it
    monkeypatch.setattr(
        method.model,
        "logits",
        lambda h: torch.nn.functional.one_hot(torch.full(h.shape[:-1], one), tok.vocab_size).float(),
    )
    z = [torch.zeros(len(method.segments(r)), method.model.config.width) for r in rows]
    told = where_lost.told_by_place(method, rows, z)
    assert told == [[0, 0], [0, 0], [1, 0], [0, 0]]
