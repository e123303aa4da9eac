"""tutorials/PAPERS.md names only functions, tests, lessons and options that exist."""

import ast
import dataclasses
import re

from conftest import ROOT

from minilatent.methods import METHODS

PAGE = ROOT / "tutorials" / "PAPERS.md"
TEXT = PAGE.read_text(encoding="utf-8")


def defined_in(path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}


def test_every_link_leads_to_a_file_that_defines_the_name():
    defined = {}
    for text, target in re.findall(r"\[([^]]+)\]\(([^)]+)\)", TEXT):
        path = PAGE.parent / target
        assert path.is_file(), target
        if text.startswith("`"):
            if path not in defined:
                defined[path] = defined_in(path)
            assert text.strip("`") in defined[path], f"{text} is not in {target}"


def test_every_row_has_a_function_and_a_test():
    rows = [line for line in TEXT.splitlines() if line.startswith("| ") and "where we differ" not in line]
    assert len(rows) > 20
    for row in rows:
        assert "](../minilatent/" in row or "](../results/comparison/" in row, row
        assert "](../tests/test_" in row, row


def test_every_option_exists():
    options = set(re.findall(r"`--(?:no-)?(\w+)", TEXT))
    known = {f.name for method in METHODS.values() for f in dataclasses.fields(method.Settings)}
    assert len(options) > 10 and options <= known, options - known
