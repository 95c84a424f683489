"""PerLTQA raw files (perltmem_en_v2.json, perltqa_en_v2.json): one character's life in records, and questions about it.

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
`LoadReport` counts what was dropped; `load` logs it.
"""

import ast
import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from membuilder.datasets.fields import take, take_text
from membuilder.datasets.files import FILE, read_json
from membuilder.errors import DataError
from membuilder.types import Dialogue, Question, Session, Turn

logger = logging.getLogger(__name__)
T = TypeVar("T")

MEMORY_FILE, QUESTION_FILE = "perltmem_en_v2.json", "perltqa_en_v2.json"
CATEGORIES = ("profile", "social_relationship", "events", "dialogues")
_TIME_FORMS = (
    "%Y-%m-%d %H:%M:%S",
    "%Y-%m-%d %H:%M",
    "%Y-%m-%d",
    "%Y/%m/%d",
    "%B %d, %Y",
    "%b %d, %Y",
    "%d %B %Y",
    "%B %Y",
    "%Y",
)


@dataclass(kw_only=True, slots=True)
class LoadReport:
    no_memory: list[str] = field(default_factory=list)
    """Characters with questions whom the memory file does not have."""
    no_questions: int = 0
    """Number of characters with memory but without questions."""
    undated: int = 0
    """Number of events and dialogue blocks whose time names no year."""
    dropped_evidence: list[str] = field(default_factory=list)
    """Each reference to no record, as `<question id>: <reference>`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Block:
    """A session that has no place in time order yet."""

    category: str
    time: datetime | None
    lines: list[tuple[str, str]]
    """(speaker, text) of each turn."""
    records: list[str]
    """For each line, the record it comes from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Asked:
    category: str
    raw: object
    where: str


def load(folder: Path) -> list[Dialogue]:
    """Dialogues of a folder that holds both files; raises DataError naming file, record and field at fault."""
    memory_path, question_path = folder / MEMORY_FILE, folder / QUESTION_FILE
    memory, asked = read_json(memory_path), read_json(question_path)
    _check(memory, dict, "an object of characters (the en_v2 release)", memory_path, FILE, "top level")
    questions = _questions_by_character(asked, question_path)
    report = LoadReport(no_memory=[name for name in questions if name not in memory])
    dialogues = []
    for position, (name, record) in enumerate(memory.items()):
        if name in questions:
            where = f"record {position} ({name})"
            blocks = list(_blocks(name, record, memory_path, where))
            dialogue_id = f"char_{len(dialogues):03d}"
            sessions, turns_of = _sessions(name, blocks, memory_path, where)
            report.undated += sum(block.time is None and block.category in CATEGORIES[2:] for block in blocks)
            asked_here = tuple(
                _question(raw, f"{dialogue_id}_q{number}", turns_of, question_path, report)
                for number, raw in enumerate(questions[name], start=1)
            )
            speakers = tuple(dict.fromkeys([name, *(speaker for block in blocks for speaker, _ in block.lines)]))
            dialogues.append(Dialogue(id=dialogue_id, speakers=speakers, sessions=sessions, questions=asked_here))
        else:
            report.no_questions += 1
    if not dialogues:
        raise DataError(question_path, FILE, "top level", "asks about no character of the memory file")
    if report != LoadReport():
        logger.warning("%s: %s", folder, report)
    return dialogues


def _sessions(
    name: str, blocks: list[_Block], path: Path, where: str
) -> tuple[tuple[Session, ...], dict[tuple[str, str], list[str]]]:
    """The sessions in time order, and for each (category, record) the turns it became."""
    times = [block.time for block in blocks if block.time is not None]
    if not times:
        raise DataError(path, where, "events", "no event or dialogue has a time that names a year; date at least one")
    sessions, turns_of = [], defaultdict(list)
    for index, block in enumerate(sorted(blocks, key=lambda block: block.time or min(times))):
        turns = tuple(
            Turn(id=f"S{index + 1}:{i}", speaker=speaker, role="user" if speaker == name else "assistant", text=text)
            for i, (speaker, text) in enumerate(block.lines, start=1)
        )
        time = block.time or min(times)
        sessions.append(Session(id=f"S{index + 1}", index=index, timestamp=time, turns=turns))
        for turn, record in zip(turns, block.records, strict=True):
            turns_of[block.category, record].append(turn.id)
    return tuple(sessions), turns_of


def _blocks(name: str, record: object, path: Path, where: str) -> Iterator[_Block]:
    fields = _section(record, "profile", path, where).items()
    profile = {field: f"{field}: {value}" for field, value in fields if str(value).strip()}
    if profile:
        lines = [(name, text) for text in profile.values()]
        yield _Block(category="profile", time=None, lines=lines, records=list(profile))
    for key, relation in _section(record, "social_relationship", path, where).items():
        person = take(relation, "Supporting Characters", (str, list), path, f"{where}, social_relationship {key}")
        text = f"{person} ({relation.get('Relationship', '')}): {relation.get('Description', '')}"
        yield _Block(category="social_relationship", time=None, lines=[(name, text)], records=[key])
    for key, event in _section(record, "events", path, where).items():
        text = take_text(event, "content", path, f"{where}, events {key}")
        told = str(event.get("Creation Time") or "")
        lines = [(name, f"{text} ({told})" if told and _time(told) is None else text)]
        yield _Block(category="events", time=_time(told), lines=lines, records=[key])
    for key, dialogue in _section(record, "dialogues", path, where).items():
        place = f"{where}, dialogues {key}"
        contents = take(dialogue, "contents", dict, path, place)
        for told in contents:
            lines = [_line(raw) for raw in _texts(contents, told, path, place) if raw.strip()]
            if lines:
                yield _Block(category="dialogues", time=_time(told), lines=lines, records=[key] * len(lines))


def _section(record: object, key: str, path: Path, where: str) -> dict:
    """A part of a character's memory; some are published as the text of a Python dict."""
    value = take(record, key, (dict, str), path, where) if isinstance(record, dict) and key in record else {}
    value = _literal(value, path, where, key) if isinstance(value, str) else value
    return _check(value, dict, "an object", path, where, key)


def _texts(contents: dict, told: str, path: Path, where: str) -> list[str]:
    """The lines said at one time."""
    lines = take(contents, told, list, path, f"{where}, contents")
    for i, line in enumerate(lines):
        _check(line, str, "a line such as 'Ann: Hello'", path, f"{where}, contents", f"{told}[{i}]")
    return lines


def _check(value: object, kind: type[T], expected: str, path: Path, where: str, field: str) -> T:
    if not isinstance(value, kind):
        raise DataError(path, where, field, f"expected {expected}, found {type(value).__name__}")
    return value


def _line(raw: str) -> tuple[str, str]:
    speaker, colon, text = raw.partition(":")
    return (speaker.strip(), text.strip()) if colon and text.strip() else ("narrator", raw.strip())


def _time(text: str) -> datetime | None:
    for form in _TIME_FORMS:
        try:
            return datetime.strptime(text.strip(), form)
        except ValueError:  # another form, or free text
            continue
    return None


def _questions_by_character(asked: object, path: Path) -> dict[str, list[_Asked]]:
    """Per character the questions in the order of CATEGORIES."""
    found: dict[str, list[_Asked]] = {}
    for position, block in enumerate(_check(asked, list, "a list of characters", path, FILE, "top level")):
        for name in _check(block, dict, "an object", path, f"record {position}", "character"):
            sections = take(block, name, dict, path, f"record {position}")
            where = f"record {position} ({name})"
            if name in found:
                raise DataError(path, where, "character", "stands twice in the file; remove or rename one of them")
            found[name] = [
                _Asked(category=category, raw=raw, where=f"{where}, {category}[{i}]")
                for category in CATEGORIES
                for i, raw in enumerate(_flat(sections, category, path, where))
            ]
    return found


def _flat(sections: dict, category: str, path: Path, where: str) -> Iterator[object]:
    """Profile questions are a list; the others are lists of {record id: questions}."""
    groups = take(sections, category, list, path, where) if category in sections else []
    for i, group in enumerate(groups):
        if "Question" in _check(group, dict, "an object", path, where, f"{category}[{i}]"):
            yield group
        else:
            for name in group:
                yield from take(group, name, list, path, f"{where}, {category}[{i}]")


def _question(asked: _Asked, question_id: str, turns_of: Mapping, path: Path, report: LoadReport) -> Question:
    raw, where = asked.raw, asked.where
    reference = take(raw, "Reference Memory", (str, list), path, where)
    is_list = isinstance(reference, str) and reference.startswith("[")
    names = _literal(reference, path, where, "Reference Memory") if is_list else reference
    evidence = []
    for name in map(str, names if isinstance(names, list) else [names]):
        turn_ids = turns_of.get((asked.category, name), [])
        evidence += turn_ids
        if not turn_ids:
            report.dropped_evidence.append(f"{question_id}: {name!r}")
    return Question(
        id=question_id,
        text=take_text(raw, "Question", path, where),
        answer=take_text(raw, "Answer", path, where),
        category=asked.category,
        evidence=tuple(dict.fromkeys(evidence)),
    )


def _literal(text: str, path: str | Path, where: str, key: str) -> object:
    try:
        return ast.literal_eval(text)  # literals only: evaluates no code
    except (ValueError, SyntaxError, MemoryError, RecursionError):  # what it raises on damaged or hostile text
        problem = f"expected the text of a Python literal, found {text!r:.80}"
    raise DataError(path, where, key, problem)
