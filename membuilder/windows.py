"""A session too long to read at once is read in windows; what an agent says about each is put together again.

Inside a window turns are numbered from 1, so an agent sees a short session; `join` and `part_of` translate.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from membuilder.types import AgentUpdate, Operation, Session


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    start: int
    """Turns of the session before this window."""
    session: Session
    """The session with this window's turns only."""


def windows(session: Session, max_turns: int) -> list[Window]:
    """The fewest consecutive windows of at most `max_turns` turns, as equal in size as can be."""
    num_turns = len(session.turns)
    num_windows = max(1, -(-num_turns // max_turns))
    bounds = [num_turns * index // num_windows for index in range(num_windows + 1)]
    return [
        Window(start=start, session=replace(session, turns=session.turns[start:stop]))
        for start, stop in zip(bounds, bounds[1:], strict=False)
    ]


def join(parts: Sequence[tuple[Window, AgentUpdate]]) -> AgentUpdate:
    """One update of the whole session; the first failure of a window fails all of it."""
    failed = next((update for _, update in parts if update.failure is not None), None)
    if failed is not None:
        return failed
    return AgentUpdate(
        operations=tuple(_shift(operation, window.start) for window, update in parts for operation in update.operations)
    )


def part_of(update: AgentUpdate, window: Window, num_windows: int) -> AgentUpdate:
    """The operations that belong to one window: those that quote its turns.

    Raises ValueError for an operation that quotes turns of two windows, or none while there are several windows.
    """
    if num_windows == 1:
        return update
    stop = window.start + len(window.session.turns)
    chosen = []
    for operation in update.operations:
        inside = [window.start < number <= stop for number in operation.quote]
        if not inside or any(inside) != all(inside):
            raise ValueError(f"cannot tell which window of the session this belongs to: {operation}")
        if inside[0]:
            chosen.append(_shift(operation, -window.start))
    return replace(update, operations=tuple(chosen))


def _shift(operation: Operation, by: int) -> Operation:
    return replace(operation, quote=tuple(number + by for number in operation.quote))
