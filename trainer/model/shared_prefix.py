"""Attention over packed prefix trees, for any transformers decoder, through `AttentionInterface`.

Tokens that several sequences share stand once in the packed row, and attention reads them there
(merged_attention.py). The results equal those of dense copies of every sequence. Experts may be mixed: a token's route
depends on the token alone, as long as nothing is dropped and no noise is drawn.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
from transformers import AttentionInterface, PreTrainedConfig, PreTrainedModel

from trainer.batching.attention_plan import Call
from trainer.batching.packing import PackedBatch
from trainer.model.merged_attention import UnsharedError, merged_attention

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
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if not kinds <= LAYER_KINDS:
        raise UnsharedError(
            f"shared prompts need full or sliding attention in every layer, this model has {sorted(kinds)}"
        )
    if lengthwise := _rope_types(config) & {"dynamic", "longrope"}:
        raise UnsharedError(f"the angles of {lengthwise.pop()} rope depend on the packed length")
    if by_batch := _routing_by_batch(model):
        raise UnsharedError(
            f"{by_batch} lets a token's experts depend on more than the token: set it to 0 in config.json"
        )
    model.set_attn_implementation(NAME)
    # transformers only warns where it cannot set it, and claims to have set it for models without attention (xLSTM)
    if config._attn_implementation != NAME or not model.is_backend_compatible():
        raise UnsharedError(
            f"transformers does not give {type(model).__name__} its AttentionInterface, so its attention cannot be "
            "replaced"
        )


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
    unplanned = set(windows_of(model)) - batch.window_plans.keys()
    assert not unplanned, f"the batch is not packed for sliding windows of {unplanned}: pack_on(..., policy.windows)"
    plans = {"plan": batch.plan} | ({"window_plans": batch.window_plans} if batch.window_plans else {})
    output = model.base_model(input_ids=batch.token_ids, position_ids=batch.position_ids, use_cache=False, **plans)
    return output.last_hidden_state[0, batch.predict_from]
