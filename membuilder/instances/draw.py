"""Draws that are the same on every machine and under every version of Python."""

import hashlib
import random
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

T = TypeVar("T")


class Draw:
    """It draws numbers that depend on its names alone, such as seed, dataset and number of the instance."""

    def __init__(self, *names: object):
        self._random = random.Random(":".join(map(str, names)))

    def between(self, low: int, high: int) -> int:
        """Return a whole number, both ends included."""
        return low + int(self._random.random() * (high - low + 1))  # only `random()` is the same in every version

    def pick(self, items: Sequence[T]) -> T:
        return items[self.between(0, len(items) - 1)]


def shuffled(items: Iterable[T], *names: object, key: Callable[[T], object] = str) -> list[T]:
    """Return the items in an order that depends on the names and on each item's key alone."""
    return sorted(items, key=lambda item: fingerprint(*names, key(item)))


def in_test(document: str, seed: int, share: float) -> bool:
    """Tell on which side a document is: a share of them is for the test, whatever other documents there are."""
    return int.from_bytes(fingerprint(seed, "side", document)[:7]) < share * 2**56


def fingerprint(*names: object) -> bytes:
    return hashlib.sha256("\0".join(map(str, names)).encode("utf-8", "surrogatepass")).digest()
