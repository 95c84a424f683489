"""Attention over packed trees, for any transformers decoder, through `AttentionInterface`.

Two plain SDPA calls a level: what siblings share stands once in the packed row and is read as extra keys. Equal to
dense copies of every sequence (a test holds it to 1e-10 in float64).
"""

import torch
from torch.nn import functional
from transformers import AttentionInterface, PreTrainedModel

from trainer.packing import PackedBatch, Siblings

NAME = "shared_prefix"


def shared_prefix_attention(
    module: torch.nn.Module,
    query: torch.Tensor,  # (1, H, N, D)
    key: torch.Tensor,  # (1, Hkv, N, D)
    value: torch.Tensor,  # (1, Hkv, N, D)
    attention_mask: torch.Tensor | None,
    siblings: list[Siblings],
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Output (1, N, H, D). Dropout is refused: it would differ between the copies of a shared token."""
    if dropout:
        raise ValueError("shared-prefix attention needs attention_dropout 0")
    query, key, value = query[0].transpose(0, 1), key[0].transpose(0, 1), value[0].transpose(0, 1)  # (N, H, D)
    out = torch.empty_like(query)
    for group in siblings:
        out[group.rows[group.valid]] = _attend(query, key, value, group, scaling)[group.valid]  # (tokens, H, D)
    return out[None], None


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, group: Siblings, scaling: float | None
) -> torch.Tensor:
    """(L, R, H, D): each sibling's rows attend to the shared prefix and causally to themselves.

    Padding stands at the end of a sibling, so the causal part of the mask already hides it from every real row.
    """
    num_siblings, longest = group.rows.shape
    num_prefix = len(group.prefix)

    def gather(tensor: torch.Tensor) -> torch.Tensor:
        own = tensor[group.rows]  # (L, R, Hkv, D)
        if num_prefix:
            own = torch.cat([tensor[group.prefix].expand(num_siblings, -1, -1, -1), own], dim=1)
        return own.transpose(1, 2)  # (L, Hkv, P + R, D)

    queries = query[group.rows].transpose(1, 2)  # (L, H, R, D)
    mask = None
    if num_prefix:
        mask = torch.ones(longest, num_prefix + longest, dtype=torch.bool, device=query.device).tril(num_prefix)
    out = functional.scaled_dot_product_attention(
        queries, gather(key), gather(value), mask, is_causal=mask is None, scale=scaling, enable_gqa=True
    )
    return out.transpose(1, 2)


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
        input_ids=batch.token_ids, position_ids=batch.position_ids, use_cache=False, siblings=batch.siblings
    )
    return output.last_hidden_state[0, batch.predict_from]
