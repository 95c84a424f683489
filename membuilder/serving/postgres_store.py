"""One memory in tables of PostgreSQL, in the rows that `membuilder.bank.store_rows` makes of it."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import numpy as np
import psycopg

from membuilder.bank.memory_store import bank_after, newly_deleted
from membuilder.bank.store_errors import as_written
from membuilder.bank.store_rows import (
    VECTOR,
    Answer,
    StoredMemory,
    StoredSession,
    read_entries,
    read_sessions,
    rows_of,
)
from membuilder.errors import StoreError
from membuilder.serving.postgres_tables import SCHEMA, typed
from membuilder.types import Bank, Session

HELD = ("session", "turn", "answer", "entry", "embedding", "deleted")
"""The tables of what a memory holds beside its settings."""


class PostgresStore:
    """A `MemoryStore` over one connection. Every method raises StoreError."""

    def __init__(self, path: str, connection: psycopg.Connection, key: UUID):
        self.path, self._connection, self._key = path, connection, key

    def settings(self) -> dict[str, Any]:
        rows = self._rows("settings FROM {}.memory WHERE memory = %s")
        if not rows:
            raise StoreError(self.path, "there is no such memory any more")
        with as_written(self.path):
            return json.loads(rows[0][0])

    def num_sessions(self) -> int:
        return self._rows("count(*) FROM {}.session WHERE memory = %s")[0][0]

    def sessions(self) -> tuple[StoredSession, ...]:
        queries = (
            "number, id, timestamp, core, core_quotes FROM {}.session WHERE memory = %s ORDER BY number",
            "session, id, speaker, role, text, caption FROM {}.turn WHERE memory = %s ORDER BY session, number",
            "session, agent, shown, text, operations, failure_kind, failure_detail, seconds, asked_at"
            " FROM {}.answer WHERE memory = %s ORDER BY place",
        )
        found = list(map(self._rows, queries))
        with as_written(self.path):
            return read_sessions(*found)

    def bank(self) -> Bank:
        sessions = self.sessions()
        rows = self._rows(
            "id, agent, session, text, source_turns, supersedes FROM {}.entry WHERE memory = %s ORDER BY number"
        )
        with as_written(self.path):
            entries = read_entries(rows, sessions)
        return bank_after(sessions, entries, self.deleted())

    def deleted(self) -> dict[str, int]:
        return dict(self._rows("entry, session FROM {}.deleted WHERE memory = %s ORDER BY place"))

    def vectors(self) -> np.ndarray:
        rows = self._rows("vector FROM {}.embedding WHERE memory = %s ORDER BY entry", binary=True)
        num_entries = self._rows("count(*) FROM {}.entry WHERE memory = %s")[0][0]
        dimension = self.settings()["dimension"]
        vectors = [vector.to_numpy() for (vector,) in rows]
        if len(vectors) != num_entries or any(len(vector) != dimension for vector in vectors):
            problem = f"{num_entries} entries, but {len(rows)} embeddings or some not of {dimension} numbers"
            raise StoreError(self.path, f"{problem}: it was changed from outside")
        return np.array(vectors, dtype=np.float32).reshape(num_entries, dimension)

    def memory(self) -> StoredMemory:
        return StoredMemory(
            settings=self.settings(),
            sessions=self.sessions(),
            entries=self.bank().entries,
            vectors=self.vectors(),
            deleted=self.deleted(),
        )

    def append(self, session: Session, answers: Mapping[str, Answer], bank: Bank, vectors: np.ndarray) -> None:
        first = len(bank.entries) - len(vectors) + 1
        new = list(enumerate(bank.entries[first - 1 :], start=first))
        stored = StoredSession(session=session, answers=answers, core=bank.core, core_quotes=bank.core_quotes)
        with self._change():
            deleted = newly_deleted(session, bank, self.deleted())
            self._insert(rows_of([stored], new, vectors) | {"deleted": deleted})

    def replace(self, memory: StoredMemory) -> None:
        with self._change():
            for table in HELD:
                self._connection.execute(f"DELETE FROM {SCHEMA}.{table} WHERE memory = %s", [self._key])
            settings = json.dumps(dict(memory.settings))
            change = f"UPDATE {SCHEMA}.memory SET settings = %s WHERE memory = %s"
            self._connection.execute(change, [settings, self._key])
            rows = rows_of(memory.sessions, list(enumerate(memory.entries, start=1)), memory.vectors)
            self._insert(rows | {"deleted": list(memory.deleted.items())})

    @contextmanager
    def _change(self) -> Iterator[None]:
        """Change the memory in one transaction, which gives it a new stamp."""
        with typed(self.path), self._connection.transaction():
            change = f"UPDATE {SCHEMA}.memory SET changed = nextval('{SCHEMA}.change') WHERE memory = %s"
            if not self._connection.execute(change, [self._key]).rowcount:
                raise StoreError(self.path, "there is no such memory any more")
            yield

    def _insert(self, tables: Mapping[str, list]) -> None:
        with self._connection.cursor() as cursor:
            for table, rows in tables.items():
                if table == "embedding":
                    rows = [(entry, np.frombuffer(blob, VECTOR)) for entry, blob in rows]
                if rows:
                    values = ", ".join(["%s"] * (len(rows[0]) + 1))
                    insert = f"INSERT INTO {SCHEMA}.{table} VALUES ({values})"
                    cursor.executemany(insert, [(self._key, *row) for row in rows])

    def _rows(self, query: str, binary: bool = False) -> list[tuple]:
        with typed(self.path):
            select = f"SELECT {query.format(SCHEMA)}"
            return self._connection.execute(select, [self._key], binary=binary).fetchall()
