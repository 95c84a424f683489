"""Is what is trained on what was sampled? Checked on fresh samples at the start of a run and every few steps.

Engine against trainer: catches stale weights, templates, temperature. Shared prompts against dense copies: catches an
attention kernel or a model for which running the prompt once is not the same.
"""

import torch

from membuilder.errors import ParityError
from rollout.sampler import Task, sample_groups
from rollout.types import SamplingConfig
from trainer.collect import Collector
from trainer.packing import TrainSequence, build_tree, dense_tree, pack_on

Groups = list[list[TrainSequence]]


def sample_sequences(collector: Collector, tasks: list[Task], temperature: float, seed: int) -> Groups:
    """Two uncut rollouts of each task. `values`: the engine's log-probs, and `row`, a number for every token."""
    sampling = SamplingConfig(temperature=temperature, top_p=1.0, max_tokens=collector.sampling.max_tokens)
    groups = sample_groups(tasks, collector.engine, collector.tokenizer, collector.prompts, sampling, 2, seed)
    sequences, num_rows = [], 0
    for group in groups:
        sequences.append([])
        for sample in (sample for rollout in group.rollouts for sample in rollout.samples.values()):
            length = len(sample.completion.token_ids)
            values = {
                "rollout_logprobs": sample.completion.rollout_logprobs,
                "row": tuple(float(number) for number in range(num_rows, num_rows + length)),
            }
            num_rows += length
            sequences[-1].append(
                TrainSequence(
                    prompt_token_ids=sample.prompt_token_ids,
                    completion_token_ids=sample.completion.token_ids,
                    values=values,
                )
            )
    return sequences


@torch.no_grad()
def check_engine(policy, groups: Groups, temperature: float, bound: float) -> float:
    """Mean |trainer - engine| log-prob in nats; raises ParityError above `bound`."""
    policy.eval()
    packed = pack_on([build_tree(group) for group in groups], _device(policy))
    gap = (policy(packed, temperature).logprobs - packed.values["rollout_logprobs"]).abs()
    return _within(
        gap,
        bound,
        "engine and trainer differ by {mean:.2g} nats a token (bound {bound}, worst {worst:.2g}): the engine holds other "
        "weights, or template, temperature or dtype differ. Nothing was trained on these samples. Raise parity_bound "
        "only if the gap is the known rounding of a low-precision dtype.",
    )


@torch.no_grad()
def check_shared(policy, groups: Groups, temperature: float, bound: float) -> float:
    """Mean |shared - dense| log-prob in nats between packed trees and whole copies; raises ParityError above `bound`."""
    policy.eval()
    shared = pack_on([build_tree(group) for group in groups], _device(policy))
    dense = pack_on([dense_tree(sequence) for group in groups for sequence in group], _device(policy))
    found, expected = (policy(batch, temperature).logprobs[batch.values["row"].argsort()] for batch in (shared, dense))
    return _within(
        (found - expected).abs(),
        bound,
        "shared prompts give log-probs that differ from dense copies by {mean:.2g} nats a token (bound {bound}, worst "
        "{worst:.2g}): this model or attention kernel must not share prompts. Nothing was trained on these samples. Raise "
        "shared_bound only if the gap is the known rounding of a low-precision dtype.",
    )


def _within(gap: torch.Tensor, bound: float, message: str) -> float:
    mean = float(gap.mean())
    if not mean <= bound:
        raise ParityError(message.format(mean=mean, bound=bound, worst=float(gap.max())))
    return mean


def _device(policy) -> torch.device:
    return next(policy.parameters()).device
