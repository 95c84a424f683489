"""KNOWN_DEFECTS.md has a row for every defect, and names tests that exist."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
NUM_REFERENCE_DEFECTS = 32
"""Of the reference systems, in our notes; those of our own follow."""


def rows() -> dict[int, list[str]]:
    """Defect number -> the tests its row names."""
    table = (TESTS / "KNOWN_DEFECTS.md").read_text(encoding="utf-8").splitlines()
    cells = [line.strip("|").split("|") for line in table if re.match(r"\| \d+ \|", line)]
    assert len({number for number, _, _ in cells}) == len(cells), "a defect has one row"
    return {int(number): [name.strip() for name in tests.split(",")] for number, _, tests in cells}


@cache
def names_in(file: str) -> frozenset[str]:
    tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def test_every_defect_has_a_row_in_order():
    numbers = list(rows())
    assert numbers == list(range(1, len(numbers) + 1)) and len(numbers) > NUM_REFERENCE_DEFECTS and all(rows().values())


@pytest.mark.parametrize("name", sorted({name for tests in rows().values() for name in tests}))
def test_a_named_test_exists(name):
    file, test = name.split("::")
    assert test.startswith("test_") and test in names_in(file)
