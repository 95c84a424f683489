"""Reads dialogues of your own from JSON Lines, one dialogue a line.

    {"id": "ann-bob",
     "speakers": ["Ann", "Bob"],
     "sessions": [{"timestamp": "2024-03-15T09:30",
                   "turns": [{"id": "t1", "speaker": "Ann", "text": "I adopted a cat called Miso."},
                             {"speaker": "Bob", "text": "Look at mine!", "caption": "a photo of a grey cat"}]}],
     "questions": [{"question": "What is Ann's cat called?", "answer": "Miso", "category": "single-session",
                    "evidence": ["t1"], "asked_at": "2024-04-01T10:00"}]}

The page docs/data-formats.md has the rules.
"""

from collections.abc import Sequence
from datetime import datetime
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, Struct

from membuilder.datasets.files import FILE
from membuilder.datasets.parsing import each_dialogue, read_time, refuse_repeats
from membuilder.datasets.typed import FieldError, Text
from membuilder.errors import DataError
from membuilder.types import Dialogue, Question, Session, Turn

_time = partial(read_time, form=None, example="2024-03-15T09:30 (ISO 8601)")


# A misspelt key is an error, because what it says would be lost in silence.
class _Turn(Struct, forbid_unknown_fields=True):
    speaker: Text
    text: str
    id: Text | None = None
    role: Literal["user", "assistant"] | None = None
    caption: str | None = None


class _Session(Struct, forbid_unknown_fields=True):
    timestamp: Text
    turns: Annotated[list[_Turn], Meta(min_length=1)]
    id: Text | None = None


class _Question(Struct, forbid_unknown_fields=True):
    question: Text
    category: Text
    id: Text | None = None
    answer: str | int | None = None
    evidence: list[Text] = []
    asked_at: Text | None = None
    answerable: bool = True


class _Dialogue(Struct, forbid_unknown_fields=True):
    id: Text
    sessions: Annotated[list[_Session], Meta(min_length=1)]
    questions: list[_Question]
    speakers: Annotated[list[Text], Meta(min_length=1)] | None = None


def parse(lines: Sequence[tuple[int, object]], path: str | Path) -> list[Dialogue]:
    """Make dialogues of (line number, decoded line) pairs; DataError names the line and field at fault."""
    if not lines:
        raise DataError(path, FILE, "lines", "is empty; expected one dialogue a line")
    return list(each_dialogue(lines, path, _Dialogue, "id", _dialogue, unit="line"))


def _dialogue(raw: _Dialogue) -> Dialogue:
    spoken = dict.fromkeys(turn.speaker for session in raw.sessions for turn in session.turns)
    speakers = tuple(raw.speakers or spoken)
    refuse_repeats(speakers, "speakers")
    stranger = next((name for name in spoken if name not in speakers), None)
    if stranger is not None:
        raise FieldError("speakers", f"does not name {stranger!r}, who speaks")
    sessions = tuple(_session(session, index, speakers) for index, session in enumerate(raw.sessions))
    sessions_of = {turn.id: session for session in sessions for turn in session.turns}
    refuse_repeats([session.id for session in sessions], "sessions[].id")
    refuse_repeats([turn.id for session in sessions for turn in session.turns], "sessions[].turns[].id")
    for before, session in pairwise(sessions):
        field = f"sessions[{session.index}].timestamp"
        if _earlier(session.timestamp, before.timestamp, field):
            problem = f"is before the session above it ({before.timestamp}); put the sessions in time order"
            raise FieldError(field, f"{session.timestamp} {problem}")
    questions = tuple(
        _question(asked, f"{raw.id}_q{index + 1}", sessions_of, f"questions[{index}]")
        for index, asked in enumerate(raw.questions)
    )
    refuse_repeats([question.id for question in questions], "questions[].id")
    return Dialogue(id=raw.id, speakers=speakers, sessions=sessions, questions=questions)


def _session(raw: _Session, index: int, speakers: tuple[str, ...]) -> Session:
    session_id, field = raw.id or f"S{index + 1}", f"sessions[{index}]"
    turns = []
    for i, turn in enumerate(raw.turns):
        if not turn.text.strip() and not turn.caption:
            raise FieldError(f"{field}.turns[{i}].text", "is empty; fill it in or remove the turn")
        role = turn.role or ("user" if turn.speaker == speakers[0] else "assistant")
        turn_id, caption = turn.id or f"{session_id}:{i + 1}", turn.caption or None
        turns.append(Turn(id=turn_id, speaker=turn.speaker, role=role, text=turn.text, caption=caption))
    time = _time(raw.timestamp, field=f"{field}.timestamp")
    return Session(id=session_id, index=index, timestamp=time, turns=tuple(turns))


def _question(raw: _Question, question_id: str, sessions_of: dict[str, Session], field: str) -> Question:
    unknown = next((turn_id for turn_id in raw.evidence if turn_id not in sessions_of), None)
    if unknown is not None:
        raise FieldError(f"{field}.evidence", f"{unknown!r} is no turn of this dialogue")
    refuse_repeats(raw.evidence, f"{field}.evidence")
    if raw.answerable and raw.answer is None:
        raise FieldError(f"{field}.answer", 'is missing; give it, or say "answerable": false')
    asked_at = None if raw.asked_at is None else _time(raw.asked_at, field=f"{field}.asked_at")
    for turn_id in raw.evidence if asked_at is not None else ():
        told = sessions_of[turn_id].timestamp
        if _earlier(asked_at, told, f"{field}.asked_at"):
            problem = f"{asked_at} is before its evidence {turn_id!r} was told ({told}); correct one of the two"
            raise FieldError(f"{field}.asked_at", problem)
    return Question(
        id=raw.id or question_id,
        text=raw.question,
        answer=None if raw.answer is None else str(raw.answer),
        category=raw.category,
        evidence=tuple(raw.evidence),
        asked_at=asked_at,
        answerable=raw.answerable,
    )


def _earlier(one: datetime, other: datetime, field: str) -> bool:
    if (one.tzinfo is None) != (other.tzinfo is None):
        raise FieldError(field, "has an offset from UTC and another time has none; give all or none of them")
    return one < other
