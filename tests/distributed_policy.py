"""A policy without any loop around it, in one process or several (tests/both_loops.py runs it in both).

`train`: ten optimizer steps on a model whose head is not tied, a step's trees dealt unevenly. In one process with the
plain head; in several with the fused one, its Triton kernels interpreted (TRITON_INTERPRET=1 before Triton is first
imported). `skip_one`: a few, one of them with a nan. `kept_bytes`: what DeepSpeed keeps under the published files.
"""

import json
import random
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
from torch import distributed
from transformers import Qwen3Config, Qwen3ForCausalLM

from trainer.batching.loss_rows import cross_entropy
from trainer.batching.packing import Node, Share, TrainSequence, build_tree, pack
from trainer.configs import LossConfig, OptimConfig
from trainer.distributed.process_group import World, start_accelerator, zero_stage
from trainer.losses import TokenValues, adrpo
from trainer.model.head import LossFunction, row_kernels
from trainer.model.policy import Policy, windows
from trainer.optim import make_optimizer
from trainer.optimizer_step import Skips, make_objective, make_update, micro_step, named_weights

STEPS, NUM_TREES, MAX_TOKENS = 10, 3, 12
LOSSES = {"sft": cross_entropy, "rl": adrpo}


def is_first() -> bool:
    return not distributed.is_initialized() or distributed.get_rank() == 0


def make_policy(tied: bool, checkpointing: bool, head_impl: str = "auto") -> Policy:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=37, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, tie_word_embeddings=tied,
    )  # fmt: skip
    model = Qwen3ForCausalLM(config)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return Policy(model, head_impl).train()


def trees_of(step: int) -> list[Node]:
    """Three trees of two answers: two processes get two and one, a micro-batch holds one."""
    draw = random.Random(step)

    def sequence(prompt: tuple[int, ...], size: int) -> TrainSequence:
        values = TokenValues(
            rollout_logprobs=tuple(draw.uniform(-5, -3) for _ in range(size)),
            advantage=(draw.choice([-1.0, 0.5]),) * size,
            weight=(draw.choice([1.0, 4.0]),) * size,
            truncated=(0.0,) * size,
        )
        return TrainSequence(
            prompt_token_ids=prompt,
            completion_token_ids=tuple(draw.choices(range(37), k=size)),
            values=values,
        )

    trees = []
    for number in range(NUM_TREES):
        prompt = tuple(draw.choices(range(37), k=6))
        trees.append(build_tree([sequence(prompt, 1 + k + number) for k in range(2)]))
    return trees


def loss_function(loss, packed, scale: float) -> LossFunction:
    """What the head is given for a micro-batch; every token's loss is multiplied by `scale`."""
    scales = torch.full(packed.sequence.shape, scale)
    if loss is cross_entropy:
        return cross_entropy(scales)
    config = LossConfig(kl_coef=0, entropy_coef=0.01)
    return make_objective(loss, config, packed, scales, None, 1.0)


def train(loss) -> tuple[dict, dict[str, torch.Tensor]]:
    """What it ran on and the loss of each step; the final weights."""
    accelerator = start_accelerator(max_grad_norm=1.0)
    world = World.of(accelerator)
    impl = "triton" if world.size > 1 else "plain"
    policy = make_policy(tied=False, checkpointing=world.size > 1, head_impl=impl)
    policy, optimizer = accelerator.prepare(policy, make_optimizer(policy, OptimConfig(lr=0.01)))
    losses = []
    for step in range(STEPS):
        total = backward(accelerator, world, policy, loss, trees_of(step))
        accelerator.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(accelerator.reduce(total)))
    seen = {
        "ranks": accelerator.num_processes,
        "engine": type(policy).__name__,
        "stage": zero_stage(accelerator),
        "kernels": row_kernels(impl, accelerator.device).__name__,
        "losses": losses,
    }
    return seen, whole(accelerator, policy)


def backward(
    accelerator, world: World, policy, loss, trees: Sequence[Node], factor: float = 1.0, max_tokens: int = MAX_TOKENS
) -> torch.Tensor:
    """Gradients of a step on trees, this rank's times `factor`; this rank's part of the mean loss."""
    update = make_update(Share.of(trees), max_tokens, world, accelerator.device, windows=windows(policy))
    total = torch.zeros(())
    for packed, is_real, is_last in update.weighted():
        scale = world.size / update.num_tokens * is_real * factor
        with micro_step(accelerator, policy, is_last):
            output = policy(packed, 1.0, loss_function(loss, packed, scale))
            accelerator.backward(output.loss)
        total += is_real * output.metrics["loss"].sum() / update.num_tokens
    return total


def skip_one(steps: Sequence[int], poisoned: int | None) -> tuple[dict, dict[str, torch.Tensor]]:
    """These steps as the loops make them, rank 1's gradient nan in step `poisoned`; what was left out, the final
    weights.
    """
    accelerator = start_accelerator(max_grad_norm=1.0)
    world = World.of(accelerator)
    policy = make_policy(tied=False, checkpointing=False)
    policy, optimizer = accelerator.prepare(policy, make_optimizer(policy, OptimConfig(lr=0.01)))
    skips, left_out, weights = Skips(limit=1), [], [whole(accelerator, policy)]
    for step in steps:
        factor = float("nan") if step == poisoned and world.rank == 1 else 1.0
        backward(accelerator, world, policy, cross_entropy, trees_of(step), factor)
        norm = accelerator.clip_grad_norm_(policy.parameters(), 1.0)
        left_out.append(skips.should_skip(float(norm), []))
        if not left_out[-1]:
            optimizer.step()
        optimizer.zero_grad()
        weights.append(whole(accelerator, policy))
    moved = [any(not torch.equal(old[name], new[name]) for name in old) for old, new in pairwise(weights)]
    seen = {"engine": type(policy).__name__, "stage": zero_stage(accelerator), "left_out": left_out, "moved": moved}
    return seen, weights[-1]


def whole(accelerator, policy) -> dict[str, torch.Tensor]:
    return {name: weight.clone() for name, weight in named_weights(accelerator, policy)}


def num_bytes(tensors) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def kept_bytes(stage: int) -> dict:
    """One optimizer step under configs/deepspeed/zero{stage}.json, and what DeepSpeed keeps for it on this rank."""
    import deepspeed

    policy = make_policy(tied=True, checkpointing=False).to(torch.bfloat16)
    count = sum(parameter.numel() for parameter in policy.parameters())
    optimizer = torch.optim.AdamW(policy.parameters(), lr=0.1)
    config = json.loads(Path(f"configs/deepspeed/zero{stage}.json").read_text(encoding="utf-8"))
    engine, *_ = deepspeed.initialize(model=policy, optimizer=optimizer, config=config)
    weight = engine.module.model.model.layers[0].mlp.up_proj.weight
    with deepspeed.zero.GatheredParameters(weight, enabled=stage == 3):
        before = weight.detach().clone()
    for number in range(2):
        packed = pack([trees_of(0)[number]])
        loss = engine(packed, 1.0, loss_function(cross_entropy, packed, 0.1)).loss
        engine.set_gradient_accumulation_boundary(number == 1)
        engine.backward(loss)
    keeper = engine.optimizer
    if stage == 3:
        master, gradients = keeper.fp32_partitioned_groups_flat, [keeper.grad_partitions_flat_buffer]
    else:
        master = keeper.single_partition_of_fp32_groups
        gradients = [tensor for group in keeper.averaged_gradients.values() for tensor in group]
    kept = {"master": num_bytes(master), "gradients": num_bytes(gradients)}
    engine.step()
    states = keeper.optimizer.state.values()
    moments = [value for state in states for name, value in state.items() if name.startswith("exp_avg")]
    with deepspeed.zero.GatheredParameters(weight, enabled=stage == 3):
        moved = not torch.equal(weight.detach(), before)
    return {
        "parameters": count,
        "engine": type(engine).__name__,
        "stage": engine.zero_optimization_stage(),
        "clipping": engine.gradient_clipping(),
        "moved": moved,
        "bytes": kept | {"moments": num_bytes(moments)},
    }
