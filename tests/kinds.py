"""A tiny model of each kind of architecture that prompts are shared for, and trees that their tests run on."""

import copy
import random
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GptOssConfig,
    Lfm2Config,
    Lfm2MoeConfig,
    MistralConfig,
    MixtralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3_5MoeTextConfig,
    Qwen3_5TextConfig,
    Qwen3MoeConfig,
    Qwen3NextConfig,
)

from tests.sequences import sequence
from trainer import tiny
from trainer.batching.packing import Node, TrainSequence

VOCABULARY = 48
SIZES = dict(
    vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, bos_token_id=1, eos_token_id=2, pad_token_id=0,
)  # fmt: skip
HEADS = SIZES | dict(head_dim=32)  # the least that vLLM's attention takes on a CPU
DELTA = HEADS | dict(
    layer_types=["linear_attention", "full_attention", "linear_attention"], linear_num_key_heads=2,
    linear_num_value_heads=4, linear_key_head_dim=6, linear_value_head_dim=10,
)  # fmt: skip
SHORT = SIZES | dict(
    hidden_size=64, num_attention_heads=2, num_key_value_heads=1, layer_types=["conv", "full_attention", "conv"],
    conv_bias=True,
)  # fmt: skip
WINDOW = dict(sliding_window=5)
MIXED = dict(layer_types=["sliding_attention", "full_attention", "sliding_attention"])
LOCAL = dict(num_local_experts=4, num_experts_per_tok=2)
EXPERTS = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=8)
ROUTED = EXPERTS | dict(shared_expert_intermediate_size=8)
KINDS: dict[str, PreTrainedConfig] = {
    "window": MistralConfig(**HEADS, **WINDOW),
    "window, soft caps": Gemma2Config(
        **HEADS, **WINDOW, **MIXED, final_logit_softcapping=3.0, attn_logit_softcapping=2.0
    ),
    "window, norms": Gemma3TextConfig(**HEADS, **WINDOW, **MIXED),
    "window, experts": MixtralConfig(**HEADS, **WINDOW, **LOCAL),
    "window, sinks, experts": GptOssConfig(**HEADS, **WINDOW, **MIXED, **LOCAL),
    "experts": Qwen3MoeConfig(**HEADS, **EXPERTS),
    "delta": Qwen3_5TextConfig(**DELTA),
    "delta alone": Qwen3_5TextConfig(**DELTA | dict(layer_types=["linear_attention"] * 3)),
    "delta, experts": Qwen3NextConfig(**DELTA, **ROUTED),
    "delta, experts, one matrix each": Qwen3_5MoeTextConfig(**DELTA, **ROUTED),
    "delta, no experts": Qwen3NextConfig(**DELTA, num_experts=0),
    "convolution": Lfm2Config(**SHORT),
    "convolution, experts": Lfm2MoeConfig(**SHORT, **EXPERTS, num_dense_layers=1),
}
"""Name -> config; the experts of a mixture are as many as a few tokens leave some of them without one."""
LENGTHS = (0, 1, 2, 3, 7, 20)
"""Of nodes: empty, shorter than a convolution or a window, and longer than both."""


def make(config: PreTrainedConfig, dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    """Return a model whose weights are large enough for every part of it to matter."""
    torch.manual_seed(0)
    # experts in a loop: the grouped product that they use else has no float64
    model = AutoModelForCausalLM.from_config(copy.deepcopy(config), experts_implementation="eager").to(dtype)
    if getattr(config, "attn_logit_softcapping", None):
        model.set_attn_implementation("eager")  # as load_policy does: transformers' SDPA leaves the cap out
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.eval()


def write_folder(config: PreTrainedConfig, folder: Path) -> Path:
    """Write a model of such a config with a tokenizer beside it, as the commands take them."""
    tiny.make(folder, tiny.TinyFolderConfig(vocab_size=600, hidden_size=32, num_layers=1), seed=1)
    own = AutoModelForCausalLM.from_pretrained(folder).config
    changed = copy.deepcopy(config)
    changed.update({name: getattr(own, name) for name in ("vocab_size", "eos_token_id", "pad_token_id")})
    changed.update({"bos_token_id": None, "max_position_embeddings": 4096})
    (folder / "model.safetensors").unlink()
    make(changed, torch.float32).save_pretrained(folder)
    return folder


def random_tree(source: random.Random, depth: int, above: tuple[int, ...] = ()) -> Node:
    """A tree whose longest path has at most `depth` + 1 nodes; its leaves carry completions that begin on any node."""
    own = tuple(source.randrange(VOCABULARY) for _ in range(source.choice(LENGTHS)))
    if not depth and not above and not own:
        own = (5,)
    path = (*above, *own)
    children = [random_tree(source, depth - 1, path) for _ in range(source.choice((1, 2)))] if depth else []
    if children:
        return Node(token_ids=own, children=children)
    start = source.randrange(max(1, len(path) - 9), len(path) + 1)
    last = source.randrange(VOCABULARY)
    weights = [source.uniform(-1, 1) for _ in range(len(path) - start + 1)]
    return Node(token_ids=own, sequences=[sequence(path[:start], (*path[start:], last), advantage=weights)])


def trees_of(depth: int, seed: int = 0) -> list[Node]:
    source = random.Random(10 * depth + seed)
    return [random_tree(source, depth) for _ in range(2)]


def random_samples(number: int, seed: int = 1, apart: bool = False) -> list[TrainSequence]:
    """Samples of which each second begins like the one before; `apart`: none has a token of another."""
    source, samples = random.Random(seed), []
    for index in range(number):
        pool = range(index * VOCABULARY // number, (index + 1) * VOCABULARY // number) if apart else range(VOCABULARY)
        prompt = tuple(source.choices(pool, k=source.choice((1, 7, 13, 31))))
        if index % 2 and not apart:
            prompt = samples[-1].prompt_token_ids + prompt
        completion = tuple(source.choices(pool, k=source.choice((1, 2, 9))))
        weights = tuple(source.uniform(-1, 1) for _ in completion)
        samples.append(sequence(prompt, completion, advantage=weights))
    return samples
