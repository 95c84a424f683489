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
    expert_tokens: Mapping[Agent, int]
    """Memory tokens the expert wrote in this session."""


def choose_questions(questions: Sequence[Question], num_questions: int, seed: str) -> list[Question]:
    """At most `num_questions` of a session's questions, the same for all members of a group."""
    if len(questions) <= num_questions:
        return list(questions)
    return random.Random(seed).sample(list(questions), num_questions)


def score_group(
    group: Group,
    answers: Sequence[QAResult],
    expert_tokens: Mapping[Agent, int],
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
    rollout: Rollout, expert_tokens: Mapping[Agent, int], count_tokens: Callable[[Sequence[str]], int]
) -> dict[Agent, AgentOutput]:
    return {
        agent: AgentOutput(
            failure=sample.failure, model_tokens=count_tokens(sample.written), expert_tokens=expert_tokens[agent]
        )
        for agent, sample in rollout.samples.items()
    }
