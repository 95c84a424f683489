"""Where a server keeps memories, and the sessions that wait to be read into them: the seam of its databases.

Everything raises StoreError where the database cannot do it. Methods may be called from several threads.
"""

from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Protocol
from uuid import uuid4

import msgspec

from membuilder.bank.memory_store import MemoryStore
from membuilder.types import Session


class JobState(StrEnum):
    QUEUED = "queued"
    DONE = "done"
    FAILED = "failed"
    """It will not be read as it is: posted once more, it is tried again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One session on its way into a memory."""

    id: str
    user: str
    session_id: str
    session: Session | None
    """With its turns until they stand in the memory; None from then on."""
    state: JobState
    detail: str = ""
    """Why it failed, or why it still waits."""
    attempts: int = 0
    received_at: datetime


JOB_COLUMNS = 'id, "user", session_id, session, state, detail, attempts, received_at'
"""Of the table of jobs, as `new_job_row` and `job_of` have them."""


def new_job_row(user: str, session: Session) -> tuple:
    """Return the row of a session that begins to wait."""
    body, received = msgspec.json.encode(session).decode(), datetime.now(UTC).isoformat()
    return uuid4().hex, user, session.id, body, JobState.QUEUED.value, "", 0, received


def job_of(row: tuple) -> Job:
    """Return the job that a row is."""
    job_id, user, session_id, session, state, detail, attempts, received_at = row
    return Job(
        id=job_id,
        user=user,
        session_id=session_id,
        session=None if session is None else msgspec.json.decode(session, type=Session),
        state=JobState(state),
        detail=detail,
        attempts=attempts,
        received_at=datetime.fromisoformat(received_at),
    )


class Vault(Protocol):
    """Memories by user, and the jobs of all users."""

    def accept(self, user: str, session: Session, digest: str) -> tuple[Job, bool]:
        """Store a session to be read; it is on the disk when this returns. False: it was there before.

        `digest` tells what was posted: under the same id and digest a job is the same, and one that had failed waits
        again. Raises SessionConflict where the id was posted with another digest.
        """

    def job(self, user: str, job_id: str) -> Job | None:
        """Return a job of this user; None where there is none of this id."""

    def next_waiting(self, user: str) -> Job | None:
        """Return the queued job of a user that came first; None where none waits."""

    def users_waiting(self) -> list[str]:
        """Return the users who have queued jobs, whichever process took these."""

    def num_waiting(self) -> int:
        """Count the queued jobs of all users."""

    def settle(self, job: Job, state: JobState, detail: str = "") -> None:
        """Note what became of an attempt at a queued job; with DONE its words are taken out of the jobs."""

    def withdraw(self, user: str, session_id: str) -> bool:
        """Take out the job of a session, inside `changing` and `erasing`; False where there was none."""

    async def stamp(self, user: str) -> object | None:
        """Return what changes whenever any process changes a user's memory; None where there is no memory yet."""

    def changing(self, user: str, is_patient: bool) -> AbstractAsyncContextManager[None]:
        """Be the only process that changes what there is of a user.

        While another process does, it waits, or raises InUseError where it is not patient. Within one process the
        caller sees to it that each user is changed once at a time.
        """

    def reading(self, user: str) -> AbstractContextManager[MemoryStore]:
        """Open a user's memory as it stands at this moment."""

    def writing(self, user: str, settings: dict[str, Any]) -> AbstractContextManager[MemoryStore]:
        """Open a user's memory to be changed, begun if there is none, inside `changing`."""

    def erasing(self, user: str) -> AbstractContextManager[None]:
        """Erase from the disk at its end all that is held no more of a user, inside `changing`.

        Where the process dies before that, the user is among `unfinished_erasures` until it is done.
        """

    def unfinished_erasures(self) -> list[str]:
        """Return the users of whom traces may be on the disk of what was taken out."""

    def delete(self, user: str) -> bool:
        """Erase a user's memory and jobs from the disk, inside `changing`; False where there was nothing."""

    def check(self) -> None:
        """Raise StoreError where nothing can be stored at the moment."""

    def close(self) -> None:
        """End connections and locks."""
