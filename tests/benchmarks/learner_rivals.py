"""What tests/benchmarks/learner.py measures ours against: TRL's GRPO loss, and the prefix trees of its AsyncGRPO.

`trl_tree` runs TRL's own packing, attention interface, head and loss. Only the attention kernel is another: TRL fetches
FlashAttention 3 from a hub, which a machine without a network cannot. PyTorch's flash kernel takes its place, the one
that ours runs on; on a CPU, where TRL has none, a loop over the segments.
"""

import tempfile
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from types import SimpleNamespace

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import PreTrainedTokenizerFast

from tests.benchmarks.common import device
from tests.benchmarks.learner_models import GROUP, Shape, model_of, tokens_of

NOTES = {
    "trl": {"note": "its defaults; 1.16 puts the head in chunks by itself and refuses Liger's fused head beside that"},
    "trl_tree": {"note": "its own packing, head and loss; attention by PyTorch's kernel in place of FlashAttention 3"},
}
CLIP = 0.2
COUNTERS = (
    "_step_forward_tokens", "_step_trained_tokens", "_step_seq_len_weighted", "_step_samples", "_step_forward_s",
)  # fmt: skip
"""What AsyncGRPOTrainer's loss adds to for its log."""


def trl(shape: Shape) -> tuple[torch.nn.Module, Callable[[], torch.Tensor]]:
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from trl import GRPOConfig, GRPOTrainer

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "</s>": 1}, unk_token="a")),
        eos_token="</s>",
        pad_token="</s>",
    )
    on_gpu = device().type == "cuda"
    config = GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=GROUP,
        num_generations=GROUP,
        beta=0.0,
        bf16=False,
        use_cpu=not on_gpu,
        gradient_checkpointing=shape.checkpointed,
        report_to=[],
    )
    trainer = GRPOTrainer(
        model=model_of(shape),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=config,
        train_dataset=Dataset.from_list([{"prompt": "a"}] * GROUP),
        processing_class=tokenizer,
    )
    prompts, responses, advantages = tokens_of(shape)
    inputs = {
        "prompt_ids": torch.tensor(prompts),
        "completion_ids": torch.tensor(responses),
        "advantages": torch.tensor(advantages),
        "num_items_in_batch": torch.tensor(GROUP * shape.response),
    }
    inputs |= {f"{part}_mask": torch.ones_like(inputs[f"{part}_ids"]) for part in ("prompt", "completion")}
    inputs = {name: tensor.to(device()) for name, tensor in inputs.items()}
    trainer.current_gradient_accumulation_steps = 1  # its training loop sets this
    model = trainer.model.train()
    return model, partial(trainer.compute_loss, model, inputs)


def trl_tree(shape: Shape) -> tuple[torch.nn.Module, Callable[[], torch.Tensor]]:
    from trl.experimental.async_grpo import async_grpo_trainer, packing
    from trl.trainer.utils import add_fused_lm_head

    packing.register_tree_attention()
    packing._flash_attn = lambda: SimpleNamespace(flash_attn_varlen_func=varlen_attention)
    model = model_of(shape).train()
    model.set_attn_implementation(packing.TREE_ATTENTION)
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    inputs = _packed(packing.TreeRow(), *tokens_of(shape))
    with torch.no_grad():  # the ratio is one where the old log-probs are the model's own
        tree = {name: inputs[name] for name in ("tree_kv_index", "tree_cu_seqlens_q", "tree_cu_seqlens_k")}
        longest = inputs["tree_max_seqlens"][0].tolist()
        tree |= dict(zip(("tree_max_seqlen_q", "tree_max_seqlen_k"), longest, strict=True))
        columns = {name: inputs[name] for name in ("input_ids", "position_ids", "shift_labels")}
        output = model(**columns, fused_lm_head=True, **tree)
        inputs["old_log_probs"] = output.log_probs.flatten()[inputs["token_index"]]
    whole = SimpleNamespace(gather=lambda x: x, reduce=lambda x, reduction: x, num_processes=1)
    trainer = SimpleNamespace(
        accelerator=whole,
        aux_loss_enabled=False,
        epsilon_low=CLIP,
        epsilon_high=CLIP,
        current_gradient_accumulation_steps=1,
        _metrics={"train": defaultdict(list)},
        **dict.fromkeys(COUNTERS, 0.0),
    )
    return model, partial(async_grpo_trainer.AsyncGRPOTrainer.compute_loss, trainer, model, inputs)


def _packed(
    row, prompts: list[list[int]], responses: list[list[int]], advantages: list[float]
) -> dict[str, torch.Tensor]:
    """Return a group as TRL's collator hands it to its loss: one row, with the counts of the step."""
    for prompt, response, advantage in zip(prompts, responses, advantages, strict=True):
        ids = torch.tensor(prompt + response)
        mask = torch.tensor([0] * len(prompt) + [1] * len(response))
        sample = {"input_ids": ids, "completion_mask": mask, "old_log_probs": torch.zeros(len(ids))}
        row.add(sample | {"advantage": advantage, "group_id": 0})
    packed = row.pack()
    packed["tree_max_seqlens"] = packed["tree_max_seqlens"][None]
    for name in ("input_ids", "position_ids", "shift_labels"):
        packed[name] = packed[name][None]
    packed["attention_mask"] = torch.ones_like(packed["input_ids"])
    trained = sum(map(len, responses))
    counts = {"global_n_tokens": trained, "global_n_forward_tokens": packed["input_ids"].numel()}
    counts["mean_seq_len"] = (sum(map(len, prompts)) + trained) / len(responses)
    packed |= {name: torch.tensor([float(count)]) for name, count in counts.items()}
    return {name: tensor.to(device()) for name, tensor in packed.items()}


def varlen_attention(
    query: torch.Tensor,  # (Q, H, D)
    key: torch.Tensor,  # (K, Hkv, D)
    value: torch.Tensor,  # (K, Hkv, D)
    query_bounds: torch.Tensor,  # (segments + 1,) int32
    key_bounds: torch.Tensor,  # (segments + 1,) int32
    max_queries: int,
    max_keys: int,
    softmax_scale: float,
    causal: bool,
    window_size: tuple[int, int],
) -> torch.Tensor:
    """Do what FlashAttention's function of that signature does: a segment's last query sees its last key."""
    assert causal and window_size == (-1, -1), "other masks are not needed here"
    if query.is_cuda:
        segments = (query_bounds, key_bounds, max_queries, max_keys)
        return torch.ops.aten._flash_attention_forward(
            query, key, value, *segments, 0.0, causal, False, scale=softmax_scale
        )[0]
    parts, bounds = [], (pairwise(each.tolist()) for each in (query_bounds, key_bounds))
    for (first, last), (start, stop) in zip(*bounds, strict=True):
        q, k, v = (each.transpose(0, 1) for each in (query[first:last], key[start:stop], value[start:stop]))
        seen = torch.ones(last - first, stop - start, dtype=torch.bool).tril(stop - start - (last - first))
        part = scaled_dot_product_attention(q, k, v, seen, scale=softmax_scale, enable_gqa=True)
        parts.append(part.transpose(0, 1))
    return torch.cat(parts)
