"""What reads waiting sessions in the background: each user's in their order, some users at once."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, suppress
from weakref import WeakValueDictionary

from membuilder.errors import BuildStopped, ChatError, DataError, MemBuilderError, StoreError
from membuilder.serving.errors import InUseError, SessionConflict
from membuilder.serving.vault import Job, JobState, Vault

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 60.0
"""Between attempts at a session that a model, an embedder or a database could not be had for."""
LOOK_SECONDS = 2.0
"""Between looks at what other processes took and read, where several share a database."""

_log = logging.getLogger(__name__)


class Readers(AbstractAsyncContextManager):
    """It lets `read` read every waiting job. A server that is away is asked again; a session that is no session fails.

    Jobs that an earlier process left waiting, or that another one does, are taken up too.
    """

    def __init__(self, vault: Vault, read: Callable[[Job], Awaitable[None]], parallel: int):
        self._vault, self._read = vault, read
        self._at_once = asyncio.Semaphore(parallel)
        self._tasks: dict[str, asyncio.Task] = {}
        self._woken: set[str] = set()
        """Users of whom something came that their task has not looked for yet."""
        self._attempts: WeakValueDictionary[str, asyncio.Event] = WeakValueDictionary()
        """User -> what is set once an attempt of theirs has ended; it lives as long as somebody waits for it."""
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
        """Wait until a job is settled, or cannot be for now: an attempt at it, or at one before it, failed.

        The attempt may be another process's.
        """
        while not self._closing.is_set():
            attempt = self._attempts.setdefault(job.user, asyncio.Event())  # first, so that none is missed
            current = await asyncio.to_thread(self._vault.job, job.user, job.id)
            if current is None or current.state is not JobState.QUEUED or current.attempts > job.attempts:
                break
            with suppress(TimeoutError):
                await asyncio.wait_for(attempt.wait(), LOOK_SECONDS)
            if attempt.is_set() and job.user in self.problems:
                break

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
                try:
                    is_done = await self._read_next(user)
                except InUseError:
                    await self._pause(LOOK_SECONDS)
                    continue
                if is_done:
                    pause = FIRST_PAUSE_SECONDS
                elif user in self.problems:
                    await self._pause(pause)
                    pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
                elif user not in self._woken:
                    break
        finally:
            self._tasks.pop(user, None)
            self._tell(user)

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._closing.wait(), seconds)

    async def _read_next(self, user: str) -> bool:
        """Return whether a job was settled. If not, none waits, or `problems` tells why the next one still does.

        Raises InUseError while another process changes this user's memory.
        """
        self._woken.discard(user)
        try:
            job = await asyncio.to_thread(self._vault.next_waiting, user)
            if job is not None:
                async with self._at_once:
                    return not self._closing.is_set() and await self._attempt(job)
            self.problems.pop(user, None)  # also where what could not be read was erased
        except InUseError:
            raise  # no attempt: another process makes it
        except (MemBuilderError, OSError) as error:  # of the vault, which may be back in a moment
            self.problems[user] = error
            _log.warning("sessions wait: %s", error)
        finally:
            self._tell(user)
        return False

    async def _attempt(self, job: Job) -> bool:
        """Return whether the next job may follow: this one was read, or never will be as it is."""
        state, detail = JobState.DONE, ""
        (error,) = await asyncio.gather(self._read(job), return_exceptions=True)
        match error:
            case None:
                pass
            case DataError() | SessionConflict():
                state, detail = JobState.FAILED, str(error)
            case InUseError():
                raise error
            case MemBuilderError() | OSError():
                state, detail = JobState.QUEUED, _reason(error)
                self.problems[job.user] = error
                # what a model answered, or a server said of it, may repeat what the session holds
                _log.warning("job %s waits: %s", job.id, error if isinstance(error, StoreError | OSError) else detail)
            case _:  # a fault of ours must not end the reading of all other sessions
                state, detail = JobState.FAILED, f"a fault of the server ({type(error).__name__})"
                _log.error("job %s failed", job.id, exc_info=error)
        await asyncio.to_thread(self._vault.settle, job, state, detail)
        if state is JobState.QUEUED:
            return False
        self.problems.pop(job.user, None)
        return True

    def _tell(self, user: str) -> None:
        if attempt := self._attempts.pop(user, None):
            attempt.set()


def _reason(error: MemBuilderError | OSError) -> str:
    if isinstance(error, BuildStopped):
        return f"the model that reads sessions cannot be had ({error.cause.kind})"
    if isinstance(error, ChatError):
        return f"the embedding model cannot be had ({error.kind})"
    return "the memory cannot be written"
