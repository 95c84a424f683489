"""Attention over packed prefix trees, for any transformers decoder, through `AttentionInterface`.

Tokens that several sequences share stand once in the packed row, and attention reads them there
(merged_attention.py). Recurrent layers beside it are those of tree_recurrence.py. Experts may be mixed: a token's route
depends on the token alone, as long as nothing is dropped and no noise is drawn. The results equal those of dense copies
of every sequence.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
from transformers import AttentionInterface, PreTrainedConfig, PreTrainedModel

from trainer.batching.attention_plan import Call
from trainer.batching.packing import PackedBatch
from trainer.model.merged_attention import UnsharedError, merged_attention
from trainer.model.tree_recurrence import (
    FORWARDS,
    KINDS,
    recurrence_plan,
    recurrent_layers,
    run_alone,
    run_on_trees,
)

NAME = "shared_prefix"
LAYER_KINDS = {"full_attention", "sliding_attention"}


def shared_prefix_attention(
    module: torch.nn.Module,
    query: torch.Tensor,  # (1, H, N, D)
    key: torch.Tensor,  # (1, Hkv, N, D)
    value: torch.Tensor,  # (1, Hkv, N, Dv), Dv at most D
    attention_mask: torch.Tensor | None,
    plan: Sequence[Call],
    window_plans: Mapping[int, Sequence[Call]] = MappingProxyType({}),
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,  # (H,), the scores of attention sinks
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Return output (1, N, H, Dv). Dropout is refused: it would differ between the copies of a shared token."""
    if dropout:
        raise UnsharedError("shared-prefix attention needs attention_dropout 0")
    if window_plans or sliding_window is not None:
        _check_window(module, sliding_window)
        plan = plan if sliding_window is None else window_plans[sliding_window]
    query, key, value = query[0].transpose(0, 1), key[0].transpose(0, 1), value[0].transpose(0, 1)  # (N, H, D)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    width = value.shape[-1]
    if width < query.shape[-1]:  # kernels take one width (DeepSeek's values are narrower)
        value = torch.nn.functional.pad(value, (0, query.shape[-1] - width))
    return merged_attention(query, key, value, plan, scale, softcap, s_aux)[None, ..., :width], None


AttentionInterface.register(NAME, shared_prefix_attention)


def _check_window(module: torch.nn.Module, told: int | None) -> None:
    """Refuse a layer that tells another window than its config: some have theirs in a mask alone, which is not read."""
    expected = layer_windows(module.config)[module.layer_idx]
    if told != expected:
        raise UnsharedError(
            f"layer {module.layer_idx} has a sliding window of {expected} by its config and tells its attention {told}"
        )


def layer_windows(config: PreTrainedConfig) -> list[int | None]:
    """Return the size of each layer's sliding window; None: it has full attention."""
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
    return [window if kind == "sliding_attention" else None for kind in kinds]


def windows_of(model: PreTrainedModel) -> tuple[int, ...]:
    """Return the sizes of a model's sliding windows: those that its batches are packed for."""
    config = model.config.get_text_config()
    if getattr(config, "sliding_window", None) is None:
        return ()
    return tuple(sorted({window for window in layer_windows(config) if window is not None}))


def use_shared_prefix(model: PreTrainedModel) -> None:
    """Switch a model to packed prefix trees. Raises UnsharedError for architectures where they are not exact."""
    config = model.config.get_text_config()
    layers = getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None) or ["full_attention"]
    recurrent = recurrent_layers(model)
    # a layer of such a kind that is not among them is of an architecture that is not known here
    known = LAYER_KINDS | set(KINDS if len(recurrent) == sum(kind in KINDS for kind in layers) else ())
    if not known.issuperset(layers):
        raise UnsharedError(
            "shared prompts need full or sliding attention in every layer, or a recurrence among "
            f"{', '.join(FORWARDS)}; {type(model).__name__} has {sorted(set(layers))}"
        )
    if lengthwise := _rope_types(config) & {"dynamic", "longrope"}:
        raise UnsharedError(f"the angles of {lengthwise.pop()} rope depend on the packed length")
    if by_batch := _routing_by_batch(model):
        raise UnsharedError(
            f"{by_batch} lets a token's experts depend on more than the token: set it to 0 in config.json"
        )
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


def _rope_types(config: PreTrainedConfig) -> set[str]:
    """Return the kinds of rotary positions; models with windows may have one for each kind of layer."""
    rope = getattr(config, "rope_parameters", None) or {}
    each = [rope] if "rope_type" in rope else [kind for kind in rope.values() if isinstance(kind, Mapping)]
    return {kind.get("rope_type", "default") for kind in each}


def _routing_by_batch(model: PreTrainedModel) -> str | None:
    """Name a setting by which routers draw noise or drop tokens, as name=value."""
    for module in model.modules():
        for name, value in vars(module).items():
            if isinstance(value, int | float) and value and ("jitter" in name or "capacity" in name):
                return f"{name}={value}"
    return None


def hidden_states(model: PreTrainedModel, batch: PackedBatch) -> torch.Tensor:
    """Return (M, hidden), the last hidden states that predict the batch's targets; prompt rows never reach the head."""
    output = model.base_model(
        input_ids=batch.token_ids, position_ids=batch.position_ids, use_cache=False, **plans_of(model, batch)
    )
    return output.last_hidden_state[0, batch.predict_from]


def plans_of(model: PreTrainedModel, batch: PackedBatch) -> dict[str, object]:
    """Return what a model's layers have to be told of a batch, by the names that transformers hands on to them."""
    unplanned = set(windows_of(model)) - batch.window_plans.keys()
    assert not unplanned, f"the batch is not packed for sliding windows of {unplanned}: pack_on(..., policy.windows)"
    plans: dict[str, object] = {"plan": batch.plan}
    if batch.window_plans:
        plans["window_plans"] = batch.window_plans
    if recurrent := recurrent_layers(model):
        # LFM2's layers hand on what has this name and nothing else
        plans["seq_idx"] = recurrence_plan(recurrent[0], batch.levels, model.get_input_embeddings().weight)
    return plans
