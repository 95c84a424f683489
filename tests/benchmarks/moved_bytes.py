"""Bytes that a layer's operators besides matrix products and attention read and write for each token.

A Qwen3 of Qwen3-4B's widths runs on PyTorch's `meta` device, and the tensors of every operator are added up.
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AttentionInterface, Qwen3Config, Qwen3ForCausalLM

NUM_TOKENS = 512
WIDTHS = dict(hidden_size=2560, intermediate_size=9728, num_attention_heads=32, num_key_value_heads=8, head_dim=128)
LEFT_OUT = ("mm", "embedding", "empty", "detach", "_unsafe_view")
"""Parts of the names of operators that are matrix products, not in a layer, or move nothing."""


class Moved(TorchDispatchMode):
    """Counts the bytes of what operators read and write; a view moves nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        returned = func._schema.returns
        is_view = returned and all(each.alias_info is not None and not each.alias_info.is_write for each in returned)
        if not is_view and not any(part in func._schema.name for part in LEFT_OUT):
            tensors = (each for each in tree_leaves((args, kwargs, result)) if isinstance(each, torch.Tensor))
            self.bytes += sum(each.numel() * each.element_size() for each in tensors)
        return result


class _Nothing(torch.autograd.Function):
    """Attention that moves nothing."""

    @staticmethod
    def forward(ctx, query, key, value):
        ctx.save_for_backward(query, key, value)
        return torch.empty_like(query.transpose(1, 2))

    @staticmethod
    def backward(ctx, gradient):
        return tuple(map(torch.empty_like, ctx.saved_tensors))


def _attention(module, query, key, value, attention_mask, **_):
    return _Nothing.apply(query, key, value), None


AttentionInterface.register("nothing", _attention)


def moved_bytes() -> tuple[float, float]:
    """Return what a layer moves for each token in forward and backward, in bfloat16."""
    (first, first_back), (second, second_back) = (_of_model(layers) for layers in (1, 2))
    return (second - first) / NUM_TOKENS, (second_back - first_back) / NUM_TOKENS


def _of_model(num_layers: int) -> tuple[int, int]:
    config = Qwen3Config(**WIDTHS, num_hidden_layers=num_layers, vocab_size=64, attn_implementation="nothing")
    with torch.device("meta"):
        model = Qwen3ForCausalLM(config).to(torch.bfloat16).model.train()
    ids = torch.zeros(1, NUM_TOKENS, dtype=torch.int64, device="meta")
    with Moved() as forward:
        hidden = model(input_ids=ids, position_ids=ids, use_cache=False).last_hidden_state
    with Moved() as backward:
        hidden.backward(torch.empty_like(hidden))
    return forward.bytes, backward.bytes
