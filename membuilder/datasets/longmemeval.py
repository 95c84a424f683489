"""LongMemEval raw files (oracle, S, M): one user, one assistant, one question per sample; a sample is one dialogue.

What is kept and what is not:
- Sessions are sorted by date; those with equal dates stay in the file's order. Session and turn ids are ours (`S3`,
  `S3:2`), because the file's own session ids tell which sessions hold the answer. The question id stays, for scoring;
  its suffix gives abstention away, so no model may see it either.
- A turn without text is dropped, and so is a session left without turns.
- Evidence is every turn marked `has_answer`; a turn without the mark is no evidence. Questions with the id suffix
  `_abs` are not answerable; their gold answer, a sentence saying what is missing, is kept.
- Sessions dated after the question stay, as evidence too: the benchmark asks after the whole history has been read.
`report` counts all of this; `parse` logs it.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from membuilder.datasets.fields import LoadReport, parse_records, read_time, take, take_answer, take_text
from membuilder.errors import DataError
from membuilder.types import Dialogue, Question, Session, Turn

CATEGORIES = (
    "single-session-user",
    "single-session-assistant",
    "single-session-preference",
    "multi-session",
    "knowledge-update",
    "temporal-reasoning",
)
ROLES = ("user", "assistant")
_DATE_FORM, _DATE_EXAMPLE = "%Y/%m/%d (%a) %H:%M", "2023/05/04 (Thu) 09:30"
_PARALLEL_LISTS = ("haystack_dates", "haystack_session_ids", "haystack_sessions")


@dataclass(frozen=True, kw_only=True, slots=True)
class LongMemEvalReport(LoadReport):
    """What `parse` left out, and what looks odd."""

    num_late_evidence: int
    """Number of questions with evidence dated after the question itself."""


def parse(records: Sequence[object], path: str | Path, only: Collection[str] | None = None) -> list[Dialogue]:
    """Dialogues of a decoded LongMemEval file; DataError names the record (counted from 0) and field at fault.

    What was repaired is logged; `only` names the dialogues whose repairs anybody wants to know of.
    """
    return parse_records(records, path, _dialogue, "question_id", report, only)


def report(records: Sequence[dict], dialogues: Sequence[Dialogue]) -> LongMemEvalReport:
    """Counts what `parse` left out on the way from these records to these dialogues, and what looks odd in them."""
    raw_sessions = [turns for record in records for turns in record["haystack_sessions"]]
    sessions = [session for dialogue in dialogues for session in dialogue.sessions]
    questions = [question for dialogue in dialogues for question in dialogue.questions]
    return LongMemEvalReport(
        num_late_evidence=sum(map(_has_late_evidence, dialogues)),
        num_without_evidence=sum(question.answerable and not question.evidence for question in questions),
        num_empty_turns=sum(map(len, raw_sessions)) - sum(len(session.turns) for session in sessions),
        num_empty_sessions=len(raw_sessions) - len(sessions),
    )


def _has_late_evidence(dialogue: Dialogue) -> bool:
    where, (question,) = dialogue.session_of_turn(), dialogue.questions
    return any(dialogue.sessions[where[turn_id]].timestamp > question.asked_at for turn_id in question.evidence)


def _dialogue(record: object, path: str | Path, position: int) -> Dialogue:
    question_id = take_text(record, "question_id", path, f"record {position}")
    where = f"record {position} ({question_id})"
    category = take(record, "question_type", str, path, where)
    if category not in CATEGORIES:
        raise DataError(path, where, "question_type", f"is {category!r}, expected one of {list(CATEGORIES)}")
    sessions, evidence = _sessions(record, path, where)
    asked = take(record, "question_date", str, path, where)
    question = Question(
        id=question_id,
        text=take_text(record, "question", path, where),
        answer=take_answer(record, path, where),
        category=category,
        evidence=evidence,
        asked_at=read_time(asked, _DATE_FORM, _DATE_EXAMPLE, path, where, "question_date"),
        answerable=not question_id.endswith("_abs"),
    )
    return Dialogue(id=question_id, speakers=ROLES, sessions=sessions, questions=(question,))


def _sessions(record: object, path: str | Path, where: str) -> tuple[tuple[Session, ...], tuple[str, ...]]:
    """The sessions in time order, and the ids of their evidence turns."""
    dates, ids, raw_sessions = (take(record, key, list, path, where) for key in _PARALLEL_LISTS)
    if not len(dates) == len(ids) == len(raw_sessions):
        lengths = ", ".join(f"{key} {len(record[key])}" for key in _PARALLEL_LISTS)
        raise DataError(path, where, "haystack_sessions", f"the three lists must be equally long, found {lengths}")
    times = [
        read_time(date, _DATE_FORM, _DATE_EXAMPLE, path, where, f"haystack_dates[{i}]") for i, date in enumerate(dates)
    ]
    sessions, evidence = [], []
    for i in sorted(range(len(times)), key=times.__getitem__):
        raw_turns = _raw_turns(raw_sessions[i], path, where, f"haystack_sessions[{i}]")
        if not raw_turns:
            continue
        session_id = f"S{len(sessions) + 1}"
        turns = tuple(
            Turn(id=f"{session_id}:{number}", speaker=raw["role"], role=raw["role"], text=raw["content"])
            for number, raw in enumerate(raw_turns, start=1)
        )
        evidence += [turn.id for turn, raw in zip(turns, raw_turns, strict=True) if raw.get("has_answer")]
        sessions.append(Session(id=session_id, index=len(sessions), timestamp=times[i], turns=turns))
    if not sessions:
        problem = "has no session with turns; remove the record or restore them"
        raise DataError(path, where, "haystack_sessions", problem)
    return tuple(sessions), tuple(evidence)


def _raw_turns(session: object, path: str | Path, where: str, field: str) -> list[dict]:
    """The turns of one session that say something, each checked."""
    if not isinstance(session, list):
        raise DataError(path, where, field, f"expected a list of turns, found {type(session).__name__}")
    for i, raw in enumerate(session):
        turn = f"{where}, {field}[{i}]"
        role = take(raw, "role", str, path, turn)
        if role not in ROLES:
            raise DataError(path, turn, "role", f"is {role!r}, expected one of {list(ROLES)}")
        take(raw, "content", str, path, turn)
        if "has_answer" in raw:
            take(raw, "has_answer", (bool, type(None)), path, turn)
    return [raw for raw in session if raw["content"].strip()]
