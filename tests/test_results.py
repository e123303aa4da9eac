"""The tables in results/ and README.md are those of the data; the scripts of results/ work."""

import json
import re
import sys
import zlib

import pytest
import torch
from conftest import ROOT, script

sys.path.insert(0, str(ROOT))
from minilatent import config  # noqa: E402
from minilatent.config import UserError  # noqa: E402
from minilatent.run import load_run  # noqa: E402
from minilatent.study.trace import describe, trace  # noqa: E402
from results import table  # noqa: E402

README = (ROOT / "README.md").read_text(encoding="utf-8")
LINK = re.compile(r"\]\(([^)#\s]+)(#[^)\s]*)?\)")


# ------------------------------------------------------------------ the pages


def test_no_table_is_stale():
    assert [str(path) for path in table.stale()] == [], "python -m results.table writes them anew"
    written = {path.stem for path in (table.HERE / "tables").glob("*.md")}
    assert written == set(table.TABLES)  # none is left over


def test_no_measured_share_stands_in_the_readme_outside_of_a_generated_block():
    plain = table.BLOCK.sub("", README)
    assert re.findall(r"\d ?%(?!\d| interval)|±", plain) == []


def test_the_readme_is_short():
    assert len(table.BLOCK.sub("", README).split()) <= 1200


def test_the_chain_in_the_readme_is_what_sample_prints():
    sample = script("sample")
    method = load_run(ROOT / "tutorials/checkpoints/latent_sft", torch.device("cpu"))
    printed = describe(trace(method, sample.__globals__["QUESTION"]), method.tok, 5).splitlines()
    shown = README[README.index("    step  entropy") : README.index("The *collapse*")].splitlines()
    for line in filter(None, map(str.strip, shown)):
        assert line == "⋮" or any(p.strip().startswith(line) for p in printed), line


def test_the_picture_in_the_readme_is_of_the_committed_models():
    """`python tutorials/aligned_figure.py` draws it."""
    folders = [ROOT / "minilatent/base", ROOT / "tutorials/checkpoints/latent_sft"]
    models = " ".join(f"{zlib.crc32((f / 'model.safetensors').read_bytes()):08x}" for f in folders)
    assert "tutorials/aligned.png" in README
    assert models.encode() in (ROOT / "tutorials/aligned.png").read_bytes()


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
    """results/ with one page and one table of two rows, one of which has two seeds."""
    (tmp_path / "mini").mkdir()
    lines = []
    for row, shares in (("no_cot", [0.2, 0.4]), ("base", [0.9]), ("no_cot@2", [0.5]), ("colar_det_2", [0.6])):
        for data in table.SETS:
            for share in shares:
                of_main = {"row": row, "title": row.upper(), "group": "main", "data": data, "flops": 4.1e13}
                lines.append(json.dumps({**of_main, "accuracy": share, "mean_len": 12.0}))
    lines = [line.replace("main", "ablation") if "det" in line else line for line in lines]
    (tmp_path / "mini/rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.setattr(table, "HERE", tmp_path)
    monkeypatch.setattr(table, "PAGES", (tmp_path / "README.md",))
    monkeypatch.setattr(table, "TABLES", {"methods": table.methods})
    return tmp_path


def test_mini_prosqa_counts_questions_with_one_chain_and_with_several_by_hand(folder):
    (folder / "mini_prosqa").mkdir()
    swap = {name: {"accuracy": 0.5} for name in ("noise", "swap")}
    n_eff = {"n_eff_distinct": 3.0, "n_eff_one_path_distinct": 2.0, "n_eff_control_distinct": 2.5}
    lines = []
    for row, correct in (("cot_sft", "e"), ("no_cot", "1")):  # 1110 and 0001
        questions = {"correct": correct} | ({"n_eff_judged": "a"} if row == "cot_sft" else {})  # 1010
        line = {"row": row, "title": row, "group": "main", "data": "mini_prosqa", "n": 4, "mean_len": 9.0}
        line |= {"accuracy": 0.75, "questions": questions}
        lines.append(json.dumps(line | ({"interventions": swap, **n_eff} if row == "cot_sft" else {})))
    (folder / "mini_prosqa/rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    rows = table.mini_prosqa().splitlines()[2:]
    assert rows[0] == "| cot_sft | 1 | 75.0 | 50.0 | 100.0 | 50.0 | 50.0 | 3.00 | 2.00 | 2.50 | 9.0 |"
    assert rows[1] == "| no_cot | 1 | 75.0 | 50.0 | 0.0 | – | – | – | – | – | 9.0 |"


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
    shown = [line for line in text.splitlines() if line.startswith("| ") and "method" not in line]
    assert [line.split(" | ")[:4] for line in shown] == [
        ["| BASE", "1", "4.1", "90.0"],
        ["| NO_COT", "2", "4.1", "30.0"],  # the mean over seeds
    ]
    written = (folder / "tables/methods.md").read_text(encoding="utf-8")
    assert written.startswith("# Methods on mini\n\n| method |") and "1,334 questions" in written

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
