"""Scoring groups of rollouts: each bank answers questions, each agent's text is measured against the expert's."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from membuilder.types import Agent, Question
from reward.qa import QAResult
from reward.score import AgentOutput, RewardConfig, Score, score
from rollout.types import Group, Rollout


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoredGroup:
    group: Group
    scores: tuple[Score, ...]
    """One per rollout."""
    expert_tokens: Mapping[Agent, float]
    """What the length penalty compared each agent's memory tokens with."""


def choose_questions(
    asked: Sequence[Sequence[Question]], session: int, config: RewardConfig, seed: str
) -> list[Question]:
    """What is asked after a session, the same for all members of a group: its own questions, then earlier ones.

    `asked`: the questions of each session of the dialogue.
    """
    draw = random.Random(seed)
    chosen = draw.sample(asked[session], min(len(asked[session]), config.num_questions))
    if config.earlier_questions:
        earlier = [question for before in asked[:session] for question in before]
        chosen += draw.sample(earlier, min(len(earlier), config.num_questions - len(chosen)))
    return chosen


def score_group(
    group: Group,
    answers: Sequence[QAResult],
    expert_tokens: Mapping[Agent, float],
    count_tokens: Callable[[Sequence[str]], int],
    config: RewardConfig,
) -> ScoredGroup:
    """Put each rollout's answers and its four outputs together; `answers` has one result per rollout."""
    scores = tuple(
        score(_outputs(rollout, expert_tokens, count_tokens), answer, config)
        for rollout, answer in zip(group.rollouts, answers, strict=True)
    )
    return ScoredGroup(group=group, scores=scores, expert_tokens=expert_tokens)


def _outputs(
    rollout: Rollout,
    expert_tokens: Mapping[Agent, float],
    count_tokens: Callable[[Sequence[str]], int],
) -> dict[Agent, AgentOutput]:
    return {
        agent: AgentOutput(
            failure=sample.failure, model_tokens=count_tokens(sample.written), expert_tokens=expert_tokens[agent]
        )
        for agent, sample in rollout.samples.items()
    }
