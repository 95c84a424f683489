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
    GROUP_SAMPLE = "group_sample"
    """As `group`, with n - 1 in place of n: `torch.std`, which TRL, veRL and the published run take."""
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
    match scale:
        case StdScale.NONE:
            return centred
        case StdScale.BATCH:
            std = _std([value for group in centred for value in group])
            return [_divide(group, std) for group in centred]
        case StdScale.GROUP | StdScale.GROUP_SAMPLE:
            return [_divide(group, _std(group, ddof=int(scale is StdScale.GROUP_SAMPLE))) for group in centred]


def _centre(rewards: Sequence[float | None]) -> list[float | None]:
    valid = [reward for reward in rewards if reward is not None]
    if not valid:
        return [None] * len(rewards)
    # equal rewards must give exact zeros, or a float rounding error would pass for a signal
    if max(valid) - min(valid) < ROUNDING:
        return [None if reward is None else 0.0 for reward in rewards]
    mean = sum(valid) / len(valid)
    return [None if reward is None else reward - mean for reward in rewards]


def _std(values: Sequence[float | None], ddof: int = 0) -> float:
    """Return the standard deviation of the centred values that there are, over their number less `ddof`."""
    squares = [value * value for value in values if value is not None]
    return math.sqrt(sum(squares) / (len(squares) - ddof)) if len(squares) > ddof else 0.0


def _divide(values: Sequence[float | None], std: float) -> list[float | None]:
    return [None if value is None else value / (std + EPSILON) for value in values]
