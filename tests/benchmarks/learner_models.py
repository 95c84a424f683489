"""The model, the sizes and the tokens that tests/benchmarks/learner.py measures on."""

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM, Qwen3NextConfig, Qwen3NextForCausalLM

from tests.benchmarks.common import device

GROUP = 8


@dataclass(frozen=True)
class Shape:
    prompt: int
    """Tokens that all prompts of the group begin with."""
    response: int
    dtype: torch.dtype = torch.float32
    sizes: str = "small"
    checkpointed: bool = False
    """Activations are computed again in the backward."""
    own: int = 0
    """Tokens of each prompt behind the shared ones, which no other has."""
    window: int | None = None
    """The size of a sliding window, in every layer."""


SIZES = {
    # Qwen3-1.7B with every width divided by eight, and by four; its heads are 128 wide, as in every Qwen3
    "small": dict(hidden_size=256, intermediate_size=768, num_hidden_layers=4, num_attention_heads=2,
                  num_key_value_heads=1, head_dim=128, vocab_size=8192),
    "medium": dict(hidden_size=512, intermediate_size=1536, num_hidden_layers=4, num_attention_heads=4,
                   num_key_value_heads=2, head_dim=128, vocab_size=8192),
    # Qwen3-4B
    "4b": dict(hidden_size=2560, intermediate_size=9728, num_hidden_layers=36, num_attention_heads=32,
               num_key_value_heads=8, head_dim=128, vocab_size=151_936),
    # of "small" three layers with Gated DeltaNet to one with attention, as in Qwen3-Next, and its proportions of heads
    "hybrid": dict(hidden_size=256, intermediate_size=768, num_hidden_layers=4, num_attention_heads=2,
                   num_key_value_heads=1, head_dim=128, vocab_size=8192, num_experts=0, linear_num_key_heads=2,
                   linear_num_value_heads=4, linear_key_head_dim=64, linear_value_head_dim=64),
}  # fmt: skip
PEAK_FLOPS = {"NVIDIA H100": 989e12, "NVIDIA H200": 989e12}
"""Dense bfloat16 matmuls per second by NVIDIA's data sheets (SXM)."""


def layer_weights(sizes: dict[str, int]) -> int:
    """Return the number of weights in a layer's matrix products."""
    heads, groups = (sizes[name] * sizes["head_dim"] for name in ("num_attention_heads", "num_key_value_heads"))
    return sizes["hidden_size"] * (2 * heads + 2 * groups + 3 * sizes["intermediate_size"])


def model_of(shape: Shape) -> PreTrainedModel:
    torch.manual_seed(0)
    sizes = SIZES[shape.sizes] | {"tie_word_embeddings": True, "max_position_embeddings": 32768}
    window = {"use_sliding_window": shape.window is not None, "sliding_window": shape.window, "max_window_layers": 0}
    with torch.device(device()):
        if shape.sizes == "hybrid":
            model = Qwen3NextForCausalLM(Qwen3NextConfig(**sizes))
        else:
            model = Qwen3ForCausalLM(Qwen3Config(**sizes, **window))
    for parameter in model.parameters():  # not its buffers: real runs keep the angles of positions in float32
        parameter.data = parameter.data.to(shape.dtype)
    if shape.checkpointed:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def tokens_of(shape: Shape) -> tuple[list[list[int]], list[list[int]], list[float]]:
    """The prompts of a group, a response to each and their advantages."""
    generator = torch.Generator().manual_seed(1)
    each = shape.own + shape.response
    ids = torch.randint(SIZES[shape.sizes]["vocab_size"], (shape.prompt + GROUP * each,), generator=generator).tolist()
    shared, own = ids[: shape.prompt], [ids[shape.prompt + k * each :][:each] for k in range(GROUP)]
    prompts, responses = [shared + ids[: shape.own] for ids in own], [ids[shape.own :] for ids in own]
    return prompts, responses, torch.randn(GROUP, generator=generator).tolist()
