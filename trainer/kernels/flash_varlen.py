"""Variable-length attention by the flash kernels of PyTorch (CUDA). It has the functions of plain_varlen.py.

The operators are called without `torch.nn.attention.varlen.varlen_attn` because the backward hands them the output and
log-sum-exp of a larger softmax. This is written against torch 2.11 to 2.13.
"""

import importlib.util

import torch
from torch.nn import attention

from trainer.batching.attention_plan import VarlenCall
from trainer.kernels.plain_varlen import Block

# PyTorch's own kernels are FlashAttention 2; where flash-attn 3 is installed, it routes the same operators there.
if importlib.util.find_spec("flash_attn_interface") and torch.cuda.get_device_capability() == (9, 0):
    attention.activate_flash_attention_impl("FA3")


def forward(block: Block, call: VarlenCall, scale: float, softcap: None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Do what plain_varlen.forward does, for bfloat16 or float16, without a soft cap."""
    dropout, return_mask = 0.0, False
    out, lse, *_ = torch.ops.aten._flash_attention_forward(
        *block, *call.segments, dropout, call.causal, return_mask, scale=scale, **_window(call)
    )
    # the kernels say +inf for a row without keys
    return out, lse.masked_fill(lse == float("inf"), float("-inf"))


def backward(
    gradient: torch.Tensor,
    block: Block,
    out: torch.Tensor,
    lse: torch.Tensor,
    call: VarlenCall,
    scale: float,
    softcap: None = None,
) -> Block:
    """Do what plain_varlen.backward does."""
    dropout, device = 0.0, gradient.device
    random_state, unused = torch.zeros(2, dtype=torch.uint64, device=device), torch.empty(0, device=device)
    given = (gradient, *block, out, lse, *call.segments, dropout, call.causal, random_state, unused)
    return Block(*torch.ops.aten._flash_attention_backward(*given, scale=scale, **_window(call)))


def _window(call: VarlenCall) -> dict[str, int]:
    """Return how many keys a query sees before and behind its own, where that is not all of them."""
    return {} if call.window is None else {"window_size_left": call.window - 1, "window_size_right": 0}
