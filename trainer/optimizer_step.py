"""An optimizer update over packed trees, on one process or many: who runs what, in which micro-steps."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from accelerate import Accelerator

from membuilder.errors import DivergedError
from trainer.batching.loss_rows import Rows
from trainer.batching.packing import Node, PackedBatch, count_loss_tokens, count_sequences, micro_batches, pack_on
from trainer.distributed.process_group import World, deal, zero_stage
from trainer.model.policy import Policy


@dataclass(frozen=True, kw_only=True, slots=True)
class Update:
    """What one process runs of an optimizer step. All processes have the same number of batches."""

    batches: list[PackedBatch]
    num_real: int
    """The batches after these belong to others: run without weight, so that collectives meet."""
    num_tokens: int
    """Loss tokens of the whole step, over all processes."""
    num_sequences: int
    """Completions of the whole step, over all processes."""
    ids: list[str]
    """Of all trees of the step."""

    def weighted(self) -> Iterator[tuple[PackedBatch, float, bool]]:
        """Every batch with the factor of its loss (1 or 0) and whether it is the last of the step."""
        for number, packed in enumerate(self.batches):
            yield packed, float(number < self.num_real), number == len(self.batches) - 1


def make_update(trees: Sequence[Node], max_tokens: int, world: World, device: torch.device) -> Update:
    """Trees dealt to processes by their tokens, a tree never cut, and packed into micro-batches of `max_tokens`."""
    dealt = deal([tree.num_tokens for tree in trees], world.size)
    batches = [micro_batches([trees[index] for index in indices], max_tokens) for indices in dealt]
    mine, most = batches[world.rank], max(map(len, batches))
    spare = [min(trees, key=lambda tree: tree.num_tokens)]
    return Update(
        batches=[pack_on(nodes, device) for nodes in mine + [spare] * (most - len(mine))],
        num_real=len(mine),
        num_tokens=sum(map(count_loss_tokens, trees)),
        num_sequences=sum(map(count_sequences, trees)),
        ids=[tree.id for tree in trees],
    )


def shares(trees: Sequence[Node], num_shares: int) -> list[list[Node]]:
    """The step's trees dealt to its updates, the longest first, so that each has about as much to learn from."""
    dealt = sorted(trees, key=count_loss_tokens, reverse=True)
    return [share for share in (dealt[start::num_shares] for start in range(num_shares)) if share]


@contextmanager
def micro_step(accelerator: Accelerator, policy, last: bool) -> Iterator[None]:
    """Around forward and backward of a micro-batch: gradients meet, and DeepSpeed steps, in the last one's backward."""
    accelerator.sync_gradients = last
    with nullcontext() if last else accelerator.no_sync(policy):
        yield


@torch.no_grad()
def remember_proximal(policy: Policy, updates: Sequence[Update], temperature: float) -> None:
    """Log-probs before the first of several updates, kept beside each batch's other values."""
    policy.eval()
    for update in updates:
        for packed in update.batches:
            packed.values["proximal_logprobs"] = policy(packed, temperature).logprobs


@torch.no_grad()
def loss_rows(packed: PackedBatch, scale: torch.Tensor, reference: Policy | None, temperature: float) -> Rows:
    """What the loss of a micro-batch needs besides the policy's own log-probs."""
    return Rows(
        scale=scale,
        proximal_logprobs=packed.values.get("proximal_logprobs"),
        rollout_logprobs=packed.values["rollout_logprobs"],
        ref_logprobs=None if reference is None else reference(packed, temperature).logprobs,
        advantage=packed.values["advantage"],
        weight=packed.values["weight"],
        truncated=packed.values["truncated"],
        sequence=packed.sequence,
    )


def named_weights(accelerator: Accelerator, policy) -> Iterator[tuple[str, torch.Tensor]]:
    """The whole model under its Hugging Face names, a tied head included: vLLM on CPU keeps a packed copy of it.

    Under ZeRO-3 all processes must draw it together; one parameter at a time is gathered, and copied because engines
    buffer a layer's tensors until the layer is complete.
    """
    weights = accelerator.unwrap_model(policy).model.state_dict(keep_vars=True).items()
    if zero_stage(accelerator) != 3:
        yield from ((name, tensor.detach()) for name, tensor in weights)
        return
    from deepspeed import zero

    for name, tensor in weights:
        with zero.GatheredParameters([tensor]):
            yield name, tensor.detach().clone()


@dataclass(kw_only=True)
class Skips:
    """Updates left out because their gradient was not finite, counted in a row."""

    limit: int
    in_a_row: int = 0

    def should_skip(self, norm: float, ids: Sequence[str]) -> bool:
        """Whether an update with this gradient norm is left out. DivergedError when more than `limit` were, in a row."""
        if math.isfinite(norm):
            self.in_a_row = 0
            return False
        self.in_a_row += 1
        if self.in_a_row > self.limit:
            raise DivergedError(
                f"{self.in_a_row} updates in a row had a gradient that is not finite (allowed: max_skipped={self.limit}), the "
                f"last on {', '.join(ids[:5])}; their sessions stand in skipped.jsonl. Lower optim.lr, or look at the data"
            )
        return True
