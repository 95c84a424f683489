"""A vault of files: a store of SQLite for each user, as `membuilder.build` writes it, and one file of jobs.

    root/jobs.db                  sessions that wait, and what became of others
    root/users/3f/3f9a...db       a user's memory; the name is a hash, so that no user's name is ever a path
    root/lock                     held while a server runs here

`membuilder.inspect` and `membuilder.edit` work on the stores.
"""

import fcntl
import hashlib
import os
import sqlite3
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from membuilder.bank.erase import BESIDE, erase_traces
from membuilder.bank.store import Store, reading, remove_store, writing
from membuilder.bank.store_errors import typed
from membuilder.errors import StoreError
from membuilder.serving.errors import ServingError, SessionConflict
from membuilder.serving.vault import JOB_COLUMNS, Job, JobState, job_of, new_job_row
from membuilder.types import Session

_JOBS = """CREATE TABLE IF NOT EXISTS job (number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, user TEXT NOT NULL,
    session_id TEXT NOT NULL, digest TEXT NOT NULL, session TEXT, state TEXT NOT NULL, detail TEXT NOT NULL,
    attempts INTEGER NOT NULL, received_at TEXT NOT NULL, UNIQUE (user, session_id)) STRICT"""
_ERASING = "CREATE TABLE IF NOT EXISTS erasing (user TEXT PRIMARY KEY) STRICT"
_WAITING = "CREATE INDEX IF NOT EXISTS waiting ON job (state, user, number)"


class SqliteVault:
    """A `Vault` in a folder. Raises ServingError where another server runs on it, and StoreError."""

    def __init__(self, root: Path):
        self._root, self._path = root, root / "jobs.db"
        self._lock = threading.Lock()
        with ExitStack() as stack:
            self._held = _held(root)
            stack.callback(os.close, self._held)
            self._jobs = _opened(self._path)
            stack.pop_all()

    def accept(self, user: str, session: Session, digest: str) -> tuple[Job, bool]:
        with self._transaction() as jobs:
            query = f"SELECT {JOB_COLUMNS}, digest FROM job WHERE user = ? AND session_id = ?"
            known = jobs.execute(query, (user, session.id)).fetchone()
            if known is not None and known[-1] != digest:
                raise SessionConflict(session.id)
            if known is not None and known[4] != JobState.FAILED:
                return job_of(known[:-1]), False
            if known is not None:
                jobs.execute("UPDATE job SET state = ?, detail = '' WHERE id = ?", (JobState.QUEUED, known[0]))
                return job_of((*known[:4], JobState.QUEUED, "", *known[6:-1])), False
            row = new_job_row(user, session)
            values = ", ".join("?" * (len(row) + 1))
            jobs.execute(f"INSERT INTO job ({JOB_COLUMNS}, digest) VALUES ({values})", (*row, digest))
        return job_of(row), True

    def job(self, user: str, job_id: str) -> Job | None:
        with self._transaction() as jobs:
            query = f"SELECT {JOB_COLUMNS} FROM job WHERE id = ? AND user = ?"
            row = jobs.execute(query, (job_id, user)).fetchone()
        return None if row is None else job_of(row)

    def next_waiting(self, user: str) -> Job | None:
        with self._transaction() as jobs:
            query = f"SELECT {JOB_COLUMNS} FROM job WHERE state = ? AND user = ? ORDER BY number LIMIT 1"
            row = jobs.execute(query, (JobState.QUEUED, user)).fetchone()
        return None if row is None else job_of(row)

    def users_waiting(self) -> list[str]:
        with self._transaction() as jobs:
            query = "SELECT DISTINCT user FROM job WHERE state = ?"
            return [user for (user,) in jobs.execute(query, (JobState.QUEUED,))]

    def num_waiting(self) -> int:
        with self._transaction() as jobs:
            return jobs.execute("SELECT count(*) FROM job WHERE state = ?", (JobState.QUEUED,)).fetchone()[0]

    def settle(self, job: Job, state: JobState, detail: str = "") -> None:
        kept = ", session = NULL" if state is JobState.DONE else ""
        with self._transaction() as jobs:
            change = f"UPDATE job SET state = ?, detail = ?, attempts = attempts + 1{kept} WHERE id = ? AND state = ?"
            jobs.execute(change, (state, detail, job.id, JobState.QUEUED))

    def withdraw(self, user: str, session_id: str) -> bool:
        with self._transaction() as jobs:
            return jobs.execute("DELETE FROM job WHERE user = ? AND session_id = ?", (user, session_id)).rowcount > 0

    async def stamp(self, user: str) -> object | None:
        path, found = self._file(user), []
        for end in ("", "-wal"):
            try:
                status = os.stat(f"{path}{end}")
            except FileNotFoundError:
                continue
            if status.st_size:  # a reader leaves an empty log
                found.append((end, status.st_ino, status.st_mtime_ns, status.st_size))
        return tuple(found) if found and not found[0][0] else None

    @asynccontextmanager
    async def changing(self, user: str, is_patient: bool) -> AsyncIterator[None]:
        yield  # no other process has this folder

    def reading(self, user: str) -> AbstractContextManager[Store]:
        return reading(self._file(user))

    def writing(self, user: str, settings: dict[str, Any]) -> AbstractContextManager[Store]:
        return writing(self._file(user), settings)

    @contextmanager
    def erasing(self, user: str) -> Iterator[None]:
        with self._transaction() as jobs:
            jobs.execute("INSERT OR IGNORE INTO erasing VALUES (?)", (user,))
        try:
            yield
        finally:
            path = self._file(user)
            if path.exists():
                with reading(path) as store:
                    settings = store.settings()
                with writing(path, settings) as store:
                    erase_traces(store)
            self._empty_log()  # sessions that were read stand there until it is full
            with self._transaction() as jobs:
                jobs.execute("DELETE FROM erasing WHERE user = ?", (user,))
            self._empty_log()  # of the user's name

    def unfinished_erasures(self) -> list[str]:
        with self._transaction() as jobs:
            return [user for (user,) in jobs.execute("SELECT user FROM erasing")]

    def delete(self, user: str) -> bool:
        path = self._file(user)
        was_there = path.exists()
        with self.erasing(user):
            for end in ("", *BESIDE):
                remove_store(path.with_name(path.name + end))
            for index in path.parent.glob(f"{path.name}.index*"):
                index.unlink(missing_ok=True)
            with self._transaction() as jobs:
                was_there |= jobs.execute("DELETE FROM job WHERE user = ?", (user,)).rowcount > 0
        return was_there

    def check(self) -> None:
        with self._transaction() as jobs:
            jobs.execute("UPDATE job SET detail = detail WHERE number = -1")  # takes the lock that a change needs

    def close(self) -> None:
        self._jobs.close()
        os.close(self._held)

    def _file(self, user: str) -> Path:
        name = hashlib.sha256(user.encode()).hexdigest()[:40]
        return self._root / "users" / name[:2] / f"{name}.db"

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock, typed(self._path), self._jobs:
            self._jobs.execute("BEGIN IMMEDIATE")
            yield self._jobs

    def _empty_log(self) -> None:
        with self._lock, typed(self._path):
            self._jobs.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _held(root: Path) -> int:
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = os.open(root / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        problem = f"cannot be written: {error.strerror}; name a folder you may write to"
        raise StoreError(root, problem) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        problem = "another server runs on this folder; stop it, or let several share a database (--store postgresql://)"
        raise ServingError(f"{root}: {problem}") from None
    return lock


def _opened(path: Path) -> sqlite3.Connection:
    with typed(path):
        jobs = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        jobs.execute("PRAGMA journal_mode = WAL")
        jobs.execute("PRAGMA synchronous = FULL")
        jobs.execute("PRAGMA secure_delete = ON")  # what is deleted is overwritten
        jobs.execute(_JOBS)
        jobs.execute(_WAITING)
        jobs.execute(_ERASING)
    return jobs
