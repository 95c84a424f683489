"""An optimizer update over packed prefix trees, on one process or many: who runs what, in which micro-steps."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace

import torch
from accelerate import Accelerator

from membuilder.errors import DivergedError
from trainer.batching.loss_rows import Objective
from trainer.batching.micro_batches import joined, micro_batches, split
from trainer.batching.packing import PackedBatch, Share, as_run, pack_on
from trainer.configs import Aggregation, LossConfig
from trainer.distributed.process_group import World, deal, zero_stage
from trainer.losses import Loss, sequence_lengths
from trainer.model.lora import WithoutAdapters, merged_weights
from trainer.model.policy import Policy


@dataclass(frozen=True, kw_only=True, slots=True)
class Update:
    """What one process runs of an optimizer step. All processes have the same number of micro-batches."""

    batches: list[PackedBatch]
    num_real: int
    """How many micro-batches count; later ones weigh nothing and keep pace with processes that have more of them."""
    num_tokens: int
    """Completion tokens that the loss is a mean over: of all processes, run or not."""
    num_sequences: int
    """Completions that the loss is a mean over, likewise."""
    num_packed_tokens: int
    """Tokens that all processes run: of prompts and completions, what a micro-batch shares once."""
    num_repeated_tokens: int
    """Those of them that are run again because trees larger than a micro-batch were split."""
    ids: list[str]
    """The sessions of all trees of the step, whichever process runs them."""

    def weighted(self) -> Iterator[tuple[PackedBatch, float, bool]]:
        """Yield every micro-batch with the factor of its loss (`is_real`: 1 or 0), and whether it is the last."""
        for number, packed in enumerate(self.batches):
            yield packed, float(number < self.num_real), number == len(self.batches) - 1

    def token_scale(self, aggregation: Aggregation, sequence: torch.Tensor, max_tokens: int) -> torch.Tensor:
        """(M,): what each token's loss is multiplied by before the sum over all tokens of the update.

        Both counts are of the whole update, so any split into micro-batches and ranks gives the same gradient.
        `sequence` (M,) says which completion a token belongs to; `max_tokens` is the longest completion allowed.
        """
        if aggregation is Aggregation.SEQUENCE:
            return 1 / (sequence_lengths(sequence, torch.float32) * self.num_sequences)
        divisor = self.num_tokens if aggregation is Aggregation.TOKEN else self.num_sequences * max_tokens
        return torch.full(sequence.shape, 1 / divisor, device=sequence.device)


def make_update(
    share: Share,
    max_tokens: int,
    world: World,
    device: torch.device,
    shares_prompts: bool = True,
    windows: Sequence[int] = (),
) -> Update:
    """Deal trees to processes by their tokens and pack them into micro-batches of `max_tokens`; larger ones are split.

    Where prompts are not shared, each sequence is a tree of its own, with the name of its session. `windows`: the sizes
    of the policy's sliding windows.
    """
    whole = as_run(share.trees, shares_prompts)
    trees = [part for tree in whole for part in split(tree, max_tokens)]
    dealt = deal([tree.num_tokens for tree in trees], world.size)
    batches = [micro_batches([trees[index] for index in indices], max_tokens) for indices in dealt]
    if shares_prompts:
        batches = [[joined(nodes) for nodes in of_process] for of_process in batches]
    mine, most = batches[world.rank], max(map(len, batches))
    spare = [min(trees, key=lambda tree: tree.num_tokens)]
    return Update(
        batches=[pack_on(nodes, device, windows) for nodes in mine + [spare] * (most - len(mine))],
        num_real=len(mine),
        num_tokens=share.num_tokens,
        num_sequences=share.num_sequences,
        num_packed_tokens=sum(node.num_tokens for of_process in batches for nodes in of_process for node in nodes),
        num_repeated_tokens=sum(tree.num_tokens for tree in trees) - sum(tree.num_tokens for tree in whole),
        ids=[tree.id for tree in share.trees],
    )


def packed_tokens(updates: Sequence[Update]) -> dict[str, float]:
    """Return what a step's updates run, over all processes, as its log names it."""
    return {
        "num_packed_tokens": float(sum(update.num_packed_tokens for update in updates)),
        "num_repeated_tokens": float(sum(update.num_repeated_tokens for update in updates)),
    }


@contextmanager
def micro_step(accelerator: Accelerator, policy, last: bool) -> Iterator[None]:
    """Run the forward and backward of a micro-batch inside.

    Gradients are summed over processes, and DeepSpeed steps, in the backward of the update's last micro-batch.
    """
    accelerator.sync_gradients = last
    with nullcontext() if last else accelerator.no_sync(policy):
        yield


@torch.no_grad()
def with_proximal(policy: Policy, updates: Sequence[Update], temperature: float) -> list[Update]:
    """Fill in `TokenValues.proximal_logprobs`: the policy's log-probs before the first of the updates."""
    policy.eval()

    def filled(packed: PackedBatch) -> PackedBatch:
        return replace(packed, values=replace(packed.values, proximal_logprobs=policy(packed, temperature).logprobs))

    return [replace(update, batches=[filled(packed) for packed in update.batches]) for update in updates]


@torch.no_grad()
def make_objective(
    loss: Loss,
    config: LossConfig,
    packed: PackedBatch,
    scale: torch.Tensor,
    reference: Policy | WithoutAdapters | None,
    temperature: float,
) -> Objective:
    """Return the loss of a micro-batch, for the head; the reference's log-probs are computed here.

    The reference is a model of its own, not what sampled: its routers choose by themselves.
    """
    ref_logprobs = None if reference is None else reference(packed, temperature, own_experts=True).logprobs
    values, sequence = packed.values, packed.sequence
    return Objective(loss=loss, config=config, scale=scale, values=values, ref_logprobs=ref_logprobs, sequence=sequence)


def means_over_tokens(sums: Mapping[str, torch.Tensor], num_tokens: int, accelerator: Accelerator) -> dict[str, float]:
    """Return the sums of all processes, divided by the tokens of all: one reduction and one transfer to the host."""
    if not sums:
        return {}
    names = sorted(sums)
    totals = accelerator.reduce(torch.stack([sums[name] for name in names])).tolist()
    return {name: total / max(1, num_tokens) for name, total in zip(names, totals, strict=True)}


def named_weights(accelerator: Accelerator, policy) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the whole model under its Hugging Face names, a tied head too, of which vLLM on CPU keeps a packed copy.

    Under ZeRO-3 all processes must draw it together; one parameter at a time is gathered, and copied because engines
    buffer a layer's tensors until the layer is complete.
    """
    weights = merged_weights(accelerator.unwrap_model(policy).model)
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
        """Tell whether an update of this gradient norm is left out. DivergedError after more than `limit` in a row."""
        if math.isfinite(norm):
            self.in_a_row = 0
            return False
        self.in_a_row += 1
        if self.in_a_row > self.limit:
            raise DivergedError(
                f"{self.in_a_row} updates in a row had a gradient that is not finite (allowed: "
                f"max_skipped={self.limit}), the last on {', '.join(ids[:5])}; their sessions stand in skipped.jsonl. "
                "Lower optim.lr, or look at the data"
            )
        return True


def largest_norm(norms: Sequence[float]) -> float:
    """Return the largest norm of the updates that were taken; nan where all were left out, 0 where there were none."""
    return max(filter(math.isfinite, norms), default=math.nan if norms else 0.0)
