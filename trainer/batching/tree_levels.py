"""The nodes of prefix trees depth by depth: where their tokens stand in the packed row, and what each has in sight."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True, slots=True)
class Level:
    """The nodes of one depth: where their tokens stand in the packed row and whose children they are."""

    parents: list[int]
    """The number of each node's parent in the level above; unused for roots."""
    spans: list[range]
    """The packed indices of each node's tokens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sight:
    """Adjoining tokens of a node, and what the first of them sees before it: packed indices."""

    queries: range
    above: list[range]

    @property
    def keys(self) -> torch.Tensor:
        return torch.cat([torch.arange(each.start, each.stop) for each in (*self.above, self.queries)])

    @property
    def num_above(self) -> int:
        return sum(map(len, self.above))


def longest_path(levels: Sequence[Level]) -> int:
    """Return the number of tokens of the longest path from a root to a leaf."""
    longest, ends = 0, []
    for level in levels:
        starts = [ends[parent] for parent in level.parents] if ends else [0] * len(level.spans)
        ends = [start + len(span) for start, span in zip(starts, level.spans, strict=True)]
        longest = max(longest, *ends)
    return longest


def in_sight(levels: Sequence[Level], window: int) -> Iterator[Sight]:
    """Yield the nodes that have tokens, in packed order."""
    paths: list[list[range]] = []
    for level in levels:
        above = [paths[parent] for parent in level.parents] if paths else [[] for _ in level.spans]
        yield from (Sight(queries=span, above=seen) for span, seen in zip(level.spans, above, strict=True) if span)
        paths = [last([*seen, span], window - 1) for span, seen in zip(level.spans, above, strict=True)]


def last(spans: Sequence[range], count: int) -> list[range]:
    """Return the last `count` of the indices."""
    kept: list[range] = []
    for span in reversed(spans):
        if count > 0 and span:
            kept.insert(0, span[-count:])
            count -= len(kept[0])
    return kept
