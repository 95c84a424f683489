"""Variable-length attention by the flash kernels of PyTorch (CUDA). It has the functions of plain_varlen.py.

`torch.nn.attention.varlen.varlen_attn` calls the same two operators; they are called here without it because a merged
backward hands them the output and log-sum-exp of the whole softmax. Written against torch 2.11 to 2.13.
"""

import importlib.util

import torch
from torch.nn import attention

from trainer.batching.attention_plan import VarlenCall

# PyTorch's own kernels are FlashAttention 2. Where flash-attn 3 is installed (Hopper), PyTorch can route the same two
# operators to it.
if importlib.util.find_spec("flash_attn_interface") and torch.cuda.get_device_capability() == (9, 0):
    attention.activate_flash_attention_impl("FA3")


def forward(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, call: VarlenCall, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Do what plain_varlen.forward does, for bfloat16 or float16."""
    out, lse, *_ = torch.ops.aten._flash_attention_forward(
        query,
        key,
        value,
        call.query_bounds,
        call.key_bounds,
        call.max_queries,
        call.max_keys,
        0.0,
        call.causal,
        False,
        scale=scale,
    )
    # the kernels say +inf for a row without keys
    return out, lse.masked_fill(lse == float("inf"), float("-inf"))


def backward(
    gradient: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    call: VarlenCall,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Do what plain_varlen.backward does."""
    no_dropout = torch.zeros(2, dtype=torch.uint64, device=query.device)
    return torch.ops.aten._flash_attention_backward(
        gradient,
        query,
        key,
        value,
        out,
        lse,
        call.query_bounds,
        call.key_bounds,
        call.max_queries,
        call.max_keys,
        0.0,
        call.causal,
        no_dropout,
        torch.empty(0, device=query.device),
        scale=scale,
    )
