"""What reads waiting sessions in the background: each user's in their order, some users at once."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager

from membuilder.errors import BuildStopped, DataError, MemBuilderError, StoreError
from membuilder.serving.errors import InUseError, SessionConflict
from membuilder.serving.vault import Job, JobState, Vault

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 60.0
"""Between attempts at a session that a model, an embedder or a database could not be had for."""
LOOK_SECONDS = 2.0
"""Between looks at what other processes took and read, where several share a database."""

_log = logging.getLogger(__name__)


class Readers(AbstractAsyncContextManager):
    """It lets `read` read every waiting job. A server that is away is asked again; a session that is no session fails.

    Jobs that another process left waiting, or that an earlier one did, are taken up too.
    """

    def __init__(self, vault: Vault, read: Callable[[Job], Awaitable[None]], parallel: int):
        self._vault, self._read = vault, read
        self._at_once = asyncio.Semaphore(parallel)
        self._tasks: dict[str, asyncio.Task] = {}
        self._woken: set[str] = set()
        self._settled: dict[str, asyncio.Event] = {}
        self._closing = asyncio.Event()
        self._looking: asyncio.Task
        self.problems: dict[str, BaseException] = {}
        """User -> why the next session of theirs still waits."""

    async def __aenter__(self) -> "Readers":
        await self._look()
        self._looking = asyncio.create_task(self._keep_looking())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close(0)

    def wake(self, user: str) -> None:
        """Read what waits of a user."""
        self._woken.add(user)
        if user not in self._tasks and not self._closing.is_set():
            self._tasks[user] = asyncio.create_task(self._read_all(user))

    async def settled(self, job: Job) -> None:
        """Wait until an attempt at a job has ended, for good or for now, in this process or another."""
        event = self._settled.setdefault(job.id, asyncio.Event())
        try:
            while not event.is_set():
                now = await asyncio.to_thread(self._vault.job, job.user, job.id)
                if now is None or now.state is not JobState.QUEUED or now.attempts > job.attempts:
                    return
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(event.wait(), LOOK_SECONDS)
        finally:
            if self._settled.get(job.id) is event:
                del self._settled[job.id]

    async def close(self, grace_seconds: float) -> None:
        """Finish what is being read within so many seconds; what is cut short then still waits, and nothing begins."""
        self._closing.set()
        self._looking.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks.values(), timeout=grace_seconds)
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(self._looking, *self._tasks.values(), return_exceptions=True)

    async def _look(self) -> None:
        for user in await asyncio.to_thread(self._vault.users_waiting):
            self.wake(user)

    async def _keep_looking(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                await self._look()
            except StoreError as error:
                _log.warning("cannot look for waiting sessions: %s", error)

    async def _read_all(self, user: str) -> None:
        pause = FIRST_PAUSE_SECONDS
        try:
            while not self._closing.is_set():
                self._woken.discard(user)
                try:
                    is_done = await self._read_next(user)
                except InUseError:
                    await self._pause(LOOK_SECONDS)
                    continue
                if is_done is None and user not in self._woken:
                    break
                if is_done is False:
                    await self._pause(pause)
                    pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
                else:
                    pause = FIRST_PAUSE_SECONDS
        finally:
            self._tasks.pop(user, None)

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._closing.wait(), seconds)

    async def _read_next(self, user: str) -> bool | None:
        """Return whether the next job may follow; None where none waits. Raises InUseError."""
        try:
            jobs = await asyncio.to_thread(self._vault.waiting, user)
        except StoreError as error:
            self.problems[user] = error
            _log.warning("cannot look for waiting sessions: %s", error)
            return False
        if not jobs:
            self.problems.pop(user, None)  # also of a job that was erased, or that another process read
            return None
        async with self._at_once:
            return not self._closing.is_set() and await self._attempt(jobs[0])

    async def _attempt(self, job: Job) -> bool:
        """Return whether the next job may follow: this one was read, or never will be as it is. Raises InUseError."""
        state, detail = JobState.DONE, ""
        try:
            await self._read(job)
        except (DataError, SessionConflict) as error:
            state, detail = JobState.FAILED, str(error)
        except InUseError:
            raise  # no attempt: another process makes it
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
