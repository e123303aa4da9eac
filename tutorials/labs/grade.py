"""Points for a folder with answers to the labs:

    python grade.py FOLDER [--json FILE] [--report FILE] [--seed N]

FOLDER contains lab1.py .. lab7.py, directly or in folders like lab1_masks. The tests are those
beside this file, never those in the folder. Works offline; the answers run in separate processes
with limits (runner.py).
"""

import argparse
import ast
import importlib.util
import json
import os
import re
import site
import stat
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

HERE = Path(__file__).resolve().parent
LABS = sorted(p.name for p in HERE.glob("lab[0-9]_*") if p.is_dir())
sys.dont_write_bytecode = True


class Bad(Exception):
    """A wrong call or bad input: one message, exit code 2."""


class Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise Bad(message)


def wrapped(message: str, indent: int = 2) -> str:
    """A message on lines of at most 100 columns, all but the first indented. A name that the user gave stays
    whole."""
    for given in map(str.strip, sys.argv[1:]):
        message = message.replace(given, given.replace(" ", "\0"))
    shape = {"break_long_words": False, "break_on_hyphens": False, "subsequent_indent": " " * indent}
    return textwrap.fill(message, 100, **shape).replace("\0", " ")


def run(main) -> None:
    try:
        code = main(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except Bad as error:
        print(wrapped(f"error: {error}"), file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        code = 130
    raise SystemExit(code)


def lab_named(name: str) -> str:
    for lab in LABS:
        if name.rstrip("/") in (lab, lab.split("_")[0]):
            return lab
    raise Bad(f"no lab '{name}'; choose from {', '.join(LABS)}")


def points_of(lab: str) -> dict[str, int]:
    """Points of each problem, read from the test file without running it."""
    text = (HERE / lab / f"test_{lab.split('_')[0]}.py").read_text(encoding="utf-8")
    inside = re.search(r"^POINTS = \{(.*?)\}", text, re.DOTALL | re.MULTILINE)[1]
    return {name: int(points) for name, points in re.findall(r'"(\w+)":\s*(\d+)', inside)}


def answers(folder: Path) -> tuple[dict[str, str], dict[str, str]]:
    """The source of each lab's answers in the folder, and why there is none."""
    if not folder.is_dir():
        raise Bad(f"{folder} is not a folder")
    found, missing = {}, {}
    for lab in LABS:
        name = lab.split("_")[0]
        missing[lab] = "not handed in"
        for path in (folder / lab / f"{name}.py", folder / f"{name}.py"):
            try:
                if path.resolve() != folder.resolve() / path.relative_to(folder) or is_solution(path, lab):
                    missing[lab] = f"{path.name} is a link: hand in the file itself"
                elif stat.S_ISREG(path.stat().st_mode):  # reading a pipe would block
                    with open(path, "rb") as file:
                        found[lab] = decoded(file.read(1_000_000))
                    break
            except OSError:
                continue
        like = re.compile(rf"{name}\b.*\.py", re.IGNORECASE)
        beside = [p.name for at in (folder / lab, folder) if at.is_dir() for p in sorted(at.iterdir())]
        if other := [repr(n) for n in beside if like.fullmatch(n) and n != f"{name}.py"]:
            missing[lab] += f"; {', '.join(other)} should be called {name}.py"
    if not found:
        hints = "; ".join(why for why in missing.values() if why != "not handed in")
        names = ", ".join(lab.split("_")[0] + ".py" for lab in LABS)
        raise Bad(f"{folder} contains none of {names}" + (f" ({hints})" if hints else ""))
    return found, missing


def is_solution(path: Path, lab: str) -> bool:
    solution = HERE / lab / "solution.py"
    return path.exists() and solution.exists() and path.samefile(solution)


def decoded(data: bytes) -> str:
    """A source as Python reads it: a byte order mark or a coding line names its encoding."""
    try:
        return importlib.util.decode_source(data)
    except (SyntaxError, UnicodeDecodeError):
        return data.decode("utf-8", "replace")


def grade(folder: Path, seed: int = 0, seconds: int = 20) -> dict:
    """{"seed", "points", "of", "labs": {lab: {"points", "of", "problems": {problem: {..}}}}}"""
    sources, missing = answers(folder)
    jobs = [
        {"lab": lab, "problem": problem, "source": source}
        for lab, source in sources.items()
        for problem in points_of(lab)
    ]
    results = iter(run_apart(jobs, seed, seconds))
    out = {"seed": seed, "points": 0, "of": 0, "labs": {}}
    for lab in LABS:
        worth, problems = points_of(lab), {}
        for problem, points in worth.items():
            if lab in sources:
                result = next(results)
                tests = [{"test": name, "wrong": wrong} for name, wrong in result["tests"]]
                solved = bool(tests) and not any(t["wrong"] for t in tests) and not result.get("why")
                why = result.get("why") or next((t["wrong"] for t in tests if t["wrong"]), None)
            else:
                tests, solved, why = [], False, missing[lab]
            for number, other in enumerate(problems, 1):  # an earlier problem that this one calls
                if (
                    why
                    and not solved
                    and not problems[other]["points"]
                    and calls(sources, lab, problem, other)
                ):
                    why = f"it calls {other}, so make {lab[3]}.{number} pass first; {why}"
            problems[problem] = {"points": points if solved else 0, "of": points, "why": why, "tests": tests}
        out["labs"][lab] = {
            "points": sum(p["points"] for p in problems.values()),
            "of": sum(worth.values()),
            "problems": problems,
        }
    out["points"], out["of"] = (sum(lab[key] for lab in out["labs"].values()) for key in ("points", "of"))
    return out


def calls(sources: dict[str, str], lab: str, problem: str, other: str) -> bool:
    """Whether the answer to a problem names another one."""
    try:
        body = ast.parse(sources.get(lab, "")).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    mine = [n for n in body if isinstance(n, ast.FunctionDef) and n.name == problem]
    return any(isinstance(n, ast.Name) and n.id == other for f in mine for n in ast.walk(f))


def run_apart(jobs: list[dict], seed: int, seconds: int) -> list[dict]:
    """Run runner.py in a process that gets nothing of our environment but the seed."""
    with tempfile.TemporaryDirectory() as empty:
        environment = {
            "PATH": os.defpath,
            "HOME": empty,
            "TMPDIR": empty,
            "LANG": "C.UTF-8",
            "OMP_NUM_THREADS": "1",
            "MINILATENT_LAB_SEED": str(seed),
            "PYTHONHASHSEED": "0",
            "PYTHONDONTWRITEBYTECODE": "1",
            # PyTorch may be installed for this user only, or be on the path of this shell
            "PYTHONUSERBASE": site.getuserbase(),
            "PYTHONPATH": os.pathsep.join(
                os.path.abspath(p) for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p
            ),
        }
        limit = 120 + 4 * seconds * len(jobs)
        try:
            done = subprocess.run(
                [sys.executable, str(HERE / "runner.py")],
                input=json.dumps({"jobs": jobs, "seconds": seconds}),
                capture_output=True,
                text=True,
                encoding="utf-8",
                cwd=empty,
                env=environment,
                timeout=limit,
            )
            return json.loads(done.stdout)
        except subprocess.TimeoutExpired:
            return [{"why": "the grader ran out of time", "tests": []}] * len(jobs)
        except ValueError:
            raise Bad(
                f"the tests could not be run: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}"
            ) from None


def report(result: dict, name: str) -> str:
    """The report for the student, in Markdown."""
    lines = [f"# {name}: {result['points']} of {result['of']} points", "", f"Seed {result['seed']}.", ""]
    for lab, found in result["labs"].items():
        lines += [
            f"## {lab}: {found['points']} of {found['of']}",
            "",
            "| problem | points | |",
            "|---|---|---|",
        ]
        for problem, p in found["problems"].items():
            passed = sum(not t["wrong"] for t in p["tests"])
            note = f"all {passed} tests pass" if p["points"] else plain(p["why"])
            first = next((t["test"] for t in p["tests"] if t["wrong"]), None)
            if first and first[:5] == "test_":
                sentence = first[5:].replace("_", " ")
                note = f"{passed} of {len(p['tests'])} tests pass; first failure: *{sentence}*: {note}"
            lines.append(f"| {problem} | {p['points']} / {p['of']} | {note} |")
        lines.append("")
    return "\n".join(lines)


def plain(text: str | None) -> str:
    """Text on one line and in one table cell, whatever a student's error message contains."""
    return (
        re.sub(r"[^\x20-\x7e°-ÿΑ-ω√≤≥]", "?", " ".join((text or "no result").split()))
        .replace("|", "\\|")
        .replace("<", "&lt;")[:300]
    )


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--json", type=Path, metavar="FILE", help="points and tests, as JSON")
    parser.add_argument("--report", type=Path, metavar="FILE", help="report for the student, as Markdown")
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed of the tests' random numbers [0]"
    )
    parser.add_argument(
        "--seconds", type=int, default=20, metavar="N", help="CPU seconds for each problem [20]"
    )


def main_with(given: argparse.Namespace) -> int:
    if given.seconds < 1:
        raise Bad("--seconds must be 1 or more")
    result = grade(given.folder, given.seed, given.seconds)
    for path, text in (
        (given.json, json.dumps(result, indent=1, ensure_ascii=False) + "\n"),
        (given.report, report(result, given.folder.resolve().name)),
    ):
        if path:
            try:
                path.write_text(text, encoding="utf-8", errors="replace")  # messages may hold lone surrogates
            except OSError as error:
                raise Bad(f"{path}: {error.strerror}") from None
    for lab, found in result["labs"].items():
        points = [f"{name}\0{p['points']}/{p['of']}" for name, p in found["problems"].items()]
        print(wrapped(f"{lab:24} {found['points']:3} of {found['of']:3}   {', '.join(points)}", 38))
    print(f"{'all':24} {result['points']:3} of {result['of']:3}")
    return 0


def main(argv: list[str]) -> int:
    parser = Parser(
        prog="grade.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options(parser)
    return main_with(parser.parse_args(argv))


if __name__ == "__main__":
    run(main)
