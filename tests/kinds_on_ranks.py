"""Models of several kinds, a few optimizer steps each, in one process or several (tests/test_kinds_on_ranks.py).

    accelerate launch --config_file configs/accelerate/cpu2.yaml tests/kinds_on_ranks.py OUT

Trees are deep and of odd lengths, some are split, and experts are so many that in each step some get no token.
"""

import copy
import json
import sys
from pathlib import Path

import torch
from torch import distributed
from transformers import PreTrainedModel

from tests.both_loops import as_new
from tests.distributed_policy import backward, is_first, whole
from tests.kinds import KINDS, make, trees_of
from trainer.batching.loss_rows import cross_entropy
from trainer.configs import Attention
from trainer.distributed.process_group import World, start_accelerator, zero_stage
from trainer.model.make_policy import make_policy

ON_RANKS = ["window", "window, soft caps", "window, sinks, experts", "delta, experts", "convolution, experts"]
STEPS, MAX_TOKENS, NUM_EXPERTS = 3, 60, 32


def model_of(kind: str) -> PreTrainedModel:
    config = copy.deepcopy(KINDS[kind])
    for name in ("num_experts", "num_local_experts"):
        if hasattr(config, name):
            setattr(config, name, NUM_EXPERTS)
    return make(config, torch.float32)


def count_routes(model: PreTrainedModel) -> dict[str, set[int]]:
    """Layer -> the experts that got a token; filled as the model runs."""
    routes: dict[str, set[int]] = {}

    def record(name: str, given: tuple, named: dict) -> None:
        (chosen,) = (
            each for each in (*given, *named.values()) if torch.is_tensor(each) and not each.is_floating_point()
        )
        routes.setdefault(name, set()).update(chosen.flatten().tolist())

    for name, module in model.named_modules():
        if type(module).__name__.endswith("Experts"):
            module.register_forward_pre_hook(
                lambda _, given, named, name=name: record(name, given, named), with_kwargs=True
            )
    return routes


def train(kind: str) -> tuple[dict, dict[str, torch.Tensor]]:
    """What it ran on, and the final weights.

    Plain gradient descent: AdamW would make whole steps of rounding. Small steps: with ten times as large ones the
    delta rule makes 5e-4 out of another order of sums, in one process too.
    """
    accelerator = start_accelerator(max_grad_norm=1.0)
    world = World.of(accelerator)
    policy = make_policy(model_of(kind), Attention.SHARED, accelerator.device).train()
    if world.size > 1:
        policy.model.gradient_checkpointing_enable({"use_reentrant": False})
    routes, idle = count_routes(policy.model), []
    policy, optimizer = accelerator.prepare(policy, torch.optim.SGD(policy.parameters(), lr=0.1))
    weights = [whole(accelerator, policy)]
    for step in range(STEPS):
        routes.clear()
        backward(accelerator, world, policy, cross_entropy, [*trees_of(5, step), *trees_of(2, step)], 1.0, MAX_TOKENS)
        accelerator.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        weights.append(whole(accelerator, policy))
        idle += [NUM_EXPERTS - len(used) for used in routes.values()]
    moved = max(float((weights[0][name] - weights[-1][name]).abs().max()) for name in weights[0])
    engine, stage = type(policy).__name__, zero_stage(accelerator)
    return {"ranks": world.size, "engine": engine, "stage": stage, "idle": idle, "moved": moved}, weights[-1]


def main(out: Path) -> None:
    out.mkdir(exist_ok=True)
    for kind in ON_RANKS:
        as_new()
        seen, weights = train(kind)
        if is_first():
            (out / f"{kind}.json").write_text(json.dumps(seen), encoding="utf-8")
            torch.save(weights, out / f"{kind}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    if distributed.is_initialized():
        distributed.barrier()  # a rank that leaves first would abort the other
        distributed.destroy_process_group()
