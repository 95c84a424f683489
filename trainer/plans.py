"""Who attends to whom in a packed forest, in the form that attention runs on.

A node's tokens stand together, nodes of one depth stand together, and so do all descendants of a node at one depth.
Two plans: padded groups for SDPA (`sibling_groups`, CPU) and variable-length calls for flash attention
(`varlen_calls`, CUDA), where nothing is padded or copied. Letters: L siblings, R longest sibling, P tokens above them.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch


@dataclass(frozen=True, kw_only=True)
class Level:
    """The nodes of one depth: where their tokens stand and whose children they are."""

    above: "Level | None"
    parents: list[int]
    """Per node the number of its parent in `above`; unused for roots."""
    spans: list[range]
    """Per node its packed indices."""

    def path(self, number: int) -> list[int]:
        """Packed indices above a node, from the root down."""
        if self.above is None:
            return []
        parent = self.parents[number]
        return self.above.path(parent) + list(self.above.spans[parent])

    def depth_below(self, number: int) -> int:
        """Tokens from the root to the end of a node: the position of what follows it."""
        own = len(self.spans[number])
        return own if self.above is None else own + self.above.depth_below(self.parents[number])


@dataclass(frozen=True, kw_only=True, slots=True)
class Siblings:
    """Nodes of one depth, padded to a rectangle: each attends to the tokens above it and, causally, to itself."""

    prefix: torch.Tensor  # (L, P) packed indices from the root down, padded at the end with 0
    prefix_valid: torch.Tensor | None  # (L, P) bool; None where nothing is padded
    rows: torch.Tensor  # (L, R) packed indices, padded at the end with 0
    valid: torch.Tensor  # (L, R) bool

    def to(self, device: torch.device) -> "Siblings":
        return Siblings(
            prefix=self.prefix.to(device),
            prefix_valid=None if self.prefix_valid is None else self.prefix_valid.to(device),
            rows=self.rows.to(device),
            valid=self.valid.to(device),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class VarlenCall:
    """One call of variable-length attention: a block of queries, cut into segments, against a block of keys."""

    queries: slice
    keys: slice
    query_bounds: torch.Tensor  # (segments + 1,) int32, from 0
    key_bounds: torch.Tensor  # (segments + 1,) int32, from 0
    max_queries: int
    max_keys: int
    causal: bool
    """Each segment attends to itself; otherwise to the whole of an ancestor."""

    def to(self, device: torch.device) -> "VarlenCall":
        return replace(self, query_bounds=self.query_bounds.to(device), key_bounds=self.key_bounds.to(device))


Plan = Callable[[Sequence[Level]], "list[Siblings] | list[VarlenCall]"]


def varlen_calls(levels: Sequence[Level]) -> list[VarlenCall]:
    """Per depth one causal call on itself, then one call on each depth above it, the nearest first."""
    calls = []
    for level in levels:
        lengths = [len(span) for span in level.spans]
        calls += _call(level, level, lengths, causal=True)
        ancestors, above = level.parents, level.above
        while above is not None:
            counts = [0] * len(above.spans)
            for length, ancestor in zip(lengths, ancestors, strict=True):
                counts[ancestor] += length
            calls += _call(level, above, counts, causal=False)
            ancestors, above = [above.parents[ancestor] for ancestor in ancestors], above.above
    return calls


def _call(level: Level, other: Level, num_queries: list[int], causal: bool) -> list[VarlenCall]:
    """The call of a level's tokens on another level's, or nothing where either is empty."""
    num_keys = [len(span) for span in other.spans]
    if not sum(num_queries) or not sum(num_keys):
        return []
    return [
        VarlenCall(
            queries=slice(level.spans[0].start, level.spans[-1].stop),
            keys=slice(other.spans[0].start, other.spans[-1].stop),
            query_bounds=_bounds(num_queries),
            key_bounds=_bounds(num_keys),
            max_queries=max(num_queries),
            max_keys=max(num_keys),
            causal=causal,
        )
    ]


def _bounds(lengths: Sequence[int]) -> torch.Tensor:
    return torch.tensor(list(accumulate(lengths, initial=0)), dtype=torch.int32)


def sibling_groups(levels: Sequence[Level]) -> list[Siblings]:
    """Nodes of like size side by side, depth by depth, in the order of their tokens."""
    groups = []
    for level in levels:
        spans = [(level.path(number), list(span)) for number, span in enumerate(level.spans) if span]
        groups += [_siblings(group) for group in _alike(spans)]
    return groups


Spans = list[tuple[list[int], list[int]]]
"""Per node the packed indices above it and its own."""


def _alike(spans: Spans) -> Iterator[Spans]:
    """Consecutive nodes whose padded rectangle holds at most twice their own tokens: few attention calls, little waste."""
    group: Spans = []
    used = longest = 0
    for path, span in spans:
        size = len(path) + len(span)
        if group and max(longest, size) * (len(group) + 1) > 2 * (used + size):
            yield group
            group, used, longest = [], 0, 0
        group.append((path, span))
        used, longest = used + size, max(longest, size)
    if group:
        yield group


def _siblings(group: Spans) -> Siblings:
    prefix, prefix_valid = _padded([path for path, _ in group])
    rows, valid = _padded([span for _, span in group])
    return Siblings(prefix=prefix, prefix_valid=None if prefix_valid.all() else prefix_valid, rows=rows, valid=valid)


def _padded(lists: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """(L, longest) indices padded at the end with 0, and which of them are real."""
    longest = max(map(len, lists))
    indices = torch.tensor([each + [0] * (longest - len(each)) for each in lists], dtype=torch.int64)
    lengths = torch.tensor([len(each) for each in lists])
    return indices, torch.arange(longest)[None] < lengths[:, None]
