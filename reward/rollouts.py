"""Scoring groups of rollouts: each bank answers questions, each role's text is measured against the expert's."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime

from membuilder.errors import ConfigError
from membuilder.plugins import place_of
from membuilder.types import Question
from reward.qa import QAResult
from reward.score import Formula, RewardConfig, RoleOutput, Score
from rollout.types import Group


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoredGroup(Group):
    """A group whose rollouts have been scored."""

    scores: tuple[Score, ...]
    """One per rollout."""
    expert_tokens: Mapping[str, float]
    """What the length penalty compared each role's memory tokens with; empty where the scheme has no expert."""


def choose_questions(
    asked: Sequence[Sequence[Question]], session: int, config: RewardConfig, seed: str
) -> list[Question]:
    """Choose what is asked after a session, the same for all members of a group: its own questions, then earlier ones.

    `asked`: the questions of each session of the dialogue.
    """
    draw = random.Random(seed)
    chosen = draw.sample(asked[session], min(len(asked[session]), config.num_questions))
    if config.earlier_questions:
        earlier = [question for before in asked[:session] for question in before]
        chosen += draw.sample(earlier, min(len(earlier), config.num_questions - len(chosen)))
    return chosen


def dated(questions: Sequence[Question], now: datetime) -> list[Question]:
    """Return the questions as asked at this time, unless they have one of their own."""
    return [question if question.asked_at else replace(question, asked_at=now) for question in questions]


def score_group(
    group: Group,
    answers: Sequence[QAResult],
    expert_tokens: Mapping[str, float],
    count_tokens: Callable[[Sequence[str]], int],
    formula: Formula,
    config: RewardConfig,
) -> ScoredGroup:
    """Put each rollout's answers and its roles' outputs together; `answers` has one result per rollout."""
    scores = []
    for rollout, answer in zip(group.rollouts, answers, strict=True):
        outputs = {
            role: RoleOutput(
                failure=sample.failure, model_tokens=count_tokens(sample.written), expert_tokens=expert_tokens.get(role)
            )
            for role, sample in rollout.samples.items()
        }
        score = formula(outputs, answer, config)
        if not isinstance(score, Score):
            raise ConfigError(f"scheme: {place_of(formula)} returns {score!r:.80}; expected reward.score.Score")
        scores.append(replace(score, missing=answer.missing))
    own = {each.name: getattr(group, each.name) for each in fields(group)}
    return ScoredGroup(**own, scores=tuple(scores), expert_tokens=expert_tokens)
