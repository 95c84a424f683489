"""One policy-gradient step on a group: shared prompts against dense copies and against TRL, on the same weights and tokens.

    python -m tests.benchmarks.learner --out tests/benchmarks/results/learner_cpu.json

shared  ours: the prompt runs once (trainer/packing.py, trainer/attention.py), head fused
dense   ours, but every completion brings its own copy of the prompt, head fused
trl     `GRPOTrainer.compute_loss` of TRL with its own defaults
All compute GRPO's loss at ratio one, mean over tokens, KL off. Gaps are against `dense`: largest log-prob difference and
relative L2 difference of the whole gradient. `seconds` is forward and backward.
"""

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from tests.benchmarks.common import device, peak_mb, seconds, write
from trainer.head import LossOutput, Objective
from trainer.losses import LossConfig, grpo
from trainer.packing import TrainSequence, build_tree, dense_tree, pack_on
from trainer.policy import Policy
from trainer.rows import Rows

GROUP = 8


@dataclass(frozen=True)
class Shape:
    prompt: int
    response: int
    dtype: torch.dtype = torch.float32
    sizes: str = "small"


SIZES = {
    # Qwen3-1.7B with every width divided by four (its heads are 128 wide, as in every Qwen3), and 4 layers
    "small": dict(hidden_size=512, intermediate_size=1536, num_hidden_layers=4, num_attention_heads=4,
                  num_key_value_heads=2, head_dim=128, vocab_size=8192),
    # heads of 32: the exponentials of attention take a larger share, and sharing saves less of those than of GEMMs
    "narrow": dict(hidden_size=256, intermediate_size=768, num_hidden_layers=4, num_attention_heads=8,
                   num_key_value_heads=4, head_dim=32, vocab_size=8192),
    # Qwen3-4B
    "4b": dict(hidden_size=2560, intermediate_size=9728, num_hidden_layers=36, num_attention_heads=32,
               num_key_value_heads=8, head_dim=128, vocab_size=151_936),
}  # fmt: skip
CPU_SHAPES = [Shape(512, 128), Shape(2048, 128), Shape(2048, 128, sizes="narrow")]
GPU_SHAPES = [Shape(6144, 512, torch.bfloat16, "4b"), Shape(2048, 512, torch.bfloat16, "4b")]


def model_of(shape: Shape) -> Qwen3ForCausalLM:
    torch.manual_seed(0)
    config = Qwen3Config(**SIZES[shape.sizes], tie_word_embeddings=True, max_position_embeddings=32768)
    with torch.device(device()):
        return Qwen3ForCausalLM(config).to(shape.dtype)


def tokens_of(shape: Shape) -> tuple[list[int], list[list[int]], list[float]]:
    """A prompt, a group of responses to it and their advantages."""
    generator = torch.Generator().manual_seed(1)
    draw = torch.randint(
        SIZES[shape.sizes]["vocab_size"], (shape.prompt + GROUP * shape.response,), generator=generator
    )
    ids = draw.tolist()
    responses = [ids[shape.prompt + k * shape.response :][: shape.response] for k in range(GROUP)]
    return ids[: shape.prompt], responses, torch.randn(GROUP, generator=generator).tolist()


def ours(shape: Shape, shared: bool) -> tuple[torch.nn.Module, Callable[[], LossOutput]]:
    prompt, responses, advantages = tokens_of(shape)
    sequences = [
        TrainSequence(
            prompt_token_ids=tuple(prompt),
            completion_token_ids=tuple(response),
            values={"advantage": (advantage,) * len(response)},
        )
        for response, advantage in zip(responses, advantages, strict=True)
    ]
    trees = [build_tree(sequences)] if shared else [dense_tree(sequence) for sequence in sequences]
    policy, packed = Policy(model_of(shape)).train(), pack_on(trees, device())
    zeros = torch.zeros_like(packed.values["advantage"])
    rows = Rows(
        scale=torch.full_like(zeros, 1 / len(zeros)),
        behaviour_logprobs=None,
        rollout_logprobs=zeros,
        ref_logprobs=None,
        advantage=packed.values["advantage"],
        weight=zeros + 1,
        truncated=zeros,
        sequence=packed.sequence,
    )
    objective = Objective(loss=grpo, config=LossConfig(name="grpo", kl_coef=0), rows=rows)
    return policy, partial(policy, packed, 1.0, objective)


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
        gradient_checkpointing=False,
        report_to=[],
    )
    trainer = GRPOTrainer(
        model=model_of(shape),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=config,
        train_dataset=Dataset.from_list([{"prompt": "a"}] * GROUP),
        processing_class=tokenizer,
    )
    prompt, responses, advantages = tokens_of(shape)
    inputs = {
        "prompt_ids": torch.tensor([prompt] * GROUP),
        "completion_ids": torch.tensor(responses),
        "advantages": torch.tensor(advantages),
        "num_items_in_batch": torch.tensor(GROUP * shape.response),
    }
    inputs |= {f"{part}_mask": torch.ones_like(inputs[f"{part}_ids"]) for part in ("prompt", "completion")}
    inputs = {name: tensor.to(device()) for name, tensor in inputs.items()}
    trainer.current_gradient_accumulation_steps = 1  # its training loop sets this
    model = trainer.model.train()
    return model, partial(trainer.compute_loss, model, inputs)


IMPLEMENTATIONS = {"shared": partial(ours, shared=True), "dense": partial(ours, shared=False), "trl": trl}


def loss_of(output: LossOutput | torch.Tensor) -> torch.Tensor:
    return output.loss if isinstance(output, LossOutput) else output


def step(model: torch.nn.Module, forward: Callable[[], LossOutput | torch.Tensor]) -> None:
    model.zero_grad()
    loss_of(forward()).backward()


def prepare_step(name: str, shape: Shape) -> Callable[[], object]:
    small = Shape(16, 4, shape.dtype, "narrow")
    step(*IMPLEMENTATIONS[name](small))
    return partial(step, *IMPLEMENTATIONS[name](shape))


def gradient(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.grad.flatten().double().cpu() for parameter in model.parameters()])


def row(name: str, shape: Shape, dense: dict) -> dict:
    described = {"impl": name, "G": GROUP, "P": shape.prompt, "R": shape.response}
    described["dtype"] = str(shape.dtype).removeprefix("torch.")
    named = {"hidden_size": "hidden", "vocab_size": "vocab", "head_dim": "head_dim"}
    described |= {name: SIZES[shape.sizes][key] for key, name in named.items()}
    try:
        model, forward = IMPLEMENTATIONS[name](shape)
    except ImportError as error:
        return described | {"note": f"not installed: {error}"}
    step(model, forward)
    found = {"loss": loss_of(forward()).item(), "gradient": gradient(model)}
    if name != "trl":
        found["logprobs"] = forward().head.logprobs
    if name == "dense":
        dense |= found
    gaps = {"loss": found["loss"]}
    if name != "dense":
        gaps["gradient_gap"] = ((found["gradient"] - dense["gradient"]).norm() / dense["gradient"].norm()).item()
    if name == "shared":
        gaps["logprob_gap"] = (found["logprobs"] - dense["logprobs"]).abs().max().item()
    measured = {"seconds": seconds(partial(step, model, forward))}
    return described | measured | gaps | {"peak_mb": peak_mb(partial(prepare_step, name, shape))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=Path)
    args = parser.parse_args()
    rows = []
    for shape in GPU_SHAPES if device().type == "cuda" else CPU_SHAPES:
        dense: dict = {}
        for name in ("dense", "shared", "trl"):
            rows.append(row(name, shape, dense))
            print(rows[-1], flush=True)
            write(args.out, rows)


if __name__ == "__main__":
    main()
