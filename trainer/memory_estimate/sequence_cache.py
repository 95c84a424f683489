"""What an engine keeps of a sequence that it is writing: keys and values, and the states of recurrent layers."""

from typing import NamedTuple

from transformers import PretrainedConfig

from trainer.model.shared_prefix import layer_windows

STATE_ITEM = 4
"""Bytes of a number in the state of a delta rule: engines keep it in float32, whatever the model's type."""


class SequenceCache(NamedTuple):
    """Bytes of one layer's keys and values for a token, the layers that keep them, and what the others keep."""

    token_bytes: int
    windows: tuple[int | None, ...]
    """Of each layer with attention: how many tokens it keeps at most; None: all of them."""
    state_bytes: int
    """Of all recurrent layers together, for a sequence of any length."""

    def bytes_of(self, length: int) -> int:
        """Return the bytes of a sequence of `length` tokens."""
        kept = sum(length if window is None else min(window, length) for window in self.windows)
        return kept * self.token_bytes + self.state_bytes


def sequence_cache(config: PretrainedConfig, item: int) -> SequenceCache:
    """Return the cache of a text model whose numbers have `item` bytes. Layers of no known kind count as attention."""
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    states = [_state_bytes(config, kind, item) for kind in kinds]
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return SequenceCache(
        token_bytes=2 * heads * head_dim * item,
        windows=tuple(w for w, state in zip(layer_windows(config), states, strict=True) if state is None),
        state_bytes=sum(state for state in states if state is not None),
    )


def _state_bytes(config: PretrainedConfig, kind: str, item: int) -> int | None:
    """Return the bytes of a recurrent layer's last inputs of its convolution and of its state; None: it has neither."""
    if kind == "conv":
        return config.conv_L_cache * config.hidden_size * item
    if kind == "linear_attention" and hasattr(config, "linear_num_value_heads"):
        keys = config.linear_num_key_heads * config.linear_key_head_dim
        values = config.linear_num_value_heads * config.linear_value_head_dim
        inputs = config.linear_conv_kernel_dim * (2 * keys + values)
        return inputs * item + values * config.linear_key_head_dim * STATE_ITEM
    return None
