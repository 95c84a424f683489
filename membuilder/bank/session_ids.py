"""Sessions that say the same under other ids: in a file without ids these move when a session goes or comes."""

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from itertools import count

from membuilder.bank.store_rows import StoredMemory
from membuilder.types import CoreQuote, Session


def without_ids(session: Session) -> Session:
    """Return a session whose ids tell nothing, to be compared with another."""
    return replace(session, id="", turns=tuple(replace(turn, id="") for turn in session.turns))


def with_ids_of(memory: StoredMemory, sessions: Sequence[Session]) -> StoredMemory:
    """Return a memory whose sessions and turns have the ids of `sessions`, which say the same."""
    pairs = zip(memory.sessions, sessions, strict=True)
    new = {
        old.id: turn.id
        for stored, session in pairs
        for old, turn in zip(stored.session.turns, session.turns, strict=True)
    }
    told = [
        replace(
            stored,
            session=session,
            core_quotes=tuple(CoreQuote(turn_id=new[quote.turn_id], text=quote.text) for quote in stored.core_quotes),
        )
        for stored, session in zip(memory.sessions, sessions, strict=True)
    ]
    entries = [replace(each, source_turns=tuple(new[turn] for turn in each.source_turns)) for each in memory.entries]
    return replace(memory, sessions=tuple(told), entries=tuple(entries))


def sessions_named(sessions: Iterable[Session], session_id: str) -> list[Session]:
    """Return the session of this id, or all windows of it (datasets/windows.py); none where there is none."""
    sessions, window = tuple(sessions), re.compile(rf"{re.escape(session_id)}\.\d+")
    named = [each for each in sessions if each.id == session_id]
    return named or [each for each in sessions if window.fullmatch(each.id)]


def free_session_id(sessions: Collection[Session], first: int) -> str:
    """Return `S<number>`, from `first` on, that names none of the sessions, their windows or their turns."""
    used: Iterable[str] = [each for session in sessions for each in (session.id, *(turn.id for turn in session.turns))]
    taken = {each.split(":")[0].split(".")[0] for each in used}
    return next(name for number in count(first) if (name := f"S{number}") not in taken)
