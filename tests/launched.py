"""What a launcher started: every rank writes what it sees into OUT. tests/test_launch.py starts this with launch/*.sh.

launch/multinode.sh tests.launched OUT
"""

import json
import os
import sys
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState
from torch import distributed


def plain(accelerator: Accelerator) -> dict:
    total = accelerator.reduce(torch.tensor([float(2**accelerator.process_index)]))
    return {"backend": distributed.get_backend(), "sum": total.item()}


def num_bytes(tensors) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def train(engine) -> dict:
    """One optimizer step of two micro-batches, and what DeepSpeed keeps for it on this rank."""
    import deepspeed

    from tests.distributed_policy import loss_of, num_tokens, trees_of

    rank, ranks, stage = distributed.get_rank(), distributed.get_world_size(), engine.zero_optimization_stage()
    weight = engine.module.model.model.layers[0].mlp.up_proj.weight
    with deepspeed.zero.GatheredParameters(weight, enabled=stage == 3):
        before = weight.detach().clone()
    for number in range(2):
        loss = loss_of(engine, trees_of(rank, number), num_tokens(number, range(ranks)), ranks)
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
    moments = [
        value
        for state in keeper.optimizer.state.values()
        for name, value in state.items()
        if name.startswith("exp_avg")
    ]
    with deepspeed.zero.GatheredParameters(weight, enabled=stage == 3):
        moved = not torch.equal(weight.detach(), before)
    return {
        "engine": type(engine).__name__,
        "stage": stage,
        "clipping": engine.gradient_clipping(),
        "moved": moved,
        "bytes": kept | {"moments": num_bytes(moments)},
    }


def zero() -> dict:
    """Under the DeepSpeed file that the launcher named, and under zero3.json."""
    import deepspeed

    from tests.distributed_policy import make_policy

    # gloo is enough: DeepSpeed would compile its shared-memory kernels first, and wait forever for a killed compiler's lock
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="gloo")
    state = PartialState()  # without CUDA it leaves these at one process
    state.num_processes, state.process_index = distributed.get_world_size(), distributed.get_rank()
    state.local_process_index = int(os.environ["LOCAL_RANK"])
    policies = [make_policy(tied=True, checkpointing=False).to(torch.bfloat16) for _ in range(2)]
    optimizers = [torch.optim.AdamW(policy.parameters(), lr=0.1) for policy in policies]
    count = sum(parameter.numel() for parameter in policies[0].parameters())
    accelerator = Accelerator()
    accelerator.prepare(policies[0], optimizers[0])
    third, *_ = deepspeed.initialize(
        model=policies[1], optimizer=optimizers[1], config=json.loads(Path("configs/deepspeed/zero3.json").read_text())
    )
    return {"parameters": count, "runs": [train(accelerator.deepspeed_engine_wrapped.engine), train(third)]}


def main() -> None:
    out = Path(sys.argv[1])
    seen = zero() if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true" else plain(Accelerator(cpu=True))
    rank = distributed.get_rank()
    seen |= {"rank": rank, "local_rank": int(os.environ["LOCAL_RANK"]), "ranks": distributed.get_world_size()}
    (out / f"{rank}.json").write_text(json.dumps(seen), encoding="utf-8")
    distributed.barrier()  # a rank that leaves first would abort the other
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
