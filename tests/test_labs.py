"""The labs' tool: skeletons, the students' bundle, and a grader that rejects wrong, hanging and cheating
answers."""

import json
import re
import subprocess
import sys
import zipfile

import pytest
from conftest import ROOT

LABS = ROOT / "tutorials" / "labs"
sys.path.insert(0, str(LABS))

import grade as grader  # noqa: E402
import tool  # noqa: E402


def run(*args):
    command = [sys.executable, str(LABS / "tool.py"), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8")


def read(*path):
    return LABS.joinpath(*path).read_text(encoding="utf-8")


SOLUTION = """\
def f():
    # BEGIN SOLUTION
    return 1
    # END SOLUTION


def g():
    # BEGIN SOLUTION
    return 2
    # INSTEAD
    #: if True:
    #:     return 3
    # END SOLUTION
"""
SKELETON = """\
def f():
    raise NotImplementedError


def g():
    if True:
        return 3
"""


def test_strip_replaces_the_text_between_the_marks():
    assert tool.strip(SOLUTION) == SKELETON
    begin, end = "# BEGIN SOLUTION\n", "# END SOLUTION\n"
    for broken in (begin, end, begin + begin + end):
        with pytest.raises(grader.Bad):
            tool.strip(broken)


@pytest.mark.parametrize("lab", grader.LABS)
def test_every_skeleton_is_its_stripped_solution_and_every_handout_lists_the_problems_and_points(lab):
    assert read(lab, "skeleton.py") == tool.strip(read(lab, "solution.py"))
    handout, number = read(lab, "README.md"), lab[3]
    for i, (problem, points) in enumerate(grader.points_of(lab).items(), 1):
        in_text = f"**{number}.{i} `{problem}`** ({points} points" in handout
        assert in_text or f"| {number}.{i} | `{problem}` | {points} |" in handout, f"{number}.{i} {problem}"
    total = sum(grader.points_of(lab).values())
    assert f"{total} points" in handout
    row = next(line for line in read("README.md").splitlines() if f"({lab}/README.md)" in line)
    assert f"| {total}" in row
    for part in ("**Deliverable.**", "**Tip.**", "**Written 1.**", f"python -m pytest {lab}"):
        assert part in handout


def test_the_bundle_has_skeletons_tests_and_the_grader_but_no_answers_and_is_reproducible(tmp_path):
    for name in ("a.zip", "b.zip"):
        tool.bundle(tmp_path / name)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        names = set(archive.namelist())
        for lab in grader.LABS:
            name = lab.split("_")[0]
            assert {f"labs/{lab}/{name}.py", f"labs/{lab}/test_{name}.py", f"labs/{lab}/README.md"} <= names
            assert archive.read(f"labs/{lab}/{name}.py").decode() == read(lab, "skeleton.py")
        shared = {"README.md", "grade.py", "runner.py", "labkit.py", "lab4_decoding/toy.py"}
        assert {f"labs/{name}" for name in shared} <= names
        for word in ("solution", "mutants", "TEACHING", "ANSWERS", "tool.py", "skeleton"):
            assert not any(word in name for name in names), word
        assert not any(b"BEGIN SOLUTION" in archive.read(n) for n in names)


HANGS = "def causal(kind):\n    while True:\n        pass\n"
EATS = (
    "import torch\ndef causal(kind):\n    x = [torch.empty(2 ** 27) for _ in range(100)]\n    return kind\n"
)
EXITS = "raise SystemExit(0)\n"
GARBAGE = "print('{\"word\": 1}' * 1000)\ndef causal(kind):\n    print('passed' * 10000)\n    return 'yes'\n"
NOT_PYTHON = "def causal(kind:\n"
PATCHES = "import torch\ntorch.equal = lambda *a: True\n"
PATCHES_BY_A_PARAMETER = (
    "import torch\n\n\ndef swap(self):\n    self.equal = lambda *a: True\n\n\nswap(torch)\n"
)
IMPORTS = "import os\nos._exit(0)\n"
FROM_PACKAGE = "from minilatent.masks import causal\n"


def test_a_solution_gets_all_points_a_skeleton_none_and_cheats_none(tmp_path):
    """One run of the runner, with jobs of many submissions instead of one."""
    solution = read("lab1_masks", "solution.py")
    cases = {
        "solution": solution,
        "skeleton": read("lab1_masks", "skeleton.py"),
        "hangs": HANGS,
        "eats": EATS,
        "exits": EXITS,
        "garbage": GARBAGE,
        "not Python": NOT_PYTHON,
        "patches": PATCHES + solution,
        "patches by a parameter": PATCHES_BY_A_PARAMETER + solution,
        "imports": IMPORTS,
        "from package": FROM_PACKAGE,
    }
    jobs = [{"lab": "lab1_masks", "problem": "causal", "source": source} for source in cases.values()]
    found = dict(zip(cases, grader.run_apart(jobs, seed=3, seconds=2)))
    for name, result in found.items():
        failed = not result["tests"] or any(wrong for _, wrong in result["tests"])
        assert (failed or bool(result.get("why"))) == (name != "solution"), (name, result)
    assert "not written yet" in str(found["skeleton"]) and "too long" in found["hangs"]["why"]
    assert "memory" in found["eats"]["tests"][0][1]
    assert len(found["eats"]["tests"]) == len(found["solution"]["tests"])
    assert "os" in found["imports"]["why"] and "minilatent" in found["from package"]["why"]
    assert "line" in found["not Python"]["why"]


def test_grade_writes_points_and_a_report_that_agree(tmp_path):
    folder, points, report = tmp_path / "ada", tmp_path / "points.json", tmp_path / "report.md"
    folder.mkdir()
    (folder / "lab7.py").write_text(read("lab7_experiment", "solution.py"), encoding="utf-8")
    (folder / "test_lab7.py").write_text(
        "raise RuntimeError('the tests must be the teacher\\'s')\n", encoding="utf-8"
    )
    (folder / "torch.py").write_text("raise RuntimeError('not this torch')\n", encoding="utf-8")
    done = run("grade", folder, "--json", points, "--report", report, "--seed", 5)
    assert done.returncode == 0, done.stderr
    result = json.loads(points.read_text(encoding="utf-8"))
    lab, total = result["labs"]["lab7_experiment"], sum(grader.points_of("lab7_experiment").values())
    assert result["seed"] == 5 and lab["points"] == lab["of"] == result["points"] == total
    lab1 = result["labs"]["lab1_masks"]
    assert lab1["points"] == 0 and lab1["problems"]["causal"]["why"] == "not handed in"
    assert f"{result['points']} of {result['of']} points" in report.read_text(encoding="utf-8")


def test_bad_input_is_one_line_and_exit_code_2(tmp_path):
    for args in (
        ["grade", tmp_path / "nowhere"],
        ["grade", tmp_path],
        ["gate", "lab9"],
        ["what"],
        ["bundle", tmp_path / "no" / "x.zip"],
    ):
        done = run(*args)
        assert done.returncode == 2 and re.fullmatch("error: .+\n", done.stderr), (args, done.stderr)
