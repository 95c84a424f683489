"""Attention over packed trees, for any transformers decoder, through `AttentionInterface`.

What siblings share stands once in the packed row. On CUDA it is read in place by variable-length flash calls
(merged_attention.py), elsewhere as extra keys of padded SDPA calls. Equal to dense copies of every sequence (a test
holds both to 1e-10 in float64).
"""

import torch
from torch.nn import functional
from transformers import AttentionInterface, PreTrainedModel

from trainer.merged_attention import merged_attention
from trainer.packing import PackedBatch
from trainer.plans import Siblings, VarlenCall

NAME = "shared_prefix"


def shared_prefix_attention(
    module: torch.nn.Module,
    query: torch.Tensor,  # (1, H, N, D)
    key: torch.Tensor,  # (1, Hkv, N, D)
    value: torch.Tensor,  # (1, Hkv, N, D)
    attention_mask: torch.Tensor | None,
    plan: list[Siblings] | list[VarlenCall],
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Output (1, N, H, D). Dropout is refused: it would differ between the copies of a shared token."""
    if dropout:
        raise ValueError("shared-prefix attention needs attention_dropout 0")
    query, key, value = query[0].transpose(0, 1), key[0].transpose(0, 1), value[0].transpose(0, 1)  # (N, H, D)
    if isinstance(plan[0], VarlenCall):
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        return merged_attention(query, key, value, plan, scale)[None], None
    # the groups stand in the order of their tokens, so the parts only need joining
    parts = [_attend(query, key, value, group, scaling)[group.valid] for group in plan]  # (tokens, H, D) each
    return torch.cat(parts)[None], None


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, group: Siblings, scaling: float | None
) -> torch.Tensor:
    """(L, R, H, D): each sibling's rows attend to the tokens above it and causally to themselves.

    A sibling's own padding stands at its end, so the causal part of the mask already hides it from every real row.
    """
    indices = torch.cat([group.prefix, group.rows], dim=1)  # (L, P + R)
    queries, mask = _gather(query, group.rows), _mask(group)  # (L, H, R, D)
    out = functional.scaled_dot_product_attention(
        queries,
        _gather(key, indices),
        _gather(value, indices),
        mask,
        is_causal=mask is None,
        scale=scaling,
        enable_gqa=True,
    )
    return out.transpose(1, 2)


def _gather(tensor: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """(N, H, D) at indices (L, T) -> (L, H, T, D). index_select: its backward is many times faster than indexing's."""
    return tensor.index_select(0, indices.flatten()).unflatten(0, indices.shape).transpose(1, 2)


def _mask(group: Siblings) -> torch.Tensor | None:
    """What rows may see, broadcastable to (L, H, R, P + R); None where plain causal attention says it."""
    num_siblings, longest = group.rows.shape
    num_prefix = group.prefix.shape[1]
    if num_prefix == 0:
        return None
    mask = torch.ones(longest, num_prefix + longest, dtype=torch.bool, device=group.rows.device).tril(num_prefix)
    if group.prefix_valid is None:
        return mask
    own = torch.ones(num_siblings, longest, dtype=torch.bool, device=group.rows.device)
    return mask & torch.cat([group.prefix_valid, own], dim=1)[:, None, None, :]


AttentionInterface.register(NAME, shared_prefix_attention)


def use_shared_prefix(model: PreTrainedModel) -> None:
    """Switch a model to packed trees; refuses architectures where a shared prefix is not exact."""
    config = model.config
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"}:
        raise ValueError(f"shared-prefix packing needs full attention in every layer, this model has {sorted(kinds)}")
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        raise ValueError("shared-prefix packing needs full attention, this model has a sliding window")
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rope in ("dynamic", "longrope"):
        raise ValueError(f"shared-prefix packing refuses {rope} rope: its angles depend on the packed length")
    if getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None):
        raise ValueError("shared-prefix packing refuses mixture-of-experts models: routing depends on the whole batch")
    model.set_attn_implementation(NAME)


def hidden_states(model: PreTrainedModel, batch: PackedBatch) -> torch.Tensor:
    """(M, hidden): the final hidden states that predict the batch's targets; prompt rows never reach the head."""
    output = model.base_model(
        input_ids=batch.token_ids, position_ids=batch.position_ids, use_cache=False, plan=batch.plan
    )
    return output.last_hidden_state[0, batch.predict_from]
