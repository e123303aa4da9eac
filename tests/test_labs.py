"""The labs' tool: skeletons, bundle, and a grader that wrong, hanging and cheating answers do not get past."""

import json
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
    return subprocess.run(
        [sys.executable, str(LABS / "tool.py"), *map(str, args)], capture_output=True, text=True
    )


def test_strip_takes_what_stands_between_the_marks_and_puts_in_what_the_solution_says():
    source = (
        "def f():\n    # BEGIN SOLUTION\n    return 1\n    # END SOLUTION\n\n\ndef g():\n    # BEGIN SOLUTION\n    return 2\n"
        "    # INSTEAD\n    #: if True:\n    #:     return 3\n    # END SOLUTION\n"
    )
    assert (
        tool.strip(source)
        == "def f():\n    raise NotImplementedError\n\n\ndef g():\n    if True:\n        return 3\n"
    )
    for broken in (
        "# BEGIN SOLUTION\n",
        "# END SOLUTION\n",
        "# BEGIN SOLUTION\n# BEGIN SOLUTION\n# END SOLUTION\n",
    ):
        with pytest.raises(grader.Bad):
            tool.strip(broken)


@pytest.mark.parametrize("lab", grader.LABS)
def test_every_skeleton_is_its_solution_stripped_and_every_handout_tells_the_problems_with_their_points(lab):
    assert (LABS / lab / "skeleton.py").read_text() == tool.strip((LABS / lab / "solution.py").read_text())
    handout, number = (LABS / lab / "README.md").read_text(), lab[3]
    for i, (problem, points) in enumerate(grader.points_of(lab).items(), 1):
        in_text = f"**{number}.{i} `{problem}`** ({points} points" in handout
        assert in_text or f"| {number}.{i} | `{problem}` | {points} |" in handout, f"{number}.{i} {problem}"
    total = sum(grader.points_of(lab).values())
    assert f"{total} points" in handout
    row = next(line for line in (LABS / "README.md").read_text().splitlines() if f"({lab}/README.md)" in line)
    assert f"| {total}" in row
    for part in ("**Deliverable.**", "**Low resources.**", "**Written 1.**", f"python -m pytest {lab}"):
        assert part in handout


def test_the_bundle_holds_skeletons_tests_and_the_grader_and_none_of_the_answers_and_is_the_same_each_time(
    tmp_path,
):
    for name in ("a.zip", "b.zip"):
        tool.bundle(tmp_path / name)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        names = set(archive.namelist())
        for lab in grader.LABS:
            name = lab.split("_")[0]
            assert {f"labs/{lab}/{name}.py", f"labs/{lab}/test_{name}.py", f"labs/{lab}/README.md"} <= names
            assert archive.read(f"labs/{lab}/{name}.py").decode() == (LABS / lab / "skeleton.py").read_text()
        assert {
            "labs/README.md",
            "labs/grade.py",
            "labs/runner.py",
            "labs/labkit.py",
            "labs/lab4_decoding/toy.py",
        } <= names
        assert not [
            n
            for n in names
            if any(
                word in n for word in ("solution", "mutants", "TEACHING", "ANSWERS", "tool.py", "skeleton")
            )
        ]
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


def submit(folder, sources):
    folder.mkdir()
    for name, source in sources.items():
        (folder / f"{name}.py").write_text(source)
    return folder


def test_a_solution_gets_all_points_a_skeleton_none_and_cheats_none(tmp_path):
    """In one run of the runner: jobs of many submissions, as grade() makes them of one."""
    solution = (LABS / "lab1_masks" / "solution.py").read_text()
    cases = {
        "solution": solution,
        "skeleton": (LABS / "lab1_masks" / "skeleton.py").read_text(),
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
    passed = {
        name
        for name, r in found.items()
        if r["tests"] and not any(wrong for _, wrong in r["tests"]) and not r.get("why")
    }
    assert passed == {"solution"}, found
    assert "not written yet" in str(found["skeleton"]) and "too long" in found["hangs"]["why"]
    assert "memory" in found["eats"]["tests"][0][1] and len(found["eats"]["tests"]) == len(
        found["solution"]["tests"]
    )
    assert (
        "os" in found["imports"]["why"]
        and "minilatent" in found["from package"]["why"]
        and "line" in found["not Python"]["why"]
    )


def test_grade_writes_points_and_a_report_that_agree(tmp_path):
    folder = submit(tmp_path / "ada", {"lab7": (LABS / "lab7_experiment" / "solution.py").read_text()})
    (folder / "test_lab7.py").write_text("raise RuntimeError('the tests are the teacher’s, not these')\n")
    (folder / "torch.py").write_text("raise RuntimeError('not this torch')\n")
    done = run(
        "grade", folder, "--json", tmp_path / "points.json", "--report", tmp_path / "report.md", "--seed", 5
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "points.json").read_text())
    lab = result["labs"]["lab7_experiment"]
    assert (
        result["seed"] == 5
        and lab["points"]
        == lab["of"]
        == sum(grader.points_of("lab7_experiment").values())
        == result["points"]
    )
    assert (
        result["labs"]["lab1_masks"]["points"] == 0
        and result["labs"]["lab1_masks"]["problems"]["causal"]["why"] == "not handed in"
    )
    assert f"{result['points']} of {result['of']} points" in (tmp_path / "report.md").read_text()


def test_bad_input_is_one_line_and_exit_code_2(tmp_path):
    for args in (
        ["grade", tmp_path / "nowhere"],
        ["grade", tmp_path],
        ["gate", "lab9"],
        ["what"],
        ["bundle", tmp_path / "no" / "x.zip"],
    ):
        done = run(*args)
        assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, (
            args,
            done.stderr,
        )
