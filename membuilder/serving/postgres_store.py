"""One memory in tables of PostgreSQL, in the rows that `membuilder.bank.store_rows` makes of it."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import numpy as np
import psycopg

from membuilder.bank.memory_store import newly_deleted
from membuilder.bank.row_store import RowStore
from membuilder.bank.store_errors import as_written
from membuilder.bank.store_rows import (
    VECTOR,
    Answer,
    StoredMemory,
    StoredSession,
    rows_of,
)
from membuilder.errors import StoreError
from membuilder.serving.postgres_tables import SCHEMA, typed
from membuilder.types import Bank, Session

HELD = ("session", "turn", "answer", "entry", "embedding", "deleted")
"""The tables of what a memory holds beside its settings."""


class PostgresStore(RowStore):
    """A `MemoryStore` over one connection. Every method raises StoreError."""

    insertion_order = "place"

    def __init__(self, path: str, connection: psycopg.Connection, key: UUID):
        self.path, self._connection, self._key = path, connection, key

    def settings(self) -> dict[str, Any]:
        rows = self._select("settings", "memory")
        if not rows:
            raise StoreError(self.path, "there is no such memory any more")
        with as_written(self.path):
            return json.loads(rows[0][0])

    def vectors(self) -> np.ndarray:
        rows = self._select("vector", "embedding", "entry", binary=True)
        num_entries = self._select("count(*)", "entry")[0][0]
        dimension = self.settings()["dimension"]
        vectors = [vector.to_numpy() for (vector,) in rows]
        if len(vectors) != num_entries or any(len(vector) != dimension for vector in vectors):
            problem = f"{num_entries} entries, but {len(rows)} embeddings or some not of {dimension} numbers"
            raise StoreError(self.path, f"{problem}: it was changed from outside")
        return np.array(vectors, dtype=np.float32).reshape(num_entries, dimension)

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

    def _select(self, columns: str, table: str, order: str = "", binary: bool = False) -> list[tuple]:
        ordered = f" ORDER BY {order}" if order else ""
        query = f"SELECT {columns} FROM {SCHEMA}.{table} WHERE memory = %s{ordered}"
        with typed(self.path):
            return self._connection.execute(query, [self._key], binary=binary).fetchall()
