"""The lessons' builder finds wrong numbers, numbers without a mark, and stale notebooks. The lessons
themselves are run by `python tutorials/build.py --check`, which .ci/run calls."""

import sys

import pytest
from conftest import ROOT

pytest.importorskip("jupytext", reason="pip install -r tutorials/requirements.txt")
sys.path.insert(0, str(ROOT / "tutorials"))

import build  # noqa: E402
import nbformat  # noqa: E402

LESSON = """# %% [markdown]
# # A lesson
# Nothing has run yet.

# %%
share, word, near = 0.9786, "Ben", 1.25

# %% [markdown]
# Correct: 97.9 %<!-- share:.1% -->. The word is `Ben`<!-- word:s -->. About 1.3<!-- near:.2f ± 0.1 -->.
# Not checked: `0.5`, $x = 0.25$, [a link](https://a.org/1.5), arXiv 2510.15522, and 12 apples.
# 3.5 is allowed. <!-- allow: 3.5 -->
"""


@pytest.fixture
def lesson(tmp_path):
    """LESSON as a file, with texts replaced, and its notebook without outputs."""

    def make(*replaced, notebook=True):
        text = LESSON
        for old, new in replaced:
            assert old in text
            text = text.replace(old, new)
        path = tmp_path / "01_lesson.py"
        path.write_text(text, encoding="utf-8")
        if notebook:
            build.notebook_path(path).parent.mkdir(exist_ok=True)
            nbformat.write(build.notebook_of(path), build.notebook_path(path))
        return path

    return make


def test_a_correct_lesson_passes(lesson):
    assert build.check(lesson())[0] == []


WRONG = [("97.9 %", "97.8 %"), ("97.9 %", "97.9"), ("`Ben`", "`Ava`"), ("1.3<", "1.4<")]


def test_wrong_numbers_in_the_prose_are_found(lesson, monkeypatch):
    path = lesson()
    report, _ = build.run(path)
    monkeypatch.setattr(build, "run", lambda path: (report, ""))  # the same cells give the same numbers
    for correct, wrong in WRONG:
        faults, _ = build.check(lesson((correct, wrong)))
        assert len(faults) == 1 and f"the prose has {wrong.rstrip('<')}" in faults[0]


@pytest.mark.parametrize("number", ["98.5", "98 %", "98%", "-0.5", "1,234.5"])
def test_a_number_without_a_mark_is_found(lesson, number):
    path = lesson(("Nothing has run yet.", f"It is about {number}."), notebook=False)
    faults = build.prose_faults(build.cells_of(path))
    assert len(faults) == 1 and "without a mark" in faults[0] and number.replace(" ", "") in faults[0]


def test_an_unused_allowance_is_found(lesson):
    faults = build.prose_faults(build.cells_of(lesson(("3.5 is allowed.", ""), notebook=False)))
    assert "allowed, but not in the prose: 3.5" in faults


@pytest.mark.parametrize("comment", ["<!-- share -->", "<!-- share:.1% -->", "<!-- a remark -->"])
def test_a_comment_without_a_number_is_found(lesson, comment):
    path = lesson(("Nothing has run yet.", f"Nothing {comment} has run yet."), notebook=False)
    assert any("not a mark" in fault for fault in build.prose_faults(build.cells_of(path)))


def test_an_error_fails_the_check_and_names_its_cell(lesson):
    faults, _ = build.check(lesson(("share, word", "x = 1 / 0\nshare, word")))
    assert any("ZeroDivisionError" in fault and "01_lesson.py, cell 2" in fault for fault in faults)


def test_a_mark_sees_only_the_cells_above_it(lesson):
    faults, _ = build.check(lesson(("Nothing has run yet.", "Soon 97.9 %<!-- share:.1% -->.")))
    assert any("NameError" in fault for fault in faults)


def test_update_writes_the_computed_numbers_and_nothing_else(lesson):
    path = lesson(("97.9 %", "12.0 %"), ("`Ben`", "`Ava`"))
    changes = build.update(path)
    assert changes == ["12.0 % -> 97.9 %", "`Ava` -> `Ben`"]  # 1.3 is within its tolerance
    assert path.read_text(encoding="utf-8") == LESSON


def test_a_stale_notebook_is_found(lesson):
    path = lesson()
    assert build.stale(path) == []
    path.write_text(LESSON.replace("near = ", "nearly = near = "), encoding="utf-8")
    assert "stale" in build.stale(path)[0]
    build.notebook_path(path).unlink()
    assert "no notebook" in build.stale(path)[0]


def test_outputs_and_cell_ids_do_not_make_a_notebook_stale(lesson):
    path = lesson()
    notebook = nbformat.read(build.notebook_path(path), 4)
    notebook.cells[3].outputs = [nbformat.v4.new_output("stream", text="3.1 seconds")]
    notebook.cells[3].id = "another"
    nbformat.write(notebook, build.notebook_path(path))
    assert build.stale(path) == []


def test_a_notebook_starts_by_finding_the_repository(lesson):
    head = build.notebook_of(lesson(notebook=False)).cells[1].source
    compile(head, "setup", "exec")
    assert build.REPOSITORY in head and "google.colab" in head


def test_every_lesson_has_readable_marks_a_current_notebook_and_a_question_that_leads_to_the_next():
    paths = build.lessons([])
    assert [int(p.name[:2]) for p in paths] == list(range(1, 15))
    for path, following in zip(paths, [*paths[1:], None]):
        assert build.prose_faults(build.cells_of(path)) + build.stale(path) == [], path.name
        last = build.cells_of(path)[-1].source
        assert "## Exercises" in last and "?" in last.split("## Exercises")[1]
        assert following is None or f"({following.stem}.ipynb)" in last
