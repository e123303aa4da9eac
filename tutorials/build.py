"""Check the lessons, update the numbers in their prose, build their notebooks.

    python tutorials/build.py --check [1 5 12]    run lessons; fail on errors, wrong numbers, stale
                                                  notebooks
    python tutorials/build.py --update [1 5 12]   run lessons, write the computed numbers into prose
    python tutorials/build.py [1 5 12]            build notebooks with outputs (--bare: run nothing)

A lesson is a text file in jupytext's percent format, tutorials/NN_name.py, which plain `python`
runs, too. Its notebook, tutorials/notebooks/NN_name.ipynb, starts with a cell that finds the
repository (and downloads it on Colab), followed by the cells of the lesson.

Numbers in prose. A number that the lesson has computed carries a mark, which a notebook does not
show:

    mini-base answers 97.9 %<!-- accuracy:.1% -->, in 3.1<!-- seconds:.1f ± 5 --> seconds.

After the number (or code span) stands EXPRESSION:FORMAT. The expression is evaluated after the
cells above it, and the text must equal the result. With `± t` a number may differ by t (in the
units of the text), for what varies between machines. Any other decimal number or percentage in
prose must be listed in `<!-- allow: 0.5, 20 % -->` somewhere in the lesson, unless it stands in a
code span, a formula or a citation ([1], arXiv, the address of a link). So a missing mark is found
just like a wrong number.
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

REPOSITORY = "https://github.com/minilatent/minilatent"  # its address; written here only
TUTORIALS = Path(__file__).resolve().parent
LIMIT = 180  # maximum CPU seconds of a lesson

SETUP = f'''\
# Go to the root of the repository. On Colab, download and install it first, which takes some minutes.
import os, subprocess, sys
if "google.colab" in sys.modules and not os.path.exists("minilatent/minilatent"):
    subprocess.run(["git", "clone", "--depth", "1", "{REPOSITORY}", "minilatent"], check=True)
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "./minilatent"], check=True)
    os.chdir("minilatent")
while not os.path.exists("tutorials/lesson.py") and os.getcwd() != os.path.dirname(os.getcwd()):
    os.chdir("..")
sys.path.insert(0, "tutorials")'''

# ------------------------------------------------------------------ numbers in prose

MARK = re.compile(
    r"(?P<text>`[^`]+`|[-−]?\d[\d,]*(?:\.\d+)?(?:[ \u00a0]?%)?)?[ ]*<!--(?P<inside>.*?)-->", re.DOTALL
)
QUERY = re.compile(r"(?P<expression>.+):(?P<format>[^:±]*?)\s*(?:±\s*(?P<tolerance>[\d.]+))?", re.DOTALL)
NUMBER = re.compile(r"(?<![\w.])[-−]?\d[\d,]*(?:\.\d+[ \u00a0]?%?|[ \u00a0]?%)")
# Where a number needs no mark: code, formulas, addresses, citations.
EXEMPT = re.compile(
    r"```.*?```|`[^`]*`|\$\$.*?\$\$|\$[^$\n]+\$|\]\([^)]*\)|<https?:[^>]*>"
    r"|(?:arXiv:?\s*)\d{4}\.\d{4,5}(?:v\d+)?",
    re.DOTALL | re.IGNORECASE,
)


@dataclass
class Mark:
    text: str  # in the prose
    expression: str
    format: str
    tolerance: float

    def render(self, namespace: dict) -> str:
        """The text that it should have: "97.9 %" with a space, a true minus sign if the prose uses one, code
        as code."""
        value = format(eval(self.expression, namespace), self.format)
        if self.text.startswith("`"):
            return f"`{value}`"
        return re.sub(r"(?<=\d)%$", " %", value).replace("-", "−" if "−" in self.text else "-")

    def holds(self, right: str) -> bool:
        if self.text.replace("\u00a0", " ") == right:
            return True
        return bool(self.tolerance) and abs(as_number(self.text) - as_number(right)) <= self.tolerance + 1e-9


def as_number(text: str) -> float:
    return float(re.sub(r"[,%`\s]", "", text.replace("−", "-")))


def read_prose(text: str) -> tuple[list[Mark], list[str], list[str], list[str]]:
    """Read one markdown cell: its marks, the numbers without a mark, the numbers that it allows, and faults
    in comments."""
    marks, allowed, faults = [], [], []

    def take(m: re.Match) -> str:
        inside = m["inside"].strip()
        if inside.startswith("allow:"):
            allowed.extend(plain(word) for word in inside[len("allow:") :].split(","))
            return m["text"] or ""
        query = QUERY.fullmatch(inside)
        if not m["text"] or not query:
            faults.append(f"a comment that is not a mark, or has no number before it: {m[0].strip()!r}")
            return ""
        marks.append(Mark(m["text"], query["expression"], query["format"], float(query["tolerance"] or 0)))
        return ""

    rest = EXEMPT.sub(" ", MARK.sub(take, text))
    return marks, [plain(m[0]) for m in NUMBER.finditer(rest)], allowed, faults


def plain(number: str) -> str:
    """A number in one notation: "20 %" and "20%" are the same."""
    return re.sub(r"[\s\u00a0]", "", number.replace("−", "-"))


def prose_faults(cells: list) -> list[str]:
    """The faults that are visible without running the lesson."""
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
    """Run the lesson's cells as one script and evaluate each mark where it stands. Called in a process of its
    own."""
    namespace, found, start = {"__name__": "__main__", "__file__": str(path)}, [], time.process_time()
    for number, cell in enumerate(cells_of(path), 1):
        if cell.cell_type == "markdown":
            found += [mark.render(namespace) for mark in read_prose(cell.source)[0]]
        elif cell.cell_type == "code":
            name = f"{path.name}, cell {number}"
            lines = cell.source.splitlines(True)
            linecache.cache[name] = (len(cell.source), None, lines, name)  # for tracebacks
            exec(compile(cell.source, name, "exec"), namespace)
    seconds = time.process_time() - start
    report.write_text(json.dumps({"numbers": found, "seconds": seconds}), encoding="utf-8")


def run(path: Path) -> tuple[dict | None, str]:
    """What run_cells reports (None if it failed), and the end of its output."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, __file__, "--cells", str(path), str(report)]
        done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", cwd=TUTORIALS.parent)
        found = json.loads(report.read_text(encoding="utf-8")) if report.exists() else None
        return found, (done.stdout + done.stderr)[-3000:]


def marks_of(path: Path) -> list[Mark]:
    marks = []
    for cell in cells_of(path):
        if cell.cell_type == "markdown":
            marks += read_prose(cell.source)[0]
    return marks


def check(path: Path) -> tuple[list[str], float]:
    """Everything that is wrong with a lesson, and the CPU seconds that it took."""
    faults = prose_faults(cells_of(path)) + stale(path)
    report, output = run(path)
    if report is None:
        return [*faults, f"it does not run:\n{output}"], 0.0
    for mark, right in zip(marks_of(path), report["numbers"], strict=True):
        if not mark.holds(right):
            faults.append(f"the prose has {mark.text}, but {mark.expression} is {right}")
    if report["seconds"] > LIMIT:
        faults.append(f"it takes {report['seconds']:.0f} CPU seconds, more than {LIMIT}")
    return faults, report["seconds"]


def update(path: Path) -> list[str]:
    """Write the computed numbers into the lesson's text. Returns the changes."""
    report, output = run(path)
    if report is None:
        raise SystemExit(f"{path.name} does not run:\n{output}")
    todo, changed = iter(list(zip(marks_of(path), report["numbers"], strict=True))), []

    def put(m: re.Match) -> str:
        inside = m["inside"].strip()
        if inside.startswith("allow:") or not m["text"] or not QUERY.fullmatch(inside):
            return m[0]
        mark, right = next(todo)
        if mark.text != m["text"]:
            raise SystemExit(f"{path.name}: the mark {m[0]!r} stands outside of the prose")
        if mark.holds(right):
            return m[0]
        changed.append(f"{mark.text} -> {right}")
        return right + m[0][len(m["text"]) :]

    path.write_text(MARK.sub(put, path.read_text(encoding="utf-8")), encoding="utf-8")
    return changed


# ------------------------------------------------------------------ notebooks


def notebook_of(path: Path) -> nbformat.NotebookNode:
    """The lesson as a notebook without outputs."""
    repository = REPOSITORY.removeprefix("https://github.com/")
    notebooks = f"{repository}/blob/main/tutorials/notebooks"
    colab = f"https://colab.research.google.com/github/{notebooks}/{path.stem}.ipynb"
    source = f"{REPOSITORY}/blob/main/tutorials/{path.name}"
    head = (
        f"[Open in Colab]({colab}) · To install the package: `pip install -e .` in the repository's root; "
        f"on Colab the next cell does it. (`!pip install git+{REPOSITORY}` installs the package alone.)"
        f"\n\nThis notebook is built from [{path.name}]({source}): edit that file."
    )
    cells = [nbformat.v4.new_markdown_cell(head), nbformat.v4.new_code_cell(SETUP), *cells_of(path)]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    notebook = nbformat.v4.new_notebook(cells=cells, metadata=metadata)
    for number, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{number}", {}
    return notebook


def notebook_path(path: Path) -> Path:
    return path.parent / "notebooks" / f"{path.stem}.ipynb"


def stale(path: Path) -> list[str]:
    """A fault if the notebook's cells differ from the lesson's. Outputs are not compared: timings vary."""
    target = notebook_path(path)
    if not target.exists():
        return [f"it has no notebook: python tutorials/build.py {path.name[:2]}"]
    sources = lambda notebook: [(cell.cell_type, cell.source) for cell in notebook.cells]
    if sources(nbformat.read(target, 4)) != sources(notebook_of(path)):
        return [f"its notebook is stale: python tutorials/build.py {path.name[:2]}"]
    return []


def make_notebook(path: Path, bare: bool = False) -> None:
    """Write the notebook, executed, or without outputs (bare)."""
    notebook, target = notebook_of(path), notebook_path(path)
    target.parent.mkdir(exist_ok=True)
    if not bare:
        from nbclient import NotebookClient

        options = dict(timeout=1800, kernel_name="python3", record_timing=False)
        where = {"metadata": {"path": str(target.parent)}}
        NotebookClient(notebook, resources=where, **options).execute()
    notebook.metadata.language_info = {"name": "python"}
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":  # progress bars and warnings are left out
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
            for output in cell.outputs:  # a temporary folder has a new name each time
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
    parser.add_argument("numbers", nargs="*", type=int, help="numbers of lessons (default: all)")
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
            line = f"{'FAIL' if faults else 'ok  '} {path.stem:32s} {seconds:6.1f} s"
            print(line, *faults, sep="\n     ", flush=True)
        elif args.update:
            changed = update(path)
            print(path.stem, *(changed or ["nothing to change"]), sep="\n     ", flush=True)
        else:
            make_notebook(path, args.bare)
            target = notebook_path(path)
            print(f"{target.name}: {target.stat().st_size / 1e3:.0f} kB", flush=True)
    if args.check:
        print(f"{failed} lessons fail, {total:.0f} CPU seconds in all")
    raise SystemExit(bool(failed))


if __name__ == "__main__":
    main()
