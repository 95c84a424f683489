"""The colours in which everything that is drawn or printed shows roles and systems."""

from collections.abc import Iterable
from itertools import cycle

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#000000", "#8C6D31")
"""The first six are Okabe and Ito's, which colour-blind readers can tell apart."""


def colours_of(names: Iterable[str]) -> dict[str, str]:
    """Return one colour for each name, of a role or a system, by its place among them."""
    return dict(zip(names, cycle(PALETTE), strict=False))
