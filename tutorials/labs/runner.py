"""Runs a lab's tests on a student's source, each problem in its own restricted process.

A process is forked from one that has loaded PyTorch and the tests but no student code. It can open no file
and no socket, and not exceed its memory and time; its output is discarded. It returns its results through a
pipe, with a secret word that only both processes know, and is then killed with all that it has started. The
source is read before: it may use only what is listed here. After a pass, the tests are run on a wrong answer:
if they pass that, the student's file has changed them.

    python runner.py < JOBS.json > RESULTS.json

grade.py starts it; jobs: [{"lab", "source", "problem"}, ..].
"""

import ast
import builtins
import collections.abc
import ctypes
import dataclasses
import itertools
import json
import linecache
import math
import os
import re
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
from _pytest.assertion.rewrite import rewrite_asserts
from torch import Tensor

HERE = Path(__file__).resolve().parent
SECONDS, MEGABYTES, LARGEST = 20, 2000, 200_000  # limits: CPU seconds, memory, characters of a source
NO_MEMORY = f"exceeded its memory of {MEGABYTES} MB"


# ---------------------------------------------------------------- which sources are accepted
# Only what is listed here: kinds of syntax, builtins, names of modules, attributes. A list of what is
# forbidden would never be complete.

SYNTAX = """
    Module Expr Assign AugAssign AnnAssign NamedExpr Delete FunctionDef Lambda arguments arg Return Yield
    YieldFrom Call keyword Name Attribute Subscript Slice Starred Constant JoinedStr FormattedValue List Tuple
    Dict Set ListComp SetComp DictComp GeneratorExp comprehension IfExp BinOp UnaryOp BoolOp Compare If For
    While Break Continue Pass Assert Raise Try ExceptHandler With withitem Import ImportFrom alias Nonlocal
    Global operator unaryop boolop cmpop expr_context"""
SYNTAX = tuple(getattr(ast, name) for name in SYNTAX.split())
WORDS = {"ClassDef": "class", "AsyncFunctionDef": "async", "Match": "match"}
BUILTINS = """
    abs all any bool callable chr complex dict divmod enumerate filter float format frozenset hash int
    isinstance iter len list map max min next ord pow print range repr reversed round set slice sorted str sum
    tuple zip Ellipsis NotImplemented"""
BUILTINS = {name: getattr(builtins, name) for name in BUILTINS.split()} | {
    name: x for name, x in vars(builtins).items() if isinstance(x, type) and issubclass(x, Exception)
}
NAMES = {  # of each module that may be imported
    "torch": {name for name in dir(torch._C._VariableFunctions) if name != "from_file"}
    | {name for name, x in vars(torch).items() if isinstance(x, torch.dtype)}
    | {*torch.functional.__all__, *"Tensor LongTensor BoolTensor Generator Size device finfo iinfo".split()}
    | {*"no_grad enable_grad is_tensor is_floating_point get_default_dtype inf nan pi e".split()},
    "torch.nn": {
        n for n, x in vars(torch.nn).items() if getattr(x, "__module__", "").startswith("torch.nn.m")
    },
    "torch.nn.functional": {
        name
        for name, x in vars(torch.nn.functional).items()
        if type(x) is types.BuiltinFunctionType or getattr(x, "__module__", "") == "torch.nn.functional"
    },
    "torch.nn.utils.rnn": {"pad_sequence", "unpad_sequence"},
    "torch.special": set(torch.special.__all__),
    "torch.linalg": {n for n, x in vars(torch.linalg).items() if type(x) is types.BuiltinFunctionType},
    "torch.distributions": {*torch.distributions.__all__} - {"register_kl", "transforms", "constraints"},
    "math": set(dir(math)),
    "itertools": set(dir(itertools)),
    "functools": {"partial", "reduce", "cache", "lru_cache", "cmp_to_key"},
    "collections": {"Counter", "OrderedDict", "defaultdict", "deque"},
    "collections.abc": set(dir(collections.abc)),
    "typing": {*"Any Callable Iterable Iterator List Dict Tuple Set Literal Optional Sequence Union".split()},
    "__future__": {"annotations"},
    "toy": {"Toy", "superpose", "naive_decode"},
}
ATTRIBUTES = {
    name
    for kind in (Tensor, torch.Generator, torch.Size, torch.finfo, str, int, float, list, tuple, dict, set)
    + (frozenset, range, slice, collections.Counter, collections.defaultdict, collections.deque, torch.dtype)
    for name in dir(kind)
} - {"format", "format_map", "register_hook", "register_post_accumulate_grad_hook"}
ATTRIBUTES |= {
    *"values indices counts args layers table logits log_prob entropy probs loc scale rsample".split()
}


def parsed(source: str) -> ast.Module:
    """The syntax tree without what runs only when the file is started by itself."""
    tree = ast.parse(source.removeprefix("\ufeff"))
    main = ("__name__ == '__main__'", "'__main__' == __name__")
    tree.body = [n for n in tree.body if not (isinstance(n, ast.If) and ast.unparse(n.test) in main)]
    return tree


def objection(source: str) -> str | None:
    """Why this source is refused, with its line; None if it is accepted."""
    if len(source) > LARGEST:
        return f"the file is longer than {LARGEST} characters"
    try:
        tree = parsed(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return f"not Python: {error}"
    modules, own = {}, set()  # local name -> module; names that the file itself gives to something
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                whole = alias.name if alias.asname else alias.name.split(".")[0]
                modules[alias.asname or whole] = whole
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                name, whole = alias.asname or alias.name, f"{node.module}.{alias.name}"
                if whole in NAMES:
                    modules[name] = whole
                else:
                    own.add(name)
        elif isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            own.add(node.id)
        elif isinstance(node, (ast.FunctionDef, ast.ExceptHandler)):
            own.add(node.name)
        elif isinstance(node, ast.arg):
            own.add(node.arg)
    for node in ast.walk(tree):
        if wrong := refused(node, modules, own):
            return f"line {getattr(node, 'lineno', '?')}: {wrong} is not allowed in graded code"
        if isinstance(node, ast.Attribute):
            node.value.has_dot = True
    return None


def refused(node: ast.AST, modules: dict[str, str], own: set[str]) -> str | None:
    """What in this node is not allowed."""
    if not isinstance(node, SYNTAX):
        return WORDS.get(type(node).__name__, type(node).__name__)
    if isinstance(node, ast.Import):
        return next((f"import {alias.name}" for alias in node.names if alias.name not in NAMES), None)
    if isinstance(node, ast.ImportFrom):
        for alias in node.names:
            known = NAMES.get(node.module, ()) if not node.level else ()
            if alias.name[0] == "_" or alias.name not in known and f"{node.module}.{alias.name}" not in NAMES:
                return f"from {'.' * node.level}{node.module or ''} import {alias.name}"
    if isinstance(node, ast.Name):
        if node.id in modules and not hasattr(node, "has_dot"):  # a module is good for its names only
            return f"{node.id} by itself"
        special = node.id.startswith("__") and node.id not in ("__name__", "__all__", "__doc__")
        builtin = hasattr(builtins, node.id) and node.id not in BUILTINS and node.id not in own
        return node.id if special or builtin else None
    if isinstance(node, ast.Attribute):
        if not isinstance(node.ctx, ast.Load):
            return f"setting .{node.attr} of something"
        module = module_of(node.value, modules)
        known = NAMES[module] if module in NAMES else ATTRIBUTES
        if node.attr[0] == "_" or node.attr not in known and f"{module}.{node.attr}" not in PACKAGES:
            return f"{module or ''}.{node.attr}"
    return None


PACKAGES = {".".join(name.split(".")[:n]) for name in NAMES for n in range(1, name.count(".") + 2)}


def module_of(node: ast.AST, modules: dict[str, str]) -> str | None:
    """The module that a chain of names stands for, like torch.nn or F."""
    if isinstance(node, ast.Name):
        return modules.get(node.id)
    if isinstance(node, ast.Attribute):
        whole = f"{module_of(node.value, modules)}.{node.attr}"
        return whole if whole in PACKAGES else None
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
    name = f"test_{lab.split('_')[0]}"
    if name not in sys.modules:
        path = folder / f"{name}.py"
        source = path.read_bytes()
        module = sys.modules[name] = types.ModuleType(name)
        module.__file__ = str(path)
        rewrite_asserts(tree := ast.parse(source), source, str(path))  # messages with values, as in pytest
        remember(str(path), source.decode())
        exec(compile(tree, str(path), "exec"), module.__dict__)
    module = sys.modules[name]
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
    module, file = types.ModuleType(name), f"{name}.py"
    module.__dict__["__builtins__"] = {**BUILTINS, "__import__": builtins.__import__}
    remember(file, source)
    exec(compile(parsed(source), file, "exec"), module.__dict__)
    return module


def remember(file: str, source: str) -> None:
    """Messages quote its lines, also when no file can be opened any more."""
    linecache.cache[file] = len(source), None, source.splitlines(keepends=True), file


def described(error: BaseException) -> str:
    """An error and where it came from: the line of the answer that raised it, else the test's."""
    frames = traceback.extract_tb(error.__traceback__)
    mine = [f for f in frames if re.fullmatch(r"lab\d\.py", f.filename)]
    tests = [f for f in frames if Path(f.filename).name.startswith("test_")]
    where = f" [{tests[-1].line}]" if tests else ""
    if mine and not isinstance(error, AssertionError):
        where = f" [line {mine[-1].lineno}: {mine[-1].line}]"
    text = " ".join(str(error).split())
    kind = "" if isinstance(error, AssertionError) and text else f"{type(error).__name__}: "
    return f"{kind}{text}{where}"[:400].encode("utf-8", "replace").decode()  # no lone surrogates


def run_test(function) -> str | None:
    """None if the test passes, else what went wrong and on which line."""
    try:
        function()
        return None
    except BaseException as error:
        if isinstance(error, NotImplementedError):
            return "not written yet"
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            return NO_MEMORY
        return described(error)


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
    """No open files, no network, little time and memory. What the system does not support is left out."""
    os.setsid()  # the group is killed as a whole
    if (size := Path("/proc/self/statm")).exists():
        used = int(size.read_text(encoding="utf-8").split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (used + MEGABYTES * 2**20,) * 2)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))  # no file, no socket, no pipe from here on
    try:
        libc = ctypes.CDLL(None)
        libc.prctl(1, signal.SIGKILL)  # it dies with the grader (Linux)
        if not trusted:
            libc.unshare(
                0x40000000 | 0x10000000
            )  # an empty network, and the right to change the root (Linux)
            os.chroot(".")  # the empty folder that the grader was started in
    except (OSError, AttributeError):
        pass


def judge(lab: str, problem: str, source: str, first_only: bool, mistake: str | None, trusted: bool) -> dict:
    """The results of a problem's tests. Runs in the child process."""
    test_module, found = tests_of(lab)
    results, changed = [], []
    try:
        module = module_from(source, lab.split("_")[0])
    except BaseException as error:
        return {"why": f"the file cannot be imported: {described(error)}", "tests": []}
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
    # What is imported at its first use is imported now, once: later no file can be opened.
    torch.testing.assert_close(torch.ones(2, 2) @ torch.ones(2, 2), torch.full((2, 2), 2.0))
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
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
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
