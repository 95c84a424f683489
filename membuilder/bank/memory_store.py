"""What a store of one memory offers to those who build and search it, whichever database it lies in.

`membuilder.bank.store.Store` is one in a file of SQLite, `PostgresStore` in `membuilder/serving/` one in tables of
PostgreSQL, `TransientStore` one in no database at all.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from membuilder.bank.store_rows import Answer, StoredMemory, StoredSession
from membuilder.embedding.identity import exact_keys, other_embedder
from membuilder.errors import StoreError
from membuilder.settings import described, difference
from membuilder.types import Bank, Session


class MemoryStore(Protocol):
    """One memory, open. Every method raises StoreError where its database cannot do it."""

    @property
    def path(self) -> Path | str:
        """What messages call it."""

    def settings(self) -> dict[str, Any]:
        """Return the settings under which the memory was written."""

    def num_sessions(self) -> int: ...

    def sessions(self) -> tuple[StoredSession, ...]:
        """Return the sessions in the order in which they were read."""

    def bank(self) -> Bank:
        """Return the bank after the last session."""

    def deleted(self) -> dict[str, int]:
        """Map the id of each deleted entry to the session that deleted it, in the order in which it was done."""

    def vectors(self) -> np.ndarray:
        """Return the embeddings of the bank's entries, in its order, float32. # (N, D)"""

    def memory(self) -> StoredMemory:
        """Return all that the store holds."""

    def append(self, session: Session, answers: Mapping[str, Answer], bank: Bank, vectors: np.ndarray) -> None:
        """Store a session, `bank` after it and the embeddings of the entries new in it (M, D), or nothing of it."""

    def replace(self, memory: StoredMemory) -> None:
        """Hold `memory` in place of all that stands here, its settings too, or change nothing."""


class TransientStore:
    """A `MemoryStore` that nothing outlives: for a memory that is written anew before it takes another's place."""

    def __init__(self, path: Path | str, memory: StoredMemory):
        self.path, self._memory = path, memory

    def settings(self) -> dict[str, Any]:
        return dict(self._memory.settings)

    def num_sessions(self) -> int:
        return len(self._memory.sessions)

    def sessions(self) -> tuple[StoredSession, ...]:
        return self._memory.sessions

    def bank(self) -> Bank:
        return bank_after(self._memory.sessions, self._memory.entries, self._memory.deleted)

    def deleted(self) -> dict[str, int]:
        return dict(self._memory.deleted)

    def vectors(self) -> np.ndarray:
        return self._memory.vectors

    def memory(self) -> StoredMemory:
        return self._memory

    def append(self, session: Session, answers: Mapping[str, Answer], bank: Bank, vectors: np.ndarray) -> None:
        stored = StoredSession(session=session, answers=answers, core=bank.core, core_quotes=bank.core_quotes)
        deleted = newly_deleted(session, bank, self._memory.deleted)
        self._memory = replace(
            self._memory,
            sessions=(*self._memory.sessions, stored),
            entries=bank.entries,
            vectors=np.concatenate([self._memory.vectors, vectors]),
            deleted=dict(self._memory.deleted) | dict(deleted),
        )

    def replace(self, memory: StoredMemory) -> None:
        self._memory = memory


def bank_after(sessions: tuple[StoredSession, ...], entries: tuple, deleted: Mapping[str, int]) -> Bank:
    """Return the bank that stored sessions and entries are."""
    if not sessions:
        return Bank()
    last = sessions[-1]
    return Bank(core=last.core, core_quotes=last.core_quotes, entries=entries, deleted=tuple(deleted))


def newly_deleted(session: Session, bank: Bank, known: Mapping[str, int]) -> list[tuple[str, int]]:
    """Return what a session deleted: the last ids of the bank behind those known before."""
    return [(each, session.index) for each in bank.deleted[len(known) :]]


def check_settings(store: MemoryStore, settings: Mapping[str, Any]) -> None:
    """Raise StoreError unless a memory was begun with these settings (JSON values)."""
    recorded, present = store.settings(), json.loads(json.dumps(settings))
    if problem := other_embedder(recorded, present):
        raise StoreError(store.path, f"{problem}; build with the first, or into a new file")
    if differing := difference(recorded, present, exact_keys(recorded, present)):
        problem = f"{described(differing)}; build with those, or into a new file"
        raise StoreError(store.path, problem)
