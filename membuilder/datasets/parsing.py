"""Makes dialogues of the records of a file, and holds what every format checks and counts."""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TypeVar

import msgspec

from membuilder.datasets.typed import FieldError, convert, located
from membuilder.errors import DataError
from membuilder.text import HALF_CHARACTER, is_text
from membuilder.types import Dialogue

logger = logging.getLogger(__name__)
Record = TypeVar("Record")


def each_dialogue(
    records: Iterable[tuple[int, object]],
    path: str | Path,
    kind: type[Record],
    id_field: str,
    dialogue_of: Callable[[Record], Dialogue],
    unit: str = "record",
) -> Iterator[Dialogue]:
    """Yield a dialogue of each (number, decoded record). A FieldError becomes a DataError that names the record."""
    first_at: dict[str, int] = {}
    for number, record in records:
        name = record.get(id_field) if isinstance(record, dict) else None
        where = f"{unit} {number} ({name})" if isinstance(name, str) and name.strip() else f"{unit} {number}"
        with located(path, where):
            dialogue = dialogue_of(convert(kind, record))
            first = first_at.setdefault(dialogue.id, number)
            if first != number:
                named = "" if name == dialogue.id else f"{dialogue.id!r:.80} "
                raise FieldError(id_field, f"{named}is also the id of {unit} {first}; remove or rename one of them")
        yield dialogue


def read_time(text: str, form: str | None, example: str, field: str) -> datetime:
    """Read a date in strptime's `form`, or in ISO 8601 without one; `example` shows the user what was expected."""
    try:
        return datetime.fromisoformat(text) if form is None else datetime.strptime(text, form)
    except ValueError as error:
        raise FieldError(field, f"expected a date like {example!r}, found {text!r:.80}") from error


def refuse_repeats(names: Iterable[str], field: str) -> None:
    """Raise FieldError where a name stands twice."""
    repeated = next((name for name, count in Counter(names).items() if count > 1), None)
    if repeated is not None:
        raise FieldError(field, f"{repeated!r} stands there twice; each may stand once")


@dataclass(kw_only=True, slots=True)
class LoadReport:
    """What a loader repaired or left out, and what looks odd; each format counts what it can have."""

    num_without_evidence: int = 0
    """Number of answerable questions that no dense reward can ask."""
    num_empty_turns: int = 0
    num_empty_sessions: int = 0
    num_late_evidence: int = 0
    """Number of questions with evidence dated after the question itself."""
    num_split_evidence: int = 0
    """Number of strings that held more than one id."""
    num_repeated_questions: int = 0
    no_memory: list[str] = field(default_factory=list)
    """Characters with questions whom the memory file does not have."""
    no_questions: int = 0
    """Number of characters with memory but without questions."""
    undated: int = 0
    """Number of events and dialogue blocks whose time names no year."""
    dropped_evidence: list[str] = field(default_factory=list)
    """Each reference to no turn or record, as `<question id>: <what the file says>`."""

    def log(self, path: str | Path) -> None:
        """Log what was found in a file, if it is anything."""
        found = ", ".join(f"{name}={value!r}" for name, value in asdict(self).items() if value)
        if found:
            logger.warning("%s: repaired, left out or odd: %s", path, found)


def common_counts(raw_sessions: Sequence[Sequence], dialogues: Sequence[Dialogue]) -> dict[str, int]:
    """Count what both LoCoMo and LongMemEval can have, from a file's sessions and the dialogues made of them."""
    sessions = [session for dialogue in dialogues for session in dialogue.sessions]
    questions = [question for dialogue in dialogues for question in dialogue.questions]
    return {
        "num_without_evidence": sum(question.answerable and not question.evidence for question in questions),
        "num_empty_turns": sum(map(len, raw_sessions)) - sum(len(session.turns) for session in sessions),
        "num_empty_sessions": len(raw_sessions) - len(sessions),
    }


def refuse_half_characters(dialogues: Sequence[Dialogue], path: str | Path) -> None:
    """Raise DataError for half a surrogate pair (`\\ud83d` alone), which JSON allows though it is no text."""
    for position, dialogue in enumerate(dialogues):
        for name, text in _texts(msgspec.to_builtins(dialogue)):
            if not is_text(text):
                where = f"record {position} ({ascii(dialogue.id)[1:-1]})"
                problem = f"{ascii(text):.80} {HALF_CHARACTER}; repair or remove it"
                raise DataError(path, where, name.lstrip("."), problem)


def _texts(value: object, field: str = "") -> Iterator[tuple[str, str]]:
    """Yield (field, text) of every string in a JSON value."""
    match value:
        case str():
            yield field, value
        case {}:
            for name, inner in value.items():
                yield from _texts(inner, f"{field}.{name}")
        case [*items]:
            for i, inner in enumerate(items):
                yield from _texts(inner, f"{field}[{i}]")
