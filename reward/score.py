"""The reward of a rollout, its parts by name. Pure: numbers in, numbers out.

    reward = format x qa x (1 - length_weight x length)

Differs from MemBuilder's released code where that misleads training: lengths share one unit, an unreachable judge makes
the reward missing instead of a fallback, and a tie in attribution boosts nobody.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from membuilder.types import Agent, Failure, FailureKind
from reward.attribution import attribution_weights
from reward.length import LengthConfig, length_penalty
from reward.qa import QAResult


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    judge: str = "evidence"
    """`evidence`, `coverage` or `path/to/file.py:function`."""
    num_questions: int = 5
    """Questions asked after a session, at most."""
    earlier_questions: bool = False
    """Fill up with questions of earlier sessions where a session has fewer than `num_questions` of its own."""
    top_k: int = 10
    """Entries retrieved per question."""
    length_weight: float = 0.8
    """Share of the reward that a length penalty of 1 takes away."""
    alpha: float = 4.0
    """Attribution weight of the agent whose entries were retrieved most."""
    length: LengthConfig = field(default_factory=LengthConfig)

    def __post_init__(self) -> None:
        if min(self.num_questions, self.top_k) < 1:
            raise ValueError("num_questions and top_k must be at least 1")
        if not 0 <= self.length_weight <= 1:
            raise ValueError(f"length_weight must be between 0 and 1, got {self.length_weight}")
        if not self.alpha > 0:
            raise ValueError(f"alpha must be above 0, got {self.alpha}")


class RewardStatus(StrEnum):
    SCORED = "scored"
    INVALID = "invalid"
    """The output could not be used: reward 0."""
    NO_QUESTIONS = "no_questions"
    """Nothing was asked: reward missing."""
    NOT_JUDGED = "not_judged"
    """No question could be judged: reward missing."""
    PROMPT_TOO_LONG = "prompt_too_long"
    """The agent was never asked: reward missing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AgentOutput:
    """What scoring needs to know of one agent's completion; both counts in tokens of the policy's tokenizer."""

    failure: Failure | None
    model_tokens: int
    """Of the memory text this agent wrote; its JSON does not count."""
    expert_tokens: float
    """Of the expert's memory text it is measured against."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """One rollout's reward per agent and everything it was made of; `weights` multiply the loss, never the reward."""

    reward: dict[Agent, float | None]
    """None is missing: it joins no baseline and carries no weight."""
    status: dict[Agent, RewardStatus]
    format: dict[Agent, float | None]
    """1 for an output that could be used, 0 otherwise; None for an agent that was not asked."""
    qa: float | None
    """Shared by the four agents."""
    length: dict[Agent, float | None]
    """Penalty in [0, 1]; None for an invalid output, which wrote nothing to measure."""
    weights: dict[Agent, float]
    retrieval_counts: dict[Agent, int]
    num_missing_verdicts: int


def score(outputs: Mapping[Agent, AgentOutput], qa: QAResult, config: RewardConfig) -> Score:
    """Score one rollout from its four outputs and the answers its bank gave; one agent's failure leaves the others."""
    accuracy, counts = qa.accuracy, qa.retrieval_counts
    valid = {agent: _valid(outputs[agent].failure) for agent in Agent}
    length = {agent: _length(agent, outputs[agent], config.length) for agent in Agent}
    return Score(
        reward={agent: _reward(valid[agent], accuracy, length[agent], config.length_weight) for agent in Agent},
        status={agent: _status(valid[agent], qa) for agent in Agent},
        format={agent: None if valid[agent] is None else float(valid[agent]) for agent in Agent},
        qa=accuracy,
        length=length,
        weights=attribution_weights(counts, config.alpha),
        retrieval_counts=counts,
        num_missing_verdicts=qa.num_missing,
    )


def _valid(failure: Failure | None) -> bool | None:
    """Whether the output could be used; None where there is none, because the agent was not asked."""
    if failure is not None and failure.kind is FailureKind.PROMPT_TOO_LONG:
        return None
    return failure is None


def _length(agent: Agent, output: AgentOutput, config: LengthConfig) -> float | None:
    if output.failure is not None:
        return None
    return length_penalty(agent, output.model_tokens, output.expert_tokens, config)


def _reward(valid: bool | None, accuracy: float | None, length: float | None, length_weight: float) -> float | None:
    if accuracy is None or valid is None:
        return None
    if not valid:
        return 0.0
    assert length is not None, "a valid output has a length"
    return accuracy * (1 - length_weight * length)


def _status(valid: bool | None, qa: QAResult) -> RewardStatus:
    if valid is None:
        return RewardStatus.PROMPT_TOO_LONG
    if not qa.verdicts:
        return RewardStatus.NO_QUESTIONS
    if qa.accuracy is None:
        return RewardStatus.NOT_JUDGED
    return RewardStatus.SCORED if valid else RewardStatus.INVALID
