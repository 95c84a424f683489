"""KNOWN_DEFECTS.md has a row for every defect, and names tests that exist."""

import ast
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
NUM_DEFECTS = 32
"""Of the reference systems, in our notes."""


def cells() -> list[list[str]]:
    """The cells of every row of every table, without the header lines."""
    lines = (TESTS / "KNOWN_DEFECTS.md").read_text(encoding="utf-8").splitlines()
    tables = [line.strip("|").split("|") for line in lines if line.startswith("|")]
    return [row for row in tables if not row[-1].startswith(("---", " test that shows"))]


def named_by(row: list[str]) -> list[str]:
    return [name.strip() for name in row[-1].split(",")]


def rows() -> dict[int, list[str]]:
    """Defect number -> the tests its row names."""
    numbered = [row for row in cells() if len(row) == 3]
    assert len({number for number, _, _ in numbered}) == len(numbered), "a defect has one row"
    return {int(row[0]): named_by(row) for row in numbered}


@cache
def names_in(file: str) -> frozenset[str]:
    tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def test_every_defect_has_a_row_in_order():
    assert list(rows()) == list(range(1, NUM_DEFECTS + 1)) and all(rows().values())


@pytest.mark.parametrize("name", sorted({name for row in cells() for name in named_by(row)}))
def test_a_named_test_exists(name):
    file, test = name.split("::")
    assert test.startswith("test_") and test in names_in(file)
