"""Attention of packed prefix trees as a few variable-length calls, merged by their log-sum-exps.

A token's softmax runs over its own node and all nodes above it. Each depth above is one call without a mask, in which
all descendants of a node read its keys where they stand: nothing is copied. Outputs merge as

    lse = log sum_i exp(lse_i)        out = sum_i exp(lse_i - lse) out_i

and the backward is exact: each call's own backward, given the merged out and lse (as ring attention does, arXiv
2310.01889). An attention sink is one more score of each head, with value zero (gpt-oss): it merges like a call whose
out is zero, and its gradient is -sum exp(sink - lse) (g . out). Calls of a sliding window are whole softmaxes of copied
keys, whose gradients add up where the keys stand. Letters: N packed tokens, H heads, Hkv key heads, D head width.
"""

import importlib.util
from collections.abc import Sequence

import torch

from trainer.batching.attention_plan import Call, PaddedCall
from trainer.kernels import gathered_varlen, plain_varlen, sdpa_padded
from trainer.kernels.plain_varlen import Block

FLASH_WIDTH = 256
"""Widest head that FlashAttention 2 and 3 take."""


class UnsharedError(ValueError):
    """A shared prefix would not give this model's numbers."""


def kernels_for(call: Call, query: torch.Tensor, softcap: float | None = None):
    """Return the module whose `forward` and `backward` run calls of this form; flash kernels take 16-bit types only.

    Raises UnsharedError for heads or a soft cap on scores that they cannot take.
    """
    if isinstance(call, PaddedCall):
        return sdpa_padded if softcap is None else gathered_varlen
    if query.device.type != "cuda":
        return plain_varlen
    if query.dtype not in (torch.bfloat16, torch.float16):
        return gathered_varlen
    if query.shape[-1] > FLASH_WIDTH:
        raise UnsharedError(f"flash kernels take heads of up to {FLASH_WIDTH}, this model's are {query.shape[-1]} wide")
    # By its own module: flash-attn 4 also has a `flash_attn`. Version 3, where it is, is reached through PyTorch.
    if importlib.util.find_spec("flash_attn_2_cuda") and not importlib.util.find_spec("flash_attn_interface"):
        from trainer.kernels import flash_package

        return flash_package
    if softcap is not None:
        raise UnsharedError(
            "this model caps its attention scores, which PyTorch's flash kernels cannot: install flash-attn 2, or set "
            "model.dtype=float32"
        )
    from trainer.kernels import flash_varlen

    return flash_varlen


def merged_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    calls: Sequence[Call],
    scale: float,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Take query (N, H, D), key and value (N, Hkv, D), and a score (H,) of each head's sink; return output (N, H, D).

    Scores x become softcap * tanh(x / softcap) where a soft cap is given. The sinks have none.
    """
    return _Merged.apply(query, key, value, sinks, calls, scale, softcap)


class _Merged(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, value, sinks, calls, scale, softcap):
        kernels = kernels_for(calls[0], query, softcap)
        out, lse = torch.zeros_like(query), None
        for call in calls:
            block = Block(query[call.queries], *(_read(each, call.keys) for each in (key, value)))
            part, part_lse = kernels.forward(block, call, scale, softcap)
            if lse is None:
                lse = part_lse.new_full((query.shape[1], query.shape[0]), float("-inf"))
            if call.causal:  # the first call of its queries
                out[call.queries], lse[:, call.queries] = part, part_lse
            else:
                _merge_(out[call.queries], lse[:, call.queries], part, part_lse)
        if sinks is not None:
            _merge_(out, lse, out.new_zeros(1), sinks[:, None].to(lse.dtype))
        ctx.save_for_backward(query, key, value, sinks, out, lse)
        ctx.calls, ctx.scale, ctx.softcap = calls, scale, softcap
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        query, key, value, sinks, out, lse = ctx.saved_tensors
        gradient = gradient.contiguous()
        kernels = kernels_for(ctx.calls[0], query, ctx.softcap)
        # float32 sums: a shared key collects the gradients of all its descendants
        layout = torch.preserve_format if isinstance(ctx.calls[0].keys, slice) else torch.contiguous_format
        totals = [torch.zeros_like(each, dtype=lse.dtype, memory_format=layout) for each in (query, key, value)]
        for call in ctx.calls:
            q, k = call.queries, call.keys
            block = Block(query[q], _read(key, k), _read(value, k))
            found = kernels.backward(gradient[q], block, out[q], lse[:, q].contiguous(), call, ctx.scale, ctx.softcap)
            for total, where, part in zip(totals, (q, k, k), found, strict=True):
                _add_(total, where, part)
        by_sinks = None
        if sinks is not None:
            spread = (gradient * out).sum(-1, dtype=lse.dtype).T  # (H, N)
            by_sinks = -((sinks[:, None] - lse).exp() * spread).sum(1).to(sinks.dtype)
        return *(total.to(gradient.dtype) for total in totals), by_sinks, None, None, None


def _read(tensor: torch.Tensor, where: slice | torch.Tensor) -> torch.Tensor:
    """Return the rows of a tensor, as a view or, by their indices, as a copy."""
    return tensor[where] if isinstance(where, slice) else tensor.index_select(0, where)


def _add_(total: torch.Tensor, where: slice | torch.Tensor, part: torch.Tensor) -> None:
    """Add to rows of a tensor, in place; an index may stand several times."""
    if isinstance(where, slice):
        total[where] += part
    else:  # in two dimensions PyTorch adds several times as fast on a CPU
        total.view(len(total), -1).index_add_(0, where, part.flatten(1).to(total.dtype))


def _merge_(out: torch.Tensor, lse: torch.Tensor, part: torch.Tensor, part_lse: torch.Tensor) -> None:
    """Merge a call's output (Q, H, D) and lse (H, Q) into those of earlier calls for the same queries, in place."""
    merged = torch.logaddexp(lse, part_lse)
    kept, added = ((each - merged).exp().T[:, :, None] for each in (lse, part_lse))
    out.copy_(out * kept + part * added)
    lse.copy_(merged)
