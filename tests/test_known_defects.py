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


def mem_alpha() -> dict[int, tuple[set[int], set[str], bool]]:
    """Number in our notes on Mem-alpha -> the rows and tests that it names, and whether it says why there is none."""
    text = (TESTS / "KNOWN_DEFECTS.md").read_text(encoding="utf-8")
    cells = re.findall(r"^\| Mem-alpha (\d+) \| [^|]+ \| ([^|]+) \|$", text, re.MULTILINE)
    return {
        int(number): (
            {int(row) for named in re.findall(r"rows? (\d+(?:, \d+)*)", where) for row in named.split(", ")},
            set(re.findall(r"test_\w+\.py::\w+", where)),
            where.startswith("no test: "),
        )
        for number, where in cells
    }


@cache
def names_in(file: str) -> frozenset[str]:
    tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def test_every_defect_has_a_row_in_order():
    numbers = list(rows())
    assert numbers == list(range(1, len(numbers) + 1)) and len(numbers) > NUM_REFERENCE_DEFECTS and all(rows().values())


def test_every_defect_of_mem_alpha_is_a_row_a_test_or_a_reason():
    found = mem_alpha()
    assert list(found) == list(range(33, 81))
    for number, (named, tests, has_reason) in found.items():
        assert named <= set(rows()) and has_reason != bool(named or tests), number


NAMED = set().union(*rows().values(), *(tests for _, tests, _ in mem_alpha().values()))


@pytest.mark.parametrize("name", sorted(NAMED))
def test_a_named_test_exists(name):
    file, test = name.split("::")
    assert test.startswith("test_") and test in names_in(file)
