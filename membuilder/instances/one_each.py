"""Packs the units of a source that are an instance each, such as the chapters of books."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from membuilder.instances.records import Instance, Progress, Shape, Tokens

Names = Sequence[object]
"""What the draws of an instance depend on."""
Make = Callable[[Any, Shape, Tokens, Names, Counter[str]], Instance | None]
"""It makes the instance of a unit. Where there is none it returns None and counts what it drops, by reason."""


def pack_each(
    make: Make, units: Iterator[tuple[int, Any]], shape: Shape, tokens: Tokens, names: Names, progress: Progress
) -> Iterator[Instance]:
    """Yield an instance for each unit that makes one; see `reading.pack`."""
    for number, unit in units:
        names_of_this = (*names, progress.instances)
        progress.units, progress.instances = number + 1, progress.instances + 1
        made = make(unit, shape, tokens, names_of_this, progress.dropped)
        if made is not None:
            yield made
