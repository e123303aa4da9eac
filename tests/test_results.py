"""The tables in results/ and README.md are those of the data; the scripts of results/ work."""

import json
import re
import sys

import pytest
import torch
from conftest import ROOT, made_line, script, tiny_model

sys.path.insert(0, str(ROOT))
from minilatent import config, tasks  # noqa: E402
from minilatent.config import UserError  # noqa: E402
from minilatent.evaluate import accuracy  # noqa: E402
from minilatent.methods import METHODS  # noqa: E402
from minilatent.run import load_run, resolve, train  # noqa: E402
from minilatent.study.trace import describe, trace  # noqa: E402
from minilatent.study.verdicts import SETS  # noqa: E402
from results import table, where_lost  # noqa: E402

README = (ROOT / "README.md").read_text(encoding="utf-8")
LINK = re.compile(r"\]\(([^)#\s]+)(#[^)\s]*)?\)")


# ------------------------------------------------------------------ the pages


def test_no_table_is_stale():
    assert [str(path) for path in table.stale()] == [], "python -m results.table writes them anew"
    written = {path.stem for path in (table.HERE / "tables").glob("*.md")}
    assert written == set(table.TABLES)  # none is left over


def test_no_measured_share_stands_in_the_readme_outside_of_a_generated_block():
    plain = table.BLOCK.sub("", README)
    assert re.findall(r"\d ?%(?! interval)|±", plain) == []


def test_the_readme_is_short():
    assert len(table.BLOCK.sub("", README).split()) <= 1200


def test_the_chain_in_the_readme_is_what_sample_prints():
    sample = script("sample")
    method = load_run(ROOT / "tutorials/checkpoints/latent_sft", torch.device("cpu"))
    printed = describe(trace(method, sample.__globals__["QUESTION"]), method.tok, 5).splitlines()
    shown = README[README.index("    step  entropy") : README.index("The *collapse*")].splitlines()
    for line in filter(None, map(str.strip, shown)):
        assert line == "⋮" or any(p.strip().startswith(line) for p in printed), line


def test_the_main_jobs_time_in_the_pages_is_the_measured_one():
    runs = [
        r for r in table.read("long/main_job.json") if "mini_accuracy" in r and "shared" not in r["hardware"]
    ]
    minutes = sorted(round(r["wall_seconds"] / 60) for r in runs)
    said = f"{minutes[0]} to {minutes[-1]} minutes"
    assert said in README and said in (ROOT / "results/README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "page", [*table.PAGES, table.HERE / "TRIALS.md"], ids=lambda p: str(p.relative_to(ROOT))
)
def test_every_link_of_a_page_leads_to_a_file_and_a_heading(page):
    for target, anchor in LINK.findall(page.read_text(encoding="utf-8")):
        if target.startswith("http"):
            continue
        path = page.parent / target
        assert path.exists(), target
        if anchor:
            headings = re.findall(r"(?m)^#+ (.*)", path.read_text(encoding="utf-8"))
            slugs = [re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings]
            assert anchor[1:] in slugs, target + anchor


# ------------------------------------------------------------------ the tables


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """results/ with one page and one table of two rows with two seeds."""
    (tmp_path / "long").mkdir()
    lines = []
    for row, right in (("a", 30), ("b", 10)):
        for seed in (0, 1):
            correct = [True] * (right + 2 * seed) + [False] * (10 - 2 * seed + 30 - right)
            lines += [made_line(row, seed, name, correct, mean_len=12.0) for name in SETS]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "long/rows.jsonl").write_text(text, encoding="utf-8")
    monkeypatch.setattr(table, "HERE", tmp_path)
    monkeypatch.setattr(table, "PAGES", (tmp_path / "README.md",))
    monkeypatch.setattr(table, "TABLES", {"methods": table.methods})
    return tmp_path


def block(text=""):
    return f"<!-- begin generated: methods -->\n{text}<!-- end generated -->\n"


def call(monkeypatch, capsys, *argv):
    monkeypatch.setattr(sys, "argv", ["table", *argv])
    with pytest.raises(SystemExit) as caught:
        config.run_script(table.main)
    return caught.value.code or 0, capsys.readouterr().err


def test_the_command_writes_what_is_stale_and_check_only_names_it(folder, monkeypatch, capsys):
    page = folder / "README.md"
    old = block("99\n")
    page.write_text(f"Before.\n\n{old}\nAfter 5 %.\n", encoding="utf-8")
    code, message = call(monkeypatch, capsys, "--check")
    assert code == 2 and "README.md" in message and "methods.md" in message
    assert "99" in page.read_text(encoding="utf-8") and not (folder / "tables").exists()

    assert call(monkeypatch, capsys)[0] == 0
    text = page.read_text(encoding="utf-8")
    assert text.startswith("Before.\n\n<!-- begin generated: methods -->\n| method |") and "99" not in text
    assert text.endswith("|\n<!-- end generated -->\n\nAfter 5 %.\n")
    assert "| 77.5 ±" in text and "| 27.5 ±" in text  # means over seeds
    assert text.index("| a |") < text.index("| b |")  # the better row first
    written = (folder / "tables/methods.md").read_text(encoding="utf-8")
    assert written.startswith("# Methods on mini\n\n| method |") and "1,000 questions" in written

    assert call(monkeypatch, capsys, "--check")[0] == 0
    assert call(monkeypatch, capsys)[0] == 0 and page.read_text(encoding="utf-8") == text


@pytest.mark.parametrize(
    "text",
    [
        block().replace("methods", "nothing"),
        block().replace("<!-- end generated -->", ""),
        block().replace("<!-- begin", "in a sentence <!-- begin"),
    ],
)
def test_a_block_without_a_table_or_an_end_is_an_error(folder, text):
    with pytest.raises(UserError):
        table.fill(text, folder / "README.md")


def test_data_that_is_missing_is_an_error(folder):
    (folder / "long/rows.jsonl").unlink()
    with pytest.raises(UserError, match=r"rows\.jsonl"):
        table.stale()


# ------------------------------------------------------------------ where_lost


def test_without_a_given_latent_where_lost_has_the_models_own_accuracy(tmp_path):
    run, sizes = tmp_path / "run", {"train_size": 64, "test_size": 8, "max_steps": 2, "eval_every": 1}
    given = {"method": "latent_sft", "preset": "smoke", "ratio": 4, "threads": 1, "out": str(run)}
    train({**given, **sizes})
    where_lost.main(["--ckpt", str(run), "--questions", "16", "--json", str(tmp_path / "lost.json")])
    found = json.loads((tmp_path / "lost.json").read_text(encoding="utf-8"))
    method, examples = load_run(run, torch.device("cpu")), tasks.load("mini", "test", limit=16)
    assert found["accuracy"][0] > 0.2
    assert found["accuracy"][0] == pytest.approx(accuracy(method, examples)["accuracy"], abs=1e-4)
    longest = max(len(method.segments(row)) for row in method.gold(examples))
    assert len(found["accuracy"]) == longest + 1
    assert [len(t) for t in found["told"]] == [4, 4]


def test_what_a_latent_holds_is_counted_at_its_place_in_the_step(tok, monkeypatch):
    """A decoder that knows nothing but one token of a step is right at that token's place alone."""
    method = METHODS["latent_sft"](
        resolve({"method": "latent_sft", "ratio": 2}), tok, tiny_model(tok.vocab_size, context=512)
    )
    rows = method.gold(tasks.load("mini", "test", limit=20))
    one = tok.encode("<<1+1=2>>")[-1]  # `>>`, which opens the last segment of each step: Z_3 has to hold it

    def only_one(h):
        return torch.nn.functional.one_hot(torch.full(h.shape[:-1], one), tok.vocab_size).float()

    monkeypatch.setattr(method.model, "logits", only_one)
    n = sum(len(method.segments(r)) for r in rows)
    told = where_lost.told_by_place(method, rows, torch.zeros(n, method.model.config.width))
    assert told == [[0, 0], [0, 0], [1, 0], [0, 0]]
