"""What stores in databases read alike: the rows of their tables, which have the same columns everywhere."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np

from membuilder.bank.memory_store import bank_after
from membuilder.bank.store_errors import as_written
from membuilder.bank.store_rows import StoredMemory, StoredSession, read_entries, read_sessions
from membuilder.types import Bank, Entry

_ANSWER = "session, agent, shown, text, operations, failure_kind, failure_detail, seconds, asked_at"


class RowStore(ABC):
    """The reading half of a `MemoryStore`. Every method raises StoreError."""

    path: Path | str
    insertion_order: str
    """The column by which rows without a number of their own are in the order in which they were inserted."""

    @abstractmethod
    def _select(self, columns: str, table: str, order: str = "") -> list[tuple]:
        """Return these columns of the memory's rows in a table, in this order."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Return the settings under which the memory was written."""

    @abstractmethod
    def vectors(self) -> np.ndarray:
        """Return the embeddings of the bank's entries, in its order, float32. # (N, D)"""

    def num_sessions(self) -> int:
        return self._select("count(*)", "session")[0][0]

    def sessions(self) -> tuple[StoredSession, ...]:
        """Return the sessions in the order in which the model read them."""
        sessions = self._select("number, id, timestamp, core, core_quotes", "session", "number")
        turns = self._select("session, id, speaker, role, text, caption", "turn", "session, number")
        answers = self._select(_ANSWER, "answer", self.insertion_order)
        with as_written(self.path):
            return read_sessions(sessions, turns, answers)

    def bank(self) -> Bank:
        """Return the bank after the last session."""
        sessions = self.sessions()
        return bank_after(sessions, self._entries(sessions), self.deleted())

    def deleted(self) -> dict[str, int]:
        """Map the id of each deleted entry to the session that deleted it, in the order in which it was done."""
        return dict(self._select("entry, session", "deleted", self.insertion_order))

    def memory(self) -> StoredMemory:
        """Return all that the store holds."""
        sessions = self.sessions()
        return StoredMemory(
            settings=self.settings(),
            sessions=sessions,
            entries=self._entries(sessions),
            vectors=self.vectors(),
            deleted=self.deleted(),
        )

    def _entries(self, sessions: tuple[StoredSession, ...]) -> tuple[Entry, ...]:
        rows = self._select("id, agent, session, text, source_turns, supersedes", "entry", "number")
        with as_written(self.path):
            return read_entries(rows, sessions)
