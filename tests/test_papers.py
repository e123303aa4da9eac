"""tutorials/PAPERS.md names only what there is."""

import ast
import dataclasses
import re

import pytest
from conftest import ROOT

from minilatent.config import Config

PAGE = ROOT / "tutorials" / "PAPERS.md"
LINKS = re.findall(r"\[([^]]+)\]\(([^)]+)\)", PAGE.read_text())


def names(path) -> set[str]:
    tree = ast.parse(path.read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}


@pytest.mark.parametrize("text, target", LINKS)
def test_what_the_map_links_to_exists(text, target):
    path = PAGE.parent / target
    assert path.is_file()
    if text.startswith("`"):
        assert text.strip("`") in names(path)


def test_every_row_of_the_map_has_a_function_and_a_test():
    rows = [
        line
        for line in PAGE.read_text().splitlines()
        if line.startswith("| ") and "where we differ" not in line
    ]
    assert len(rows) > 20
    for row in rows:
        assert "](../minilatent/" in row and "](../tests/test_" in row, row


def test_every_switch_that_the_map_names_exists():
    known = {f.name for f in dataclasses.fields(Config)}
    switches = re.findall(r"`--(?:no-)?(\w+)", PAGE.read_text())
    assert len(switches) > 10 and set(switches) <= known
