"""Attention over packed prefix trees, for any transformers decoder, through `AttentionInterface`.

Tokens that several sequences share stand once in the packed row, and attention reads them there
(merged_attention.py). The results equal those of dense copies of every sequence.
"""

from collections.abc import Sequence

import torch
from transformers import AttentionInterface, PreTrainedModel

from trainer.batching.attention_plan import Call
from trainer.batching.packing import PackedBatch
from trainer.model.merged_attention import merged_attention

NAME = "shared_prefix"


def shared_prefix_attention(
    module: torch.nn.Module,
    query: torch.Tensor,  # (1, H, N, D)
    key: torch.Tensor,  # (1, Hkv, N, D)
    value: torch.Tensor,  # (1, Hkv, N, D)
    attention_mask: torch.Tensor | None,
    plan: Sequence[Call],
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Return output (1, N, H, D). Dropout is refused: it would differ between the copies of a shared token."""
    if dropout:
        raise UnsharedError("shared-prefix attention needs attention_dropout 0")
    if softcap is not None or s_aux is not None:
        raise UnsharedError(
            "shared-prefix attention has no soft cap on scores and no attention sinks, which this model uses"
        )
    query, key, value = query[0].transpose(0, 1), key[0].transpose(0, 1), value[0].transpose(0, 1)  # (N, H, D)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return merged_attention(query, key, value, plan, scale)[None], None


AttentionInterface.register(NAME, shared_prefix_attention)


class UnsharedError(ValueError):
    """A shared prefix would not give this model's numbers."""


def use_shared_prefix(model: PreTrainedModel) -> None:
    """Switch a model to packed prefix trees. Raises UnsharedError for architectures where they are not exact."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"}:
        raise UnsharedError(f"shared prompts need full attention in every layer, this model has {sorted(kinds)}")
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        raise UnsharedError("shared prompts need full attention, this model has a sliding window")
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rope in ("dynamic", "longrope"):
        raise UnsharedError(f"the angles of {rope} rope depend on the packed length")
    if any(getattr(config, name, None) for name in ("num_experts", "num_local_experts", "n_routed_experts")):
        raise UnsharedError("this is a mixture of experts, and routing may depend on the whole batch")
    model.set_attn_implementation(NAME)
    # transformers only warns where it cannot set it, and claims to have set it for models without attention (xLSTM)
    if config._attn_implementation != NAME or not model.is_backend_compatible():
        raise UnsharedError(
            f"transformers does not give {type(model).__name__} its AttentionInterface, so its attention cannot be "
            "replaced"
        )


def hidden_states(model: PreTrainedModel, batch: PackedBatch) -> torch.Tensor:
    """Return (M, hidden), the last hidden states that predict the batch's targets; prompt rows never reach the head."""
    output = model.base_model(
        input_ids=batch.token_ids, position_ids=batch.position_ids, use_cache=False, plan=batch.plan
    )
    return output.last_hidden_state[0, batch.predict_from]
