"""Checks, on fresh samples, that the trainer computes the log-probs that the engine sampled with.

Comparing the engine with the trainer catches stale weights, templates and temperatures. Comparing shared prompts with
dense copies catches an attention kernel or a model for which running the prompt once is not the same. Both run in
micro-batches like the learner's, so a check fits where a step fits. All processes of a run call a check together, each
with samples of its own.
"""

from collections.abc import Iterable, Sequence

import torch

from membuilder.errors import ParityError
from rollout.sampler import Task
from rollout.types import SamplingConfig
from trainer.batching.packing import Node, TrainSequence, build_tree, dense_tree, dense_trees, micro_batches, pack_on
from trainer.distributed.process_group import World
from trainer.experience.collector import Collector
from trainer.experience.training_batch import sampled_sequence
from trainer.model.policy import shares_prompts
from trainer.rl_config import RLConfig

Groups = list[list[TrainSequence]]
ALONE = World()


def check_parity(policy, collector: Collector, tasks: list[Task], config: RLConfig, seed: int) -> None:
    """Sample the tasks and run both checks on what comes; raises ParityError."""
    temperature, world = config.sampling.temperature, collector.world
    groups = sample_sequences(collector, tasks, temperature, seed)
    check_engine(policy, groups, temperature, config.parity_bound, config.max_tokens, world)
    check_shared(policy, groups, temperature, config.shared_bound, config.max_tokens, world)


def sample_sequences(collector: Collector, tasks: list[Task], temperature: float, seed: int) -> Groups:
    """Two rollouts of each task from the uncut distribution; prompts that are too long are left out."""
    sampling = SamplingConfig(temperature=temperature, top_p=1.0, max_tokens=collector.sampling.max_tokens)
    groups = collector.sample(tasks, sampling, 2, seed)
    found = []
    for group in groups:
        samples = [sample for rollout in group.rollouts for sample in rollout.samples.values()]
        found.append([sampled_sequence(sample) for sample in samples if sample.completion is not None])
    return [sequences for sequences in found if sequences]


@torch.no_grad()
def check_engine(
    policy, groups: Groups, temperature: float, bound: float, max_tokens: int, world: World = ALONE
) -> float | None:
    """Mean |trainer - engine| log-prob in nats, None if nothing was sampled; ParityError above `bound`."""
    sequences = [sequence for group in groups for sequence in group]
    expected = torch.tensor([value for sequence in sequences for value in sequence.values.rollout_logprobs])
    found = _logprobs(policy, map(build_tree, groups), sequences, temperature, max_tokens, world)
    problem = "engine and trainer differ by {gap}: the engine holds other weights, or template, temperature or dtype "
    return _mean_gap(found, expected, bound, "parity_bound", problem + "differ")


@torch.no_grad()
def check_shared(
    policy, groups: Groups, temperature: float, bound: float, max_tokens: int, world: World = ALONE
) -> float | None:
    """Mean |packed trees - dense copies| log-prob in nats, None if nothing was sampled; ParityError above `bound`."""
    sequences = [sequence for group in groups for sequence in group]
    found, expected = (
        _logprobs(policy, trees, sequences, temperature, max_tokens, world)
        for trees in (map(build_tree, groups), map(dense_tree, sequences))
    )
    problem = "shared prompts give log-probs that differ from dense copies by {gap}: this model or attention kernel "
    return _mean_gap(found, expected, bound, "shared_bound", problem + "must not share prompts")


def _logprobs(
    policy, trees: Iterable[Node], sequences: Sequence[TrainSequence], temperature: float, max_tokens: int, world: World
) -> torch.Tensor:
    """Return the log-probs (M,) of the trees' tokens, on the CPU, in the order of `sequences`, the trees' own.

    Processes run equally many micro-batches, so that their collectives meet.
    """
    policy.eval()
    device = next(policy.parameters()).device
    trees = list(trees) if shares_prompts(policy) else [each for tree in trees for each in dense_trees(tree)]
    batches = micro_batches(trees, max_tokens)
    spare = [dense_tree(TrainSequence(prompt_token_ids=(0,), completion_token_ids=(0,)))]
    found: dict[int, torch.Tensor] = {}  # by identity: packing and micro-batches change the order
    for number in range(max(world.gather(len(batches)))):
        packed = pack_on(batches[number] if number < len(batches) else spare, device)
        logprobs = policy(packed, temperature).logprobs.cpu()
        lengths = [len(sequence.completion_token_ids) for sequence in packed.sequences]
        found |= zip(map(id, packed.sequences), logprobs.split(lengths), strict=True)
    return torch.cat([torch.empty(0), *(found[id(sequence)] for sequence in sequences)])


def _mean_gap(found: torch.Tensor, expected: torch.Tensor, bound: float, key: str, problem: str) -> float | None:
    gap = (found - expected).abs()
    if not len(gap):
        return None
    mean = float(gap.mean())
    if not mean <= bound:
        what = problem.format(gap=f"{mean:.2g} nats a token (bound {bound}, worst {float(gap.max()):.2g})")
        raise ParityError(
            f"{what}. Nothing was trained on these samples. Raise {key} only if the gap is the known rounding of a "
            "low-precision dtype."
        )
    return mean
