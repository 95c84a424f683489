"""The gated delta rule over packed prefix trees in plain PyTorch, for any device; fla_delta_rule.py is the fast twin.

A head's state S (K, V) goes along a path; log decay g <= 0, rate beta and unit vectors q and k come from each token:

    S_t = e^g_t S_{t-1} + k_t u_t^T,   u_t = beta_t (v_t - e^g_t S_{t-1}^T k_t),   o_t = S_t^T q_t / sqrt(K)

(Gated DeltaNet, arXiv 2412.06464). By chunks of C tokens (DeltaNet, arXiv 2406.06484), with G_t = g_1 + ... + g_t:

    (I + A) U = beta (V - e^G K S_0),   A_ti = beta_t e^(G_t - G_i) k_t . k_i  for i < t
    O = e^G Q S_0 + P U,                P_ti =        e^(G_t - G_i) q_t . k_i  for i <= t
    S_C = e^G_C S_0 + (e^(G_C - G) K)^T U

What does not read S_0 is done for all chunks of all nodes at once; the scan that is left goes down the trees. A padded
token has k, g and beta 0 and leaves the state as it is. Letters: N packed tokens, B chunks, H heads of values, Hk of
keys, each of which serves H / Hk of the former.
"""

import torch

from trainer.batching.recurrence_plan import Chunks

EPSILON = 1e-6
"""Added to the squared norm of a query or key, as by transformers and flash-linear-attention."""


def gated_delta_rule(
    query: torch.Tensor,  # (N, Hk, K)
    key: torch.Tensor,  # (N, Hk, K)
    value: torch.Tensor,  # (N, H, V)
    log_decay: torch.Tensor,  # (N, H)
    beta: torch.Tensor,  # (N, H)
    chunks: Chunks,
) -> torch.Tensor:
    """Return the output (N, H, V), computed in float32 or better."""
    dtype = torch.promote_types(value.dtype, torch.float32)
    times = value.shape[1] // key.shape[1]
    q, k, v, g, b = (_chunked(each.to(dtype), chunks) for each in (query, key, value, log_decay, beta))
    q, k = ((each * _inverse_norm(each)).repeat_interleave(times, 1) for each in (q, k))
    q = q * q.shape[-1] ** -0.5
    total = g.cumsum(-1)[..., None]  # (B, H, C, 1): G
    future = torch.ones(chunks.length, chunks.length, dtype=torch.bool, device=g.device).triu(1)
    decay = (total - total.mT).masked_fill(future, float("-inf")).exp()
    reads = (q @ k.mT) * decay  # P
    # U is solved without S_0 and for what stands before S_0, side by side
    free, bound = torch.linalg.solve_triangular(
        (k @ k.mT) * decay * b[..., None],
        torch.cat((v, k * total.exp()), -1) * b[..., None],
        upper=False,
        unitriangular=True,
    ).split((v.shape[-1], k.shape[-1]), -1)
    end = total[..., -1:, :]
    per_round = (q * total.exp(), (k * (end - total).exp()).mT, end.exp(), free, bound)
    by_state, updates = _scan(*per_round, chunks)
    out = by_state + reads @ updates  # (B, H, C, V)
    return out.transpose(1, 2).flatten(0, 1).index_select(0, chunks.places).to(value.dtype)


def _scan(query, key, decay, free, bound, chunks: Chunks) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what the queries read of the states before their chunks, and U; both (B, H, C, V)."""
    # one split each: its backward is one concatenation, where a slice's is a tensor of zeros for every round
    sizes = [len(starts) for starts in chunks.starts]
    rounds = zip(chunks.starts, *(each.split(sizes) for each in (query, key, decay, free, bound)), strict=True)
    state = free.new_zeros(1, free.shape[1], query.shape[-1], free.shape[-1])
    by_state, updates = [], []
    for starts, q, k, end, mine, others in rounds:
        state = state.index_select(0, starts)  # its backward sums over the children
        updates.append(mine - others @ state)
        by_state.append(q @ state)
        state = end * state + k @ updates[-1]
    return torch.cat(by_state), torch.cat(updates)


def _chunked(packed: torch.Tensor, chunks: Chunks) -> torch.Tensor:
    """(N, H, ...) -> (B, H, C, ...), zeros where padded."""
    filled = packed.new_zeros(chunks.num_chunks * chunks.length, *packed.shape[1:])
    filled = filled.index_copy(0, chunks.places, packed)
    return filled.unflatten(0, (chunks.num_chunks, chunks.length)).transpose(1, 2).contiguous()


def _inverse_norm(vectors: torch.Tensor) -> torch.Tensor:
    return torch.rsqrt((vectors * vectors).sum(-1, keepdim=True) + EPSILON)
