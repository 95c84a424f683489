"""Dialogues of your own: JSON Lines, one dialogue a line.

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

from jsonschema import Draft202012Validator

from membuilder.datasets.fields import refuse_repeated_ids
from membuilder.datasets.files import FILE
from membuilder.errors import DataError
from membuilder.types import Dialogue, Question, Session, Turn

_TEXT = {"type": "string", "pattern": r"\S"}


def _object(required: Sequence[str], **properties: dict) -> dict:
    return {
        "type": "object",
        "required": list(required),
        "properties": properties,
        "additionalProperties": False,  # a misspelt key is an error, not a silence
    }


SCHEMA = _object(
    ("id", "sessions", "questions"),
    id=_TEXT,
    speakers={"type": "array", "items": _TEXT, "minItems": 1, "uniqueItems": True},
    sessions={
        "type": "array",
        "minItems": 1,
        "items": _object(
            ("timestamp", "turns"),
            id=_TEXT,
            timestamp=_TEXT,
            turns={
                "type": "array",
                "minItems": 1,
                "items": _object(
                    ("speaker", "text"),
                    id=_TEXT,
                    speaker=_TEXT,
                    role={"enum": ["user", "assistant"]},
                    text={"type": "string"},
                    caption={"type": ["string", "null"]},
                ),
            },
        ),
    },
    questions={
        "type": "array",
        "items": _object(
            ("question", "category"),
            id=_TEXT,
            question=_TEXT,
            answer={"type": ["string", "integer", "null"]},
            category=_TEXT,
            evidence={"type": "array", "items": _TEXT, "uniqueItems": True},
            asked_at=_TEXT,
            answerable={"type": "boolean"},
        ),
    },
)
_VALIDATOR = Draft202012Validator(SCHEMA)


def parse(lines: Sequence[tuple[int, object]], path: str | Path) -> list[Dialogue]:
    """Dialogues of (line number, decoded line) pairs; raises DataError naming line and field at fault."""
    if not lines:
        raise DataError(path, FILE, "lines", "is empty; expected one dialogue a line")
    dialogues = [_dialogue(record, path, f"line {number}") for number, record in lines]
    refuse_repeated_ids(dialogues, path, "id")
    return dialogues


def _dialogue(record: object, path: str | Path, where: str) -> Dialogue:
    problem = min(_VALIDATOR.iter_errors(record), key=lambda error: list(map(str, error.absolute_path)), default=None)
    if problem is not None:
        raise DataError(path, where, problem.json_path.removeprefix("$."), problem.message[:300])
    where = f"{where} ({record['id']})"
    spoken = dict.fromkeys(turn["speaker"] for session in record["sessions"] for turn in session["turns"])
    speakers = tuple(record.get("speakers", spoken))
    stranger = next((name for name in spoken if name not in speakers), None)
    if stranger is not None:
        raise DataError(path, where, "speakers", f"does not name {stranger!r}, who speaks")
    sessions = tuple(_sessions(record["sessions"], speakers, path, where))
    sessions_of = {turn.id: session for session in sessions for turn in session.turns}
    questions = [
        _question(raw, f"{record['id']}_q{number}", sessions_of, path, f"{where}, questions[{number - 1}]")
        for number, raw in enumerate(record["questions"], start=1)
    ]
    _refuse_repeats([question.id for question in questions], path, where, "questions[].id")
    return Dialogue(id=record["id"], speakers=speakers, sessions=sessions, questions=tuple(questions))


def _sessions(raw_sessions: list, speakers: tuple[str, ...], path: str | Path, where: str) -> Iterator[Session]:
    ids = [raw.get("id", f"S{number}") for number, raw in enumerate(raw_sessions, start=1)]
    turn_ids = [
        [turn.get("id", f"{session_id}:{number}") for number, turn in enumerate(raw["turns"], start=1)]
        for session_id, raw in zip(ids, raw_sessions, strict=True)
    ]
    _refuse_repeats(ids, path, where, "sessions[].id")
    _refuse_repeats([turn_id for group in turn_ids for turn_id in group], path, where, "sessions[].turns[].id")
    before = None
    for index, raw in enumerate(raw_sessions):
        place = f"{where}, sessions[{index}]"
        time = _time(raw["timestamp"], path, place, "timestamp")
        if before is not None and _earlier(time, before, path, place, "timestamp"):
            problem = f"{time} is before the session above it ({before}); put the sessions in time order"
            raise DataError(path, place, "timestamp", problem)
        before = time
        turns = [
            _turn(turn, turn_id, speakers, path, f"{place}.turns[{number}]")
            for number, (turn, turn_id) in enumerate(zip(raw["turns"], turn_ids[index], strict=True))
        ]
        yield Session(id=ids[index], index=index, timestamp=time, turns=tuple(turns))


def _turn(raw: dict, turn_id: str, speakers: tuple[str, ...], path: str | Path, where: str) -> Turn:
    caption = raw.get("caption") or None
    if not raw["text"].strip() and caption is None:
        raise DataError(path, where, "text", "is empty; fill it in or remove the turn")
    default = "user" if raw["speaker"] == speakers[0] else "assistant"
    role = raw.get("role", default)
    return Turn(id=turn_id, speaker=raw["speaker"], role=role, text=raw["text"], caption=caption)


def _question(raw: dict, question_id: str, sessions_of: dict[str, Session], path: str | Path, where: str) -> Question:
    evidence, answerable, answer = tuple(raw.get("evidence", ())), raw.get("answerable", True), raw.get("answer")
    unknown = next((turn_id for turn_id in evidence if turn_id not in sessions_of), None)
    if unknown is not None:
        raise DataError(path, where, "evidence", f"{unknown!r} is no turn of this dialogue")
    if answerable and answer is None:
        raise DataError(path, where, "answer", 'is missing; give it, or say "answerable": false')
    asked_at = _time(raw["asked_at"], path, where, "asked_at") if "asked_at" in raw else None
    for turn_id in evidence if asked_at is not None else ():
        told = sessions_of[turn_id].timestamp
        if _earlier(asked_at, told, path, where, "asked_at"):
            problem = f"{asked_at} is before its evidence {turn_id!r} was told ({told}); correct one of the two"
            raise DataError(path, where, "asked_at", problem)
    return Question(
        id=raw.get("id", question_id),
        text=raw["question"],
        answer=None if answer is None else str(answer),
        category=raw["category"],
        evidence=evidence,
        asked_at=asked_at,
        answerable=answerable,
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
        raise DataError(path, where, field, f"{repeated!r} is used twice; every id must be its own")
