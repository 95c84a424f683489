"""Attention in plain PyTorch, all segments at once, for any device and type. It has the functions of plain_varlen.py,
and takes calls of either form.

It runs what fast kernels do not take: float32 on CUDA, and soft-capped scores on a CPU. Segments are gathered into
rectangles, S segments by R queries by T keys, and 16-bit types widened; nothing waits for the device.
"""

from typing import NamedTuple

import torch

from trainer.batching.attention_plan import Call, PaddedCall, Rectangle
from trainer.kernels.plain_varlen import Block, capped, slope


class _Places(NamedTuple):
    """Where the tokens of a block stand in its rectangle."""

    rows: torch.Tensor  # (S, R) indices into the block, of some token where a segment is shorter
    valid: torch.Tensor  # (S, R)
    flat: torch.Tensor  # (tokens,) indices into the flattened rectangle


class _Layout(NamedTuple):
    queries: _Places
    keys: _Places
    hidden: torch.Tensor  # (S, 1, R, T), whether a query does not see a key


def forward(block: Block, call: Call, scale: float, softcap: float | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Do what plain_varlen.forward does."""
    layout = _layout(call, block)
    query, key, value = _padded(block, layout)
    scores = _scores(query, key, layout, scale, softcap)
    lse = scores.logsumexp(-1)  # (S, H, R)
    # a row without keys gives no output, and not NaN
    probabilities = (scores - lse.masked_fill(lse == float("-inf"), 0.0)[..., None]).exp()
    lse = _flat(lse[..., None], layout.queries)[..., 0].T.contiguous()
    return _flat(probabilities @ value, layout.queries).to(block.query.dtype), lse


def backward(
    gradient: torch.Tensor,
    block: Block,
    out: torch.Tensor,
    lse: torch.Tensor,
    call: Call,
    scale: float,
    softcap: float | None = None,
) -> Block:
    """Do what plain_varlen.backward does."""
    layout = _layout(call, block)
    queries, keys = layout.queries, layout.keys
    query, key, value = _padded(block, layout)
    by_out = _rectangle(gradient, queries) * queries.valid[:, None, :, None]  # padding repeats a real row
    spread = (by_out * _rectangle(out, queries)).sum(-1, keepdim=True)  # (S, H, R, 1)
    total = _rectangle(lse.T[..., None], queries)  # (S, H, R, 1)
    total = total.masked_fill(total == float("-inf"), 0.0)
    scores = _scores(query, key, layout, scale, softcap)
    probabilities = (scores - total).exp()
    by_scores = probabilities * (by_out @ value.transpose(2, 3) - spread) * slope(scores, softcap) * scale
    by_key = _per_group(by_scores.transpose(2, 3) @ query, block)
    by_value = _per_group(probabilities.transpose(2, 3) @ by_out, block)
    return Block(_flat(by_scores @ key, queries), _flat(by_key, keys), _flat(by_value, keys))


def _layout(call: Call, block: Block) -> _Layout:
    if isinstance(call, PaddedCall):
        queries, keys = _places_in(call.query_rows), _places_in(call.key_rows)
        offsets = queries.rows.new_zeros(1) if call.offsets is None else call.offsets
    else:
        queries = _places_of(call.query_bounds, call.max_queries, len(block.query))
        keys = _places_of(call.key_bounds, call.max_keys, len(block.key))
        offsets = (call.key_bounds.diff() - call.query_bounds.diff()).long()
    hidden = ~(queries.valid[:, :, None] & keys.valid[:, None])
    if call.causal:
        rows, columns = (torch.arange(places.rows.shape[1], device=hidden.device) for places in (queries, keys))
        distance = offsets[:, None, None] + rows[:, None] - columns  # from a key to a query behind it
        hidden = hidden | (distance < 0)
        if call.window is not None:
            hidden = hidden | (distance >= call.window)
    return _Layout(queries, keys, hidden[:, None])


def _places_in(rectangle: Rectangle) -> _Places:
    everything = torch.ones_like(rectangle.rows, dtype=torch.bool)
    return _Places(rectangle.rows, everything if rectangle.valid is None else rectangle.valid, rectangle.places)


def _places_of(bounds: torch.Tensor, longest: int, num_tokens: int) -> _Places:
    bounds, columns = bounds.long(), torch.arange(longest, device=bounds.device)
    rows = bounds[:-1, None] + columns  # (S, R)
    tokens = torch.arange(num_tokens, device=bounds.device)
    segments = torch.searchsorted(bounds, tokens, right=True) - 1
    return _Places(
        rows=rows.clamp(max=num_tokens - 1),
        valid=rows < bounds[1:, None],
        flat=segments * longest + tokens - bounds[segments],
    )


def _padded(block: Block, layout: _Layout) -> Block:
    """Return the rectangles of a block, (S, H, R or T, D), with each key head repeated for the heads that share it."""
    times = block.query.shape[1] // block.key.shape[1]
    key, value = (_rectangle(each, layout.keys).repeat_interleave(times, 1) for each in (block.key, block.value))
    return Block(_rectangle(block.query, layout.queries), key, value)


def _rectangle(block: torch.Tensor, places: _Places) -> torch.Tensor:
    """(N, H, D) -> (S, H, R, D), float32 or wider"""
    return block[places.rows].transpose(1, 2).to(torch.promote_types(block.dtype, torch.float32))


def _flat(rectangle: torch.Tensor, places: _Places) -> torch.Tensor:
    """(S, H, R, D) -> (N, H, D)"""
    return rectangle.transpose(1, 2).flatten(0, 1)[places.flat]


def _scores(
    query: torch.Tensor, key: torch.Tensor, layout: _Layout, scale: float, softcap: float | None
) -> torch.Tensor:
    """Return (S, H, R, T), -inf where a query does not see a key."""
    return capped(query @ key.transpose(2, 3) * scale, softcap).masked_fill(layout.hidden, float("-inf"))


def _per_group(by_head: torch.Tensor, block: Block) -> torch.Tensor:
    """(S, H, T, D) -> (S, Hkv, T, D): the sum over the query heads of a group."""
    return by_head.unflatten(1, (block.key.shape[1], -1)).sum(2)
