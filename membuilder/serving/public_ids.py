"""Ids of entries that last: a store numbers its entries, and numbers them anew after a deletion.

An id is a hash of the entry's text, its part and its session. So one that was handed out names this text or nothing.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from membuilder.types import Bank

_LENGTH = 16
"""Hexadecimal digits: among 100,000 entries of one memory two share an id once in four billion memories."""


def with_public_ids(bank: Bank, session_ids: Sequence[str]) -> tuple[Bank, dict[str, str]]:
    """Return the bank with lasting ids in place of a store's, and id there -> id here. `session_ids` in their order."""
    public, seen = {}, Counter()
    for entry in bank.entries:
        said = (session_ids[entry.session], str(entry.agent), entry.text)
        seen[said] += 1
        digest = hashlib.sha256("\0".join((*said, str(seen[said]))).encode())
        public[entry.id] = digest.hexdigest()[:_LENGTH]
    entries = tuple(
        replace(entry, id=public[entry.id], supersedes=tuple(public[old] for old in entry.supersedes))
        for entry in bank.entries
    )
    return replace(bank, entries=entries, deleted=tuple(public[old] for old in bank.deleted)), public
