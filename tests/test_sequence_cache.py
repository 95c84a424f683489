"""What a sequence takes in an engine: by hand from published sizes, and as transformers' own caches hold it."""

import pytest
import torch
from transformers import DynamicCache, GptOssConfig, Lfm2Config, Qwen3_5TextConfig, Qwen3Config

from tests.kinds import KINDS, make
from tests.test_dry_run import config_of, part
from trainer.memory_estimate.dry_run import report
from trainer.memory_estimate.estimate import GIB, estimate
from trainer.memory_estimate.options import Launch
from trainer.memory_estimate.sequence_cache import sequence_cache

FOUR = ["linear_attention"] * 3 + ["full_attention"]
HYBRID = Qwen3_5TextConfig(
    num_hidden_layers=8, layer_types=FOUR * 2, num_attention_heads=16, num_key_value_heads=2, head_dim=256,
    linear_num_key_heads=16, linear_num_value_heads=32, linear_key_head_dim=128, linear_value_head_dim=128,
    linear_conv_kernel_dim=4, hidden_size=256, intermediate_size=512, vocab_size=1000,
)  # fmt: skip
GPT_OSS = GptOssConfig(
    num_hidden_layers=24, layer_types=["sliding_attention", "full_attention"] * 12, sliding_window=128,
    num_key_value_heads=8, head_dim=64,
)  # fmt: skip
LFM2 = Lfm2Config(
    num_hidden_layers=16, layer_types=["conv"] * 10 + ["full_attention"] * 6, hidden_size=2048, num_attention_heads=32,
    num_key_value_heads=8, conv_L_cache=3,
)  # fmt: skip
PLAIN = Qwen3Config(num_hidden_layers=36, num_key_value_heads=8, head_dim=128)
# keys and values of a token in one layer: 2 x heads x width x 2 bytes
BY_HAND = [
    (PLAIN, 1000, 36 * 1000 * 4096),
    (HYBRID, 0, 6 * (4 * (2 * 2048 + 4096) * 2 + 32 * 128 * 128 * 4)),  # 65,536 + 2,097,152 in each of six layers
    (HYBRID, 1000, 12_976_128 + 2 * 1000 * 2048),
    (GPT_OSS, 100, 24 * 100 * 2048),
    (GPT_OSS, 1000, 12 * 1000 * 2048 + 12 * 128 * 2048),
    (LFM2, 1000, 6 * 1000 * 2048 + 10 * 3 * 2048 * 2),
]


@pytest.mark.parametrize(("config", "length", "expected"), BY_HAND)
def test_by_hand(config, length, expected):
    assert sequence_cache(config, 2).bytes_of(length) == expected


@pytest.mark.parametrize("name", [name for name in KINDS if name != "delta alone"])  # transformers' has no length then
def test_as_transformers_keeps_it(name):
    """Its windows hold one token less, because the next one comes before the oldest leaves."""
    model, length = make(KINDS[name], torch.float32), 40
    cache = DynamicCache(config=model.config)
    model(input_ids=torch.arange(length)[None], past_key_values=cache, use_cache=True)
    tensors = [each for layer in cache.layers for value in vars(layer).values() for each in _tensors(value)]
    expected = sequence_cache(model.config, 4)
    outgrown = sum(window is not None for window in expected.windows)
    assert sum(each.nbytes for each in tensors) == expected.bytes_of(length) - outgrown * expected.token_bytes


def _tensors(value) -> list[torch.Tensor]:
    if isinstance(value, dict):
        return [each for inner in value.values() for each in _tensors(inner)]
    return [value] if isinstance(value, torch.Tensor) and value.is_floating_point() else []


def test_a_hybrid_has_room_for_more_and_is_decoded_prompt_by_prompt(tmp_path):
    HYBRID.save_pretrained(tmp_path)
    settings = dict(max_tokens=64, max_model_len=1000, rl=True)
    one = 12_976_128 + 4_096_000
    found = estimate(config_of(str(tmp_path), **settings), Launch())
    text = report(config_of(str(tmp_path), **settings), Launch())[0]
    assert f"{int(found.kv_bytes * 1000 / one):,} tokens, {int(found.kv_bytes / one)} sequences" in text
    parts = estimate(config_of(str(tmp_path), engine="transformers", num_rollouts=8, **settings), Launch()).parts
    assert part(parts, "KV cache").generate == 8 * one and 8 * one < GIB
