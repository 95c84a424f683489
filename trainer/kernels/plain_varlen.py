"""Variable-length attention in plain PyTorch, segment by segment, for any device; flash_varlen.py is the fast twin.

    forward   out = softmax(s q k^T) v, lse = log sum exp(s q k^T)
    backward  with any (out, lse) of a larger softmax that these keys are part of: P = exp(s q k^T - lse),
              dv = P^T g, ds = P (g v^T - sum(g out)), dq = s ds k, dk = s ds^T q

so the gradients of a softmax over several blocks of keys are those of its blocks (Dao, arXiv 2307.08691, section 2).
A soft cap c makes c tanh(x / c) of each score x (Gemma 2, arXiv 2408.00118); its derivative is 1 - tanh(x / c)^2.
"""

from itertools import pairwise
from typing import NamedTuple

import torch

from trainer.batching.attention_plan import VarlenCall


class Block(NamedTuple):
    """The tensors that a call runs on, or the gradients by them."""

    query: torch.Tensor  # (Q, H, D)
    key: torch.Tensor  # (K, Hkv, D)
    value: torch.Tensor  # (K, Hkv, D)


def forward(
    block: Block, call: VarlenCall, scale: float, softcap: float | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return out (Q, H, D) and lse (H, Q), which is -inf where no keys are."""
    query, key, value = block
    out, lse = torch.zeros_like(query), query.new_full(query.shape[:2], float("-inf")).T.contiguous()
    for queries, keys in _segments(call):
        scores = _scores(query[queries], key[keys], call, scale, softcap)  # (H, q, k)
        lse[:, queries] = scores.logsumexp(-1)
        out[queries] = (scores.softmax(-1) @ _per_head(value[keys], query)).transpose(0, 1)
    return out, lse


def backward(
    gradient: torch.Tensor,
    block: Block,
    out: torch.Tensor,
    lse: torch.Tensor,
    call: VarlenCall,
    scale: float,
    softcap: float | None = None,
) -> Block:
    """Return the gradients; `out` and `lse` may be of a softmax over more keys than these."""
    query, key, value = block
    found = Block(*map(torch.zeros_like, block))
    for queries, keys in _segments(call):
        q, g = query[queries].transpose(0, 1), gradient[queries].transpose(0, 1)  # (H, q, D)
        k, v = _per_head(key[keys], query), _per_head(value[keys], query)  # (H, k, D)
        scores = _scores(query[queries], key[keys], call, scale, softcap)
        probabilities = (scores - lse[:, queries, None]).exp()
        spread = (gradient[queries] * out[queries]).sum(-1).T[:, :, None]  # (H, q, 1)
        by_scores = probabilities * (g @ v.transpose(1, 2) - spread) * slope(scores, softcap) * scale
        found.query[queries] = (by_scores @ k).transpose(0, 1)
        found.key[keys] += _per_group(by_scores.transpose(1, 2) @ q, key)
        found.value[keys] += _per_group(probabilities.transpose(1, 2) @ g, value)
    return found


def _segments(call: VarlenCall):
    bounds = call.query_bounds.tolist(), call.key_bounds.tolist()
    for queries, keys in zip(*([slice(*pair) for pair in pairwise(each)] for each in bounds), strict=True):
        if queries.start < queries.stop and keys.start < keys.stop:
            yield queries, keys


def capped(scores: torch.Tensor, softcap: float | None) -> torch.Tensor:
    """Return scores after the soft cap, if there is one."""
    return scores if softcap is None else (scores / softcap).tanh() * softcap


def slope(scores: torch.Tensor, softcap: float | None) -> torch.Tensor | float:
    """Return the derivative of the soft cap, given capped scores, of which some may be hidden (-inf)."""
    return 1.0 if softcap is None else 1 - (scores / softcap).clamp(min=-1).square()


def _scores(
    query: torch.Tensor, key: torch.Tensor, call: VarlenCall, scale: float, softcap: float | None
) -> torch.Tensor:
    """Return (H, q, k), -inf where a query does not see a key: the last query stands at the last key."""
    scores = capped(query.transpose(0, 1) @ _per_head(key, query).transpose(1, 2) * scale, softcap)
    if call.causal:
        everything, ahead = torch.ones(scores.shape[1:], dtype=torch.bool, device=scores.device), len(key) - len(query)
        hidden = everything.triu(ahead + 1)
        if call.window is not None:
            hidden |= everything.tril(ahead - call.window)
        scores = scores.masked_fill(hidden, float("-inf"))
    return scores


def _per_head(shared: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    """(K, Hkv, D) -> (H, K, D): query heads in groups share a key head."""
    return shared.repeat_interleave(query.shape[1] // shared.shape[1], dim=1).transpose(0, 1)


def _per_group(by_head: torch.Tensor, shared: torch.Tensor) -> torch.Tensor:
    """(H, K, D) -> (K, Hkv, D): the sum over the query heads of a group."""
    return by_head.unflatten(0, (shared.shape[1], -1)).sum(1).transpose(0, 1)
