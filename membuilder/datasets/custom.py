"""Reads dialogues of your own from JSON Lines, one dialogue a line.

    {"id": "ann-bob",
     "speakers": ["Ann", "Bob"],
     "sessions": [{"timestamp": "2024-03-15T09:30",
                   "turns": [{"id": "t1", "speaker": "Ann", "text": "I adopted a cat called Miso."},
                             {"speaker": "Bob", "text": "Look at mine!", "caption": "a photo of a grey cat"}]}],
     "questions": [{"question": "What is Ann's cat called?", "answer": "Miso", "category": "single-session",
                    "evidence": ["t1"], "asked_at": "2024-04-01T10:00"}]}

- The first speaker counts as `user`, every other as `assistant`, unless a turn has its own `"role"`.
- Sessions stand in time order; timestamps are ISO 8601, all with or all without an offset from UTC.
- `id` of a session is `S1`, `S2`, ... and of a turn `S1:1`, `S1:2`, ... where left out.
- `evidence` names the turns that hold the answer; without it a question counts in no evidence recall.
- A question that the dialogue does not answer has `"answerable": false`; its `answer` may be null or left out.
"""

from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, Struct

from membuilder.datasets.fields import refuse_repeated_ids
from membuilder.datasets.files import FILE
from membuilder.datasets.typed import Text, typed
from membuilder.errors import DataError
from membuilder.types import Dialogue, Question, Session, Turn


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
    """Dialogues of (line number, decoded line) pairs; raises DataError naming line and field at fault."""
    if not lines:
        raise DataError(path, FILE, "lines", "is empty; expected one dialogue a line")
    dialogues = [_dialogue(record, path, f"line {number}") for number, record in lines]
    refuse_repeated_ids(dialogues, path, "id")
    return dialogues


def _dialogue(record: object, path: str | Path, where: str) -> Dialogue:
    raw = typed(_Dialogue, record, path, where)
    where = f"{where} ({raw.id})"
    spoken = dict.fromkeys(turn.speaker for session in raw.sessions for turn in session.turns)
    speakers = tuple(raw.speakers or spoken)
    _refuse_repeats(speakers, path, where, "speakers")
    stranger = next((name for name in spoken if name not in speakers), None)
    if stranger is not None:
        raise DataError(path, where, "speakers", f"does not name {stranger!r}, who speaks")
    sessions = tuple(_sessions(raw.sessions, speakers, path, where))
    sessions_of = {turn.id: session for session in sessions for turn in session.turns}
    questions = [
        _question(asked, f"{raw.id}_q{number}", sessions_of, path, f"{where}, questions[{number - 1}]")
        for number, asked in enumerate(raw.questions, start=1)
    ]
    _refuse_repeats([question.id for question in questions], path, where, "questions[].id")
    return Dialogue(id=raw.id, speakers=speakers, sessions=sessions, questions=tuple(questions))


def _sessions(
    raw_sessions: list[_Session], speakers: tuple[str, ...], path: str | Path, where: str
) -> Iterator[Session]:
    ids = [raw.id or f"S{number}" for number, raw in enumerate(raw_sessions, start=1)]
    turn_ids = [
        [turn.id or f"{session_id}:{number}" for number, turn in enumerate(raw.turns, start=1)]
        for session_id, raw in zip(ids, raw_sessions, strict=True)
    ]
    _refuse_repeats(ids, path, where, "sessions[].id")
    _refuse_repeats([turn_id for group in turn_ids for turn_id in group], path, where, "sessions[].turns[].id")
    before = None
    for index, raw in enumerate(raw_sessions):
        place = f"{where}, sessions[{index}]"
        time = _time(raw.timestamp, path, place, "timestamp")
        if before is not None and _earlier(time, before, path, place, "timestamp"):
            problem = f"{time} is before the session above it ({before}); put the sessions in time order"
            raise DataError(path, place, "timestamp", problem)
        before = time
        turns = [
            _turn(turn, turn_id, speakers, path, f"{place}.turns[{number}]")
            for number, (turn, turn_id) in enumerate(zip(raw.turns, turn_ids[index], strict=True))
        ]
        yield Session(id=ids[index], index=index, timestamp=time, turns=tuple(turns))


def _turn(raw: _Turn, turn_id: str, speakers: tuple[str, ...], path: str | Path, where: str) -> Turn:
    if not raw.text.strip() and not raw.caption:
        raise DataError(path, where, "text", "is empty; fill it in or remove the turn")
    role = raw.role or ("user" if raw.speaker == speakers[0] else "assistant")
    return Turn(id=turn_id, speaker=raw.speaker, role=role, text=raw.text, caption=raw.caption or None)


def _question(
    raw: _Question, question_id: str, sessions_of: dict[str, Session], path: str | Path, where: str
) -> Question:
    unknown = next((turn_id for turn_id in raw.evidence if turn_id not in sessions_of), None)
    if unknown is not None:
        raise DataError(path, where, "evidence", f"{unknown!r} is no turn of this dialogue")
    _refuse_repeats(raw.evidence, path, where, "evidence")
    if raw.answerable and raw.answer is None:
        raise DataError(path, where, "answer", 'is missing; give it, or say "answerable": false')
    asked_at = None if raw.asked_at is None else _time(raw.asked_at, path, where, "asked_at")
    for turn_id in raw.evidence if asked_at is not None else ():
        told = sessions_of[turn_id].timestamp
        if _earlier(asked_at, told, path, where, "asked_at"):
            problem = f"{asked_at} is before its evidence {turn_id!r} was told ({told}); correct one of the two"
            raise DataError(path, where, "asked_at", problem)
    return Question(
        id=raw.id or question_id,
        text=raw.question,
        answer=None if raw.answer is None else str(raw.answer),
        category=raw.category,
        evidence=tuple(raw.evidence),
        asked_at=asked_at,
        answerable=raw.answerable,
    )


def _time(text: str, path: str | Path, where: str, field: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError:  # not a date: the message below says what was expected
        problem = f"expected an ISO 8601 time such as '2024-03-15T09:30', found {text!r:.80}"
    raise DataError(path, where, field, problem)


def _earlier(one: datetime, other: datetime, path: str | Path, where: str, field: str) -> bool:
    if (one.tzinfo is None) != (other.tzinfo is None):
        raise DataError(
            path, where, field, "has an offset from UTC and another time has none; give all or none of them"
        )
    return one < other


def _refuse_repeats(ids: Sequence[str], path: str | Path, where: str, field: str) -> None:
    repeated = next((name for number, name in enumerate(ids) if name in ids[:number]), None)
    if repeated is not None:
        raise DataError(path, where, field, f"{repeated!r} stands there twice; each may stand once")
