"""Variable-length attention in plain PyTorch, all segments at once, for any device and type. It has the functions of
plain_varlen.py.

On CUDA it runs what flash kernels do not take: float32. Segments are gathered into rectangles, S segments by R queries
by T keys; nothing waits for the device.
"""

from typing import NamedTuple

import torch

from trainer.batching.attention_plan import VarlenCall
from trainer.kernels.plain_varlen import Block


class _Places(NamedTuple):
    """Where the tokens of a block stand in its rectangle."""

    rows: torch.Tensor  # (S, R) indices into the block, of some token where a segment is shorter
    valid: torch.Tensor  # (S, R)
    flat: torch.Tensor  # (tokens,) indices into the flattened rectangle


def forward(block: Block, call: VarlenCall, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Do what plain_varlen.forward does."""
    queries, keys = _places(call, block)
    query, key, value = _padded(block, queries, keys)
    scores = _scores(query, key, queries, keys, call.causal, scale)
    lse = scores.logsumexp(-1)  # (S, H, R)
    # a row without keys gives no output, and not NaN
    probabilities = (scores - lse.masked_fill(lse == float("-inf"), 0.0)[..., None]).exp()
    return _flat(probabilities @ value, queries), _flat(lse[..., None], queries)[..., 0].T.contiguous()


def backward(
    gradient: torch.Tensor, block: Block, out: torch.Tensor, lse: torch.Tensor, call: VarlenCall, scale: float
) -> Block:
    """Do what plain_varlen.backward does."""
    queries, keys = _places(call, block)
    query, key, value = _padded(block, queries, keys)
    by_out = _rectangle(gradient, queries) * queries.valid[:, None, :, None]  # padding repeats a real row
    spread = (by_out * _rectangle(out, queries)).sum(-1, keepdim=True)  # (S, H, R, 1)
    total = _rectangle(lse.T[..., None], queries)  # (S, H, R, 1)
    total = total.masked_fill(total == float("-inf"), 0.0)
    probabilities = (_scores(query, key, queries, keys, call.causal, scale) - total).exp()
    by_scores = probabilities * (by_out @ value.transpose(2, 3) - spread) * scale
    by_key = _per_group(by_scores.transpose(2, 3) @ query, block)
    by_value = _per_group(probabilities.transpose(2, 3) @ by_out, block)
    return Block(_flat(by_scores @ key, queries), _flat(by_key, keys), _flat(by_value, keys))


def _places(call: VarlenCall, block: Block) -> tuple[_Places, _Places]:
    return (
        _places_of(call.query_bounds, call.max_queries, len(block.query)),
        _places_of(call.key_bounds, call.max_keys, len(block.key)),
    )


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


def _padded(block: Block, queries: _Places, keys: _Places) -> Block:
    """Return the rectangles of a block, (S, H, R or T, D), with each key head repeated for the heads that share it."""
    times = block.query.shape[1] // block.key.shape[1]
    key, value = (_rectangle(each, keys).repeat_interleave(times, 1) for each in (block.key, block.value))
    return Block(_rectangle(block.query, queries), key, value)


def _rectangle(block: torch.Tensor, places: _Places) -> torch.Tensor:
    """(N, H, D) -> (S, H, R, D)"""
    return block[places.rows].transpose(1, 2)


def _flat(rectangle: torch.Tensor, places: _Places) -> torch.Tensor:
    """(S, H, R, D) -> (N, H, D)"""
    return rectangle.transpose(1, 2).flatten(0, 1)[places.flat]


def _scores(
    query: torch.Tensor, key: torch.Tensor, queries: _Places, keys: _Places, causal: bool, scale: float
) -> torch.Tensor:
    """Return (S, H, R, T), -inf where a query sees no key."""
    hidden = ~keys.valid[:, None, None, :]
    if causal:
        hidden = hidden | torch.ones(
            queries.rows.shape[1], keys.rows.shape[1], dtype=torch.bool, device=query.device
        ).triu(1)
    return (query @ key.transpose(2, 3) * scale).masked_fill(hidden, float("-inf"))


def _per_group(by_head: torch.Tensor, block: Block) -> torch.Tensor:
    """(S, H, T, D) -> (S, Hkv, T, D): the sum over the query heads of a group."""
    return by_head.unflatten(1, (block.key.shape[1], -1)).sum(2)
