"""Who attends to whom in packed prefix trees, in the form that attention runs on.

A node's tokens stand together, nodes of one depth stand together, and so do all descendants of a node at one depth.
Each depth attends causally to itself and, without a mask, to every depth above it; a call does one such pair, or a part
of it. Two forms: variable-length calls for flash attention (CUDA), padded rectangles for SDPA's kernel (CPU). A segment
is a node's tokens, or all descendants of a node at one depth, with the keys that they read.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch


@dataclass(frozen=True, kw_only=True, slots=True)
class Level:
    """The nodes of one depth: where their tokens stand in the packed row and whose children they are."""

    parents: list[int]
    """The number of each node's parent in the level above; unused for roots."""
    spans: list[range]
    """The packed indices of each node's tokens."""


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
    """Whether each segment attends to itself; otherwise it attends to the whole of an ancestor."""

    @property
    def segments(self) -> tuple[torch.Tensor, torch.Tensor, int, int]:
        """Tell where segments begin and how long they are at most, in the order of PyTorch's operators."""
        return self.query_bounds, self.key_bounds, self.max_queries, self.max_keys


@dataclass(frozen=True, kw_only=True, slots=True)
class Rectangle:
    """A block of tokens, cut into S segments, as a rectangle of R columns; short segments are padded at the end."""

    rows: torch.Tensor  # (S, R) indices into the block, 0 where padded
    valid: torch.Tensor | None  # (S, R) bool; None where nothing is padded: the block is a rectangle as it stands
    places: torch.Tensor  # (tokens of the block,) where each stands in the flattened rectangle


@dataclass(frozen=True, kw_only=True, slots=True)
class PaddedCall:
    """One call of padded attention: segments of alike size, of a block of queries against a block of keys."""

    queries: slice
    keys: slice
    query_rows: Rectangle
    key_rows: Rectangle
    causal: bool
    """Whether each segment attends to itself, as in VarlenCall."""


Call = VarlenCall | PaddedCall
Plan = Callable[[Sequence[Level]], list[Call]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """What tokens of one depth attend to at one depth: per segment two ranges of packed indices, some of them empty."""

    queries: list[range]
    keys: list[range]
    causal: bool


def pairs(levels: Sequence[Level]) -> Iterator[Pair]:
    """Yield the pairs of each depth: with itself first, then with the depths above it, the nearest first."""
    for depth, level in enumerate(levels):
        if not any(level.spans):
            continue
        yield Pair(queries=level.spans, keys=level.spans, causal=True)
        ancestors = level.parents
        for above in reversed(levels[:depth]):
            if any(above.spans):
                yield Pair(queries=_descendants(level, ancestors, len(above.spans)), keys=above.spans, causal=False)
            ancestors = [above.parents[ancestor] for ancestor in ancestors]


def _descendants(level: Level, ancestors: Sequence[int], num_ancestors: int) -> list[range]:
    """Return the tokens below each ancestor at this depth; ancestors are in the order of their descendants."""
    counts = [0] * num_ancestors
    for span, ancestor in zip(level.spans, ancestors, strict=True):
        counts[ancestor] += len(span)
    bounds = list(accumulate(counts, initial=level.spans[0].start))
    return [range(start, stop) for start, stop in pairwise(bounds)]


def varlen_calls(levels: Sequence[Level]) -> list[VarlenCall]:
    """Return one call for each pair, in the form of flash attention."""
    return [
        VarlenCall(
            queries=_block(pair.queries),
            keys=_block(pair.keys),
            query_bounds=_bounds(pair.queries),
            key_bounds=_bounds(pair.keys),
            max_queries=max(2, *map(len, pair.queries)),  # at 1, flash-attn 2 fails on a segment without queries
            max_keys=max(map(len, pair.keys)),
            causal=pair.causal,
        )
        for pair in pairs(levels)
    ]


def padded_calls(levels: Sequence[Level]) -> list[PaddedCall]:
    """Return one call for each run of segments of alike size, in the form of SDPA's kernel for CPUs."""
    return [
        PaddedCall(
            queries=_block(part.queries),
            keys=_block(part.keys),
            query_rows=_rectangle(part.queries),
            key_rows=_rectangle(part.keys),
            causal=part.causal,
        )
        for pair in pairs(levels)
        for part in _alike(pair)
    ]


SMALL = 16
"""The number of rows or keys of a segment below which padding costs next to nothing."""


def _alike(pair: Pair) -> Iterator[Pair]:
    """Cut a pair into runs of adjoining segments whose rectangle costs at most twice what the segments cost."""
    start = cost = longest_queries = longest_keys = 0
    queries, keys = pair.queries, pair.keys

    def part(stop: int) -> Iterator[Pair]:
        if stop > start:
            yield Pair(queries=queries[start:stop], keys=keys[start:stop], causal=pair.causal)

    for index, (q, k) in enumerate(zip(queries, keys, strict=True)):
        if not (q and k):  # nothing to attend: the block ends here, because a rectangle covers every token of its block
            yield from part(index)
            start, cost, longest_queries, longest_keys = index + 1, 0, 0, 0
            continue
        num_queries, num_keys = max(len(q), SMALL), max(len(k), SMALL)
        padded = max(longest_queries, num_queries) * max(longest_keys, num_keys) * (index + 1 - start)
        if padded > 2 * (cost + num_queries * num_keys):
            yield from part(index)
            start, cost, longest_queries, longest_keys = index, 0, 0, 0
        cost += num_queries * num_keys
        longest_queries, longest_keys = max(longest_queries, num_queries), max(longest_keys, num_keys)
    yield from part(len(queries))


def _block(spans: Sequence[range]) -> slice:
    return slice(spans[0].start, spans[-1].stop)


def _bounds(spans: Sequence[range]) -> torch.Tensor:
    return torch.tensor([0, *accumulate(map(len, spans))], dtype=torch.int32)


def _rectangle(spans: Sequence[range]) -> Rectangle:
    lengths = torch.tensor([len(span) for span in spans])
    starts = torch.tensor([span.start - spans[0].start for span in spans])
    columns = torch.arange(int(lengths.max()))
    valid = columns[None] < lengths[:, None]
    rows = torch.where(valid, starts[:, None] + columns[None], 0)
    return Rectangle(rows=rows, valid=None if valid.all() else valid, places=valid.flatten().nonzero()[:, 0])
