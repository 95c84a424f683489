"""The memory of one dialogue as a SQLite file: what was read, what the agents answered, what came of it.

    with writing("memory.db", settings) as store:      # one process at a time
        store.append(session, answers, bank, vectors)  # all of a session or nothing

    with reading("memory.db") as store:                # also while another process writes
        store.bank()

A session is one transaction in a write-ahead log, flushed to disk: a kill, a power failure or a full disk loses at most
the session in flight. The lock is a `flock` on `<file>.lock`, which the system releases when its process ends.
"""

import fcntl
import json
import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from membuilder.bank import store_tables as tables
from membuilder.bank.memory_store import check_settings, newly_deleted
from membuilder.bank.row_store import RowStore
from membuilder.bank.store_errors import as_written, typed
from membuilder.bank.store_rows import (
    VECTOR,
    Answer,
    StoredMemory,
    StoredSession,
    rows_of,
)
from membuilder.errors import StoreError
from membuilder.types import Bank, Session


class Store(RowStore):
    """A `MemoryStore` in an open file. Every method raises StoreError."""

    insertion_order = "rowid"

    def __init__(self, path: Path, connection: sqlite3.Connection):
        self.path, self.connection = path, connection

    def settings(self) -> dict[str, Any]:
        """Return the settings under which the store was written."""
        rows = self._rows("SELECT name, value FROM setting")
        with as_written(self.path):
            return {name: json.loads(value) for name, value in rows}

    def deleted(self) -> dict[str, int]:
        """Map the id of each deleted entry to the session that deleted it, in the order in which it was done."""
        with typed(self.path):
            if not tables.has_deleted(self.connection):
                return {}
        return super().deleted()

    def agents(self) -> set[str]:
        """Return whom the stored entries are of."""
        return {agent for (agent,) in self._rows("SELECT DISTINCT agent FROM entry")}

    def vectors(self) -> np.ndarray:
        """Return the embeddings of the bank's entries, in its order, float32. # (N, D)"""
        rows = self._select("vector", "embedding", "entry")
        num_entries = self._select("count(*)", "entry")[0][0]
        with as_written(self.path):
            dimension = self.settings()["dimension"]
        if len(rows) != num_entries or any(len(vector) != dimension * VECTOR.itemsize for (vector,) in rows):
            problem = (
                f"{num_entries} entries, but {len(rows)} embeddings or some not of {dimension} numbers; build anew"
            )
            raise StoreError(self.path, problem)
        stacked = np.frombuffer(b"".join(vector for (vector,) in rows), dtype=VECTOR)
        return stacked.astype(np.float32, copy=False).reshape(num_entries, dimension)

    def append(self, session: Session, answers: Mapping[str, Answer], bank: Bank, vectors: np.ndarray) -> None:
        """Stores a session, `bank` after it and the embeddings of the entries new in it (M, D), or nothing of it."""
        first = len(bank.entries) - len(vectors) + 1
        new = list(enumerate(bank.entries[first - 1 :], start=first))
        stored = StoredSession(session=session, answers=answers, core=bank.core, core_quotes=bank.core_quotes)
        with typed(self.path), self.connection as connection:
            connection.execute("BEGIN IMMEDIATE")
            rows = rows_of([stored], new, vectors)
            # in a store without deletions the rows are those of version 2, so nothing is asked of it
            deleted = newly_deleted(session, bank, self.deleted()) if bank.deleted else []
            tables.insert(connection, rows | {"deleted": deleted})

    def replace(self, memory: StoredMemory) -> None:
        """Hold `memory` in place of all that stands here, its settings too: in one transaction."""
        with typed(self.path), self.connection as connection:
            connection.execute("BEGIN IMMEDIATE")
            tables.clear(connection, ("setting",))
            connection.executemany("INSERT INTO setting VALUES (?, ?)", tables.setting_rows(memory.settings))
            entries = list(enumerate(memory.entries, start=1))
            rows = rows_of(memory.sessions, entries, memory.vectors)
            tables.insert(connection, rows | {"deleted": list(memory.deleted.items())})

    def take_over(self, path: Path) -> None:
        """Hold the sessions of the store at `path` in place of its own: in one transaction, the settings stay."""
        with typed(self.path), self.connection as connection:
            connection.execute("ATTACH ? AS other", [f"{path.absolute().as_uri()}?mode=ro"])
            connection.execute("BEGIN IMMEDIATE")
            tables.clear(connection)
            tables.copy(connection, "other")
        with typed(self.path):
            self.connection.execute("DETACH other")

    def erase_deleted(self) -> None:
        """Write the file anew and empty its log, so that nothing that was deleted stands on the disk any more."""
        self._rows("VACUUM")
        is_busy, _, _ = self._rows("PRAGMA wal_checkpoint(TRUNCATE)")[0]
        if is_busy:
            problem = "the edit stands, but while another process reads the store, what was deleted stays in its log"
            raise StoreError(self.path, f"{problem}; end that process, and run the same command again")

    def _select(self, columns: str, table: str, order: str = "") -> list[tuple]:
        return self._rows(f"SELECT {columns} FROM {table}{f' ORDER BY {order}' if order else ''}")

    def _rows(self, query: str) -> list[tuple]:
        with typed(self.path):
            return self.connection.execute(query).fetchall()


@contextmanager
def writing(path: str | Path, settings: Mapping[str, Any]) -> Iterator[Store]:
    """Open the store at `path`, begun if there is none; it is refused while another process writes to it.

    `settings` (JSON values, among them `dimension`) must equal those it was begun with.
    """
    path = Path(path)
    with _locked(path), _connected(path, "rwc") as connection:
        store = Store(path, connection)
        with typed(path):
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA secure_delete = ON")  # what is deleted is overwritten
            connection.execute("PRAGMA foreign_keys = ON")
            tables.begin(connection, settings)
        _check_version(store)
        with typed(path):  # not before: it would change a file that is no store of ours
            (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            problem = f"its file system allows no write-ahead log (got {mode!r}); put the store on a local disk"
            raise StoreError(path, problem)
        check_settings(store, settings)
        yield store


@contextmanager
def reading(path: str | Path) -> Iterator[Store]:
    """Open the store at `path` as it stands at this moment, whoever goes on writing to it."""
    path = Path(path)
    if not path.is_file():
        raise StoreError(path, "no such store; `python -m membuilder.build` makes one")
    with _connected(path, "ro") as connection:
        store = Store(path, connection)
        with typed(path):
            connection.execute("BEGIN")
        _check_version(store)
        yield store


def _check_version(store: Store) -> None:
    if store._rows("PRAGMA application_id")[0][0] != tables.APPLICATION_ID:
        problem = "not a memory store, or one in which nothing was begun; name the file that a build wrote"
        raise StoreError(store.path, problem)
    version = store._rows("PRAGMA user_version")[0][0]
    if version not in (tables.SCHEMA_VERSION, tables.WITH_DELETED):
        known = f"{tables.SCHEMA_VERSION} and {tables.WITH_DELETED}"
        problem = f"has schema version {version}, this program reads {known}; use the version that built it"
        raise StoreError(store.path, problem)


def remove_store(path: Path) -> None:
    """Remove a store and what SQLite and its lock leave beside it."""
    for end in ("", "-wal", "-shm", ".lock"):
        path.with_name(path.name + end).unlink(missing_ok=True)


@contextmanager
def _connected(path: Path, mode: str) -> Iterator[sqlite3.Connection]:
    with typed(path):
        # handed from thread to thread, never used by two at once
        uri = f"{path.absolute().as_uri()}?mode={mode}"
        connection = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)
    with closing(connection):
        yield connection


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    lock_path = path.with_name(path.name + ".lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(lock_path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        problem = f"cannot be written: {error.strerror}; name a file in a folder you may write to"
        raise StoreError(path, problem) from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(lock, 32, 0).decode("ascii", "replace").strip() or "unknown"
            problem = f"process {holder} is writing to it; wait for that build to end, or stop it"
            raise StoreError(path, problem) from None
        os.ftruncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(lock)  # releases it
