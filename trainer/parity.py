"""Do engine and trainer agree on the probability of the same tokens? Catches stale weights, templates, temperature."""

import torch

from membuilder.errors import ParityError
from rollout.sampler import Task, sample_groups
from rollout.types import SamplingConfig
from trainer.collect import Collector
from trainer.packing import TrainSequence, build_tree, pack_on


@torch.no_grad()
def check_parity(collector: Collector, policy, tasks: list[Task], temperature: float, bound: float, seed: int) -> float:
    """Mean |trainer - engine| log-prob (nats) over fresh uncut samples; raises ParityError above `bound`."""
    sampling = SamplingConfig(temperature=temperature, top_p=1.0, max_tokens=collector.sampling.max_tokens)
    groups = sample_groups(tasks, collector.engine, collector.tokenizer, collector.prompts, sampling, 2, seed)
    trees = [
        build_tree(
            [
                TrainSequence(
                    prompt_token_ids=sample.prompt_token_ids,
                    completion_token_ids=sample.completion.token_ids,
                    values={"rollout_logprobs": sample.completion.rollout_logprobs},
                )
                for rollout in group.rollouts
                for sample in rollout.samples.values()
            ]
        )
        for group in groups
    ]
    policy.eval()
    packed = pack_on(trees, next(policy.parameters()).device)
    gap = (policy(packed, temperature).logprobs - packed.values["rollout_logprobs"]).abs()
    mean = float(gap.mean())
    if not mean <= bound:
        raise ParityError(
            f"engine and trainer differ by {mean:.4f} nats a token (bound {bound}, worst {float(gap.max()):.4f}): "
            "the engine holds other weights, or template, temperature or dtype differ. Nothing was trained on these "
            "samples. Raise parity_bound only if the gap is the known rounding of a low-precision dtype."
        )
    return mean
