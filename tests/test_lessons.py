"""The lessons' builder finds what it is there to find: wrong numbers, numbers without a mark, stale notebooks. That the
lessons themselves run is `python tutorials/build.py --check`, which .ci/run calls."""

import sys

import pytest
from conftest import ROOT

pytest.importorskip(
    "jupytext", reason="the lessons' builder needs: pip install -r tutorials/requirements.txt"
)
sys.path.insert(0, str(ROOT / "tutorials"))

import build  # noqa: E402
import nbformat  # noqa: E402

LESSON = """# %% [markdown]
# # A lesson
# Nothing has run yet.

# %%
share, word, near = 0.9786, "Ben", 1.25

# %% [markdown]
# Right in 97.9 %<!-- share:.1% --> of cases, says `Ben`<!-- word:s -->, about 1.3<!-- near:.2f ± 0.1 -->.
# Not counted: `0.5`, $x = 0.25$, [a link](https://a.org/1.5), arXiv 2510.15522, and 12 apples. Allowed is 3.5. <!-- allow: 3.5 -->
"""


@pytest.fixture
def lesson(tmp_path):
    """LESSON as a file, with texts replaced, and its notebook, not executed."""

    def make(*replaced, notebook=True):
        text = LESSON
        for old, new in replaced:
            assert old in text
            text = text.replace(old, new)
        path = tmp_path / "01_lesson.py"
        path.write_text(text)
        if notebook:
            build.notebook_path(path).parent.mkdir(exist_ok=True)
            nbformat.write(build.notebook_of(path), build.notebook_path(path))
        return path

    return make


def test_a_right_lesson_passes(lesson):
    assert build.check(lesson())[0] == []


@pytest.mark.parametrize(
    "said, wrong", [("97.9 %", "97.8 %"), ("97.9 %", "97.9"), ("`Ben`", "`Ava`"), ("1.3<", "1.4<")]
)
def test_a_number_that_the_prose_quotes_wrongly_is_found(lesson, said, wrong):
    faults, _ = build.check(lesson((said, wrong)))
    assert len(faults) == 1 and f"the prose says {wrong.rstrip('<')}" in faults[0]


@pytest.mark.parametrize("number", ["98.5", "98 %", "98%", "-0.5", "1,234.5"])
def test_a_number_without_a_mark_is_found(lesson, number):
    path = lesson(("Nothing has run yet.", f"It is {number} or so."))
    faults = build.prose_faults(build.cells_of(path))
    assert len(faults) == 1 and "without a mark" in faults[0] and number.replace(" ", "") in faults[0]


def test_an_allowance_that_nothing_needs_is_found(lesson):
    assert "allowed, but not in the prose: 3.5" in build.prose_faults(
        build.cells_of(lesson(("Allowed is 3.5.", "")))
    )


@pytest.mark.parametrize("comment", ["<!-- share -->", "<!-- share:.1% -->", "<!-- a remark -->"])
def test_a_comment_that_marks_nothing_is_found(lesson, comment):
    path = lesson(("Nothing has run yet.", f"Nothing {comment} has run yet."))
    assert any("no mark" in fault for fault in build.prose_faults(build.cells_of(path)))


def test_an_error_fails_the_check_and_says_where(lesson):
    faults, _ = build.check(lesson(("share, word", "x = 1 / 0\nshare, word")))
    assert any("ZeroDivisionError" in fault and "01_lesson.py, cell 2" in fault for fault in faults)


def test_a_mark_sees_only_what_stands_above_it(lesson):
    faults, _ = build.check(lesson(("Nothing has run yet.", "Soon 97.9 %<!-- share:.1% -->.")))
    assert any("NameError" in fault for fault in faults)


def test_update_writes_the_right_numbers_and_nothing_else(lesson):
    path = lesson(("97.9 %", "12.0 %"), ("`Ben`", "`Ava`"))
    assert build.update(path) == [
        "12.0 % -> 97.9 %",
        "`Ava` -> `Ben`",
    ]  # 1.3 is within its tolerance: it stays
    assert path.read_text() == LESSON
    assert build.update(path) == []


def test_a_stale_notebook_is_found(lesson):
    path = lesson()
    assert build.stale(path) == []
    path.write_text(LESSON.replace("near = ", "nearly = near = "))
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


def test_a_notebook_begins_by_finding_the_repository(lesson):
    head = build.notebook_of(lesson()).cells[1].source
    compile(head, "setup", "exec")
    assert build.REPOSITORY in head and "google.colab" in head


def test_every_lesson_has_marks_that_can_be_read_and_its_notebook():
    """The thirteen, without running them; and each ends with a question that leads to the next."""
    paths = build.lessons([])
    assert [int(p.name[:2]) for p in paths] == list(range(1, 14))
    for path, following in zip(paths, [*paths[1:], None]):
        assert build.prose_faults(build.cells_of(path)) + build.stale(path) == [], path.name
        last = build.cells_of(path)[-1].source
        assert "## Exercises" in last and "?" in last.split("## Exercises")[1]
        assert following is None or f"({following.stem}.ipynb)" in last
