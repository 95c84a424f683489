"""Reading fields of untrusted JSON records: what is wrong is refused with its path, record and field."""

import logging
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TypeVar

import msgspec

from membuilder.errors import DataError
from membuilder.text import HALF_CHARACTER, is_text
from membuilder.types import Dialogue

logger = logging.getLogger(__name__)
T = TypeVar("T")


def take(record: object, key: str, kind: type[T] | tuple[type[T], ...], path: str | Path, where: str) -> T:
    """The value of a field; missing or of another type it is refused with its place. A bool is no int here."""
    if not isinstance(record, dict):
        raise DataError(path, where, key, f"cannot be read: expected an object here, found {type(record).__name__}")
    if key not in record:
        raise DataError(path, where, key, f"is missing; this object has {sorted(record)[:12]}")
    kinds = kind if isinstance(kind, tuple) else (kind,)
    value = record[key]
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        expected = " or ".join(each.__name__ for each in kinds)
        raise DataError(path, where, key, f"expected {expected}, found {type(value).__name__}: {value!r:.80}")
    return value


def take_text(record: object, key: str, path: str | Path, where: str) -> str:
    """A string field that must say something."""
    text = take(record, key, str, path, where)
    if not text.strip():
        raise DataError(path, where, key, "is empty; fill it in or remove what it belongs to")
    return text


def take_answer(record: object, path: str | Path, where: str) -> str:
    """A gold answer as text; years and counts come as ints."""
    answer = take(record, "answer", (str, int), path, where)
    return take_text(record, "answer", path, where) if isinstance(answer, str) else str(answer)


def read_time(value: object, form: str, example: str, path: str | Path, where: str, field: str) -> datetime:
    """A date string in strptime's `form`; `example` shows the user what was expected."""
    try:
        return datetime.strptime(value, form)
    except (TypeError, ValueError):  # not a string, or not such a date: one message serves both
        problem = f"expected a date like {example!r}, found {value!r:.80}"
    raise DataError(path, where, field, problem)


def refuse_repeated_ids(dialogues: Sequence[Dialogue], path: str | Path, field: str) -> None:
    first_at: dict[str, int] = {}
    for position, dialogue in enumerate(dialogues):
        first = first_at.setdefault(dialogue.id, position)
        if first != position:
            problem = f"is also the id of record {first}; remove or rename one of them"
            raise DataError(path, f"record {position} ({dialogue.id})", field, problem)


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadReport:
    """What every loader counts; a format with more to say adds fields."""

    num_without_evidence: int
    """Number of answerable questions that no dense reward can ask."""
    num_empty_turns: int
    num_empty_sessions: int


def parse_records(
    records: Sequence[dict],
    path: str | Path,
    parse: Callable[[dict, str | Path, int], Dialogue],
    id_field: str,
    report: Callable[[Sequence[dict], Sequence[Dialogue]], LoadReport],
    only: Collection[str] | None,
) -> list[Dialogue]:
    """Parse every record and refuse repeated ids; log what `report` counts as repaired in the dialogues of `only`."""
    dialogues = [parse(record, path, position) for position, record in enumerate(records)]
    refuse_repeated_ids(dialogues, path, id_field)
    wanted = [number for number, dialogue in enumerate(dialogues) if only is None or dialogue.id in only]
    found = report([records[number] for number in wanted], [dialogues[number] for number in wanted])
    if found != report([], []):
        logger.warning("%s: %s", path, found)
    return dialogues


def refuse_half_characters(dialogues: Sequence[Dialogue], path: str | Path) -> None:
    """JSON may hold half a surrogate pair (`\\ud83d` alone), which no model reads and no file can be written with."""
    for position, dialogue in enumerate(dialogues):
        for field, text in _texts(dialogue):
            if not is_text(text):
                where = f"record {position} ({ascii(dialogue.id)[1:-1]})"
                raise DataError(path, where, field, f"{ascii(text):.80} {HALF_CHARACTER}; repair or remove it")


def _texts(dialogue: Dialogue) -> Iterator[tuple[str, str]]:
    """(field, text) of everything that is shown, stored or written."""
    yield "id", dialogue.id
    for i, speaker in enumerate(dialogue.speakers):
        yield f"speakers[{i}]", speaker
    for i, session in enumerate(dialogue.sessions):
        yield f"sessions[{i}].id", session.id
        for j, turn in enumerate(session.turns):
            place = f"sessions[{i}].turns[{j}]"
            yield f"{place}.id", turn.id
            yield f"{place}.speaker", turn.speaker
            yield f"{place}.text", turn.text
            yield f"{place}.caption", turn.caption or ""
    for i, question in enumerate(dialogue.questions):
        for name, text in (("id", question.id), ("question", question.text), ("category", question.category)):
            yield f"questions[{i}].{name}", text
        yield f"questions[{i}].answer", question.answer or ""


def as_record(value: object, kind: type[T], path: str | Path, where: str, advice: str) -> T:
    """A JSON value as one of our record types; raises DataError that names the field which does not fit."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        problem, _, place = str(error).partition(" - at `$")
        record, _, field = place.rstrip("`").lstrip(".").rpartition(".")
        missing = re.search("missing required field `(.+)`", problem)
        if missing is not None:
            record, field = ".".join(filter(None, (record, field))), missing.group(1)
        raise DataError(path, record or where, field or "top level", f"{problem}; {advice}") from error
