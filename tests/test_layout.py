"""The shape of the package: imports go one way, files stay readable, nothing loads by guess."""

import ast
import re
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGE = ROOT / "minilatent"
# A module imports only what stands before it. A new module needs a place here. (evaluate judges by decoding, and a
# method validates by it: so it stands between them.)
ORDER = [
    "config",
    "files",
    "parallel",
    "example",
    "mini",
    "prosqa",
    "data",
    "hf_tokenizer",
    "tokenizer",
    "batch",
    "model",
    "masks",
    "latent",
    "losses",
    "decode",
    "metrics",
    "evaluate",
    "checkpoint",
    "lora",
    "pretrained",
    "rl",
    "methods.method",
    "methods.cot_sft",
    "methods.no_cot",
    "methods.pause",
    "methods.icot",
    "methods.coconut",
    "methods.codi",
    "methods.latent_sft",
    "methods.latent_rl",
    "methods.colar",
    "methods",
    "trainer",
    "setup",
    "analysis",
    "look",
    "figures",
    "verdicts",
    "budget",
    "reproduce_figures",
    "reproduce",
    "export",
    "benchmark",
    "rebuild_base",
]
FILES = sorted(PACKAGE.rglob("*.py"))


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(p for p in parts if p != "__init__")


def imports(path: Path) -> set[str]:
    """The package's modules that a file imports, at its top or anywhere in it (typing apart)."""
    names = {module_of(f) for f in FILES}
    package = list(path.relative_to(PACKAGE).parent.parts)
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1] + (node.module.split(".") if node.module else [])
            for alias in node.names:  # `from . import x` names a module, `from .x import y` need not
                longer = ".".join(base + [alias.name])
                found.add(longer if longer in names else ".".join(base))
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            for name in [node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]:
                if name.split(".")[0] == "minilatent":
                    found.add(name.partition(".")[2])
    return found - {""}


@pytest.mark.parametrize("path", [f for f in FILES if module_of(f)], ids=module_of)
def test_imports_go_one_way(path):
    module = module_of(path)
    assert module in ORDER, f"give {module} its place in ORDER"
    for other in imports(path):
        assert ORDER.index(other) < ORDER.index(module), f"{module} imports {other}, which stands below it"


def test_the_check_above_sees_the_imports_that_there_are():
    assert {"latent", "masks", "checkpoint", "methods.method"} <= imports(
        PACKAGE / "methods" / "latent_sft.py"
    )
    assert "methods" in imports(PACKAGE / "setup.py") and "mini" in imports(PACKAGE / "tokenizer.py")


def test_methods_never_import_one_another():
    """What two need is shared maths or the trainer's. method.py is what all of them are."""
    methods = {module_of(f) for f in (PACKAGE / "methods").glob("*.py")} - {"methods", "methods.method"}
    for name in methods:
        assert not imports(PACKAGE / f"{name.replace('.', '/')}.py") & methods, name


@pytest.mark.parametrize("path", FILES + sorted(ROOT.glob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_loads_by_guess_and_nothing_runs_what_it_loads(path):
    """strict=False drops tensors without a word; pickle and eval run whatever a file says."""
    text = path.read_text()
    assert not re.search(r"strict=False|import pickle|pickle\.|torch\.load\(|(?<![\w.])(eval|exec)\(", text)


@pytest.mark.parametrize("path", FILES + sorted(ROOT.glob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_a_file_can_be_read_in_one_sitting(path):
    lines = path.read_text().splitlines()
    assert len(lines) <= 400
    assert not lines or lines[0].startswith('"""'), "a file begins by saying what it is"
