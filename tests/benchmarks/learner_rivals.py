"""What tests/benchmarks/learner.py measures ours against: TRL's GRPO loss, the prefix trees of its AsyncGRPO, and
PrefixGrouper.

`trl_tree` runs TRL's own packing, attention interface, head and loss. Only the attention kernel is another: TRL fetches
FlashAttention 3 from a hub, which a machine without a network cannot. PyTorch's flash kernel takes its place, the one
that ours runs on; on a CPU, where TRL has none, a loop over the segments.

`prefix_grouper` is what PrefixGrouper's README shows. It hands attention a padding mask of two dimensions, which of
transformers' kernels only FlashAttention 2 takes; here SDPA gets the causal mask that it stands for. verl 0.9.1 has the
same forward and calls it nowhere, so verl is only counted (tests/benchmarks/learner_counted.py).
"""

import tempfile
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from types import SimpleNamespace

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedTokenizerFast

from tests.benchmarks.common import device
from tests.benchmarks.learner_models import GROUP, Shape, model_of, tokens_of

NOTES = {
    "trl": {"note": "its defaults; 1.16 puts the head in chunks by itself and refuses Liger's fused head beside that"},
    "trl_tree": {"note": "its own packing, head and loss; attention by PyTorch's kernel in place of FlashAttention 3"},
    "prefix_grouper": {"note": "by its README: logits of every token; attention by SDPA in place of FlashAttention 2"},
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


def prefix_grouper(shape: Shape) -> tuple[torch.nn.Module, Callable[[], torch.Tensor]]:
    from prefix_grouper import PrefixGrouper

    AttentionInterface.register("grouped", grouped_attention)
    model = model_of(shape).train()
    model.set_attn_implementation("grouped")
    prompts, responses, advantages = tokens_of(shape)
    if shape.own:  # its groups have one prompt: each answer is a group
        prefix, sizes = torch.tensor(prompts), 1
    else:
        prefix, sizes = torch.tensor(prompts[:1]), GROUP
    prefix, suffix = prefix.to(device()), torch.tensor(responses, device=device())
    masks = torch.ones_like(prefix, dtype=torch.bool), torch.ones_like(suffix, dtype=torch.bool)
    grouper = PrefixGrouper.from_ungrouped_masks(*masks, group_sizes=sizes, device=device())
    token_ids = grouper.concat_input(prefix, masks[0], suffix, masks[1])
    start = prefix.shape[1]
    own = torch.arange(start, start + shape.response, device=device()).repeat(sizes)
    position_ids = torch.cat([torch.arange(start, device=device()), own])[None].expand(len(prefix), -1)
    advantage = torch.tensor(advantages, device=device())[:, None]

    def loss() -> torch.Tensor:
        logits = model(input_ids=token_ids, position_ids=position_ids, use_cache=False, prefix_grouper=grouper).logits
        logits = grouper.split_output(logits, include_prefix_last=1)[2][:, :-1]
        logprobs = logits.gather(-1, suffix[..., None]).squeeze(-1) - logits.logsumexp(-1)
        ratio = (logprobs - logprobs.detach()).exp()
        return -(advantage * ratio).mean()

    return model, loss


def grouped_attention(module, query, key, value, attention_mask, prefix_grouper, scaling, **_):
    return prefix_grouper.forward(_causal, query, key, value, scaling), None


def _causal(
    query: torch.Tensor,  # (B, H, Q, D)
    key: torch.Tensor,  # (B, Hkv, K, D)
    value: torch.Tensor,  # (B, Hkv, K, D)
    is_token: torch.Tensor,  # (B, K), False at padding
    scale: float,
) -> torch.Tensor:
    """Return (B, Q, H, D): the last query sees every key."""
    assert is_token.all(), "answers of different lengths are not needed here"
    num_queries, num_keys = query.shape[2], key.shape[2]
    seen = None
    if num_queries < num_keys:
        seen = torch.ones(num_queries, num_keys, dtype=torch.bool, device=query.device).tril(num_keys - num_queries)
    out = scaled_dot_product_attention(query, key, value, seen, is_causal=seen is None, scale=scale, enable_gqa=True)
    return out.transpose(1, 2)


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
