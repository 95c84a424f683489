"""Is what is trained on what was sampled? Checked on fresh samples at the start of a run and every few steps.

Engine against trainer: catches stale weights, templates, temperature. Shared prompts against dense copies: catches an
attention kernel or a model for which running the prompt once is not the same. Both run in micro-batches like the
learner's, so a check fits where a step fits.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch

from membuilder.errors import ParityError
from rollout.sampler import Task, sample_groups
from rollout.types import SamplingConfig
from trainer.batching.packing import Node, TrainSequence, build_tree, dense_tree, micro_batches, pack_on
from trainer.distributed.process_group import World
from trainer.experience.collector import Collector

Groups = list[list[TrainSequence]]
ALONE = World()


def sample_sequences(collector: Collector, tasks: list[Task], temperature: float, seed: int) -> Groups:
    """Two uncut rollouts of each task, without the prompts that are too long; `values`: the engine's log-probs."""
    sampling = SamplingConfig(temperature=temperature, top_p=1.0, max_tokens=collector.sampling.max_tokens)
    groups = sample_groups(tasks, collector.engine, collector.tokenizer, collector.scheme, sampling, 2, seed)
    sampled = [
        [
            TrainSequence(
                prompt_token_ids=sample.prompt_token_ids,
                completion_token_ids=sample.completion.token_ids,
                values={"rollout_logprobs": sample.completion.rollout_logprobs},
            )
            for rollout in group.rollouts
            for sample in rollout.samples.values()
            if sample.completion is not None
        ]
        for group in groups
    ]
    return [sequences for sequences in sampled if sequences]


@torch.no_grad()
def check_engine(
    policy, groups: Groups, temperature: float, bound: float, max_tokens: int, world: World = ALONE
) -> float | None:
    """Mean |trainer - engine| log-prob in nats; raises ParityError above `bound`. None: there was nothing to compare.

    All processes call it, each with samples of its own.
    """
    groups = _numbered(groups)
    expected = torch.tensor([value for group in groups for each in group for value in each.values["rollout_logprobs"]])
    found = _logprobs(policy, [build_tree(group) for group in groups], temperature, max_tokens, world)
    return _within(
        (found - expected).abs(),
        bound,
        "engine and trainer differ by {mean:.2g} nats a token (bound {bound}, worst {worst:.2g}): the engine holds other "
        "weights, or template, temperature or dtype differ. Nothing was trained on these samples. Raise parity_bound "
        "only if the gap is the known rounding of a low-precision dtype.",
    )


@torch.no_grad()
def check_shared(
    policy, groups: Groups, temperature: float, bound: float, max_tokens: int, world: World = ALONE
) -> float | None:
    """Mean |shared - dense| log-prob in nats between packed trees and whole copies; raises ParityError above `bound`.

    None: there was nothing to compare. All processes call it, each with samples of its own.
    """
    groups = _numbered(groups)
    trees = [build_tree(group) for group in groups]
    copies = [dense_tree(sequence) for group in groups for sequence in group]
    found, expected = (_logprobs(policy, nodes, temperature, max_tokens, world) for nodes in (trees, copies))
    return _within(
        (found - expected).abs(),
        bound,
        "shared prompts give log-probs that differ from dense copies by {mean:.2g} nats a token (bound {bound}, worst "
        "{worst:.2g}): this model or attention kernel must not share prompts. Nothing was trained on these samples. Raise "
        "shared_bound only if the gap is the known rounding of a low-precision dtype.",
    )


def _numbered(groups: Groups) -> Groups:
    """With a value `row` that numbers every token, because packing and micro-batches change their order."""
    numbered, num_rows = [], 0
    for group in groups:
        numbered.append([])
        for sequence in group:
            length = len(sequence.completion_token_ids)
            row = tuple(float(number) for number in range(num_rows, num_rows + length))
            numbered[-1].append(replace(sequence, values=sequence.values | {"row": row}))
            num_rows += length
    return numbered


def _logprobs(policy, trees: Sequence[Node], temperature: float, max_tokens: int, world: World) -> torch.Tensor:
    """(M,) on the CPU, in the order of `row`. Processes run equally many batches, so that their collectives meet."""
    policy.eval()
    device = next(policy.parameters()).device
    batches = micro_batches(trees, max_tokens)
    spare = [dense_tree(TrainSequence(prompt_token_ids=(0,), completion_token_ids=(0,), values={"row": (0.0,)}))]
    rows, logprobs = [torch.empty(0)], [torch.empty(0)]
    for number in range(max(world.gather(len(batches)))):
        is_own = number < len(batches)
        packed = pack_on(batches[number] if is_own else spare, device)
        output = policy(packed, temperature)
        if is_own:
            rows.append(packed.values["row"].cpu())
            logprobs.append(output.logprobs.cpu())
    return torch.cat(logprobs)[torch.cat(rows).argsort()]


def _within(gap: torch.Tensor, bound: float, message: str) -> float | None:
    if not len(gap):
        return None
    mean = float(gap.mean())
    if not mean <= bound:
        raise ParityError(message.format(mean=mean, bound=bound, worst=float(gap.max())))
    return mean
