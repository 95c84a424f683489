"""Advantages relative to a group, some of whose rewards may be missing; on plain numbers, without torch.

An action is what one role of one rollout answers to one session. An instance is a dialogue with all its rollouts; an
episode is one of these, from the first session to the last.
"""

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence
from enum import StrEnum
from itertools import chain
from statistics import fmean

from reward.score import Baseline

Actions = Sequence[Sequence[float | None]]
"""Values of the actions of one role in a dialogue: a row for each session, a column for each rollout."""
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


def compared(
    rewards: Sequence[Sequence[float | None]],
    owners: Sequence[Hashable],
    baseline: Baseline,
    scale: StdScale,
    episode_share: bool = True,
) -> list[list[float | None]]:
    """Return the advantage of every action, in the order of `rewards`: of each session, of each rollout.

    `owners` says of each session whose actions those are: dialogue and role. An action without a reward has no
    advantage, and nothing is compared with it.
    """
    if baseline is Baseline.SESSION:
        return group_advantages(rewards, scale)
    sessions: dict[Hashable, list[int]] = defaultdict(list)
    for number, owner in enumerate(owners):
        sessions[owner].append(number)
    actions = [[rewards[number] for number in numbers] for numbers in sessions.values()]
    if baseline is Baseline.INSTANCE:
        of_owners = _of_instances(actions, scale)
    else:
        of_owners = _of_episodes(actions, scale, episode_share)
    found = dict(zip(chain(*sessions.values()), chain(*of_owners), strict=True))
    return [found[number] for number in range(len(rewards))]


def _of_instances(instances: Sequence[Actions], scale: StdScale) -> list[Actions]:
    """Compare each action with all actions of all rollouts of its instance."""
    found = group_advantages([list(chain(*sessions)) for sessions in instances], scale)
    return [_in_rows(values, len(sessions)) for values, sessions in zip(found, instances, strict=True)]


def _of_episodes(instances: Sequence[Actions], scale: StdScale, share: bool) -> list[Actions]:
    """Compare the mean rewards of an instance's episodes; every action of an episode gets the advantage of its own."""
    episodes = [[_present(episode) for episode in zip(*sessions, strict=True)] for sessions in instances]
    found = group_advantages([[fmean(each) if each else None for each in of] for of in episodes], scale)
    mean_length = fmean([len(each) for of in episodes for each in of if each] or [1])
    advantages = []
    for sessions, of, values in zip(instances, episodes, found, strict=True):
        if share:
            values = [v if v is None else v * mean_length / len(each) for v, each in zip(values, of, strict=True)]
        advantages.append([[None if r is None else v for r, v in zip(row, values, strict=True)] for row in sessions])
    return advantages


def _in_rows(values: Sequence[float | None], num_rows: int) -> Actions:
    size = len(values) // num_rows
    return [list(values[start : start + size]) for start in range(0, len(values), size)]


def _present(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _centre(rewards: Sequence[float | None]) -> list[float | None]:
    valid = _present(rewards)
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
