"""Where a server keeps memories, and the sessions that wait to be read into them: the seam of its databases.

Everything raises StoreError where the database cannot do it. Methods may be called from several threads.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from membuilder.bank.store import Store
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


class Vault(Protocol):
    """Memories by user, and the jobs of all users."""

    scratch: Path
    """A folder for stores that are being written anew; what a killed server left there is gone."""

    def accept(self, user: str, session: Session, digest: str) -> tuple[Job, bool]:
        """Store a session to be read; it is on the disk when this returns. False: it was there before.

        `digest` tells what was posted: under the same id and digest a job is the same, and one that had failed waits
        again. Raises SessionConflict where the id was posted with another digest.
        """

    def job(self, user: str, job_id: str) -> Job | None:
        """Return a job of this user; None where there is none of this id."""

    def waiting(self, user: str | None = None) -> list[Job]:
        """Return the queued jobs of a user, or of all, in the order in which they came."""

    def num_waiting(self) -> int:
        """Count the queued jobs of all users."""

    def settle(self, job: Job, state: JobState, detail: str = "") -> None:
        """Note what became of an attempt at a job; with DONE its words are taken out of the jobs."""

    def withdraw(self, user: str, session_id: str) -> bool:
        """Erase the job of a session, as if it had never come; False where there was none."""

    def stamp(self, user: str) -> object | None:
        """Return what changes whenever a user's memory changes; None where there is no memory yet."""

    def reading(self, user: str) -> AbstractContextManager[Store]:
        """Open a user's memory as it stands at this moment."""

    def writing(self, user: str, settings: dict[str, Any]) -> AbstractContextManager[Store]:
        """Open a user's memory to be changed, begun if there is none; one writer at a time."""

    def erase(self, user: str) -> None:
        """Erase what a user's memory no longer holds from the disk. It may be repeated."""

    def delete(self, user: str) -> bool:
        """Erase a user's memory and jobs from the disk; False where there was nothing."""

    def check(self) -> None:
        """Raise StoreError where nothing can be stored at the moment."""

    def close(self) -> None:
        """End connections and locks."""
