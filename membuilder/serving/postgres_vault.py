"""A vault in a database of PostgreSQL with pgvector, which any number of server processes may share.

    python -m membuilder.serve --store postgresql://USER@HOST/DATABASE

A memory's key is a hash of its user's name. Who changes a memory holds an advisory lock on it, in the connection that
writes: a process that is killed, or loses its connection, loses the lock and can write no more. A pooler between server
and database must therefore keep sessions (PgBouncer: pool_mode = session).

What is erased is gone from the files of tables and indexes, and no statistics hold samples of it. Out of reach are the
write-ahead log until its segments are used again, and what is made of it: archives, backups, replicas.
"""

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any
from uuid import UUID

import psycopg
from psycopg_pool import ConnectionPool, PoolTimeout

from membuilder.bank.memory_store import MemoryStore, check_settings
from membuilder.errors import StoreError
from membuilder.serving.errors import InUseError, SessionConflict
from membuilder.serving.postgres_store import HELD, PostgresStore
from membuilder.serving.postgres_tables import SCHEMA, configure, migrate, name_of, parameters_of, typed
from membuilder.serving.vault import JOB_COLUMNS, Job, JobState, job_of, new_job_row
from membuilder.types import Session

_JOB, _MEMORY, _ERASING = (f"{SCHEMA}.{table}" for table in ("job", "memory", "erasing"))
_OF_A_USER = ("job", "memory", *HELD)
_PATIENCE_SECONDS, _AWAY_SECONDS = 5.0, 0.1
"""How long a request waits for a connection; the second while none was had, so that all are told soon."""
_IN_USE_SECONDS = 0.05
"""Between looks at whether another process has ended its change."""
_SNAPSHOT_SECONDS = 10.0
"""How long an erasure waits for those who still may read what is erased."""


class PostgresVault:
    """A `Vault` at an address. `parallel` is how many users are read at once. Raises ConfigError and StoreError."""

    def __init__(self, url: str, parallel: int):
        parameters = parameters_of(url)
        self._name = name_of(parameters)
        migrate(parameters)
        self._pool = ConnectionPool(
            kwargs=parameters,
            configure=configure,
            check=ConnectionPool.check_connection,
            min_size=0,
            max_size=parallel + 12,  # those who read hold one each, and others come from so many threads
            reconnect_timeout=0.5,  # whoever comes next tries anew
            open=True,
        )
        self._is_there = True
        self._held: dict[str, psycopg.Connection] = {}

    def accept(self, user: str, session: Session, digest: str) -> tuple[Job, bool]:
        key, row = _key(user), new_job_row(user, session)
        insert = (
            f"INSERT INTO {_JOB} (memory, {JOB_COLUMNS}, digest) VALUES ({', '.join(['%s'] * (len(row) + 2))})"
            " ON CONFLICT (memory, session_id) DO NOTHING"
        )
        find = f"SELECT {JOB_COLUMNS}, digest FROM {_JOB} WHERE memory = %s AND session_id = %s FOR UPDATE"
        with self._connection() as connection, connection.transaction():
            known = None
            while known is None:
                if connection.execute(insert, [key, *row, digest]).rowcount:
                    return job_of(row), True
                known = connection.execute(find, [key, session.id]).fetchone()  # None: erased between the two
            if known[-1] != digest:
                raise SessionConflict(session.id)
            job = job_of(known[:-1])
            if job.state is JobState.FAILED:
                change = f"UPDATE {_JOB} SET state = %s, detail = '' WHERE memory = %s AND id = %s"
                connection.execute(change, [JobState.QUEUED.value, key, job.id])
                job = job_of((*known[:4], JobState.QUEUED, "", *known[6:-1]))
        return job, False

    def job(self, user: str, job_id: str) -> Job | None:
        rows = self._rows(f"SELECT {JOB_COLUMNS} FROM {_JOB} WHERE memory = %s AND id = %s", _key(user), job_id)
        return job_of(rows[0]) if rows else None

    def next_waiting(self, user: str) -> Job | None:
        query = f"SELECT {JOB_COLUMNS} FROM {_JOB} WHERE memory = %s AND state = 'queued' ORDER BY number LIMIT 1"
        rows = self._rows(query, _key(user))
        return job_of(rows[0]) if rows else None

    def users_waiting(self) -> list[str]:
        return [user for (user,) in self._rows(f"SELECT DISTINCT \"user\" FROM {_JOB} WHERE state = 'queued'")]

    def num_waiting(self) -> int:
        return self._rows(f"SELECT count(*) FROM {_JOB} WHERE state = 'queued'")[0][0]

    def settle(self, job: Job, state: JobState, detail: str = "") -> None:
        kept = ", session = NULL" if state is JobState.DONE else ""
        change = (
            f"UPDATE {_JOB} SET state = %s, detail = %s, attempts = attempts + 1{kept}"
            " WHERE memory = %s AND id = %s AND state = 'queued'"
        )
        with self._connection() as connection:
            connection.execute(change, [state.value, detail, _key(job.user), job.id])

    def withdraw(self, user: str, session_id: str) -> bool:
        delete = f"DELETE FROM {_JOB} WHERE memory = %s AND session_id = %s"
        with self._changed(user) as connection:
            return connection.execute(delete, [_key(user), session_id]).rowcount > 0

    async def stamp(self, user: str) -> object | None:
        return await asyncio.to_thread(self._stamp, user)

    @asynccontextmanager
    async def changing(self, user: str, is_patient: bool) -> AsyncIterator[None]:
        lock, turn = (_lock(user, purpose) for purpose in ("change", "turn"))
        with self._connection() as connection, _unlocked(connection):
            # who waits for its turn shares `turn`; while anybody does, nobody else begins
            if is_patient:
                connection.execute("SELECT pg_advisory_lock_shared(%s)", [turn])
            elif not _has(connection, "SELECT pg_try_advisory_lock(%s)", turn):
                raise InUseError(self._name, "another process waits to change this memory")
            else:
                connection.execute("SELECT pg_advisory_unlock(%s)", [turn])
            while not _has(connection, "SELECT pg_try_advisory_lock(%s)", lock):
                if not is_patient:
                    raise InUseError(self._name, "another process changes this memory")
                await asyncio.sleep(_IN_USE_SECONDS)
            self._held[user] = connection
            try:
                yield
            finally:
                del self._held[user]

    @contextmanager
    def reading(self, user: str) -> Iterator[MemoryStore]:
        with self._connection() as connection, connection.transaction():
            connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            store = PostgresStore(self._name, connection, _key(user))
            store.settings()  # raises where there is no memory
            yield store

    @contextmanager
    def writing(self, user: str, settings: dict[str, Any]) -> Iterator[MemoryStore]:
        begin = f"INSERT INTO {_MEMORY} VALUES (%s, %s, %s, nextval('{SCHEMA}.change')) ON CONFLICT DO NOTHING"
        with self._changed(user) as connection:
            connection.execute(begin, [_key(user), user, json.dumps(settings)])
            store = PostgresStore(self._name, connection, _key(user))
            check_settings(store, settings)
            yield store

    @contextmanager
    def erasing(self, user: str) -> Iterator[None]:
        with self._changed(user) as connection:
            begin = f"INSERT INTO {_ERASING} VALUES (%s, %s) ON CONFLICT DO NOTHING"
            connection.execute(begin, [_key(user), user])
        try:
            yield
        finally:
            with self._changed(user) as connection:
                _await_older_snapshots(connection, self._name)
                part = _key(user).hex[0]  # of each table; others of the same part wait meanwhile
                connection.execute(f"VACUUM (FULL) {', '.join(f'{SCHEMA}.{table}_{part}' for table in _OF_A_USER)}")
                connection.execute(f"DELETE FROM {_ERASING} WHERE memory = %s", [_key(user)])
                connection.execute(f"VACUUM (FULL) {_ERASING}")

    def unfinished_erasures(self) -> list[str]:
        return [user for (user,) in self._rows(f'SELECT "user" FROM {_ERASING}')]

    def delete(self, user: str) -> bool:
        num_gone = 0
        with self.erasing(user), self._changed(user) as connection, connection.transaction():
            for table in _OF_A_USER:
                delete = f"DELETE FROM {SCHEMA}.{table} WHERE memory = %s"
                num_gone += connection.execute(delete, [_key(user)]).rowcount
        return num_gone > 0

    def check(self) -> None:
        with self._connection() as connection:
            connection.execute(f"UPDATE {_JOB} SET detail = detail WHERE false")  # refused where it is read-only

    def close(self) -> None:
        self._pool.close()

    def _stamp(self, user: str) -> int | None:
        rows = self._rows(f"SELECT changed FROM {_MEMORY} WHERE memory = %s", _key(user))
        return rows[0][0] if rows else None

    def _rows(self, query: str, *values: object) -> list[tuple]:
        with self._connection() as connection:
            return connection.execute(query, values).fetchall()

    @contextmanager
    def _connection(self) -> Iterator[psycopg.Connection]:
        with typed(self._name):
            try:
                connection = self._pool.getconn(_PATIENCE_SECONDS if self._is_there else _AWAY_SECONDS)
            except PoolTimeout:
                self._is_there = False
                raise
            self._is_there = True
            try:
                yield connection
            finally:
                self._pool.putconn(connection)

    @contextmanager
    def _changed(self, user: str) -> Iterator[psycopg.Connection]:
        """Use the connection that holds the user's lock."""
        with typed(self._name):
            yield self._held[user]


def _key(user: str) -> UUID:
    return UUID(bytes=hashlib.sha256(user.encode()).digest()[:16])


def _lock(user: str, purpose: str) -> int:
    """Return the number of an advisory lock. Two users that share one would only take turns."""
    digest = hashlib.sha256(f"membuilder {purpose} {user}".encode()).digest()
    return int.from_bytes(digest[:8], signed=True)


def _has(connection: psycopg.Connection, query: str, value: object) -> bool:
    return connection.execute(query, [value]).fetchone()[0]


@contextmanager
def _unlocked(connection: psycopg.Connection) -> Iterator[None]:
    """Let go of all locks in the end; a connection that cannot is closed, which lets go of them too."""
    try:
        yield
    finally:
        try:
            connection.execute("SELECT pg_advisory_unlock_all()")
        except psycopg.Error:
            connection.close()


def _await_older_snapshots(connection: psycopg.Connection, name: str) -> None:
    """Wait until nobody in this database may still read what was deleted: VACUUM keeps that. Raises StoreError."""
    (now,) = connection.execute("SELECT pg_current_xact_id()::text").fetchone()
    older = (
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        " AND greatest(age(backend_xmin), age(backend_xid)) > age(%s::xid8::xid)"
    )
    until = time.monotonic() + _SNAPSHOT_SECONDS
    while found := connection.execute(older, [now]).fetchone():
        if time.monotonic() > until:
            problem = (
                f"the deletion stands, but while process {found[0]} of the database reads, its traces stay in files"
            )
            raise StoreError(name, f"{problem}; end that transaction, and send the same request again")
        time.sleep(0.02)
