"""Scored groups -> training trees: advantages, weights, and only completions that carry signal."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from membuilder.types import Agent
from reward.rollouts import ScoredGroup
from trainer.advantages import StdScale, group_advantages
from trainer.packing import Node, TrainSequence, build_tree


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
    trees, num_tokens, silent = [], 0, 0
    for group, by_agent in zip(scored, advantages, strict=True):
        by_window: dict[int, list[TrainSequence]] = defaultdict(list)
        for agent in Agent:
            carrying = [k for k, advantage in enumerate(by_agent[agent]) if advantage]
            silent += not carrying and any(advantage is not None for advantage in by_agent[agent])
            for k in carrying:
                for window, sequence in enumerate(_sequences(group, agent, k, by_agent[agent][k])):
                    by_window[window].append(sequence)
                    num_tokens += len(sequence.completion_token_ids)
        trees += [build_tree(sequences) for sequences in by_window.values()]
    return Batch(
        trees=trees,
        num_tokens=num_tokens,
        advantages=advantages,
        zero_std_share=silent / max(1, len(rewards)),
    )


def _sequences(group: ScoredGroup, agent: Agent, k: int, advantage: float | None) -> list[TrainSequence]:
    """One sequence per window the agent read; all carry the advantage of the agent's whole answer."""
    assert advantage is not None, "a missing reward never becomes a sequence"
    sample, weight = group.group.rollouts[k].samples[agent], group.scores[k].weights[agent]
    return [
        TrainSequence(
            prompt_token_ids=part.prompt_token_ids,
            completion_token_ids=part.completion.token_ids,
            values={
                "advantage": (advantage,) * len(part.completion.token_ids),
                "weight": (weight,) * len(part.completion.token_ids),
                "rollout_logprobs": part.completion.rollout_logprobs,
            },
        )
        for part in sample.parts
    ]
