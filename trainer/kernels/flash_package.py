"""Variable-length attention by the flash-attn package, version 2. It has the functions of plain_varlen.py.

It is used on CUDA where the package is installed. It is written against flash-attn 2.8 and has not run yet.
"""

import torch
from flash_attn.flash_attn_interface import _flash_attn_varlen_backward, _flash_attn_varlen_forward

from trainer.batching.attention_plan import VarlenCall
from trainer.kernels.plain_varlen import Block


def forward(
    block: Block, call: VarlenCall, scale: float, softcap: float | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Do what plain_varlen.forward does, for bfloat16 or float16."""
    out, lse, *_ = _flash_attn_varlen_forward(**_inputs(block, call, scale, softcap))
    # the kernels say +inf for a row without keys
    return out, lse.masked_fill(lse == float("inf"), float("-inf"))


def backward(
    gradient: torch.Tensor,
    block: Block,
    out: torch.Tensor,
    lse: torch.Tensor,
    call: VarlenCall,
    scale: float,
    softcap: float | None = None,
) -> Block:
    """Do what plain_varlen.backward does."""
    dq, dk, dv = map(torch.empty_like, block)
    given = _inputs(block, call, scale, softcap) | {"deterministic": False}
    given["zero_tensors"] = True  # keys that no query reads get no gradient written
    _flash_attn_varlen_backward(dout=gradient, out=out, softmax_lse=lse, dq=dq, dk=dk, dv=dv, **given)
    return Block(dq, dk, dv)


def _inputs(block: Block, call: VarlenCall, scale: float, softcap: float | None) -> dict:
    names = ("q", "k", "v", "cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k")
    inputs = dict(zip(names, (*block, *call.segments), strict=True))
    # the package says -1 for no window, and 0 for no cap
    before, behind = (-1, -1) if call.window is None else (call.window - 1, 0)
    inputs |= {"window_size_left": before, "window_size_right": behind, "softcap": softcap or 0.0}
    return inputs | {"dropout_p": 0.0, "alibi_slopes": None, "softmax_scale": scale, "causal": call.causal}
