"""The lessons: check them, bring their numbers up to date, make their notebooks.

    python tutorials/build.py --check [1 5 12]     run the lessons; fails on an error, a wrong number, a stale notebook
    python tutorials/build.py --update [1 5 12]    run them and write the numbers that came out into their prose
    python tutorials/build.py [1 5 12]             make the notebooks anew, with their outputs (--bare: without, and run nothing)

A lesson is one text file in jupytext's percent format, tutorials/NN_name.py, that plain `python` runs, too. Its notebook is
tutorials/notebooks/NN_name.ipynb: a head that finds (on Colab: fetches) the repository, then the lesson's own cells.

Numbers in prose. What a lesson has computed is quoted with a mark, which a notebook does not show:

    The base is right in 97.9 %<!-- accuracy:.1% --> of cases, in `36`<!-- word:s -->, and took 3.1<!-- seconds:.1f ± 5 --> s.

Behind the number (or code span) stands EXPRESSION:FORMAT, evaluated after the cells above it. The text must be exactly what
comes out; with `± t` a number may be t away from it (in the units of the text: for what differs between machines). Any other
decimal number or percentage in prose needs `<!-- allow: 0.5, 20 % -->` somewhere in the lesson, unless it stands in a code
span, a formula or a citation ([1], arXiv, a link's address). So a forgotten mark is found as a wrong number is.
"""

import argparse
import json
import linecache
import re
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

import jupytext
import nbformat

REPOSITORY = "https://github.com/minilatent/minilatent"  # the one place that knows where the repository lives
TUTORIALS = Path(__file__).resolve().parent
LIMIT = 180  # CPU seconds that a lesson may take

SETUP = f'''\
# Finds the repository and goes to its root. On Colab it is fetched and installed first: that takes some minutes.
import os, subprocess, sys
if "google.colab" in sys.modules and not os.path.exists("minilatent/minilatent"):
    subprocess.run(["git", "clone", "--depth", "1", "{REPOSITORY}", "minilatent"], check=True)
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "-r", "minilatent/requirements.txt"], check=True)
    os.chdir("minilatent")
while not os.path.exists("tutorials/lesson.py") and os.getcwd() != os.path.dirname(os.getcwd()):
    os.chdir("..")
sys.path.insert(0, "tutorials")'''

# ------------------------------------------------------------------ numbers in prose

MARK = re.compile(
    r"(?P<text>`[^`]+`|[-−]?\d[\d,]*(?:\.\d+)?(?:[ \u00a0]?%)?)?[ ]*<!--(?P<inside>.*?)-->", re.DOTALL
)
ASKED = re.compile(r"(?P<expression>.+):(?P<format>[^:±]*?)\s*(?:±\s*(?P<tolerance>[\d.]+))?", re.DOTALL)
NUMBER = re.compile(r"(?<![\w.])[-−]?\d[\d,]*(?:\.\d+[ \u00a0]?%?|[ \u00a0]?%)")
# What a number may stand in without a mark: code, formulas, addresses, citations.
EXEMPT = re.compile(
    r"```.*?```|`[^`]*`|\$\$.*?\$\$|\$[^$\n]+\$|\]\([^)]*\)|<https?:[^>]*>|(?:arXiv:?\s*)\d{4}\.\d{4,5}(?:v\d+)?",
    re.DOTALL | re.IGNORECASE,
)


@dataclass
class Mark:
    text: str  # what the prose says
    expression: str
    format: str
    tolerance: float

    def render(self, namespace: dict) -> str:
        """What it should say: "97.9 %" with a space, a minus that is a minus, a code span stays one."""
        said = format(eval(self.expression, namespace), self.format)
        if self.text.startswith("`"):
            return f"`{said}`"
        return re.sub(r"(?<=\d)%$", " %", said).replace("-", "−" if "−" in self.text else "-")

    def holds(self, right: str) -> bool:
        if self.text.replace("\u00a0", " ") == right:
            return True
        return bool(self.tolerance) and abs(as_number(self.text) - as_number(right)) <= self.tolerance + 1e-9


def as_number(text: str) -> float:
    return float(re.sub(r"[,%`\s]", "", text.replace("−", "-")))


def read_prose(text: str) -> tuple[list[Mark], list[str], list[str], list[str]]:
    """Of one markdown cell: its marks, the numbers that need one but have none, those that it allows, and what is
    wrong with its comments."""
    marks, allowed, faults = [], [], []

    def take(m: re.Match) -> str:
        inside = m["inside"].strip()
        if inside.startswith("allow:"):
            allowed.extend(plain(word) for word in inside[len("allow:") :].split(","))
            return m["text"] or ""
        asked = ASKED.fullmatch(inside)
        if not m["text"] or not asked:
            faults.append(f"a comment that is no mark, or no number before it: {m[0].strip()!r}")
            return ""
        marks.append(Mark(m["text"], asked["expression"], asked["format"], float(asked["tolerance"] or 0)))
        return ""

    rest = EXEMPT.sub(" ", MARK.sub(take, text))
    return marks, [plain(m[0]) for m in NUMBER.finditer(rest)], allowed, faults


def plain(number: str) -> str:
    """One way to write a number of the allow list: "20 %" and "20%" are the same."""
    return re.sub(r"[\s\u00a0]", "", number.replace("−", "-"))


def prose_faults(cells: list) -> list[str]:
    """What can be seen without running a lesson."""
    found, allowed, faults = [], [], []
    for cell in cells:
        if cell.cell_type == "markdown":
            _, numbers, more, wrong = read_prose(cell.source)
            found, allowed, faults = found + numbers, allowed + more, faults + wrong
    faults += [
        f"a number without a mark: {n} (quote it with <!-- expression:format -->, or allow it)"
        for n in found
        if n not in allowed
    ]
    return faults + [f"allowed, but not in the prose: {n}" for n in allowed if n not in found]


# ------------------------------------------------------------------ running a lesson


def cells_of(path: Path) -> list:
    return jupytext.read(path, fmt="py:percent").cells


def run_cells(path: Path, report: Path) -> None:
    """In a process of its own: the lesson's cells as one script, its marks evaluated where they stand."""
    namespace, found, start = {"__name__": "__main__", "__file__": str(path)}, [], time.process_time()
    for number, cell in enumerate(cells_of(path), 1):
        if cell.cell_type == "markdown":
            found += [mark.render(namespace) for mark in read_prose(cell.source)[0]]
        elif cell.cell_type == "code":
            name = f"{path.name}, cell {number}"
            linecache.cache[name] = (
                len(cell.source),
                None,
                cell.source.splitlines(True),
                name,
            )  # for tracebacks
            exec(compile(cell.source, name, "exec"), namespace)
    report.write_text(json.dumps({"numbers": found, "seconds": time.process_time() - start}))


def run(path: Path) -> tuple[dict | None, str]:
    """What run_cells reports; None and the end of its output if it failed."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        done = subprocess.run(
            [sys.executable, __file__, "--cells", str(path), str(report)],
            capture_output=True,
            text=True,
            cwd=TUTORIALS.parent,
        )
        return (json.loads(report.read_text()) if report.exists() else None), (done.stdout + done.stderr)[
            -3000:
        ]


def marks_of(path: Path) -> list[Mark]:
    return [
        mark for cell in cells_of(path) if cell.cell_type == "markdown" for mark in read_prose(cell.source)[0]
    ]


def check(path: Path) -> tuple[list[str], float]:
    """All that is wrong with a lesson, and the CPU seconds that it took."""
    faults = prose_faults(cells_of(path)) + stale(path)
    report, output = run(path)
    if report is None:
        return [*faults, f"it does not run:\n{output}"], 0.0
    for mark, right in zip(marks_of(path), report["numbers"], strict=True):
        if not mark.holds(right):
            faults.append(f"the prose says {mark.text}, but {mark.expression} is {right}")
    if report["seconds"] > LIMIT:
        faults.append(f"it takes {report['seconds']:.0f} CPU seconds, more than {LIMIT}")
    return faults, report["seconds"]


def update(path: Path) -> list[str]:
    """Write the right numbers into the lesson's text; what was changed."""
    report, output = run(path)
    if report is None:
        raise SystemExit(f"{path.name} does not run:\n{output}")
    todo, changed = iter(list(zip(marks_of(path), report["numbers"], strict=True))), []

    def put(m: re.Match) -> str:
        if (
            m["inside"].strip().startswith("allow:")
            or not m["text"]
            or not ASKED.fullmatch(m["inside"].strip())
        ):
            return m[0]
        mark, right = next(todo)
        if mark.text != m["text"]:
            raise SystemExit(f"{path.name}: the mark at {m[0]!r} stands outside of prose")
        if mark.holds(right):
            return m[0]
        changed.append(f"{mark.text} -> {right}")
        return right + m[0][len(m["text"]) :]

    path.write_text(MARK.sub(put, path.read_text()))
    return changed


# ------------------------------------------------------------------ notebooks


def notebook_of(path: Path) -> nbformat.NotebookNode:
    """The lesson as a notebook without outputs."""
    where = (
        f"{REPOSITORY.removeprefix('https://github.com/')}/blob/main/tutorials/notebooks/{path.stem}.ipynb"
    )
    badge = (
        f"[Open in Colab](https://colab.research.google.com/github/{where}) · this notebook is made from "
        f"[{path.name}]({REPOSITORY}/blob/main/tutorials/{path.name}): change that file, not this one."
    )
    cells = [nbformat.v4.new_markdown_cell(badge), nbformat.v4.new_code_cell(SETUP), *cells_of(path)]
    notebook = nbformat.v4.new_notebook(
        cells=cells,
        metadata={
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        },
    )
    for number, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{number}", {}
    return notebook


def notebook_path(path: Path) -> Path:
    return path.parent / "notebooks" / f"{path.stem}.ipynb"


def stale(path: Path) -> list[str]:
    """Whether the notebook's cells are the lesson's. Outputs are not compared: timings and last digits differ."""
    target = notebook_path(path)
    if not target.exists():
        return [f"it has no notebook: python tutorials/build.py {path.name[:2]}"]
    sources = lambda notebook: [(cell.cell_type, cell.source) for cell in notebook.cells]
    if sources(nbformat.read(target, 4)) != sources(notebook_of(path)):
        return [f"its notebook is stale: python tutorials/build.py {path.name[:2]}"]
    return []


def make_notebook(path: Path, bare: bool = False) -> None:
    """Write the notebook, executed, or bare: its cells alone."""
    notebook, target = notebook_of(path), notebook_path(path)
    target.parent.mkdir(exist_ok=True)
    if not bare:
        from nbclient import NotebookClient

        NotebookClient(
            notebook,
            timeout=1800,
            kernel_name="python3",
            record_timing=False,
            resources={"metadata": {"path": str(target.parent)}},
        ).execute()
    notebook.metadata.language_info = {"name": "python"}
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":  # progress bars and warnings are no part of a lesson
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
            for output in cell.outputs:  # a temporary folder has another name each time
                if "text" in output:
                    output.text = re.sub(re.escape(tempfile.gettempdir()) + r"/tmp\w+", "FOLDER", output.text)
    nbformat.write(notebook, target)


# ------------------------------------------------------------------ the command


def lessons(numbers: list[int]) -> list[Path]:
    paths = sorted(TUTORIALS.glob("[0-9][0-9]_*.py"))
    unknown = set(numbers) - {int(p.name[:2]) for p in paths}
    if unknown:
        raise SystemExit(f"there is no lesson {min(unknown)}")
    return [p for p in paths if not numbers or int(p.name[:2]) in numbers]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("numbers", nargs="*", type=int, help="which lessons (default: all)")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--update", action="store_true")
    parser.add_argument("--bare", action="store_true")
    parser.add_argument("--cells", nargs=2, type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.cells:
        try:
            return run_cells(*args.cells)
        except Exception:
            traceback.print_exc()
            raise SystemExit(1) from None
    failed, total = 0, 0.0
    for path in lessons(args.numbers):
        if args.check:
            faults, seconds = check(path)
            failed, total = failed + bool(faults), total + seconds
            print(
                f"{'FAIL' if faults else 'ok  '} {path.stem:32s} {seconds:6.1f} s",
                *faults,
                sep="\n     " if faults else "",
                flush=True,
            )
        elif args.update:
            changed = update(path)
            print(path.stem, *(changed or ["nothing to change"]), sep="\n     ", flush=True)
        else:
            make_notebook(path, args.bare)
            print(
                f"{notebook_path(path).name}: {notebook_path(path).stat().st_size / 1e3:.0f} kB", flush=True
            )
    if args.check:
        print(f"{failed} lessons fail, {total:.0f} CPU seconds in all")
    raise SystemExit(bool(failed))


if __name__ == "__main__":
    main()
