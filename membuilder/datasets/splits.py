"""Holds which questions of LongMemEval are for SFT, for RL and for the test, as MemBuilder's authors published it.

The ids are theirs, byte for byte (Zh1yuShen/MemBuilder, data/longmemeval/splits, MIT licence). A file of the same name
beside a data file takes their place when a split of that file is asked for.
"""

from collections.abc import Iterable
from enum import StrEnum
from functools import cache
from pathlib import Path

from membuilder.datasets.files import FILE, read_json
from membuilder.datasets.typed import typed


class Split(StrEnum):
    """A published split of LongMemEval."""

    SFT = "sft"
    RL = "rl"
    TEST = "test"


SPLIT_FILE = "longmemeval_splits.json"
PUBLISHED = Path(__file__).parent / SPLIT_FILE


def split_ids(split: str, dataset_path: Path) -> list[str]:
    """Return the ids of a split: of the file of splits beside the data file, or the published ones without such a file.

    A file of splits is an object with lists of ids: {"sft": [id, ...], "rl": ..., "test": ...}.
    """
    beside = dataset_path.parent / SPLIT_FILE
    return _read(beside if beside.is_file() else PUBLISHED, split)


def of_the_test_split(ids: Iterable[str]) -> list[str]:
    """Return those ids that are in LongMemEval's published test split, each once, in the order given."""
    return [each for each in dict.fromkeys(ids) if each in _published_test()]


@cache
def _published_test() -> frozenset[str]:
    return frozenset(_read(PUBLISHED, Split.TEST))


def _read(path: Path, split: str) -> list[str]:
    advice = f"expected an object with lists of ids, {[str(each) for each in Split]}"
    splits = typed(dict, read_json(path), path, FILE, advice=advice)
    return typed(list[str], splits.get(split), path, FILE, split, advice)
