"""A stored memory as JSON Lines, for programs of your own: a line of settings, one a session, one an entry, the end.

Where entries were deleted, a line for each of them stands before the end, in the order in which it was done.

    {"record": "memory", "format": 1, "settings": {...}}
    {"record": "session", "session": {...}, "answers": {...}, "core": "...", "core_quotes": [...]}
    {"record": "entry", "entry": {...}, "vector": "<base64 of float32 numbers>"}
    {"record": "deleted", "entry": "m3", "session": 4}
    {"record": "end", "num_sessions": 1, "num_entries": 1}

A file is read whole and checked before anything is written; the last line tells a file that was cut from a whole one.
"""

import base64
import json
import math
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta, Struct

from membuilder.bank.store import remove_store, writing
from membuilder.bank.store_rows import VECTOR, Answer, StoredMemory, StoredSession, without_unset
from membuilder.datasets.files import FILE, read_lines
from membuilder.datasets.typed import FieldError, Text, convert, located
from membuilder.embedding import identity
from membuilder.errors import DataError, StoreError
from membuilder.files import durable_rename, write_atomic
from membuilder.text import HALF_CHARACTER, is_text
from membuilder.types import CoreQuote, Entry, Session

FORMAT = 1
MAX_DIMENSION = 1_000_000
Count = Annotated[int, Meta(ge=0)]


class _Line(Struct, tag_field="record", forbid_unknown_fields=True):
    pass


class _Memory(_Line, tag="memory"):
    format: Literal[1]
    settings: dict[str, Any]


class _Session(_Line, tag="session"):
    session: Session
    answers: dict[Text, Answer]
    core: str
    core_quotes: tuple[CoreQuote, ...]


class _Entry(_Line, tag="entry"):
    entry: Entry
    vector: str


class _Deleted(_Line, tag="deleted"):
    entry: str
    session: Count


class _End(_Line, tag="end"):
    num_sessions: Count
    num_entries: Count


def write_json_lines(memory: StoredMemory, path: Path) -> None:
    """Write a memory to a file, whole or not at all. Raises WriteError."""
    write_atomic(path, "".join(json_lines(memory)))


def json_lines(memory: StoredMemory) -> Iterator[str]:
    """Write a memory line by line."""
    rows = memory.vectors.astype(VECTOR, copy=False)
    lines: list[_Line] = [_Memory(format=FORMAT, settings=dict(memory.settings))]
    for each in memory.sessions:
        answers = dict(each.answers)
        lines.append(_Session(session=each.session, answers=answers, core=each.core, core_quotes=each.core_quotes))
    for entry, row in zip(memory.entries, rows, strict=True):
        lines.append(_Entry(entry=entry, vector=base64.b64encode(row.tobytes()).decode()))
    lines += [_Deleted(entry=entry, session=session) for entry, session in memory.deleted.items()]
    lines.append(_End(num_sessions=len(memory.sessions), num_entries=len(memory.entries)))
    for each in lines:
        yield without_unset(json.dumps(msgspec.to_builtins(each), ensure_ascii=False)) + "\n"


def read_json_lines(path: Path) -> StoredMemory:
    """Read such a file. Raises DataError, which names the line and field that do not fit."""
    lines, reader = read_lines(path), _Reader()
    for number, value in lines:
        with located(path, f"line {number}"):
            if not is_text(json.dumps(value, ensure_ascii=False)):
                raise FieldError("record", f"{HALF_CHARACTER}; repair or remove it")
            reader.take(convert(_Memory | _Session | _Entry | _Deleted | _End, value))
    if not reader.is_whole:
        raise DataError(path, FILE, "lines", "has no last line that says how much there is: it was cut; export it anew")
    return reader.memory()


def import_json_lines(source: Path, target: Path) -> None:
    """Make a store of such a file, whole or not at all. Raises DataError, and StoreError where one is there already."""
    if target.exists():
        raise StoreError(target, "is there already; import into a new file")
    memory, partial = read_json_lines(source), Path(f"{target}.import")
    remove_store(partial)  # of an import that was killed
    try:
        with writing(partial, memory.settings) as store:
            store.replace(memory)
        remove_store(target)  # a log without its store would be read into the new one
        durable_rename(partial, target)
    finally:
        remove_store(partial)


class _Reader:
    """It takes the lines one by one, and refuses one that does not fit those before it."""

    def __init__(self) -> None:
        self.is_whole = False
        self._settings: dict[str, Any] | None = None
        self._sessions: list[StoredSession] = []
        self._entries: list[Entry] = []
        self._vectors: list[np.ndarray] = []
        self._session_ids: set[str] = set()
        self._turn_ids: set[str] = set()
        self._entry_ids: set[str] = set()
        self._deleted: dict[str, int] = {}

    def take(self, line: _Memory | _Session | _Entry | _Deleted | _End) -> None:
        if self.is_whole:
            raise FieldError("record", "stands behind the end; a file holds one memory")
        if (self._settings is None) != isinstance(line, _Memory):
            raise FieldError("record", "a file begins with its one line of settings (`memory`)")
        match line:
            case _Memory():
                self._take_settings(line.settings)
            case _Session():
                self._take_session(line)
            case _Entry():
                self._take_entry(line)
            case _Deleted():
                self._take_deleted(line)
            case _End():
                counts = (len(self._sessions), len(self._entries))
                if (line.num_sessions, line.num_entries) != counts:
                    raise FieldError("num_sessions", f"the file holds {counts[0]} sessions and {counts[1]} entries")
                shown = [each for told in self._sessions for answer in told.answers.values() for each in answer.shown]
                _require(self._entry_ids, shown, "answers.shown")
                self.is_whole = True

    def memory(self) -> StoredMemory:
        shape = (len(self._vectors), self._settings["dimension"])
        vectors = np.array(self._vectors, dtype=np.float32).reshape(shape)
        return StoredMemory(
            settings=self._settings,
            sessions=tuple(self._sessions),
            entries=tuple(self._entries),
            vectors=vectors,
            deleted=self._deleted,
        )

    def _take_settings(self, settings: dict[str, Any]) -> None:
        convert(Annotated[int, Meta(ge=1, le=MAX_DIMENSION)], settings.get("dimension"), "settings.dimension")
        for name in ("dialogue", "model"):
            convert(str, settings.get(name), f"settings.{name}")
        convert(list[str], settings.get("speakers"), "settings.speakers")
        for name in (identity.NAME, identity.PROVIDER, identity.REVISION):
            convert(str | None, settings.get(name), f"settings.{name}")
        convert(dict[str, Any] | None, settings.get(identity.SETTINGS), f"settings.{identity.SETTINGS}")
        if identity.VECTOR in settings:
            name = f"settings.{identity.VECTOR}"
            _vector(convert(str, settings[identity.VECTOR], name), settings["dimension"], name)
        self._settings = settings

    def _take_session(self, line: _Session) -> None:
        session = line.session
        if self._entries:
            raise FieldError("record", "a session stands behind entries; put the sessions first")
        if session.index != len(self._sessions):
            raise FieldError("session.index", f"is {session.index} where {len(self._sessions)} is next")
        if self._sessions and _is_earlier(session.timestamp, self._sessions[-1].session.timestamp):
            raise FieldError("session.timestamp", "lies before the session above it; keep the order of time")
        _add(self._session_ids, [session.id], "session.id")
        _add(self._turn_ids, [turn.id for turn in session.turns], "session.turns")
        _require(self._turn_ids, [quote.turn_id for quote in line.core_quotes], "core_quotes")
        if not all(math.isfinite(answer.seconds) for answer in line.answers.values()):
            raise FieldError("answers.seconds", "is no number of seconds")
        stored = StoredSession(session=session, answers=line.answers, core=line.core, core_quotes=line.core_quotes)
        self._sessions.append(stored)

    def _take_entry(self, line: _Entry) -> None:
        entry = line.entry
        if self._deleted:
            raise FieldError("record", "an entry stands behind what was deleted; put the entries first")
        if not 0 <= entry.session < len(self._sessions):
            raise FieldError("entry.session", f"is {entry.session} of {len(self._sessions)} sessions")
        if entry.timestamp != self._sessions[entry.session].session.timestamp:
            raise FieldError("entry.timestamp", "is not that of its session")
        _require(self._turn_ids, entry.source_turns, "entry.source_turns")
        _require(self._entry_ids, entry.supersedes, "entry.supersedes")
        _add(self._entry_ids, [entry.id], "entry.id")
        self._vectors.append(_vector(line.vector, self._settings["dimension"], "vector"))
        self._entries.append(entry)

    def _take_deleted(self, line: _Deleted) -> None:
        _require(self._entry_ids, [line.entry], "entry")
        written = next(entry.session for entry in self._entries if entry.id == line.entry)
        if line.entry in self._deleted or not written <= line.session < len(self._sessions):
            raise FieldError("session", f"{line.entry!r} is deleted twice, or in no session from its own on")
        self._deleted[line.entry] = line.session


def _vector(text: str, dimension: int, field: str) -> np.ndarray:
    try:
        vector = np.frombuffer(base64.b64decode(text, validate=True), dtype=VECTOR)
    except ValueError as error:
        raise FieldError(field, f"is no base64 of float32 numbers ({error})") from error
    if len(vector) != dimension or not np.isfinite(vector).all():
        raise FieldError(field, f"has {len(vector)} numbers, or some not finite, where {dimension} are expected")
    return vector


def _is_earlier(one: datetime, other: datetime) -> bool:
    if (one.tzinfo is None) != (other.tzinfo is None):
        raise FieldError("session.timestamp", "has a zone and another time has none; give all or none of them")
    return one < other


def _add(known: set[str], names: list[str], field: str) -> None:
    for name in names:
        if name in known:
            raise FieldError(field, f"{name!r} stands there twice; each may stand once")
        known.add(name)


def _require(known: set[str], names: Iterable[str], field: str) -> None:
    unknown = next((name for name in names if name not in known), None)
    if unknown is not None:
        raise FieldError(field, f"names {unknown!r}, which no line above has")
