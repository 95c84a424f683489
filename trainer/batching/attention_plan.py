"""Who attends to whom in packed prefix trees, in the form that attention runs on.

A node's tokens stand together, nodes of one depth stand together, and so do all descendants of a node at one depth.
Each depth attends causally to itself and, without a mask, to every depth above it; a call does one such pair, or a part
of it. Two forms: variable-length calls for flash attention (CUDA), padded rectangles for SDPA's kernel (CPU). A segment
is a node's tokens, or all descendants of a node at one depth, with the keys that they read.

In a layer with a sliding window of w tokens, the token at position p of its path sees positions (p - w, p]. There a
segment is a node, or a part of it, with copies of the keys that its path has in sight: few, so each call is a whole
softmax. Keys in sight end with the segment's own.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby, pairwise

import torch

from trainer.batching.tree_levels import Level, Sight, in_sight, last, longest_path


@dataclass(frozen=True, kw_only=True, slots=True)
class VarlenCall:
    """One call of variable-length attention: a block of queries, cut into segments, against a block of keys."""

    queries: slice
    keys: slice | torch.Tensor  # (K,) int64 packed indices where a window copies keys
    query_bounds: torch.Tensor  # (segments + 1,) int32, from 0
    key_bounds: torch.Tensor  # (segments + 1,) int32, from 0
    max_queries: int
    max_keys: int
    causal: bool
    """Whether each segment attends to itself, its last query to its last key; otherwise to the whole of an ancestor."""
    window: int | None = None
    """The number of keys, its own included, that a query sees at most."""

    @property
    def segments(self) -> tuple[torch.Tensor, torch.Tensor, int, int]:
        """Tell where segments begin and how long they are at most, in the order of PyTorch's operators."""
        return self.query_bounds, self.key_bounds, self.max_queries, self.max_keys


@dataclass(frozen=True, kw_only=True, slots=True)
class Rectangle:
    """A block of tokens, cut into S segments, as a rectangle of R columns; short segments are padded at the end."""

    rows: torch.Tensor  # (S, R) indices into the block; padding repeats a segment's last token
    valid: torch.Tensor | None  # (S, R) bool; None where nothing is padded: the block is a rectangle as it stands
    places: torch.Tensor  # (tokens of the block,) where each stands in the flattened rectangle


@dataclass(frozen=True, kw_only=True, slots=True)
class PaddedCall:
    """One call of padded attention: segments of alike size, of a block of queries against a block of keys."""

    queries: slice
    keys: slice | torch.Tensor  # (K,) int64, as in VarlenCall
    query_rows: Rectangle
    key_rows: Rectangle
    causal: bool
    """Whether each segment attends to itself, as in VarlenCall."""
    window: int | None = None
    """As in VarlenCall."""
    offsets: torch.Tensor | None = None  # (S,), or (1,) where all are alike
    """With a window: the number of keys in sight before each segment's first query."""


Call = VarlenCall | PaddedCall
Plan = Callable[[Sequence[Level], int | None], list[Call]]


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


def varlen_calls(levels: Sequence[Level], window: int | None = None) -> list[VarlenCall]:
    """Return one call for each pair, in the form of flash attention; with a window, one call of all nodes."""
    if window is not None and window < longest_path(levels):
        return [_varlen_window(list(in_sight(levels, window)), window)]
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


def padded_calls(levels: Sequence[Level], window: int | None = None) -> list[PaddedCall]:
    """Return one call for each run of segments of alike size, in the form of SDPA's kernel for CPUs."""
    if window is not None and window < longest_path(levels):
        return [_padded_window(blocks, window) for blocks in _alike_blocks(levels, window)]
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


def _varlen_window(nodes: Sequence[Sight], window: int) -> VarlenCall:
    queries, keys = [node.queries for node in nodes], [node.keys for node in nodes]
    return VarlenCall(
        queries=_block(queries),
        keys=torch.cat(keys),
        query_bounds=_bounds(queries),
        key_bounds=_bounds(keys),
        max_queries=max(2, *map(len, queries)),  # as above
        max_keys=max(map(len, keys)),
        causal=True,
        window=window,
    )


BLOCK = 128
"""The number of queries that read copies of their keys together, or a quarter of a window where that is more."""


def _alike_blocks(levels: Sequence[Level], window: int) -> Iterator[list[Sight]]:
    """Cut nodes into blocks of queries, and yield runs of blocks of alike size."""
    blocks = []
    for node in in_sight(levels, window):
        tokens, num_blocks = node.queries, -(-len(node.queries) // max(BLOCK, window // 4))
        bounds = [len(tokens) * number // num_blocks for number in range(num_blocks + 1)]
        for start, stop in pairwise(bounds):
            above = last([*node.above, tokens[:start]], window - 1)
            blocks.append(Sight(queries=tokens[start:stop], above=above))
    # blocks that see a whole window before them need one mask together
    for _, each in groupby(blocks, key=lambda block: block.num_above == window - 1):
        run, done = list(each), 0
        keys = [range(block.num_above + len(block.queries)) for block in run]
        for part in _alike(Pair(queries=[block.queries for block in run], keys=keys, causal=True)):
            yield run[done : done + len(part.queries)]
            done += len(part.queries)


def _padded_window(blocks: Sequence[Sight], window: int) -> PaddedCall:
    queries, keys = [block.queries for block in blocks], [block.keys for block in blocks]
    longest = max(map(len, keys))
    columns = torch.arange(longest)
    offsets = torch.tensor([block.num_above for block in blocks])
    return PaddedCall(
        queries=_block(queries),
        # padding repeats a segment's last key, which no query but padding sees
        keys=torch.cat([each[columns.clamp(max=len(each) - 1)] for each in keys]),
        query_rows=_rectangle(queries),
        key_rows=_rectangle([range(number * longest, (number + 1) * longest) for number in range(len(keys))]),
        causal=True,
        window=window,
        offsets=offsets.unique() if len(offsets.unique()) == 1 else offsets,
    )


def _block(spans: Sequence[range]) -> slice:
    return slice(spans[0].start, spans[-1].stop)


def _bounds(spans: Sequence[range] | Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.tensor([0, *accumulate(map(len, spans))], dtype=torch.int32)


def _rectangle(spans: Sequence[range]) -> Rectangle:
    lengths = torch.tensor([len(span) for span in spans])
    starts = torch.tensor([span.start - spans[0].start for span in spans])
    columns = torch.arange(int(lengths.max()))
    valid = columns[None] < lengths[:, None]
    # the last token has every key of its segment in its softmax, so no score of padding overflows in the backward
    rows = starts[:, None] + torch.minimum(columns[None], lengths[:, None] - 1)
    return Rectangle(rows=rows, valid=None if valid.all() else valid, places=valid.flatten().nonzero()[:, 0])
