"""Parses LongMemEval (oracle, S, M), where each sample is a dialogue of user and assistant with one question.

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
from pathlib import Path
from typing import Any

from msgspec import Struct

from membuilder.datasets.parsing import LoadReport, common_counts, each_dialogue, read_time
from membuilder.datasets.typed import FieldError, Text, one_of
from membuilder.types import Dialogue, Question, Session, Turn

_ONE_SESSION = ("single-session-user", "single-session-assistant", "single-session-preference")
CATEGORIES = (*_ONE_SESSION, "multi-session", "knowledge-update", "temporal-reasoning")
ROLES = ("user", "assistant")
_DATE_FORM, _DATE_EXAMPLE = "%Y/%m/%d (%a) %H:%M", "2023/05/04 (Thu) 09:30"
_PARALLEL_LISTS = ("haystack_dates", "haystack_session_ids", "haystack_sessions")


class _Turn(Struct):
    role: one_of(ROLES)
    content: str
    has_answer: bool | None = None


class _Record(Struct):
    question_id: Text
    question_type: one_of(CATEGORIES)
    question: Text
    answer: Text | int
    question_date: str
    haystack_dates: list[str]
    haystack_session_ids: list[Any]
    haystack_sessions: list[list[_Turn]]


def parse(records: Sequence[object], path: str | Path, only: Collection[str] | None = None) -> list[Dialogue]:
    """Make dialogues of a decoded LongMemEval file; DataError names the record (counted from 0) and field at fault.

    What was repaired is logged; `only` names the dialogues whose repairs anybody wants to know of.
    """
    dialogues = list(each_dialogue(enumerate(records), path, _Record, "question_id", _dialogue))
    wanted = [number for number, dialogue in enumerate(dialogues) if only is None or dialogue.id in only]
    report([records[number] for number in wanted], [dialogues[number] for number in wanted]).log(path)
    return dialogues


def parse_one(record: object, number: int, path: str | Path) -> Dialogue:
    """Make a dialogue of one record, for those who read a file of any size record by record; DataError as `parse`."""
    (dialogue,) = each_dialogue([(number, record)], path, _Record, "question_id", _dialogue)
    return dialogue


def report(records: Sequence[dict], dialogues: Sequence[Dialogue]) -> LoadReport:
    """Count what `parse` left out on the way from these records to these dialogues, and what looks odd in them."""
    raw_sessions = [turns for record in records for turns in record["haystack_sessions"]]
    late = sum(map(_has_late_evidence, dialogues))
    return LoadReport(**common_counts(raw_sessions, dialogues), num_late_evidence=late)


def _has_late_evidence(dialogue: Dialogue) -> bool:
    where, (question,) = dialogue.session_of_turn(), dialogue.questions
    return any(dialogue.sessions[where[turn_id]].timestamp > question.asked_at for turn_id in question.evidence)


def _dialogue(raw: _Record) -> Dialogue:
    sessions, evidence = _sessions(raw)
    question = Question(
        id=raw.question_id,
        text=raw.question,
        answer=str(raw.answer),
        category=raw.question_type,
        evidence=evidence,
        asked_at=read_time(raw.question_date, _DATE_FORM, _DATE_EXAMPLE, "question_date"),
        answerable=not raw.question_id.endswith("_abs"),
    )
    return Dialogue(id=raw.question_id, speakers=ROLES, sessions=sessions, questions=(question,))


def _sessions(raw: _Record) -> tuple[tuple[Session, ...], tuple[str, ...]]:
    """Return the sessions in time order, and the ids of their evidence turns."""
    lengths = {name: len(getattr(raw, name)) for name in _PARALLEL_LISTS}
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise FieldError("haystack_sessions", f"the three lists must be equally long, found {found}")
    times = [
        read_time(date, _DATE_FORM, _DATE_EXAMPLE, f"haystack_dates[{i}]") for i, date in enumerate(raw.haystack_dates)
    ]
    sessions, evidence = [], []
    for i in sorted(range(len(times)), key=times.__getitem__):
        raw_turns = [turn for turn in raw.haystack_sessions[i] if turn.content.strip()]
        if not raw_turns:
            continue
        session_id = f"S{len(sessions) + 1}"
        turns = tuple(
            Turn(id=f"{session_id}:{number}", speaker=turn.role, role=turn.role, text=turn.content)
            for number, turn in enumerate(raw_turns, start=1)
        )
        evidence += [turn.id for turn, said in zip(turns, raw_turns, strict=True) if said.has_answer]
        sessions.append(Session(id=session_id, index=len(sessions), timestamp=times[i], turns=turns))
    if not sessions:
        raise FieldError("haystack_sessions", "has no session with turns; remove the record or restore them")
    return tuple(sessions), tuple(evidence)
