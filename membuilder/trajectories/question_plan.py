"""Plans how many synthetic questions of which kind a session is asked."""

from collections import Counter
from enum import StrEnum


class Kind(StrEnum):
    SINGLE_SESSION = "single_session"
    MULTI_SESSION = "multi_session"
    TEMPORAL = "temporal"


MIX = {Kind.SINGLE_SESSION: 0.5, Kind.MULTI_SESSION: 0.3, Kind.TEMPORAL: 0.2}
"""The published mix."""


def plan(num_sessions: int, per_session: int) -> list[Counter[Kind]]:
    """Count the questions of each kind to ask each session: over a dialogue the mix is MIX, as nearly as can be.

    Each place goes to the kind that is furthest behind. The first session has no earlier one to be combined with; what
    it cannot ask is made up for later.
    """
    given: Counter[Kind] = Counter()
    plans = []
    for index in range(num_sessions):
        here: Counter[Kind] = Counter()
        for _ in range(per_session):
            allowed = [kind for kind in Kind if index or kind is not Kind.MULTI_SESSION]
            total = given.total() + 1
            kind = max(allowed, key=lambda kind: MIX[kind] * total - given[kind])
            given[kind] += 1
            here[kind] += 1
        plans.append(here)
    return plans
