"""Makes dialogues of the records of a file, and holds what every format checks and counts."""

import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TypeVar

import msgspec

from membuilder.datasets.typed import FieldError, convert, located
from membuilder.errors import DataError
from membuilder.types import Dialogue

logger = logging.getLogger(__name__)
Record = TypeVar("Record")


def parse_records(
    records: Iterable[tuple[int, object]],
    path: str | Path,
    kind: type[Record],
    id_field: str,
    dialogue_of: Callable[[Record], Dialogue],
    unit: str = "record",
) -> list[Dialogue]:
    """Make a dialogue of each (number, decoded record). A FieldError becomes a DataError that names the record."""
    first_at: dict[str, int] = {}
    dialogues = []
    for number, record in records:
        name = record.get(id_field) if isinstance(record, dict) else None
        where = f"{unit} {number} ({name})" if isinstance(name, str) and name.strip() else f"{unit} {number}"
        with located(path, where):
            dialogues.append(dialogue_of(convert(kind, record)))
            first = first_at.setdefault(dialogues[-1].id, number)
            if first != number:
                raise FieldError(id_field, f"is also the id of {unit} {first}; remove or rename one of them")
    return dialogues


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


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadReport:
    """What every loader counts; a format with more to say adds fields."""

    num_without_evidence: int
    """Number of answerable questions that no dense reward can ask."""
    num_empty_turns: int
    num_empty_sessions: int


def common_counts(raw_sessions: Sequence[Sequence], dialogues: Sequence[Dialogue]) -> dict[str, int]:
    """Count the fields of LoadReport from the sessions a file holds and the dialogues made of them."""
    sessions = [session for dialogue in dialogues for session in dialogue.sessions]
    questions = [question for dialogue in dialogues for question in dialogue.questions]
    return {
        "num_without_evidence": sum(question.answerable and not question.evidence for question in questions),
        "num_empty_turns": sum(map(len, raw_sessions)) - sum(len(session.turns) for session in sessions),
        "num_empty_sessions": len(raw_sessions) - len(sessions),
    }


def log_report(
    report: Callable[[Sequence, Sequence[Dialogue]], LoadReport],
    records: Sequence,
    dialogues: Sequence[Dialogue],
    path: str | Path,
    only: Collection[str] | None,
) -> None:
    """Log what `report` counts as repaired in the dialogues of `only` (None: all), if it is anything."""
    pairs = zip(records, dialogues, strict=True)
    wanted = [(record, dialogue) for record, dialogue in pairs if only is None or dialogue.id in only]
    found = report([record for record, _ in wanted], [dialogue for _, dialogue in wanted])
    if found != report([], []):
        logger.warning("%s: %s", path, found)


def refuse_half_characters(dialogues: Sequence[Dialogue], path: str | Path) -> None:
    """JSON may hold half a surrogate pair (`\\ud83d` alone), which no model reads and no file can be written with."""
    for position, dialogue in enumerate(dialogues):
        for field, text in _texts(msgspec.to_builtins(dialogue)):
            try:
                text.encode()
            except UnicodeEncodeError:
                where = f"record {position} ({ascii(dialogue.id)[1:-1]})"
                problem = f"{ascii(text):.80} holds half a surrogate pair, which is no text; repair or remove it"
                raise DataError(path, where, field.lstrip("."), problem) from None


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
