"""Memory of a model's forward and backward, counted without a GPU, weights or numbers.

The model's own code runs on PyTorch's `meta` device, whose tensors have a size and no content; every storage that an
operator makes is counted until it is freed. So the count follows the real architecture, real autograd and real
activation checkpointing, not a formula about them. Attention is replaced by a twin of
trainer/model/merged_attention.py that keeps and allocates what that file and FlashAttention do, and computes nothing.
Recurrent layers run as on trees, in the plain form: flash-linear-attention keeps less. The head has a formula in
estimate.py.
Letters: N packed tokens, H heads, Hkv key heads, D head width.
"""

import weakref
from dataclasses import replace
from typing import NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AttentionInterface, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from trainer.batching.recurrence_plan import CHUNK, RecurrencePlan
from trainer.batching.tree_levels import Level
from trainer.configs import LoRAConfig
from trainer.model.lora import add_adapters, trained_parameters
from trainer.model.tree_recurrence import recurrence_plan, recurrent_layers, run_on_trees

NAME = "shared_prefix_memory"
NODE_TOKENS = 512
"""Tokens of a node, assumed: in layers with a sliding window each node copies the keys in sight above it."""


class ActivationBytes(NamedTuple):
    saved: int
    """Bytes alive when the forward ends: what the backward needs."""
    peak: int
    """Most bytes in forward and backward. A weight's gradient counts until it is complete; estimate.py adds it up."""


def make_meta_model(config: PretrainedConfig, dtype: torch.dtype, lora: LoRAConfig | None = None) -> PreTrainedModel:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
        if lora is not None:
            add_adapters(model, lora)
    return model


def activation_bytes(
    config: PretrainedConfig,
    *,
    num_tokens: int,
    dtype: torch.dtype,
    checkpointing: bool,
    lora: LoRAConfig | None = None,
) -> ActivationBytes:
    """Return what the layers of a model need, embedding included, on one packed row of `num_tokens`."""
    model = make_meta_model(config, dtype, lora)
    model.set_attn_implementation(NAME)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    for parameter in trained_parameters(model):
        parameter.register_post_accumulate_grad_hook(lambda parameter: setattr(parameter, "grad", None))
    token_ids = torch.zeros(1, num_tokens, dtype=torch.int64, device="meta")
    plans = {}
    if recurrent := recurrent_layers(model):
        run_on_trees(recurrent)
        plans["seq_idx"] = _one_node(recurrent[0], token_ids)
    with Allocated([*model.parameters(), *model.buffers(), token_ids]) as memory:
        hidden = model.base_model(
            input_ids=token_ids, position_ids=token_ids, use_cache=False, **plans
        ).last_hidden_state
        saved = memory.now
        hidden.backward(torch.empty_like(hidden))
    return ActivationBytes(saved=saved, peak=memory.peak)


def _one_node(layer: torch.nn.Module, token_ids: torch.Tensor) -> RecurrencePlan:
    """Return the plan for one node, cut into pieces for the scan: that keeps as much in fewer rounds."""
    tokens = range(token_ids.shape[1])
    pieces = [tokens[start : start + 8 * CHUNK] for start in range(0, len(tokens), 8 * CHUNK)]
    whole, cut = (
        recurrence_plan(layer, [Level(parents=[0] * len(spans), spans=spans)], token_ids)
        for spans in ([tokens], pieces)
    )
    return replace(whole, scan=cut.scan)


class Allocated(TorchDispatchMode):
    """Counts the bytes of storages that operators made and nobody freed yet; those of `before` do not count."""

    def __init__(self, before: list[torch.Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in before}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._known:  # a view shares its storage
            self._known.add(key)
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._free, key, storage.nbytes())

    def _free(self, key: int, num_bytes: int) -> None:
        self._known.discard(key)
        self.now -= num_bytes


class _MergedMemory(torch.autograd.Function):
    """What `merged_attention` keeps and allocates for two levels of a tree (siblings below a shared prompt)."""

    @staticmethod
    def forward(ctx, query, key, value, num_copied):
        copies = _copies(key, value, num_copied)
        out, part = torch.zeros_like(query), torch.empty_like(query)
        lse = query.new_empty(query.shape[1], query.shape[0], dtype=torch.float32)
        del part, copies
        _ = out.float() + out.float()  # folding the prompt's part in
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.num_copied = num_copied
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        query, key, value, _out, _lse = ctx.saved_tensors
        gradient = gradient.contiguous()
        totals = [torch.zeros_like(tensor, dtype=torch.float32) for tensor in (query, key, value)]
        # FlashAttention-2: float32 sums for the queries, and keys and values with a copy for every query head
        workspace = [torch.empty_like(query, dtype=torch.float32), torch.empty_like(query), torch.empty_like(query)]
        found = [torch.empty_like(tensor) for tensor in (query, key, value)]
        copies = _copies(key, value, 2 * ctx.num_copied)  # and their gradients
        del workspace, found, copies
        totals = [total.to(tensor.dtype) for total, tensor in zip(totals, (query, key, value), strict=True)]
        return *totals, None


def _copies(key: torch.Tensor, value: torch.Tensor, count: int) -> list[torch.Tensor]:
    return [tensor.new_empty(count, *tensor.shape[1:]) for tensor in (key, value)]


def _attention_memory(module, query, key, value, attention_mask, sliding_window=None, **_):
    """Take query (1, H, N, D), key (1, Hkv, N, D) and value (1, Hkv, N, Dv); return an output (1, N, H, Dv) without
    content."""
    query, key, value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))  # (N, H, D)
    num_tokens, width = len(query), value.shape[-1]
    if width < query.shape[-1]:
        value = torch.nn.functional.pad(value, (0, query.shape[-1] - width))
    is_outgrown = sliding_window is not None and sliding_window < num_tokens
    num_copied = num_tokens + num_tokens * sliding_window // NODE_TOKENS if is_outgrown else 0
    return _MergedMemory.apply(query, key, value, num_copied)[None, ..., :width], None


AttentionInterface.register(NAME, _attention_memory)
