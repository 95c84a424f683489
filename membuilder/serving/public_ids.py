"""Ids of entries that last: a store numbers its entries, and numbers them anew after a deletion.

An id is a hash of the entry's text, its part and its session. So one that was handed out names this text or nothing.
"""

import hashlib
from collections import Counter
from dataclasses import replace

from membuilder.bank.memory_store import bank_after
from membuilder.bank.store_rows import StoredMemory
from membuilder.types import Bank

_LENGTH = 16
"""Hexadecimal digits: among 100,000 entries of one memory two share an id once in four billion memories."""


def with_public_ids(memory: StoredMemory) -> tuple[Bank, dict[str, str]]:
    """Return a memory's bank with lasting ids in place of the store's, and id there -> id here."""
    bank, public, seen = bank_after(memory.sessions, memory.entries, memory.deleted), {}, Counter()
    for entry in bank.entries:
        said = (memory.sessions[entry.session].session.id, str(entry.agent), entry.text)
        seen[said] += 1
        digest = hashlib.sha256("\0".join((*said, str(seen[said]))).encode())
        public[entry.id] = digest.hexdigest()[:_LENGTH]
    entries = tuple(
        replace(entry, id=public[entry.id], supersedes=tuple(public[old] for old in entry.supersedes))
        for entry in bank.entries
    )
    return replace(bank, entries=entries, deleted=tuple(public[old] for old in bank.deleted)), public
