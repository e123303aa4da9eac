"""The labs' tool: skeletons, the students' bundle, and a grader that rejects wrong, hanging and cheating
answers."""

import json
import subprocess
import sys
import zipfile

import pytest
from conftest import ROOT, the_message

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
REFUSED = {  # each of these would run, in front of a solution
    "import os": "import os",
    "from minilatent": "from minilatent.masks import causal",
    "get_type_hints": "import typing\ndef f(x: 'print(1)'): pass\ntyping.get_type_hints(f)",
    "singledispatch": "import functools\n@functools.singledispatch\ndef f(x): pass",
    "attrgetter": "import typing\nf = typing.operator.attrgetter('x')",
    "class": "class Same(int):\n    def __eq__(self, other): return True",
    "match": "match 1:\n    case int(real=x): pass",
    "torch by itself": "import torch\nx = torch",
    "nn by itself": "from torch import nn\nprint([nn])",
    "torch.load": "import torch as os\nos.load",
    "from torch import load": "from torch import load",
    "load_library": "import torch\ntorch.ops.load_library('x')",
    "torch.from_file": "import torch\ntorch.from_file('x')",
    ".format": "'{0.__class__}'.format(1)",
    "__class__": "x = (1).__class__",
    "register_hook": "import torch\ntorch.ones(1).register_hook",
    "getattr": "getattr(1, 'real')",
    "__builtins__": "__builtins__['open']",
    "setting .equal": "import torch\n[1 for torch.equal in [1]]",
}
ACCEPTED = {
    "byte order mark": "\ufeff",
    "main": "if __name__ == '__main__':\n    import sys\n    print(open(sys.argv[1]))\n",
    "names of builtins": "def f(type, input):\n    object = type\n    return object\n",
    "torch.nn": "import torch.nn.functional as F\nfrom torch import nn\nX = F.relu, nn.ReLU()\n",
}
SURROGATE = "def causal(kind):\n    raise ValueError('\\ud800 unpaired')\n"
SUMS = (
    "import torch\ndef sample_means(x, i, n):\n    return torch.zeros(n, dtype=x.dtype).index_add(0, i, x)\n"
)
INDEX = "def causal(kind):\n    return kind[100]\n"


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
        "surrogate": SURROGATE,
        "index": INDEX,
    }
    cases |= {name: start + solution for name, start in ACCEPTED.items()}
    right = {"solution", *ACCEPTED}
    jobs = [{"lab": "lab1_masks", "problem": "causal", "source": source} for source in cases.values()]
    wrong = solution.replace("~key_is_text)", "~key_is_text | (kind == TAIL)[:, :, None])")
    jobs.append({"lab": "lab1_masks", "problem": "supervision_mask", "source": wrong})
    jobs.append({"lab": "lab5_grpo", "problem": "sample_means", "source": SUMS})
    *found, mask, sums = grader.run_apart(jobs, seed=3, seconds=2)
    found = dict(zip(cases, found))
    for name, result in found.items():
        failed = not result["tests"] or any(wrong for _, wrong in result["tests"])
        assert (failed or bool(result.get("why"))) == (name not in right), (name, result)
    assert "not written yet" in str(found["skeleton"]) and "too long" in found["hangs"]["why"]
    assert "memory" in found["eats"]["tests"][0][1]
    assert len(found["eats"]["tests"]) == len(found["solution"]["tests"])
    assert "line" in found["not Python"]["why"]
    assert "? unpaired" in found["surrogate"]["tests"][0][1]
    assert "(TAIL of block 0) attend to position" in str(mask["tests"])
    assert "(TEXT of block 1)? expected False, got True" in str(mask["tests"])
    assert "expected [2.33333, 0, 4.66667, 0] of shape (4,), got [7, 0, 14, 0] of shape (4,)" in str(
        sums["tests"]
    )
    assert "IndexError" in (why := found["index"]["tests"][0][1]) and "line 2: return kind[100]" in why


@pytest.mark.parametrize("what", REFUSED)
def test_only_what_is_listed_is_accepted(what):
    import runner

    why = runner.objection(REFUSED[what] + "\n" + read("lab1_masks", "solution.py"))
    assert why and what in why and "line" in why


def test_results_are_plain_and_a_model_is_not_changed():
    import types

    import labkit
    import torch

    class Same(int):
        __eq__ = lambda self, other: True

    class Anything(torch.Tensor):
        pass

    model = types.SimpleNamespace(table=torch.ones(2), calls=[])
    results = {
        "plain": (0, [1.0, {"a": torch.ones(1).max(0)}]),
        "number": [Same(3)],
        "tensor": torch.ones(2).as_subclass(Anything),
    }
    for name, result in results.items():
        lab = labkit.Checked(types.SimpleNamespace(f=lambda m, x=result: m.calls.append(1) or x))
        if name == "plain":
            lab.f(model)
        else:
            with pytest.raises(AssertionError, match="plain"):
                lab.f(model)
    lab = labkit.Checked(types.SimpleNamespace(f=lambda m: m.table.zero_()))
    with pytest.raises(AssertionError, match="changes one of its arguments"):
        lab.f(model)


def test_links_and_other_names_are_not_taken_and_the_message_says_what_lies_there(tmp_path):
    (tmp_path / "lab1 (1).py").write_text("", encoding="utf-8")
    (tmp_path / "Lab2.py").write_text("", encoding="utf-8")
    with pytest.raises(grader.Bad, match=r"'lab1 \(1\).py' should be called lab1.py"):
        grader.answers(tmp_path)
    try:
        (tmp_path / "lab3.py").symlink_to(LABS / "lab3_compression" / "solution.py")
    except OSError:
        pytest.skip("no links here")
    (tmp_path / "lab4.py").write_bytes("# \xe9\n".encode("utf-16-le"))
    (tmp_path / "lab5.py").write_bytes("# coding: latin-1\nx = 'é'\n".encode("latin-1"))
    found, missing = grader.answers(tmp_path)
    assert "link" in missing["lab3_compression"] and "é" in found["lab5_grpo"]
    assert set(found) == {"lab4_decoding", "lab5_grpo"}


def test_a_reader_that_has_enough_ends_the_grader_quietly(tmp_path):
    (tmp_path / "lab1.py").write_text("x: int\n", encoding="utf-8")
    command = [sys.executable, str(LABS / "grade.py"), str(tmp_path), "--seconds", "1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait() == 0


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
    masks = read("lab1_masks", "skeleton.py")
    (folder / "lab1.py").write_text(
        masks.replace("raise NotImplementedError", "return causal(0)"), encoding="utf-8"
    )
    assert grader.calls(grader.answers(folder)[0], "lab1_masks", "induction_mask", "causal")
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
        assert done.returncode == 2 and the_message(done.stderr), args
