"""Attention over packed prefix trees, for any transformers decoder, through `AttentionInterface`.

Tokens that several sequences share stand once in the packed row, and attention reads them there
(merged_attention.py). Recurrent layers beside it are those of tree_recurrence.py. The results equal those of dense
copies of every sequence.
"""

from collections.abc import Sequence

import torch
from transformers import AttentionInterface, PreTrainedModel

from trainer.batching.attention_plan import Call
from trainer.batching.packing import PackedBatch
from trainer.model.merged_attention import merged_attention
from trainer.model.tree_recurrence import (
    FORWARDS,
    KINDS,
    recurrence_plan,
    recurrent_layers,
    run_alone,
    run_on_trees,
)

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
    layers = getattr(config, "layer_types", None) or ["full_attention"]
    recurrent = recurrent_layers(model)
    # a layer of such a kind that is not among them is of an architecture that is not known here
    known = {"full_attention", *(KINDS if len(recurrent) == sum(kind in KINDS for kind in layers) else ())}
    if not known.issuperset(layers):
        raise UnsharedError(
            "shared prompts need full attention in every layer, or a recurrence among "
            f"{', '.join(FORWARDS)}; {type(model).__name__} has {sorted(set(layers))}"
        )
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        raise UnsharedError("shared prompts need full attention, this model has a sliding window")
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rope in ("dynamic", "longrope"):
        raise UnsharedError(f"the angles of {rope} rope depend on the packed length")
    if any(getattr(config, name, None) for name in ("num_experts", "num_local_experts", "n_routed_experts")):
        raise UnsharedError("this is a mixture of experts, and routing may depend on the whole batch")
    model.set_attn_implementation(NAME)
    # transformers only warns where it cannot set it, and claims to have set it for models without attention
    # (xLSTM); Qwen3-Next and Qwen3.5 are given it without saying so
    if config._attn_implementation != NAME or not (model.is_backend_compatible() or recurrent):
        raise UnsharedError(
            f"transformers does not give {type(model).__name__} its AttentionInterface, so its attention cannot be "
            "replaced"
        )
    run_on_trees(recurrent)


def use_own_layers(model: PreTrainedModel, attention: str) -> None:
    """Undo `use_shared_prefix`, also where it was refused; `attention` is the implementation that a model had."""
    model.set_attn_implementation(attention)
    run_alone(recurrent_layers(model))


def hidden_states(model: PreTrainedModel, batch: PackedBatch) -> torch.Tensor:
    """Return (M, hidden), the last hidden states that predict the batch's targets; prompt rows never reach the head."""
    output = model.base_model(
        input_ids=batch.token_ids, position_ids=batch.position_ids, use_cache=False, **plans_of(model, batch)
    )
    return output.last_hidden_state[0, batch.predict_from]


def plans_of(model: PreTrainedModel, batch: PackedBatch) -> dict[str, object]:
    """Return what a model's layers have to be told of a batch, by the names that transformers hands on to them."""
    plans: dict[str, object] = {"plan": batch.plan}
    if recurrent := recurrent_layers(model):
        # LFM2's layers hand on what has this name and nothing else
        plans["seq_idx"] = recurrence_plan(recurrent[0], batch.levels, model.get_input_embeddings().weight)
    return plans
