"""Scored groups -> training trees: advantages, weights, and only completions that carry signal."""

from collections.abc import Sequence
from dataclasses import dataclass

from membuilder.types import Agent
from reward.rollouts import ScoredGroup
from trainer.advantages import StdScale, group_advantages
from trainer.batching.packing import Node, TrainSequence, build_tree, count_loss_tokens
from trainer.losses import TokenValues


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    trees: list[Node]
    num_tokens: int
    """Completion tokens that carry loss: the denominator of the step."""
    advantages: list[dict[Agent, list[float | None]]]
    """Per group and agent, one per rollout."""
    zero_std_share: float
    """Share of (group, agent) pairs whose rewards are all equal; they cost no forward pass."""


def make_batch(scored: Sequence[ScoredGroup], scale: StdScale) -> Batch:
    rewards = [[score.reward[agent] for score in group.scores] for group in scored for agent in Agent]
    flat = iter(group_advantages(rewards, scale))
    advantages = [{agent: next(flat) for agent in Agent} for _ in scored]
    trees, silent = [], 0
    for group, by_agent in zip(scored, advantages, strict=True):
        sequences = []
        for agent in Agent:
            carrying = [k for k, advantage in enumerate(by_agent[agent]) if advantage]
            silent += not carrying and any(advantage is not None for advantage in by_agent[agent])
            sequences += [_sequence(group, agent, k, by_agent[agent][k]) for k in carrying]
        if sequences:
            trees.append(build_tree(sequences, group.group.id))
    return Batch(
        trees=trees,
        num_tokens=sum(count_loss_tokens(tree) for tree in trees),
        advantages=advantages,
        zero_std_share=silent / max(1, len(rewards)),
    )


def _sequence(group: ScoredGroup, agent: Agent, k: int, advantage: float | None) -> TrainSequence:
    assert advantage is not None, "a missing reward never becomes a sequence"
    sample, weight = group.group.rollouts[k].samples[agent], group.scores[k].weights[agent]
    assert sample.completion is not None, "what was not sampled has no reward"
    num_tokens = len(sample.completion.token_ids)
    return TrainSequence(
        prompt_token_ids=sample.prompt_token_ids,
        completion_token_ids=sample.completion.token_ids,
        values=TokenValues(
            advantage=(advantage,) * num_tokens,
            weight=(weight,) * num_tokens,
            truncated=(float(not sample.completion.finished),) * num_tokens,
            rollout_logprobs=sample.completion.rollout_logprobs,
        ),
    )
