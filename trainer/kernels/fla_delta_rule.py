"""The gated delta rule over packed prefix trees by flash-linear-attention. It has the function of plain_delta_rule.py.

It is used on CUDA where the package is installed, for 16-bit types only: its kernel refuses float32. It is written
against flash-linear-attention 0.4 and has not run yet.
"""

from collections.abc import Sequence

import torch
from fla.ops.gated_delta_rule import chunk_gated_delta_rule

from trainer.batching.recurrence_plan import NodesCall


def gated_delta_rule(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    log_decay: torch.Tensor,
    beta: torch.Tensor,
    calls: Sequence[NodesCall],
) -> torch.Tensor:
    """Do what plain_delta_rule.gated_delta_rule does, depth by depth."""
    times = value.shape[1] // key.shape[1]
    query, key = (each.repeat_interleave(times, 1) for each in (query, key))
    inputs = {"q": query, "k": key, "v": value, "g": log_decay.float(), "beta": beta}
    states = torch.zeros(1, *value.shape[1:2], key.shape[-1], value.shape[-1], device=value.device)
    parts = []
    for call in calls:
        part, ends = chunk_gated_delta_rule(
            **{name: each[None, call.tokens] for name, each in inputs.items()},
            initial_state=states.index_select(0, call.starts),
            output_final_state=True,
            use_qk_l2norm_in_kernel=True,
            cu_seqlens=call.bounds,
        )
        parts.append(part[0])
        states = torch.cat((states, ends))
    return torch.cat(parts)
