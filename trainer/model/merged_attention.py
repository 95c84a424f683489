"""Attention of packed prefix trees as a few variable-length calls, merged by their log-sum-exps.

A token's softmax runs over its own node and all nodes above it. Each depth above is one call without a mask, in which
all descendants of a node read its keys where they stand: nothing is copied. Outputs merge as

    lse = log sum_i exp(lse_i)        out = sum_i exp(lse_i - lse) out_i

and the backward is exact: each call's own backward, given the merged out and lse (as ring attention does, arXiv
2310.01889). Letters: N packed tokens, H heads, Hkv key heads, D head width.
"""

import importlib.util
from collections.abc import Sequence

import torch

from trainer.batching.attention_plan import Call, PaddedCall
from trainer.kernels import gathered_varlen, plain_varlen, sdpa_padded
from trainer.kernels.plain_varlen import Block


def kernels_for(call: Call, query: torch.Tensor):
    """Return the module whose `forward` and `backward` run calls of this form; flash kernels take 16-bit types only."""
    if isinstance(call, PaddedCall):
        return sdpa_padded
    if query.device.type != "cuda":
        return plain_varlen
    if query.dtype not in (torch.bfloat16, torch.float16):
        return gathered_varlen
    # By its own module: flash-attn 4 also has a `flash_attn`. Version 3, where it is, is reached through PyTorch.
    if importlib.util.find_spec("flash_attn_2_cuda") and not importlib.util.find_spec("flash_attn_interface"):
        from trainer.kernels import flash_package

        return flash_package
    from trainer.kernels import flash_varlen

    return flash_varlen


def merged_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, calls: Sequence[Call], scale: float
) -> torch.Tensor:
    """Take query (N, H, D), key and value (N, Hkv, D); return output (N, H, D)."""
    return _Merged.apply(query, key, value, calls, scale)


class _Merged(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, value, calls, scale):
        kernels = kernels_for(calls[0], query)
        out, lse = torch.zeros_like(query), None
        for call in calls:
            block = Block(query[call.queries], key[call.keys], value[call.keys])
            part, part_lse = kernels.forward(block, call, scale)
            if lse is None:
                lse = part_lse.new_full((query.shape[1], query.shape[0]), float("-inf"))
            if call.causal:  # the first call of its queries
                out[call.queries], lse[:, call.queries] = part, part_lse
            else:
                _merge_(out[call.queries], lse[:, call.queries], part, part_lse)
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.calls, ctx.scale = calls, scale
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        query, key, value, out, lse = ctx.saved_tensors
        gradient = gradient.contiguous()
        kernels = kernels_for(ctx.calls[0], query)
        # float32 sums: a shared key collects the gradients of all its descendants
        totals = [torch.zeros_like(tensor, dtype=lse.dtype) for tensor in (query, key, value)]
        for call in ctx.calls:
            q, k = call.queries, call.keys
            block = Block(query[q], key[k], value[k])
            found = kernels.backward(gradient[q], block, out[q], lse[:, q].contiguous(), call, ctx.scale)
            for total, block, part in zip(totals, (q, k, k), found, strict=True):
                total[block] += part
        return *(total.to(gradient.dtype) for total in totals), None, None


def _merge_(out: torch.Tensor, lse: torch.Tensor, part: torch.Tensor, part_lse: torch.Tensor) -> None:
    """Merge a call's output (Q, H, D) and lse (H, Q) into those of earlier calls for the same queries, in place."""
    merged = torch.logaddexp(lse, part_lse)
    kept, added = ((each - merged).exp().T[:, :, None] for each in (lse, part_lse))
    out.copy_(out * kept + part * added)
    lse.copy_(merged)
