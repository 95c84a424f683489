"""The processes of a run: started, given their share of work, and told when one of them is gone.

Every process holds the same list of sessions, samples and scores its own share, and gathers everybody's results: what
is computed from them (advantages, updates, lengths of a step) is then the same on all, without further communication.
Starting reads what `accelerate launch` put into the environment, and refuses what would quietly train alone.
"""

import os
import uuid
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TypeVar

import torch
from accelerate import Accelerator, DeepSpeedPlugin, InitProcessGroupKwargs, PartialState
from accelerate.utils import DistributedType
from torch import distributed
from transformers.integrations import unset_hf_deepspeed_config

from membuilder.errors import ConfigError
from trainer.distributed.heartbeat import Heartbeat, Home

Value = TypeVar("Value")

DEEPSPEED_TYPES = {"bf16": "bfloat16", "fp16": "float16"}
PATIENCE = timedelta(hours=1)
"""How long processes wait for one that still runs; a dead one is noticed at once, because its connection closes."""


BENDING = {
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": (
        "1",
        "it would divide every gradient by that; a step is sessions_per_step",
    ),
    "ACCELERATE_MIXED_PRECISION": ("no", "model.dtype is the type of the weights; launch with --mixed_precision no"),
}
"""What Accelerate reads from its environment and the loops do not expect: the value that changes nothing, and why."""


def start_accelerator(max_grad_norm: float, in_float32: bool = False) -> Accelerator:
    """Start one process, DDP or DeepSpeed, on CUDA or CPU, as launched. `max_grad_norm`: DeepSpeed clips by itself.

    `in_float32`: what is trained is float32 whatever DeepSpeed's file says, which would cast the whole model.
    """
    for name, (harmless, reason) in BENDING.items():
        if (value := os.environ.get(name, harmless)).lower() != harmless:
            raise ConfigError(f"{name}={value}: {reason}. Unset it, also in the file given to accelerate launch")
    on_cpu, launched = not torch.cuda.is_available(), int(os.environ.get("WORLD_SIZE", "1"))
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true":
        accelerator = _start_deepspeed(on_cpu, max_grad_norm, in_float32)
    else:
        accelerator = Accelerator(cpu=on_cpu, kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)])
    if accelerator.num_processes != launched:
        raise ConfigError(
            f"launched as {launched} processes but Accelerate made {accelerator.num_processes} of them: every "
            "one would train alone. Start with one of configs/accelerate/*.yaml"
        )
    return accelerator


def _start_deepspeed(on_cpu: bool, max_grad_norm: float, in_float32: bool) -> Accelerator:
    if on_cpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        import deepspeed

        # gloo is enough: DeepSpeed would compile its shared-memory kernels first, and wait forever for the lock of a
        # compilation that was killed
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed(dist_backend="gloo", timeout=PATIENCE)
        state = PartialState()  # without CUDA Accelerate leaves this at one process
        state.num_processes = distributed.get_world_size()
        state.process_index = distributed.get_rank()
        state.local_process_index = int(os.environ["LOCAL_RANK"])
    plugin = DeepSpeedPlugin()
    if in_float32:
        plugin.deepspeed_config |= {name: {"enabled": False} for name in DEEPSPEED_TYPES}
    plugin.deepspeed_config["gradient_clipping"] = max_grad_norm
    plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = 1  # ours are packed by tokens; DeepSpeed wants a number
    plugin.deepspeed_config["gradient_accumulation_steps"] = 1  # the loop says itself which backward is the last
    accelerator = Accelerator(deepspeed_plugin=plugin, kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)])
    # else, under ZeRO-3, transformers would partition whatever it loads from now on, the engine's and the reference's
    # too
    unset_hf_deepspeed_config()
    if accelerator.distributed_type is not DistributedType.DEEPSPEED:
        raise ConfigError(f"DeepSpeed was asked for, Accelerate made {accelerator.distributed_type}")
    return accelerator


def zero_stage(accelerator: Accelerator) -> int | None:
    """DeepSpeed's ZeRO stage; None without DeepSpeed."""
    if accelerator.distributed_type is not DistributedType.DEEPSPEED:
        return None
    return accelerator.state.deepspeed_plugin.zero_stage


def start_device(accelerator: Accelerator) -> torch.device:
    """Return where a model stands before it is wrapped: ZeRO-3 takes it apart on the host, it may fit nowhere else."""
    return torch.device("cpu") if zero_stage(accelerator) == 3 else accelerator.device


def deepspeed_dtype(accelerator: Accelerator) -> str | None:
    """The type in which DeepSpeed's own file says that weights are kept; None without DeepSpeed."""
    if accelerator.distributed_type is not DistributedType.DEEPSPEED:
        return None
    given = accelerator.state.deepspeed_plugin.deepspeed_config
    enabled = [name for key, name in DEEPSPEED_TYPES.items() if given.get(key, {}).get("enabled") is True]
    return enabled[0] if enabled else "float32"


def log_setup(accelerator: Accelerator, policy) -> None:
    """Say what a prepared policy really runs on: launchers are known to start one process and say nothing."""
    stage = zero_stage(accelerator)
    if accelerator.num_processes == 1 and stage is None:
        return  # as one expects
    zero = "" if stage is None else f", ZeRO stage {stage}"
    accelerator.print(f"{accelerator.num_processes} process(es) on {accelerator.device}, {type(policy).__name__}{zero}")


@dataclass(frozen=True, kw_only=True)
class World:
    rank: int = 0
    size: int = 1
    group: "distributed.ProcessGroup | None" = None
    """Gloo, also beside NCCL: only gloo can tell which process is missing."""
    heartbeat: Heartbeat | None = None

    @classmethod
    def of(cls, accelerator: Accelerator) -> "World":
        if accelerator.num_processes == 1:
            return cls()
        group = distributed.new_group(backend="gloo", timeout=PATIENCE)
        world = cls(rank=accelerator.process_index, size=accelerator.num_processes, group=group)
        born = world.gather((Home.here(), uuid.uuid4().hex))
        return replace(world, heartbeat=Heartbeat(run=born[0][1], rank=world.rank, homes=[home for home, _ in born]))

    def shard(self, costs: Sequence[float]) -> list[int]:
        """This process's items of a list in which item i is estimated to cost costs[i]."""
        return deal(costs, self.size)[self.rank]

    def gather(self, value: Value) -> list[Value]:
        """Everybody's value, in the order of ranks."""
        if self.size == 1:
            return [value]
        self.barrier()
        values: list = [None] * self.size
        distributed.all_gather_object(values, value, group=self.group)
        return values

    def gather_in_order(self, mine: Sequence[int], values: Sequence[Value]) -> list[Value]:
        """Results of dealt items, everybody's, in the order of the items. `mine`: what `shard` gave."""
        gathered = [pair for pairs in self.gather(list(zip(mine, values, strict=True))) for pair in pairs]
        return [value for _, value in sorted(gathered, key=lambda pair: pair[0])]

    def barrier(self) -> None:
        """Wait for everybody."""
        if self.size > 1:
            distributed.monitored_barrier(self.group, timeout=PATIENCE, wait_all_ranks=True)

    def watched(self) -> AbstractContextManager[None]:
        """Wrap all that talks to other processes: a RankError then names one that is gone, on whatever host."""
        return nullcontext() if self.heartbeat is None else self.heartbeat


def deal(costs: Sequence[float], num_ranks: int) -> list[list[int]]:
    """Indices dealt so that ranks cost about the same: the costliest first, each to the rank with the least so far."""
    totals = [0.0] * num_ranks
    dealt: list[list[int]] = [[] for _ in range(num_ranks)]
    for index in sorted(range(len(costs)), key=lambda index: -costs[index]):
        rank = totals.index(min(totals))
        dealt[rank].append(index)
        totals[rank] += costs[index]
    return [sorted(indices) for indices in dealt]
