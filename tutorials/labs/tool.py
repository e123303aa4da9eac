"""The teacher's tool for the labs.

python tutorials/labs/tool.py skeletons [--check]   generate (or check) each skeleton.py
python tutorials/labs/tool.py gate [LAB ..]         skeletons fail, solutions pass, mutants fail
python tutorials/labs/tool.py bundle OUT.zip        write the students' files
python tutorials/labs/tool.py grade FOLDER [--json FILE] [--report FILE] [--seed N]
"""

import argparse
import io
import os
import sys
import time
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
sys.dont_write_bytecode = True

import grade as grader  # noqa: E402
from grade import LABS, Bad, wrapped  # noqa: E402

BEGIN, INSTEAD, END = "# BEGIN SOLUTION", "# INSTEAD", "# END SOLUTION"


# ---------------------------------------------------------------- skeletons


def strip(source: str) -> str:
    """A solution without the parts between its marks. They are replaced by the lines after INSTEAD, which
    begin with `#: `, or by NotImplementedError."""
    out, instead, inside = [], [], False
    for number, line in enumerate(source.splitlines(), 1):
        mark = line.strip()
        if mark == BEGIN:
            if inside:
                raise Bad(f"line {number}: {BEGIN} inside a solution")
            inside, instead, indent = True, None, line[: len(line) - len(line.lstrip())]
        elif mark == END:
            if not inside:
                raise Bad(f"line {number}: {END} without {BEGIN}")
            out += instead if instead is not None else [indent + "raise NotImplementedError"]
            inside = False
        elif inside and mark == INSTEAD:
            instead = []
        elif inside and instead is not None:
            if not mark.startswith("#:"):
                raise Bad(f"line {number}: a line after {INSTEAD} must begin with #:")
            at = line.index("#:")
            instead.append((line[:at] + line[at + 2 :].removeprefix(" ")).rstrip())
        elif not inside:
            out.append(line)
    if inside:
        raise Bad(f"{BEGIN} without {END}")
    return "\n".join(out) + "\n"


def skeletons(check: bool) -> int:
    stale = []
    for lab in LABS:
        path = HERE / lab / "skeleton.py"
        skeleton = strip((HERE / lab / "solution.py").read_text(encoding="utf-8"))
        if not path.exists() or path.read_text(encoding="utf-8") != skeleton:
            stale.append(lab)
            if not check:
                path.write_text(skeleton, encoding="utf-8")
    if check and stale:
        advice = "run python tutorials/labs/tool.py skeletons"
        print(wrapped(f"error: skeleton.py is stale in {', '.join(stale)}: {advice}"), file=sys.stderr)
        return 1
    print(f"generated: {', '.join(stale)}" if stale else "every skeleton is up to date")
    return 0


# ---------------------------------------------------------------- the gate


def function_span(source: str, problem: str) -> tuple[int, int]:
    """Where a function's text begins and ends."""
    import ast

    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef) and node.name == problem:
            lines = source.splitlines(keepends=True)
            return sum(map(len, lines[: node.lineno - 1])), sum(map(len, lines[: node.end_lineno]))
    raise Bad(f"the solution has no {problem}")


def mutate(source: str, problem: str, name: str, old: str, new: str) -> str:
    """The solution with one mistake in one function. BODY as `old`: everything between its marks."""
    start, end = function_span(source, problem)
    end = max(end, source.find(END, start))
    body = source[start:end]
    if old == "BODY":
        indent = "    "
        before, _, rest = body.partition(BEGIN + "\n")
        body = before + BEGIN + "\n" + "".join(indent + line + "\n" for line in new.splitlines())
    elif body.count(old) == 0:
        raise Bad(f"mutant '{name}' of {problem}: {old!r} is not in the solution")
    else:
        body = body.replace(old, new)
    mutant = source[:start] + body + source[end:]
    try:
        compile(mutant, "mutant", "exec")
    except SyntaxError as error:
        raise Bad(f"mutant '{name}' of {problem} is not Python: {error}") from None
    return mutant


def gate(labs: list[str], workers: int, quiet: bool) -> int:
    """Print a table of what was tried; return 1 if a skeleton or a mutant passed or a solution failed."""
    import importlib.util

    import runner

    bad, total, started = 0, 0, time.monotonic()
    for lab in labs:
        began = time.monotonic()
        source, skeleton = (HERE / lab / f"{name}.py" for name in ("solution", "skeleton"))
        source, skeleton = source.read_text(encoding="utf-8"), skeleton.read_text(encoding="utf-8")
        spec = importlib.util.spec_from_file_location("mutants", HERE / lab / "mutants.py")
        mutants = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(mutants)
        problems = list(runner.tests_of(lab)[0].POINTS)
        jobs = []
        for problem in problems:
            jobs += [
                {"what": "solution", "problem": problem, "name": "", "source": source},
                {"what": "skeleton", "problem": problem, "name": "", "source": skeleton},
            ]
            own = [m for m in mutants.MUTANTS if m[0] == problem]
            jobs += [
                {"what": "mutant", "problem": problem, "name": m[1], "source": mutate(source, *m)}
                for m in own
            ]
            jobs += [
                {"what": "generic", "problem": problem, "name": name, "source": source, "mistake": name}
                for name in runner.GENERIC
            ]
        if unknown := {m[0] for m in mutants.MUTANTS} - set(problems):
            raise Bad(f"{lab}/mutants.py: no such problem: {', '.join(unknown)}")
        # All tests run on the solution; on the others they stop at the first failure.
        for job in jobs:
            job["lab"] = lab
            if (reason := runner.objection(job["source"])) and job["what"] != "mutant":
                raise Bad(f"{lab}, {job['what']} '{job['name']}': {reason}")
        solved = [j for j in jobs if j["what"] == "solution"]
        wrong = [j for j in jobs if j["what"] != "solution"]
        results = list(zip(solved, runner.run(solved, workers)))
        results += zip(wrong, runner.run(wrong, workers, first_only=True, trusted=True))
        tried = caught = others = 0
        for problem in problems:
            if not quiet:
                print(f"\n{lab} · {problem}")
            for job, result in [r for r in results if r[0]["problem"] == problem]:
                failed = [(name, why) for name, why in result["tests"] if why]
                why = result.get("why")
                line = failed[0][0] if failed else why
                if job["what"] == "solution":
                    ok = not failed and not why and bool(result["tests"])
                    line = f"passes {len(result['tests'])} tests"
                    if not ok:
                        line = f"FAILS: {failed[0] if failed else why}"
                elif job["what"] == "generic" and not failed and not why and not result.get("changed"):
                    continue  # this mistake has no effect in this function
                else:
                    ok = bool(failed or why)
                    line = line if ok else "PASSES: no test catches it"
                    tried += job["what"] == "mutant"
                    caught += ok and job["what"] == "mutant"
                    others += job["what"] == "generic"
                bad += not ok
                if not quiet or not ok:
                    name = f"{job['what']}: {job['name']}".rstrip(": ")
                    where = f"  ({lab} · {problem})" if quiet else ""
                    print(wrapped(f"  {'ok ' if ok else 'BAD'}  {name:50}  {line}{where}", 7))
        few = "" if tried >= 5 * len(problems) else "   fewer than 5 per problem"
        bad += bool(few)
        total += tried
        found = f"{len(problems)} problems, {caught} of {tried} mutants caught, {others} generic ones"
        print(wrapped(f"{lab}: {found}, {time.monotonic() - began:.0f} s{few}"))
    verdict = f"the gate is closed: {bad} to fix" if bad else "the gate is open"
    print(f"{verdict}; {total} mutants, {time.monotonic() - started:.0f} s")
    return 1 if bad else 0


# ---------------------------------------------------------------- the students' bundle

SHARED = ["README.md", "conftest.py", "labkit.py", "runner.py", "grade.py"]
KEPT_BACK = {"solution.py", "skeleton.py", "mutants.py"}


def contents() -> dict[str, bytes]:
    """Every file of the bundle: handouts, skeletons under the students' names, tests, the grader."""
    files = {name: (HERE / name).read_bytes() for name in SHARED}
    for lab in LABS:
        for path in sorted((HERE / lab).iterdir()):
            own = path.name == f"{lab.split('_')[0]}.py"  # somebody's own answers in the repository
            kept_back = own or path.name in KEPT_BACK
            if path.is_file() and not kept_back and path.suffix in (".py", ".md", ".json"):
                files[f"{lab}/{path.name}"] = path.read_bytes()
        files[f"{lab}/{lab.split('_')[0]}.py"] = strip(
            (HERE / lab / "solution.py").read_text(encoding="utf-8")
        ).encode()
    return files


def bundle(out: Path) -> int:
    """Write the same bytes each time: names in order, one date."""
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in sorted(contents().items()):
            entry = zipfile.ZipInfo(f"labs/{name}", (2026, 1, 1, 0, 0, 0))
            entry.compress_type, entry.create_system = zipfile.ZIP_DEFLATED, 3
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, data)
    try:
        out.write_bytes(memory.getvalue())
    except OSError as error:
        raise Bad(f"{out}: {error.strerror}") from None
    print(f"{out}: {len(contents())} files, {len(memory.getvalue()) // 1024} kB")
    return 0


def main(argv: list[str]) -> int:
    parser = grader.Parser(
        prog="tool.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, parser_class=grader.Parser)
    commands.add_parser("skeletons").add_argument("--check", action="store_true")
    gate_ = commands.add_parser("gate")
    gate_.add_argument("labs", nargs="*", metavar="LAB", help="lab1 or lab1_masks [all]")
    gate_.add_argument("--workers", type=int, default=min(4, os.cpu_count() or 1))
    gate_.add_argument("--quiet", action="store_true", help="one line per lab, and failures")
    commands.add_parser("bundle").add_argument("out", type=Path)
    grader.options(commands.add_parser("grade"))
    given = parser.parse_args(argv)
    if given.command == "skeletons":
        return skeletons(given.check)
    if given.command == "gate":
        return gate([grader.lab_named(name) for name in given.labs] or list(LABS), given.workers, given.quiet)
    return bundle(given.out) if given.command == "bundle" else grader.main_with(given)


if __name__ == "__main__":
    grader.run(main)
