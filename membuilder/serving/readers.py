"""What reads waiting sessions in the background: each user's in their order, some users at once."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager

from membuilder.errors import BuildStopped, DataError, MemBuilderError
from membuilder.serving.errors import SessionConflict
from membuilder.serving.vault import Job, JobState, Vault

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 60.0
"""Between attempts at a session that a model, an embedder or a database could not be had for."""

_log = logging.getLogger(__name__)


class Readers(AbstractAsyncContextManager):
    """It lets `read` read every waiting job. A server that is away is asked again; a session that is no session fails.

    On entering, what an earlier process left waiting is taken up.
    """

    def __init__(self, vault: Vault, read: Callable[[Job], Awaitable[None]], parallel: int):
        self._vault, self._read = vault, read
        self._at_once = asyncio.Semaphore(parallel)
        self._tasks: dict[str, asyncio.Task] = {}
        self._settled: dict[str, asyncio.Event] = {}
        self._is_closing = False
        self.problems: dict[str, BaseException] = {}
        """User -> why the next session of theirs still waits."""

    async def __aenter__(self) -> "Readers":
        for job in await asyncio.to_thread(self._vault.waiting):
            self.wake(job.user)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close(0)

    def wake(self, user: str) -> None:
        """Read what waits of a user."""
        if user not in self._tasks and not self._is_closing:
            self._tasks[user] = asyncio.create_task(self._read_all(user))

    async def settled(self, job: Job) -> None:
        """Wait until an attempt at a job has ended, for good or for now."""
        event = self._settled.setdefault(job.id, asyncio.Event())
        current = await asyncio.to_thread(self._vault.job, job.user, job.id)
        if current is not None and current.state is JobState.QUEUED:
            await event.wait()

    async def close(self, grace_seconds: float) -> None:
        """Finish what is being read within so many seconds; what is cut short then still waits, and nothing begins."""
        self._is_closing = True
        if self._tasks:
            await asyncio.wait(self._tasks.values(), timeout=grace_seconds)
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _read_all(self, user: str) -> None:
        pause = FIRST_PAUSE_SECONDS
        try:
            while not self._is_closing and (jobs := await asyncio.to_thread(self._vault.waiting, user)):
                async with self._at_once:
                    if self._is_closing:
                        break
                    is_done = await self._attempt(jobs[0])
                if is_done:
                    pause = FIRST_PAUSE_SECONDS
                    continue
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
        finally:
            self._tasks.pop(user, None)
        if not self._is_closing and await asyncio.to_thread(self._vault.waiting, user):
            self.wake(user)  # came between the last look and the end of this task

    async def _attempt(self, job: Job) -> bool:
        """Return whether the next job may follow: this one was read, or never will be as it is."""
        state, detail = JobState.DONE, ""
        try:
            await self._read(job)
        except (DataError, SessionConflict) as error:
            state, detail = JobState.FAILED, str(error)
        except MemBuilderError as error:
            state, detail = JobState.QUEUED, _reason(error)
            self.problems[job.user] = error
            _log.warning("job %s waits: %s", job.id, error)
        except Exception as error:  # a fault of ours must not end the reading of all other sessions
            state, detail = JobState.FAILED, f"a fault of the server ({type(error).__name__})"
            _log.exception("job %s failed", job.id)
        if state is not JobState.QUEUED:
            self.problems.pop(job.user, None)
        try:
            await asyncio.to_thread(self._vault.settle, job, state, detail)
        except MemBuilderError as error:  # it stays as it was, and is tried again
            self.problems[job.user] = error
            _log.warning("job %s could not be settled: %s", job.id, error)
            return False
        finally:
            if event := self._settled.pop(job.id, None):
                event.set()
        return state is not JobState.QUEUED


def _reason(error: MemBuilderError) -> str:
    if isinstance(error, BuildStopped):
        return f"the model that reads sessions cannot be had ({error.cause.kind})"
    return "the memory cannot be written"
