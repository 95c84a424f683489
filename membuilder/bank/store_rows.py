"""Records of the store <-> rows of its tables. Lists are JSON in a column; the tables are in `store.py`."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import msgspec
import numpy as np

from membuilder.types import CoreQuote, Entry, Operation, Session, Turn

Row = Sequence[Any]
VECTOR = np.dtype("<f4")


@dataclass(frozen=True, kw_only=True, slots=True)
class Reason:
    """Why an answer changed nothing: a `FailureKind`, or `chat_` and a `ChatErrorKind`; and what happened."""

    kind: str
    detail: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Dropped:
    """An operation that could not be applied, in an answer of which others were."""

    operation: str
    """As the model wrote it."""
    kind: str
    """A `FailureKind`."""
    detail: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What one agent answered about one session."""

    text: str | None
    """The raw answer; None when none came."""
    operations: tuple[Operation, ...] = ()
    """As parsed. They were applied unless there is a failure."""
    failure: Reason | None = None
    dropped: tuple[Dropped, ...] = ()
    """What of an answer without a failure was not applied."""
    shown: tuple[str, ...] = ()
    """Ids of the entries shown to the agent: label e1 in a target is the first."""
    seconds: float = 0.0
    """From asking to the answer."""
    asked_at: datetime | None = None
    """With its time zone; None where nobody noted it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredSession:
    """One session as it was read, what the agents answered, and the core after it."""

    session: Session
    answers: Mapping[str, Answer]
    """By role; empty for a session without turns, which no role reads."""
    core: str
    core_quotes: tuple[CoreQuote, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredMemory:
    """All that a store holds."""

    settings: Mapping[str, Any]
    sessions: tuple[StoredSession, ...]
    entries: tuple[Entry, ...]
    vectors: np.ndarray
    """Of the entries, in their order. # (N, D)"""
    deleted: Mapping[str, int] = field(default_factory=dict)
    """Id of each deleted entry -> index of the session that deleted it, in the order in which it was done."""


def role_of(entry: Entry, answers: Mapping[str, Answer]) -> str:
    """Return the role that wrote an entry of a session: its own name is the part's, or the one writer names the part.

    `answers` are those of the session that the entry is of.
    """
    return str(entry.agent) if entry.agent in answers else next(iter(answers))


def without_unset(operations: str) -> str:
    """Leave part and turn out of operations as JSON that have none: most roles are a part of their own, of one turn."""
    for name in ("part", "turn"):  # no text holds a bare quotation mark
        operations = operations.replace(f',"{name}":null', "").replace(f', "{name}": null', "")
    return operations


def rows_of(
    sessions: Sequence[StoredSession], entries: Sequence[tuple[int, Entry]], vectors: np.ndarray
) -> dict[str, list[Row]]:
    """Table -> the rows that store these sessions, and entries with their numbers and embeddings (N, D)."""
    blobs = [vector.tobytes() for vector in vectors.astype(VECTOR, copy=False)]
    return {
        "session": [session_row(each) for each in sessions],
        "turn": [row for each in sessions for row in turn_rows(each.session)],
        "answer": [answer_row(each.session, *answer) for each in sessions for answer in each.answers.items()],
        "entry": [entry_row(number, entry) for number, entry in entries],
        "embedding": [(number, blob) for (number, _), blob in zip(entries, blobs, strict=True)],
    }


def session_row(stored: StoredSession) -> Row:
    session, quotes = stored.session, [[quote.turn_id, quote.text] for quote in stored.core_quotes]
    return session.index, session.id, session.timestamp.isoformat(), stored.core, _dump(quotes)


def turn_rows(session: Session) -> list[Row]:
    return [
        (turn.id, session.index, number, turn.speaker, turn.role, turn.text, turn.caption)
        for number, turn in enumerate(session.turns, start=1)
    ]


def answer_row(session: Session, role: str, answer: Answer) -> Row:
    # what was dropped of an answer without a failure stands as JSON where a failure has its detail
    failure = (None, _dump(answer.dropped)) if answer.dropped else (None, None)
    if answer.failure is not None:
        failure = (answer.failure.kind, storable(answer.failure.detail))
    text = None if answer.text is None else storable(answer.text)
    asked_at = None if answer.asked_at is None else answer.asked_at.isoformat()
    shown, operations = _dump(answer.shown), without_unset(_dump(answer.operations))
    return session.index, str(role), shown, text, operations, *failure, answer.seconds, asked_at


def entry_row(number: int, entry: Entry) -> Row:
    source_turns, supersedes = _dump(entry.source_turns), _dump(entry.supersedes)
    return number, entry.id, str(entry.agent), entry.session, entry.text, source_turns, supersedes


def storable(text: str) -> str:
    """Half a surrogate pair, which JSON from outside may hold, is no text to a database: it becomes its escape."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def read_entries(rows: Iterable[Row], sessions: Sequence[StoredSession]) -> tuple[Entry, ...]:
    return tuple(
        Entry(
            id=entry_id,
            agent=agent,
            text=text,
            session=session,
            timestamp=sessions[session].session.timestamp,
            source_turns=_ids(source_turns),
            supersedes=_ids(supersedes),
        )
        for entry_id, agent, session, text, source_turns, supersedes in rows
    )


def read_sessions(sessions: Iterable[Row], turns: Iterable[Row], answers: Iterable[Row]) -> tuple[StoredSession, ...]:
    turns_of: dict[int, list[Turn]] = defaultdict(list)
    for session, turn_id, speaker, role, text, caption in turns:
        turns_of[session].append(Turn(id=turn_id, speaker=speaker, role=role, text=text, caption=caption))
    answers_of: dict[int, dict[str, Answer]] = defaultdict(dict)
    for session, role, shown, text, operations, kind, detail, seconds, asked_at in answers:
        answers_of[session][role] = Answer(
            text=text,
            operations=msgspec.json.decode(operations, type=tuple[Operation, ...]),
            failure=None if kind is None else Reason(kind=kind, detail=detail),
            dropped=() if kind is not None or detail is None else msgspec.json.decode(detail, type=tuple[Dropped, ...]),
            shown=_ids(shown),
            seconds=seconds,
            asked_at=None if asked_at is None else datetime.fromisoformat(asked_at),
        )
    stored = []
    for number, session_id, timestamp, core, quotes in sessions:
        when, said = datetime.fromisoformat(timestamp), tuple(turns_of[number])
        session = Session(id=session_id, index=number, timestamp=when, turns=said)
        core_quotes = tuple(CoreQuote(turn_id=turn_id, text=text) for turn_id, text in json.loads(quotes))
        stored.append(StoredSession(session=session, answers=answers_of[number], core=core, core_quotes=core_quotes))
    return tuple(stored)


def _ids(text: str) -> tuple[str, ...]:
    return () if text == "[]" else tuple(json.loads(text))  # most entries supersede nothing; 100,000 are opened at once


def _dump(value: Any) -> str:
    return msgspec.json.encode(value).decode()
