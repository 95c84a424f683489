"""Everything that changes memories, in one event loop: of each user one change at a time."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any
from weakref import WeakValueDictionary

from membuilder.bank.forget import forget
from membuilder.bank.history import older_versions
from membuilder.bank.session_ids import sessions_named
from membuilder.bank.store_rows import StoredMemory
from membuilder.building.builder import Builder
from membuilder.building.config import BuildConfig
from membuilder.embedding.identity import other_embedder
from membuilder.embedding.local import TextEmbedder
from membuilder.errors import StoreError
from membuilder.serving.corrections import corrected_entry, corrections_of
from membuilder.serving.errors import MemoryConflict, NotThereError
from membuilder.serving.reading import read_session
from membuilder.serving.vault import Job, JobState, Vault
from membuilder.settings import described, difference
from membuilder.types import Dialogue

_log = logging.getLogger(__name__)


class MemoryWriter:
    """It blocks its event loop while it reads and writes the database, so nothing that must be quick shares it."""

    def __init__(
        self, vault: Vault, config: BuildConfig, builder: Builder, identity: Mapping[str, Any], embedder: TextEmbedder
    ):
        self._vault, self._config, self._builder, self._embedder = vault, config, builder, embedder
        self._identity = identity
        self._changing: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        """A lock lives as long as somebody holds it or waits for it."""

    async def read(self, job: Job) -> None:
        """Read a waiting session into its memory.

        Raises as `read_session` does, and InUseError while another process changes this memory.
        """
        async with self._change(job.user, is_patient=False):
            now = self._vault.job(job.user, job.id)
            if now is None or now.state is not JobState.QUEUED:
                return  # erased while it waited, or read by another process
            with self._vault.writing(job.user, self.settings(job.user)) as store:
                await read_session(job.session, store, self._builder, self._config.max_turns)

    async def correct(self, user: str, entry_id: str, text: str) -> None:
        """Let an entry (by its id in the store) say something else from now on."""
        async with self._change(user):
            with self._vault.writing(user, self.settings(user)) as store:
                corrected_entry(store, entry_id, text, self._builder.scheme, self._embedder)

    async def forget_entry(self, user: str, entry_id: str, with_turns: bool) -> None:
        """Erase an entry (by its id in the store), what it replaced, and what corrected it.

        With its turns also what these quote, and all that came of that. Raises NotThereError.
        """

        def without(memory: StoredMemory) -> StoredMemory:
            if entry_id not in {each.id for each in memory.entries}:
                raise NotThereError("entry", entry_id)
            gone = older_versions(memory.entries, entry_id)
            quoted = {turn for each in memory.entries if each.id in gone for turn in each.source_turns}
            corrections = corrections_of(memory, gone)
            return forget(memory, entries=gone, sessions=corrections, turns=quoted if with_turns else ()).memory

        async with self._change(user):
            with self._vault.erasing(user):
                self._rewrite(user, without)

    async def forget_session(self, user: str, session_id: str) -> None:
        """Erase a session and all that came of it, also one that still waits. Raises NotThereError."""
        waited = False

        def without(memory: StoredMemory) -> StoredMemory:
            found = sessions_named((each.session for each in memory.sessions), session_id)
            named = [each.index for each in found]
            if not named and not waited:
                raise NotThereError("session", session_id)
            written = {each.id for each in memory.entries if each.session in named}
            return forget(memory, sessions=[*named, *corrections_of(memory, written)]).memory if named else memory

        async with self._change(user):
            with self._vault.erasing(user):
                waited = self._vault.withdraw(user, session_id)
                if await self._vault.stamp(user) is not None:
                    self._rewrite(user, without)
                elif not waited:
                    raise NotThereError("session", session_id)

    async def forget_user(self, user: str) -> None:
        """Erase a user's memory and jobs. Raises NotThereError."""
        async with self._change(user):
            if not self._vault.delete(user):
                raise NotThereError("memory of user", user)

    async def finish_erasures(self) -> None:
        """Erase from the disk what an earlier process had taken out of memories when it died."""
        for user in self._vault.unfinished_erasures():
            try:
                async with self._change(user):
                    with self._vault.erasing(user):
                        pass
            except StoreError as error:
                _log.warning("traces of what was erased stay on the disk until the next start: %s", error)

    async def import_memory(self, user: str, memory: StoredMemory) -> None:
        """Begin a user's memory with an exported one. Raises MemoryConflict where it could not go on from there."""
        settings = self.settings(user)
        given = {name: value for name, value in memory.settings.items() if name in settings}
        given |= {name: settings[name] for name in ("dialogue", "speakers")}
        if problem := other_embedder(memory.settings, self._identity):
            raise MemoryConflict(problem)
        if differing := difference(given, settings, settings.keys() - self._identity.keys()):
            raise MemoryConflict(described(differing))
        async with self._change(user):
            if await self._vault.stamp(user) is not None:
                raise MemoryConflict(f"user {user!r} has a memory already")
            with self._vault.writing(user, settings) as store:
                store.replace(replace(memory, settings=settings))

    def settings(self, user: str) -> dict[str, Any]:
        """Return the settings that a user's store records."""
        return self._config.settings(Dialogue(id=user, speakers=(), sessions=(), questions=()), self._identity)

    def _rewrite(self, user: str, without: Callable[[StoredMemory], StoredMemory]) -> None:
        with self._vault.reading(user) as store:
            settings = store.settings()
        with self._vault.writing(user, settings) as store:
            store.replace(without(store.memory()))

    @asynccontextmanager
    async def _change(self, user: str, is_patient: bool = True) -> AsyncIterator[None]:
        lock = self._changing.setdefault(user, asyncio.Lock())
        async with lock, self._vault.changing(user, is_patient):
            yield
