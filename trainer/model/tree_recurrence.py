"""Recurrent layers over packed prefix trees: Gated DeltaNet (Qwen3-Next, Qwen3.5) and LFM2's gated short convolution.

A layer keeps its weights and submodules; only its forward is another one while prompts are shared. What stands at a
node's end, the last inputs of the convolution and the state of the recurrence, starts each of its children, and the
gradients of all children add up there. Letters: N packed tokens, C channels, H heads of values.
"""

import importlib.util
from collections.abc import Sequence
from types import MethodType

import torch
from torch.nn.functional import softplus
from transformers import PreTrainedModel
from transformers.activations import ACT2FN

from trainer.batching.recurrence_plan import Chunks, NodesCall, RecurrencePlan, chunks, nodes_calls, windows
from trainer.batching.tree_levels import Level
from trainer.kernels import plain_delta_rule
from trainer.kernels.path_convolution import path_convolution

KINDS = ("linear_attention", "conv")
"""What `layer_types` of a config calls the layers that are known here, and others that are not."""


def recurrence_plan(layer: torch.nn.Module, levels: Sequence[Level], like: torch.Tensor) -> RecurrencePlan:
    """Return the plan for a model's recurrent layers, of which any one is given, in the form for a weight's device."""
    (width,) = _convolution(layer).kernel_size
    scan = nodes_calls if _runs_on_fla(like) else chunks
    return RecurrencePlan(windows=windows(levels, width, like.device), scan=scan(levels, like.device))


def recurrent_layers(model: PreTrainedModel) -> list[torch.nn.Module]:
    """Return the layers that have a forward here."""
    return [module for module in model.modules() if type(module).__name__ in FORWARDS]


def run_on_trees(layers: Sequence[torch.nn.Module]) -> None:
    """Replace the forwards of `recurrent_layers`."""
    for layer in layers:
        layer.forward = MethodType(FORWARDS[type(layer).__name__], layer)


def run_alone(layers: Sequence[torch.nn.Module]) -> None:
    """Undo `run_on_trees`."""
    for layer in layers:
        vars(layer).pop("forward", None)


def gated_delta_net(layer, hidden_states: torch.Tensor, seq_idx: RecurrencePlan, **_: object) -> torch.Tensor:
    """Take and return (1, N, hidden)."""
    mixed, gate, beta, step = PROJECTIONS[type(layer).__name__](layer, hidden_states)
    mixed = ACT2FN[layer.activation](path_convolution(layer.conv1d, mixed[0], seq_idx.windows))
    query, key, value = mixed.split((layer.key_dim, layer.key_dim, layer.value_dim), -1)
    # in the types of transformers' own forward: A_log may overflow in float16
    log_decay = -layer.A_log.float().exp() * softplus(step[0].float() + layer.dt_bias)
    out = _kernels_for(seq_idx.scan).gated_delta_rule(
        query.unflatten(-1, (-1, layer.head_k_dim)),
        key.unflatten(-1, (-1, layer.head_k_dim)),
        value.unflatten(-1, (-1, layer.head_v_dim)),
        log_decay,
        beta[0].sigmoid(),
        seq_idx.scan,
    )
    out = layer.norm(out.flatten(0, 1), gate.reshape(-1, layer.head_v_dim))  # each head of each token by itself
    return layer.out_proj(out.view(1, -1, layer.value_dim))


def short_convolution(layer, hidden_states: torch.Tensor, seq_idx: RecurrencePlan, **_: object) -> torch.Tensor:
    """Take and return (1, N, hidden)."""
    before, after, inputs = layer.in_proj(hidden_states).chunk(3, -1)
    return layer.out_proj(after * path_convolution(layer.conv, (before * inputs)[0], seq_idx.windows))


def _next_projections(layer, hidden_states: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return queries, keys and values side by side (1, N, C), the output's gate, and beta and step (1, N, H)."""
    qkvz, ba = layer.in_proj_qkvz(hidden_states), layer.in_proj_ba(hidden_states)
    query, key, value, gate, beta, step = layer.fix_query_key_value_ordering(qkvz, ba)
    return torch.cat([each.flatten(2) for each in (query, key, value)], -1), gate, beta, step


def _projections(layer, hidden_states: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return the same of a layer that has one matrix for each."""
    inner = (layer.in_proj_qkv, layer.in_proj_z, layer.in_proj_b, layer.in_proj_a)
    return tuple(each(hidden_states) for each in inner)


# by name: not every release of transformers has them all, and their files would be loaded for models without them
PROJECTIONS = {
    "Qwen3NextGatedDeltaNet": _next_projections,
    "Qwen3_5GatedDeltaNet": _projections,
    "Qwen3_5MoeGatedDeltaNet": _projections,
}
FORWARDS = dict.fromkeys(PROJECTIONS, gated_delta_net) | dict.fromkeys(
    ("Lfm2ShortConv", "Lfm2MoeShortConv"), short_convolution
)


def _kernels_for(scan: Chunks | list[NodesCall]):
    """Return the module whose `gated_delta_rule` runs plans of this form."""
    if isinstance(scan, Chunks):
        return plain_delta_rule
    from trainer.kernels import fla_delta_rule  # only where its library is

    return fla_delta_rule


def _runs_on_fla(like: torch.Tensor) -> bool:
    is_short = like.dtype in (torch.bfloat16, torch.float16)
    return like.is_cuda and is_short and importlib.util.find_spec("fla") is not None


def _convolution(layer: torch.nn.Module) -> torch.nn.Conv1d:
    (found,) = (child for child in layer.children() if isinstance(child, torch.nn.Conv1d))
    return found
