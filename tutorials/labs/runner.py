"""Runs a lab's tests on a student's source, each problem in its own restricted process.

A process is forked from one that has loaded PyTorch and the tests but no student code. It may not write
files, exceed its memory and time, or reach the network (where the system supports this); its output is
discarded. It returns its results through a pipe, with a secret word that only both processes know. After a
pass, the tests are run on a wrong answer: if they pass that, the student's file has changed them.

    python runner.py < JOBS.json > RESULTS.json

grade.py starts it; jobs: [{"lab", "source", "problem"}, ..].
"""

import ast
import ctypes
import dataclasses
import importlib
import itertools
import json
import math
import os
import resource
import secrets
import selectors
import signal
import sys
import time
import traceback
import types
from pathlib import Path

import torch
from torch import Tensor

HERE = Path(__file__).resolve().parent
SECONDS, MEGABYTES, LARGEST = 20, 2000, 200_000  # limits: CPU seconds, memory, characters of a source
NO_MEMORY = f"exceeded its memory of {MEGABYTES} MB"
ALLOWED = {
    "torch",
    "torch.nn",
    "torch.nn.functional",
    "torch.nn.utils.rnn",
    "torch.distributions",
    "math",
    "typing",
    "dataclasses",
    "functools",
    "itertools",
    "collections",
    "collections.abc",
    "__future__",
    "toy",
}
FORBIDDEN_NAMES = {
    "eval",
    "exec",
    "compile",
    "open",
    "input",
    "globals",
    "locals",
    "vars",
    "getattr",
    "setattr",
    "delattr",
    "breakpoint",
    "exit",
    "quit",
    "object",
    "type",
}
FORBIDDEN_ATTRIBUTES = {
    "os",
    "sys",
    "builtins",
    "inspect",
    "importlib",
    "subprocess",
    "ctypes",
    "socket",
    "shutil",
    "pathlib",
    "testing",
    "hub",
    "load",
    "save",
    "multiprocessing",
    "package",
    "serialization",
    "library",
    "overrides",
    "modules",
    "gc",
    "types",
    "threading",
    "warnings",
    "traceback",
    "io",
    "signal",
    "jit",
    "classes",
    "ops",
    "compile",
    "set_default_dtype",
    "set_default_device",
    "from_file",
    "fromfile",
    "tofile",
}


# ---------------------------------------------------------------- which sources are accepted


def objection(source: str) -> str | None:
    """Why this source is refused, with its line; None if it is accepted."""
    if len(source) > LARGEST:
        return f"the file is longer than {LARGEST} characters"
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return f"not Python: {error}"
    for node in ast.walk(tree):
        line = f"line {getattr(node, 'lineno', '?')}: "
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name not in ALLOWED:
                    return f"{line}import {alias.name} is not allowed in graded code"
        elif isinstance(node, ast.ImportFrom):
            if node.level or node.module not in ALLOWED:
                module = "." * node.level + (node.module or "")
                return f"{line}from {module} import .. is not allowed in graded code"
            for alias in node.names:
                if alias.name in FORBIDDEN_ATTRIBUTES or alias.name.startswith("_") or alias.name == "*":
                    return f"{line}importing {alias.name} is not allowed in graded code"
        elif isinstance(node, ast.Name) and (node.id in FORBIDDEN_NAMES or node.id.startswith("__")):
            return f"{line}{node.id} is not allowed in graded code"
        elif isinstance(node, ast.Attribute):
            if node.attr in FORBIDDEN_ATTRIBUTES or node.attr.startswith("_") and node.attr != "__init__":
                return f"{line}.{node.attr} is not allowed in graded code"
            if not isinstance(node.ctx, ast.Load) and not (
                isinstance(node.value, ast.Name) and node.value.id == "self"
            ):
                return f"{line}setting .{node.attr} of something is not allowed in graded code"
    return None


# ---------------------------------------------------------------- tests


def tests_of(lab: str):
    """A lab's test module and its tests: {problem: [(name, function), ..]}, one for each set of
    parameters."""
    folder = HERE / lab
    for path in (str(HERE), str(folder)):
        if path not in sys.path:
            sys.path.insert(0, path)
    os.environ["MINILATENT_LAB_MODULE"] = "none"
    module = importlib.import_module(f"test_{lab.split('_')[0]}")
    found = {}
    for problem in module.POINTS:
        cls = getattr(module, f"Test_{problem}")
        found[problem] = []
        for name, method in vars(cls).items():  # in the file's order: cases worked out by hand come first
            if name.startswith("test_"):
                marks = [m for m in getattr(method, "pytestmark", []) if m.name == "parametrize"]
                for values in itertools.product(*(m.args[1] for m in marks)):
                    given = {}
                    for mark, value in zip(marks, values):
                        names = [n.strip() for n in mark.args[0].split(",")]
                        given |= dict(zip(names, value if len(names) > 1 else [value]))
                    found[problem].append(
                        (
                            name + (f"{tuple(given.values())}" if given else ""),
                            lambda cls=cls, method=method, given=given: method(cls(), **given),
                        )
                    )
    return module, found


def module_from(source: str, name: str) -> types.ModuleType:
    module = types.ModuleType(name)
    sys.modules[name] = module  # dataclasses look it up there
    exec(compile(source, f"{name}.py", "exec"), module.__dict__)
    return module


def run_test(function) -> str | None:
    """None if the test passes, else what went wrong and on which line of the test."""
    try:
        function()
        return None
    except BaseException as error:
        if isinstance(error, NotImplementedError):
            return "not written yet"
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            return NO_MEMORY
        frames = [
            f
            for f in traceback.extract_tb(error.__traceback__)
            if Path(f.filename).name.startswith(("test_", "lab"))
        ]
        where = f" [{frames[-1].line}]" if frames else ""
        text = " ".join(str(error).split())
        return f"{type(error).__name__}: {text}{where}"[:400]


# ---------------------------------------------------------------- mistakes that fit every problem


def altered(x, how):
    """The tensors and numbers in a function's result, each changed by `how`."""
    if isinstance(x, Tensor) or isinstance(x, (bool, int, float)):
        return how(x)
    if dataclasses.is_dataclass(x) and not isinstance(x, type):
        return dataclasses.replace(
            x, **{f.name: altered(getattr(x, f.name), how) for f in dataclasses.fields(x)}
        )
    if isinstance(x, tuple):
        return tuple(altered(y, how) for y in x)
    if isinstance(x, list):
        return [altered(y, how) for y in x]
    return {key: altered(y, how) for key, y in x.items()} if isinstance(x, dict) else x


def on_tensors(change, numbers=lambda x: x):
    return lambda x: change(x) if isinstance(x, Tensor) else numbers(x)


floating = lambda change: on_tensors(lambda x: change(x) if x.is_floating_point() else x)
GENERIC = {
    "zeros": on_tensors(lambda x: x & False if x.dtype == torch.bool else x * 0, lambda x: type(x)(0)),
    "the sign is wrong": on_tensors(
        lambda x: ~x if x.dtype == torch.bool else -x, lambda x: not x if isinstance(x, bool) else -x
    ),
    "moved by one in its first dimension": on_tensors(lambda x: x.roll(1, 0) if x.dim() else x),
    "moved by one in its last dimension": on_tensors(lambda x: x.roll(1, -1) if x.dim() else x),
    "a tenth of a per cent too large": floating(lambda x: x * 1.001),
    "no gradient flows": on_tensors(lambda x: x.detach()),
    "single precision": on_tensors(lambda x: x.float() if x.dtype == torch.float64 else x),
    "whole numbers as floats": on_tensors(lambda x: x.double() if x.dtype == torch.long else x),
    "every row is the first": on_tensors(
        lambda x: x[:1].expand_as(x).clone() if x.dim() and len(x) > 1 else x
    ),
    "an argument is changed": None,
}


def same(x, y) -> bool:
    if isinstance(x, Tensor):
        return (
            x.dtype == y.dtype
            and x.requires_grad == y.requires_grad
            and torch.equal(x.nan_to_num(), y.nan_to_num())
        )
    return x == y if isinstance(x, (bool, int, float)) else True


def generic(function, name: str, changed: list):
    """`function` with a mistake that is possible in any function. `changed` grows if the mistake had an
    effect."""

    def wrong(*args, **kwargs):
        if GENERIC[name] is None:
            out = function(*args, **kwargs)
            for x in [*args, *kwargs.values()]:
                if isinstance(x, Tensor) and x.is_floating_point() and x.numel():
                    x.data.mul_(1.5)
                    changed.append(True)
                    break
            return out

        def how(x):
            y = GENERIC[name](x)
            if not same(x, y):
                changed.append(True)
            return y

        return altered(function(*args, **kwargs), how)

    return wrong


# ---------------------------------------------------------------- a problem in its own process


def restrain(seconds: int, trusted: bool) -> None:
    os.setsid()
    used = (
        int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        if Path("/proc/self/statm").exists()
        else None
    )
    if used:
        resource.setrlimit(resource.RLIMIT_AS, (used + MEGABYTES * 2**20,) * 2)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    if not trusted:
        try:  # an empty network namespace (Linux)
            ctypes.CDLL(None).unshare(0x40000000 | 0x10000000)
        except (OSError, AttributeError):
            pass
    import socket

    def refuse(*_, **__):
        raise OSError("no network in a lab")

    socket.socket = socket.create_connection = socket.getaddrinfo = refuse
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)


def intact() -> list:
    """The functions that the tests rely on."""
    import builtins

    import labkit

    return [
        torch.testing.assert_close,
        torch.equal,
        torch.allclose,
        torch.get_rng_state,
        Tensor.__eq__,
        Tensor.tolist,
        Tensor.item,
        Tensor.all,
        Tensor.any,
        labkit.close,
        labkit.randn,
        labkit.Checked.__getattr__,
        run_test,
        json.dumps,
        os.write,
        builtins.all,
        builtins.any,
        builtins.abs,
        builtins.len,
        builtins.zip,
        builtins.range,
        builtins.isinstance,
        math.isclose,
    ]


def judge(lab: str, problem: str, source: str, first_only: bool, mistake: str | None, trusted: bool) -> dict:
    """The results of a problem's tests. Runs in the child process."""
    test_module, found = tests_of(lab)
    tools, results, changed = intact(), [], []
    try:
        module = module_from(source, lab.split("_")[0])
    except BaseException as error:
        text = " ".join(str(error).split())
        return {"why": f"the file cannot be imported: {type(error).__name__}: {text}"[:400], "tests": []}
    checked = test_module.lab
    checked.module = module
    function = module.__dict__.get(problem)
    if function is None:
        return {"why": f"the file has no {problem}", "tests": []}
    if mistake:
        setattr(module, problem, generic(function, mistake, changed))
    for name, test in found[problem]:
        results.append((name, run_test(test)))
        if first_only and results[-1][1]:
            break
        if results[-1][1] == NO_MEMORY:  # the next tests would only fill it again
            results += [(name, "not run: the memory was full") for name, _ in found[problem][len(results) :]]
            break
    out = {"tests": results, "changed": bool(changed)}
    if not trusted and not any(wrong for _, wrong in results):
        # Every test passed: would the same tests, in this process, still catch wrong answers?
        for canary in (lambda *a, **k: None, generic(function, "the sign is wrong", [])):
            checked.module = types.SimpleNamespace(**{**module.__dict__, problem: canary})
            in_place = problem in checked.in_place and canary.__name__ == "wrong"
            if not in_place and not any(run_test(test) for _, test in found[problem]):
                return {
                    "why": "the tests no longer catch a wrong answer: the file has changed them",
                    "tests": [],
                }
        if any(a is not b for a, b in zip(tools, intact())):
            return {"why": "the file has changed what the tests use", "tests": []}
    return out


def run(
    jobs: list[dict],
    workers: int = 1,
    first_only: bool = False,
    trusted: bool = False,
    seconds: int = SECONDS,
) -> list[dict]:
    """The result of each job {"lab", "problem", "source"[, "mistake"]}, in order."""
    for lab in {job["lab"] for job in jobs}:
        tests_of(lab)  # imported once, before forking
    torch.testing.assert_close(torch.ones(1), torch.ones(1))  # its imports take half a second
    results, waiting, active = [None] * len(jobs), list(enumerate(jobs)), {}
    selector = selectors.DefaultSelector()
    while waiting or active:
        while waiting and len(active) < workers:
            index, job = waiting.pop(0)
            word, (read, write) = secrets.token_hex(16), os.pipe()
            sys.stdout.flush(), sys.stderr.flush()
            pid = os.fork()
            if pid == 0:
                try:
                    os.close(read)
                    restrain(seconds, trusted)
                    found = judge(
                        job["lab"], job["problem"], job["source"], first_only, job.get("mistake"), trusted
                    )
                    message = json.dumps({"word": word, **found}).encode()
                    while message:
                        message = message[os.write(write, message) :]
                finally:
                    os._exit(0)
            os.close(write)
            selector.register(read, selectors.EVENT_READ)
            active[read] = (index, pid, word, time.monotonic() + 3 * seconds, bytearray())
        for key, _ in selector.select(timeout=0.5):
            data = os.read(key.fd, 65536)
            active[key.fd][4].extend(data[: 10_000_000 - len(active[key.fd][4])])
            if not data:
                index = active[key.fd][0]
                results[index] = finish(key.fd, selector, active)
        for fd in [fd for fd, (_, _, _, deadline, _) in active.items() if time.monotonic() > deadline]:
            index = active[fd][0]
            results[index] = finish(fd, selector, active)
    return results


def finish(fd: int, selector, active: dict) -> dict:
    _, pid, word, deadline, data = active.pop(fd)
    selector.unregister(fd)
    os.close(fd)
    late = time.monotonic() > deadline
    until = time.monotonic() + (0 if late else 1)  # the pipe is closed: the process has ended, or pretends to
    while not (ended := os.waitpid(pid, os.WNOHANG))[0] and time.monotonic() < until:
        time.sleep(0.001)
    try:
        os.killpg(pid, signal.SIGKILL)  # with everything that it has started
    except (ProcessLookupError, PermissionError):
        pass
    status = ended[1] if ended[0] else os.waitpid(pid, 0)[1]
    try:
        found = json.loads(bytes(data))
        if found.pop("word") == word:
            return found
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    killed = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    if late or killed in (signal.SIGXCPU, signal.SIGKILL):
        why = "took too long: an endless loop?"
    elif killed:
        why = f"was killed by signal {killed}"
    else:
        why = "the process ended before its tests did"
    return {"why": why, "tests": []}


def main() -> None:
    request = json.load(sys.stdin)
    out = os.fdopen(os.dup(1), "w")
    results = []
    for job in request["jobs"]:
        job["why"] = objection(job["source"])
    good = [job for job in request["jobs"] if not job["why"]]
    found = iter(run(good, request.get("workers", 1), seconds=request.get("seconds", SECONDS)))
    results = [{"why": job["why"], "tests": []} if job["why"] else next(found) for job in request["jobs"]]
    json.dump(results, out)
    out.close()


if __name__ == "__main__":
    main()
