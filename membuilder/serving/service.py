"""What a memory server does, for whoever calls it in process; `rest.py` and `mcp_tools.py` call it for others.

    async with MemoryService(vault, config, open_builder, embedder, identity) as service:
        job, _ = await service.remember("ann", session, digest)
        await service.settled(job)
        found = await service.search("ann", "Which pets does Ann have?")

Searching stays in the caller's event loop. Memories are changed in another one, in a thread of its own, so that no
search waits for a database that is being written.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

from anyio.from_thread import BlockingPortal, start_blocking_portal

from membuilder.bank.okapi import forget_indexes
from membuilder.bank.ranking import ANSWERING, SearchMethod
from membuilder.bank.retrieve import Retrieval
from membuilder.bank.store_rows import StoredMemory, StoredSession
from membuilder.building.builder import Builder
from membuilder.building.config import BuildConfig
from membuilder.embedding.local import TextEmbedder
from membuilder.errors import BuildStopped, ChatError, MemBuilderError
from membuilder.llm.answer_and_judge import answer
from membuilder.llm.chat_model import ChatModel
from membuilder.schemes.four_agents.rules import forget_subjects
from membuilder.serving.errors import BusyError, NoAnswererError, NotThereError, UnavailableError
from membuilder.serving.memory_writer import MemoryWriter
from membuilder.serving.open_memories import OpenMemories, OpenMemory
from membuilder.serving.public_ids import with_public_ids
from membuilder.serving.readers import Readers
from membuilder.serving.recent_embedder import RecentEmbedder
from membuilder.serving.vault import Job, Vault
from membuilder.types import Bank, Question, Session

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What one server takes on."""

    open_entries: int = 500_000
    """Entries of all memories that are kept open to be searched; about 2 kB each."""
    parallel: int = 4
    """Users whose sessions are read at once."""
    waiting: int = 10_000
    """Sessions that may wait; more are not taken."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Contents:
    """All that a memory holds, under public ids."""

    settings: Mapping[str, Any]
    sessions: tuple[StoredSession, ...]
    bank: Bank


@dataclass(frozen=True, kw_only=True, slots=True)
class Answered:
    """An answer, and what it stands on."""

    text: str
    core: str
    found: Retrieval


class MemoryService(AbstractAsyncContextManager):
    """Memories of many users. `open_builder` makes the builder inside the event loop that changes memories."""

    def __init__(
        self,
        vault: Vault,
        config: BuildConfig,
        open_builder: Callable[[TextEmbedder], AbstractAsyncContextManager[Builder]],
        embedder: TextEmbedder,
        identity: Mapping[str, Any],
        answerer: ChatModel | None = None,
        limits: Limits | None = None,
    ) -> None:
        self._vault, self._config, self._open_builder = vault, config, open_builder
        self._identity, self._answerer, self._limits = identity, answerer, limits or Limits()
        self._recent = RecentEmbedder(embedder)
        self._memories = OpenMemories(vault, self._recent, identity, self._limits.open_entries)
        self._portal: BlockingPortal
        self._writer: MemoryWriter
        self._readers: Readers
        self._is_closing = False

    async def __aenter__(self) -> "MemoryService":
        async with AsyncExitStack() as stack:
            self._portal = stack.enter_context(start_blocking_portal())
            builder = stack.enter_context(self._portal.wrap_async_context_manager(self._open_builder(self._recent)))
            self._writer = MemoryWriter(self._vault, self._config, builder, self._identity, self._recent)
            self._portal.call(self._writer.finish_erasures)
            self._readers = Readers(self._vault, self._writer.read, self._limits.parallel)
            stack.enter_context(self._portal.wrap_async_context_manager(self._readers))
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close(0)
        await self._stack.aclose()

    async def close(self, grace_seconds: float) -> None:
        """Take nothing more and finish what is being read within so many seconds; the rest waits for the next start."""
        self._is_closing = True
        await self._changed(self._readers.close, grace_seconds)

    @property
    def is_ending(self) -> bool:
        return self._is_closing

    async def remember(self, user: str, session: Session, digest: str) -> tuple[Job, bool]:
        """Store a session to be read in the background; `digest` tells what was posted. False: it was there before.

        Raises SessionConflict, StoreError, and BusyError where too much waits or the server ends.
        """
        if self._is_closing:
            raise BusyError("the server is ending")

        def accept() -> tuple[Job, bool]:
            if (num_waiting := self._vault.num_waiting()) >= self._limits.waiting:
                raise BusyError(f"{num_waiting} sessions wait already")
            return self._vault.accept(user, session, digest)

        job, is_new = await asyncio.to_thread(accept)
        self._portal.start_task_soon(self._readers.wake, user)
        return job, is_new

    async def job(self, user: str, job_id: str) -> Job:
        """Return a job as it stands. Raises NotThereError."""
        found = await asyncio.to_thread(self._vault.job, user, job_id)
        if found is None:
            raise NotThereError("job", job_id)
        return found

    async def settled(self, job: Job) -> Job:
        """Wait until an attempt at a job has ended, and return the job."""
        await self._changed(self._readers.settled, job)
        return await self.job(job.user, job.id)

    async def num_waiting(self) -> int:
        """Count the sessions that are not read yet."""
        return await asyncio.to_thread(self._vault.num_waiting)

    @property
    def answers(self) -> bool:
        """Tell whether a model answers questions here."""
        return self._answerer is not None

    async def search(
        self, user: str, query: str, k: int = 10, method: SearchMethod = ANSWERING, current_only: bool = True
    ) -> Retrieval:
        """Find the k entries that fit a query best. Raises NotThereError, StoreError and UnavailableError."""
        memory = await self._memories.get(user)
        await self._embed(memory, query, k, method, current_only)
        return memory.found(query, k, method, current_only)

    async def answer(self, user: str, question: str, k: int = 10, asked_at: datetime | None = None) -> Answered:
        """Let the answering model answer from the core and the k entries that fit best.

        Raises as `search` does, and NoAnswererError.
        """
        model = self.answerer()
        found = await self.search(user, question, k)
        core = (await self._memories.get(user)).bank.core
        when = asked_at or datetime.now(UTC)
        asked = Question(id="asked", text=question, answer=None, category="", evidence=(), asked_at=when)
        memories = [entry.text for entry in found.entries]
        try:
            text = await answer(asked, core=core, memories=memories, model=model)
        except ChatError as error:
            raise UnavailableError("the answering model", error) from error
        return Answered(text=text, core=core, found=found)

    def answerer(self) -> ChatModel:
        """Return the model that answers. Raises NoAnswererError."""
        if self._answerer is None:
            raise NoAnswererError("no model answers here: start the server with --answer-model")
        return self._answerer

    async def contents(self, user: str) -> Contents:
        """Return all that a memory holds. Raises NotThereError and StoreError."""
        memory = await self.exported(user)
        bank, _ = with_public_ids(memory)
        return Contents(settings=memory.settings, sessions=memory.sessions, bank=bank)

    async def correct(self, user: str, entry_id: str, text: str) -> None:
        """Let an entry say something else from now on; what it said stays in its history.

        Raises NotThereError, and MemoryConflict where the scheme refuses it.
        """
        await self._changed(self._writer.correct, user, await self._own_id(user, entry_id), text)

    async def forget_entry(self, user: str, entry_id: str, with_turns: bool = False) -> None:
        """Erase an entry; with its turns also what it quotes and all that came of that. Raises NotThereError."""
        own_id = await self._own_id(user, entry_id)
        await self._erased(user, self._writer.forget_entry, user, own_id, with_turns)

    async def forget_session(self, user: str, session_id: str) -> None:
        """Erase a session and all that came of it, also one that still waits. Raises NotThereError."""
        await self._erased(user, self._writer.forget_session, user, session_id)

    async def forget_user(self, user: str) -> None:
        """Erase all of a user: memory, index, jobs, and what this process remembers. Raises NotThereError."""
        await self._erased(user, self._writer.forget_user, user)

    async def exported(self, user: str) -> StoredMemory:
        """Return a memory as it is stored. Raises NotThereError and StoreError."""

        def read() -> StoredMemory:
            with self._vault.reading(user) as store:
                return store.memory()

        if await self._vault.stamp(user) is None:
            raise NotThereError("memory of user", user)
        return await asyncio.to_thread(read)

    async def import_memory(self, user: str, memory: StoredMemory) -> None:
        """Begin a user's memory with an exported one. Raises MemoryConflict where it could not go on from there."""
        await self._changed(self._writer.import_memory, user, memory)

    async def problems(self) -> list[str]:
        """Name what keeps sessions from being read or stored, in words that tell nothing of a memory."""
        try:
            await asyncio.to_thread(self._vault.check)
        except (MemBuilderError, OSError):
            return ["database"]
        found = {_away(error) for error in list(self._readers.problems.values())}
        return sorted(found | ({"ending"} if self._is_closing else set()))

    async def _embed(self, memory: OpenMemory, query: str, k: int, method: SearchMethod, current_only: bool) -> None:
        """Embed a new query in a thread, where that is needed at all."""
        is_needed = method is not SearchMethod.BM25 and not self._recent.knows(query)
        if is_needed and not memory.has_found(query, k, method, current_only):
            try:
                await asyncio.to_thread(self._recent.embed, [query])
            except ChatError as error:
                raise UnavailableError("the embedding model", error) from error

    async def _changed(self, change: Callable[..., Awaitable[Result]], *arguments: object) -> Result:
        """Call something in the event loop that changes memories."""
        return await asyncio.wrap_future(self._portal.start_task_soon(change, *arguments))

    async def _erased(self, user: str, erase: Callable[..., Awaitable[None]], *arguments: object) -> None:
        """Erase, and drop what this process remembers of it."""
        try:
            await self._changed(erase, *arguments)
        finally:
            self._memories.close(user)
            self._recent.clear()
            forget_indexes()
            forget_subjects()

    async def _own_id(self, user: str, entry_id: str) -> str:
        own_id = (await self._memories.get(user)).own_ids.get(entry_id)
        if own_id is None:
            raise NotThereError("entry", entry_id)
        return own_id


def _away(error: BaseException) -> str:
    """Name what an error says is away."""
    if isinstance(error, BuildStopped):
        return "builder"
    return "embedder" if isinstance(error, ChatError) else "memory"
