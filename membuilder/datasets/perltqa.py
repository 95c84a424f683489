"""Parses PerLTQA (perltmem_en_v2.json, perltqa_en_v2.json), which has characters' lives in records, and questions.

What is kept and what is not:
- A character with both memory and questions is one dialogue, `char_000`, `char_001`, ... in the memory file's order.
- Every record a question can refer to becomes turns of sessions: the profile is one session with a turn per field, the
  relationships one with a turn per relationship, each event one of a single turn, each dated block of a dialogue one
  with a turn per line. The character is `user`, whoever else speaks `assistant`.
- Times are free text. Those that name at least a year date their session; the rest ("during an election"), the profile
  and the relationships stand at the earliest date known, and the text of the time stays in the event's turn.
- Evidence is every turn of the records that `Reference Memory` names. A dialogue question thus names many lines of
  which few are needed, so recall by session says more here. References to no record are dropped.
- `profile_description`, which retells the profile, and `Memory Anchors` are left out.
What was dropped is logged.
"""

import ast
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from msgspec import Struct

from membuilder.datasets.files import FILE
from membuilder.datasets.on_disk import OnDisk
from membuilder.datasets.parsing import LoadReport
from membuilder.datasets.streams import json_items, json_pairs
from membuilder.datasets.typed import FieldError, Text, convert, located, typed
from membuilder.errors import DataError
from membuilder.types import Dialogue, Question, Session, Turn

MEMORY_FILE, QUESTION_FILE = "perltmem_en_v2.json", "perltqa_en_v2.json"
CATEGORIES = ("profile", "social_relationship", "events", "dialogues")
_NUMBER_FORMS = ("%Y-%m-%d %H:%M:%S", "%Y-%m-%d %H:%M", "%Y-%m-%d", "%Y/%m/%d", "%Y")
_MONTH_FORMS = ("%B %d, %Y", "%b %d, %Y", "%d %B %Y", "%B %Y")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Block:
    """A session that has no place in time order yet."""

    category: str
    time: datetime | None
    lines: list[tuple[str, str, str]]
    """(record it comes from, speaker, text) of each turn."""


def _in_capitals(name: str) -> str:
    return name.replace("_", " ").title()


class _Relation(Struct, rename=_in_capitals):
    supporting_characters: str | list
    relationship: Any = ""
    description: Any = ""


class _Event(Struct, rename={"creation_time": "Creation Time"}):
    content: Text
    creation_time: Any = None


class _Question(Struct, rename=_in_capitals):
    reference_memory: str | list
    question: Text
    answer: Text


def load(folder: Path) -> list[Dialogue]:
    """Make dialogues of a folder that holds both files; DataError names the file, record and field at fault."""
    return list(stream(folder))


def stream(folder: Path) -> Iterator[Dialogue]:
    """Yield what `load` returns, a character in memory at a time."""
    memory_path, question_path = (_maybe_gzipped(folder / name) for name in (MEMORY_FILE, QUESTION_FILE))
    questions = _questions_by_character(question_path)
    report, number, names = LoadReport(), 0, set()
    for position, (name, record) in enumerate(json_pairs(memory_path)):
        with located(memory_path, f"record {position} ({name})"):
            _refuse_again(name, names)
            if name not in questions:
                report.no_questions += 1
                continue
            blocks = list(_blocks(name, record))
            sessions, turns_of = _sessions(name, blocks)
        report.undated += sum(block.time is None and block.category in CATEGORIES[2:] for block in blocks)
        dialogue_id = f"char_{number:03d}"
        where, asked = json.loads(questions.take(name))
        with located(question_path, where):
            asked_here = tuple(
                _question(raw, field, f"{dialogue_id}_q{i}", turns_of, report)
                for i, (field, raw) in enumerate(asked, start=1)
            )
        speakers = tuple(dict.fromkeys([name, *(speaker for block in blocks for _, speaker, _ in block.lines)]))
        yield Dialogue(id=dialogue_id, speakers=speakers, sessions=sessions, questions=asked_here)
        number += 1
    if not number:
        raise DataError(question_path, FILE, "top level", "asks about no character of the memory file")
    report.no_memory = questions.keys()
    report.log(folder)


def _refuse_again(name: str, names: set[str]) -> None:
    if name in names:
        raise FieldError("character", "stands twice in the file; remove or rename one of them")
    names.add(name)


def _maybe_gzipped(path: Path) -> Path:
    gzipped = path.with_name(f"{path.name}.gz")
    return gzipped if gzipped.is_file() and not path.is_file() else path


def _sessions(name: str, blocks: list[_Block]) -> tuple[tuple[Session, ...], dict[tuple[str, str], list[str]]]:
    """Return the sessions in time order, and for each (category, record) the turns it became."""
    times = [block.time for block in blocks if block.time is not None]
    if not times:
        raise FieldError("events", "no event or dialogue has a time that names a year; date at least one")
    sessions, turns_of = [], defaultdict(list)
    for index, block in enumerate(sorted(blocks, key=lambda block: block.time or min(times))):
        turns = tuple(
            Turn(id=f"S{index + 1}:{i}", speaker=speaker, role="user" if speaker == name else "assistant", text=text)
            for i, (_, speaker, text) in enumerate(block.lines, start=1)
        )
        time = block.time or min(times)
        sessions.append(Session(id=f"S{index + 1}", index=index, timestamp=time, turns=turns))
        for turn, (record, *_) in zip(turns, block.lines, strict=True):
            turns_of[block.category, record].append(turn.id)
    return tuple(sessions), turns_of


def _blocks(name: str, record: object) -> Iterator[_Block]:
    profile = _section(record, "profile").items()
    lines = [(field, name, f"{field}: {value}") for field, value in profile if str(value).strip()]
    if lines:
        yield _Block(category="profile", time=None, lines=lines)
    for key, value in _section(record, "social_relationship").items():
        raw = convert(_Relation, value, f"social_relationship.{key}")
        text = f"{raw.supporting_characters} ({raw.relationship}): {raw.description}"
        yield _Block(category="social_relationship", time=None, lines=[(key, name, text)])
    for key, value in _section(record, "events").items():
        event = convert(_Event, value, f"events.{key}")
        told = str(event.creation_time or "")
        text = f"{event.content} ({told})" if told and _time(told) is None else event.content
        yield _Block(category="events", time=_time(told), lines=[(key, name, text)])
    for key, value in _section(record, "dialogues").items():
        place = f"dialogues.{key}.contents"
        contents = convert(dict, convert(dict, value, f"dialogues.{key}").get("contents"), place)
        for told, said in contents.items():
            lines = [(key, *_line(raw)) for raw in convert(list[str], said, f"{place}.{told}") if raw.strip()]
            if lines:
                yield _Block(category="dialogues", time=_time(told), lines=lines)


def _section(record: object, key: str) -> dict:
    """Return a part of a character's memory; some are published as the text of a Python dict."""
    value = record.get(key, {}) if isinstance(record, dict) else {}
    return convert(dict, _literal(value, key) if isinstance(value, str) else value, key)


def _line(raw: str) -> tuple[str, str]:
    speaker, colon, text = raw.partition(":")
    return (speaker.strip(), text.strip()) if colon and text.strip() else ("narrator", raw.strip())


def _time(text: str) -> datetime | None:
    for form in _NUMBER_FORMS + _MONTH_FORMS:
        try:
            return datetime.strptime(text.strip(), form)
        except ValueError:  # another form, or free text
            continue
    return None


def _questions_by_character(path: Path) -> OnDisk:
    """Return per character the JSON of its place in the file and its questions (field, raw), by CATEGORIES."""
    found, names = OnDisk(), set()
    for position, raw in enumerate(json_items(path)):
        for name, value in typed(dict, raw, path, f"record {position}").items():
            where = f"record {position} ({name})"
            with located(path, where):
                _refuse_again(name, names)
                sections = convert(dict, value, name)
                asked = [each for category in CATEGORIES for each in _flat(sections, category)]
            found.put(name, json.dumps([where, asked]).encode())
    return found


def _flat(sections: dict, category: str) -> Iterator[tuple[str, Any]]:
    """Yield the questions of a category; those of the profile are a list, others lists of {record id: questions}."""
    for i, group in enumerate(convert(list[dict], sections.get(category, []), category)):
        field = f"{category}[{i}]"
        if "Question" in group:
            yield field, group
            continue
        for name, asked in group.items():
            yield from ((f"{field}.{name}[{j}]", raw) for j, raw in enumerate(convert(list, asked, f"{field}.{name}")))


def _question(raw: Any, field: str, question_id: str, turns_of: Mapping, report: LoadReport) -> Question:
    asked, category = convert(_Question, raw, field), field.partition("[")[0]
    names = asked.reference_memory
    if isinstance(names, str) and names.startswith("["):
        names = _literal(names, f"{field}.Reference Memory")
    evidence = []
    for name in map(str, names if isinstance(names, list) else [names]):
        turn_ids = turns_of.get((category, name), [])
        evidence += turn_ids
        if not turn_ids:
            report.dropped_evidence.append(f"{question_id}: {name!r}")
    evidence = tuple(dict.fromkeys(evidence))
    return Question(id=question_id, text=asked.question, answer=asked.answer, category=category, evidence=evidence)


def _literal(text: str, field: str) -> object:
    try:
        return ast.literal_eval(text)  # literals only: evaluates no code
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:  # raised on damaged or hostile text
        raise FieldError(field, f"expected the text of a Python literal, found {text!r:.80}") from error
