"""Length penalties in [0, 1]. Every count is in tokens of the policy's tokenizer, of memory text only."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import fmean

from membuilder.types import Agent
from membuilder.value_types import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Section


class LengthScope(StrEnum):
    SESSION = "session"
    """What the expert wrote as this agent in this session (published)."""
    MEAN = "mean"
    """The expert's mean over sessions and agents of the dialogue: a token costs the same everywhere, and the policy is
    not held to the expert's choice of where to write."""


@dataclass(frozen=True, kw_only=True)
class LengthConfig(Section):
    scope: LengthScope = LengthScope.SESSION
    """What of the expert's an agent's text in a session is measured against."""
    core_start_tokens: NonNegativeInt = 150
    """New core text up to this length costs nothing."""
    core_maximum_tokens: PositiveInt = 400
    """New core text from this length costs 1; linear in between."""
    tolerance_tokens: NonNegativeInt = 200
    """Entries that differ from the expert's by less than this cost nothing."""
    ratio_lowest: NonNegativeFloat = 0.2
    """model / expert at which too short costs 1."""
    ratio_lower: NonNegativeFloat = 0.5
    """model / expert from which on nothing is too short; 0 (and `ratio_lowest` 0): nothing ever is."""
    ratio_upper: NonNegativeFloat = 1.3
    """model / expert up to which nothing is too long."""
    ratio_highest: PositiveFloat = 2.0
    """model / expert at which too long costs 1."""
    free_without_expert: bool = False
    """Where the expert wrote nothing, any length is free (published); false: beyond the tolerance it costs 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.core_start_tokens >= self.core_maximum_tokens:
            raise ValueError("core_start_tokens < core_maximum_tokens is needed")
        if not self.ratio_lowest <= self.ratio_lower <= self.ratio_upper < self.ratio_highest:
            raise ValueError("ratio_lowest <= ratio_lower <= ratio_upper < ratio_highest is needed")
        if 0 < self.ratio_lowest == self.ratio_lower:
            raise ValueError("ratio_lowest must lie below ratio_lower, or both be 0")


def length_penalty(agent: Agent, model_tokens: int, expert_tokens: float, config: LengthConfig) -> float:
    """Return what one agent pays for its text in one session; the core is held to fixed bounds, not to the expert."""
    if agent is Agent.CORE:
        return _ramp(model_tokens, config.core_start_tokens, config.core_maximum_tokens)
    return _entry_penalty(model_tokens, expert_tokens, config)


def expert_lengths(written: Sequence[Mapping[str, int]], scope: LengthScope) -> list[dict[str, float]]:
    """Return per session what each role's tokens are compared with, given what the expert wrote in the sessions."""
    if scope is LengthScope.SESSION:
        return [dict(session) for session in written]
    mean = fmean(tokens for session in written for tokens in session.values())
    return [dict.fromkeys(session, mean) for session in written]


def _entry_penalty(model_tokens: int, expert_tokens: float, config: LengthConfig) -> float:
    """Return the penalty of entries; what has nothing to be measured against is infinitely too long, or free."""
    if not expert_tokens and config.free_without_expert:
        return 0.0
    if abs(model_tokens - expert_tokens) < config.tolerance_tokens:
        return 0.0
    ratio = model_tokens / expert_tokens if expert_tokens else math.inf
    bounded = config.ratio_lower > config.ratio_lowest
    too_short = _ramp(-ratio, -config.ratio_lower, -config.ratio_lowest) if bounded else 0.0
    return max(_ramp(ratio, config.ratio_upper, config.ratio_highest), too_short)


def _ramp(value: float, zero_until: float, one_from: float) -> float:
    """Give 0 up to one value, 1 from the other, and what lies between in proportion."""
    return min(1.0, max(0.0, (value - zero_until) / (one_from - zero_until)))
