"""Attention of padded rectangles by SDPA's flash kernel for CPUs. It has the functions of plain_varlen.py.

The operators are called without `scaled_dot_product_attention` because the backward hands them the output and
log-sum-exp of a larger softmax. This is written against torch 2.11 to 2.13.
Letters: S segments, R rows, T keys of a segment.
"""

import torch

from trainer.batching.attention_plan import PaddedCall, Rectangle
from trainer.kernels.plain_varlen import Block


def forward(block: Block, call: PaddedCall, scale: float, softcap: None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Do what plain_varlen.forward does, in any floating dtype, without a soft cap; lse is float32 or wider."""
    mask, num_heads, num_groups = _mask(call, block.query.dtype), block.query.shape[1], _groups(call, block)
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        *_padded(block, call, num_groups), 0.0, _is_triangle(call), attn_mask=mask, scale=scale
    )
    out, lse = (_unfold(tensor, call, num_heads) for tensor in (out, lse[..., None]))
    return _unpad(out, call.query_rows), _unpad(lse, call.query_rows)[..., 0].T


def backward(
    gradient: torch.Tensor,
    block: Block,
    out: torch.Tensor,
    lse: torch.Tensor,
    call: PaddedCall,
    scale: float,
    softcap: None = None,
) -> Block:
    """Do what plain_varlen.backward does."""
    num_heads, num_groups = block.query.shape[1], _groups(call, block)
    padded_gradient = _pad(gradient, call.query_rows)
    if call.query_rows.valid is not None:  # padding repeats a real row, whose gradient must not count twice
        padded_gradient = padded_gradient * call.query_rows.valid[:, None, :, None]
    by_query, by_key, by_value = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        _fold(padded_gradient, call, num_groups),
        *_padded(block, call, num_groups),
        _fold(_pad(out, call.query_rows), call, num_groups),
        _fold(_pad(lse.T[..., None], call.query_rows), call, num_groups)[..., 0],
        0.0,
        _is_triangle(call),
        attn_mask=_mask(call, block.query.dtype),
        scale=scale,
    )
    by_query = _unpad(_unfold(by_query, call, num_heads), call.query_rows)
    by_key, by_value = (each.unflatten(1, (block.key.shape[1], -1)).sum(2) for each in (by_key, by_value))
    return Block(by_query, _unpad(by_key, call.key_rows), _unpad(by_value, call.key_rows))


def _groups(call: PaddedCall, block: Block) -> int:
    """Tell how many key heads the kernel sees: repeated where so few would leave threads of its backward idle."""
    num_heads, num_key_heads = block.query.shape[1], block.key.shape[1]
    return num_key_heads if len(call.key_rows.rows) * num_key_heads >= torch.get_num_threads() else num_heads


def _padded(block: Block, call: PaddedCall, num_groups: int) -> Block:
    """Return the block as the kernel takes it, with each key head repeated until there are `num_groups`."""
    keys, values = (_pad(each, call.key_rows) for each in (block.key, block.value))
    times = num_groups // block.key.shape[1]
    if times > 1:
        keys, values = keys.repeat_interleave(times, 1), values.repeat_interleave(times, 1)
    return Block(_fold(_pad(block.query, call.query_rows), call, num_groups), keys, values)


def _pad(block: torch.Tensor, rectangle: Rectangle) -> torch.Tensor:
    """(N, H, D) -> (S, H, R, D); a view where nothing is padded."""
    if rectangle.valid is not None:
        block = block.index_select(0, rectangle.rows.flatten())
    return block.unflatten(0, rectangle.rows.shape).transpose(1, 2)


def _unpad(padded: torch.Tensor, rectangle: Rectangle) -> torch.Tensor:
    """(S, H, R, D) -> (N, H, D)"""
    block = padded.transpose(1, 2).flatten(0, 1)
    return block if rectangle.valid is None else block.index_select(0, rectangle.places)


def _fold(padded: torch.Tensor, call: PaddedCall, num_groups: int) -> torch.Tensor:
    """(S, H, R, D) -> (S, Hkv, H / Hkv x R, D): without a causal mask, heads that share keys can count as more rows."""
    return padded if call.causal else padded.unflatten(1, (num_groups, -1)).flatten(2, 3)


def _unfold(folded: torch.Tensor, call: PaddedCall, num_heads: int) -> torch.Tensor:
    """Return the inverse of `_fold`."""
    if call.causal:
        return folded
    return folded.unflatten(2, (num_heads // folded.shape[1], -1)).flatten(1, 2)


def _is_triangle(call: PaddedCall) -> bool:
    """Tell whether the kernel's own causal mask is the call's."""
    return call.causal and call.window is None


def _mask(call: PaddedCall, dtype: torch.dtype) -> torch.Tensor | None:
    """Return what is added to the scores, (S, 1, 1, T) or with a window (S or 1, 1, R, T); None where no key is
    padding or the causal mask hides it."""
    if call.window is not None:
        rows, columns = (
            torch.arange(size, device=call.offsets.device)
            for size in (call.query_rows.rows.shape[1], call.key_rows.rows.shape[1])
        )
        distance = call.offsets[:, None, None] + rows[:, None] - columns  # from a key to a query behind it
        hidden = (distance < 0) | (distance >= call.window)
        return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill(hidden, float("-inf"))[:, None]
    if call.causal or call.key_rows.valid is None:
        return None
    bias = torch.zeros(call.key_rows.valid.shape, dtype=dtype, device=call.key_rows.valid.device)
    return bias.masked_fill(~call.key_rows.valid, float("-inf"))[:, None, None]
