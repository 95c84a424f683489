"""Cuts a session that is too long to read at once into windows: several sessions of the same date."""

from dataclasses import replace

from membuilder.types import Dialogue, Session


def in_windows(dialogue: Dialogue, max_turns: int | None) -> Dialogue:
    """Return the dialogue with no session of more than `max_turns` turns; turn ids and questions stay as they are.

    A long session is cut into the fewest consecutive windows, as equal in size as can be. With None none is cut.
    """
    if max_turns is None:
        return dialogue
    cut = [window for session in dialogue.sessions for window in _windows(session, max_turns)]
    return replace(dialogue, sessions=tuple(replace(session, index=index) for index, session in enumerate(cut)))


def sessions_of_windows(dialogue: Dialogue, max_turns: int | None) -> list[int]:
    """Return the session of each window, by index; with None every session is read whole and is its own window."""
    sessions = dialogue.sessions
    return [s.index for s in sessions for _ in ([s] if max_turns is None else _windows(s, max_turns))]


def _windows(session: Session, max_turns: int) -> list[Session]:
    num_turns = len(session.turns)
    num_windows = max(1, -(-num_turns // max_turns))
    if num_windows == 1:
        return [session]
    bounds = [num_turns * index // num_windows for index in range(num_windows + 1)]
    return [
        replace(session, id=f"{session.id}.{number}", turns=session.turns[start:stop])
        for number, (start, stop) in enumerate(zip(bounds, bounds[1:], strict=False), start=1)
    ]
