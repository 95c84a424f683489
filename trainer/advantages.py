"""Advantages relative to a group, some of whose rewards may be missing; on plain numbers, without torch."""

import math
from collections.abc import Sequence
from enum import StrEnum

EPSILON = 1e-4
ROUNDING = 1e-9
"""Rewards closer than this are equal."""


class StdScale(StrEnum):
    GROUP = "group"
    """Divide by the group's own standard deviation (GRPO, arXiv 2402.03300)."""
    BATCH = "batch"
    """Divide by the standard deviation of all centred rewards of the step."""
    NONE = "none"
    """Centre only (Dr. GRPO, arXiv 2503.20783)."""


def group_advantages(
    groups: Sequence[Sequence[float | None]], scale: StdScale = StdScale.GROUP
) -> list[list[float | None]]:
    """(reward - group mean) / (std + eps) over the members that have a reward; a missing one stays missing.

    A group whose rewards are all equal, or that has one valid member, gets zeros: it carries no signal.
    """
    centred = [_centre(rewards) for rewards in groups]
    if scale is StdScale.BATCH:
        batch_std = _std([value for group in centred for value in group if value is not None])
        return [_divide(group, batch_std) for group in centred]
    if scale is StdScale.GROUP:
        return [_divide(group, _std([value for value in group if value is not None])) for group in centred]
    return centred


def _centre(rewards: Sequence[float | None]) -> list[float | None]:
    valid = [reward for reward in rewards if reward is not None]
    if not valid:
        return [None] * len(rewards)
    # equal rewards must give exact zeros, or a float rounding error would pass for a signal
    if max(valid) - min(valid) < ROUNDING:
        return [None if reward is None else 0.0 for reward in rewards]
    mean = sum(valid) / len(valid)
    return [None if reward is None else reward - mean for reward in rewards]


def _std(values: Sequence[float]) -> float:
    """Population standard deviation of centred values."""
    return math.sqrt(sum(value * value for value in values) / len(values)) if values else 0.0


def _divide(values: Sequence[float | None], std: float) -> list[float | None]:
    return [None if value is None else value / (std + EPSILON) for value in values]
