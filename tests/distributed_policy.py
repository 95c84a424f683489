"""One policy on several gloo processes under DeepSpeed or DDP; tests/test_distributed.py starts this with torchrun.

    torchrun --nproc_per_node 2 tests/distributed_policy.py OUT MODE        MODE: ddp, zero2 or zero3

Every rank trains on its own trees (as many as its number plus one) for three steps,
once with a tied head and once without; rank 0 writes what it saw and the final weights.
"""

import json
import sys
from pathlib import Path

import deepspeed
import torch
from torch import distributed
from transformers import Qwen3Config, Qwen3ForCausalLM

from trainer.head import Objective
from trainer.losses import LossConfig, cross_entropy
from trainer.packing import TrainSequence, build_tree, pack
from trainer.policy import Policy
from trainer.rows import supervised_rows

STEPS, LEARNING_RATE = 3, 0.1


def make_policy(tied: bool, checkpointing: bool) -> Policy:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=37, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, tie_word_embeddings=tied,
    )  # fmt: skip
    model = Qwen3ForCausalLM(config)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return Policy(model).train()


def trees_of(rank: int, step: int) -> list:
    source = torch.Generator().manual_seed(100 * step + rank)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(37, (count,), generator=source).tolist())

    trees = []
    for number in range(rank + 1):
        prompt = tokens(6)
        trees.append(
            build_tree(
                [TrainSequence(prompt_token_ids=prompt, completion_token_ids=tokens(2 + k + number)) for k in range(3)]
            )
        )
    return trees


def num_tokens(step: int, ranks: range) -> int:
    return sum(len(pack(trees_of(rank, step)).targets) for rank in ranks)


def loss_of(policy, trees: list, count: int, ranks: int) -> torch.Tensor:
    """The rank's share of the mean over all tokens, times the ranks over which gradients are averaged."""
    batch = pack(trees)
    rows = supervised_rows(batch.sequence, count / ranks)
    return policy(batch, 1.0, Objective(loss=cross_entropy, config=LossConfig(kl_coef=0), rows=rows)).loss


def train_alone(ranks: int, tied: bool) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The same steps in one process on all ranks' trees: losses and weights."""
    policy, losses = make_policy(tied, checkpointing=False), []
    optimizer = torch.optim.SGD(policy.parameters(), lr=LEARNING_RATE)
    for step in range(STEPS):
        optimizer.zero_grad()
        count = num_tokens(step, range(ranks))
        total = 0.0
        for rank in range(ranks):
            loss = loss_of(policy, trees_of(rank, step), count, ranks=1)
            loss.backward()
            total += loss.item()
        optimizer.step()
        losses.append(total)
    return losses, {name: tensor.detach() for name, tensor in policy.named_parameters()}


def train_together(mode: str, tied: bool) -> tuple[dict, dict[str, torch.Tensor]]:
    """This rank's part of the run: what it ran on and its losses, and the final weights."""
    rank, ranks = distributed.get_rank(), distributed.get_world_size()
    policy = make_policy(tied, checkpointing=True)
    optimizer = torch.optim.SGD(policy.parameters(), lr=LEARNING_RATE)
    stage = None
    if mode == "ddp":
        engine = torch.nn.parallel.DistributedDataParallel(policy)
    else:
        zero = {"stage": int(mode.removeprefix("zero")), "stage3_param_persistence_threshold": 0}
        config = {
            "train_micro_batch_size_per_gpu": 1,
            "zero_optimization": zero,
            "zero_allow_untested_optimizer": True,
            "gradient_clipping": 0.0,  # DeepSpeed's own default clips at 1
        }
        engine, *_ = deepspeed.initialize(model=policy, optimizer=optimizer, config=config)
        stage = engine.zero_optimization_stage()
    losses = []
    for step in range(STEPS):
        loss = loss_of(engine, trees_of(rank, step), num_tokens(step, range(ranks)), ranks)
        if mode == "ddp":
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        else:
            engine.backward(loss)
            engine.step()
        total = loss.detach() / ranks
        distributed.all_reduce(total)
        losses.append(total.item())
    weights = {}
    for name, parameter in policy.named_parameters():
        with deepspeed.zero.GatheredParameters(parameter, enabled=stage == 3):
            weights[name] = parameter.detach().clone()
    return {"ranks": ranks, "engine": type(engine).__name__, "stage": stage, "losses": losses}, weights


def main() -> None:
    out, mode = Path(sys.argv[1]), sys.argv[2]
    # gloo is enough: DeepSpeed would compile its shared-memory kernels first, and wait forever for a killed compiler's lock
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="gloo")
    for name, tied in (("tied", True), ("untied", False)):
        seen, weights = train_together(mode, tied)
        if distributed.get_rank() == 0:
            torch.save(weights, out / f"{name}.pt")
            (out / f"{name}.json").write_text(json.dumps(seen), encoding="utf-8")
    distributed.barrier()  # a rank that leaves first would abort the other
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
