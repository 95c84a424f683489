"""What became of an entry: what it replaced and what replaced it."""

from collections.abc import Sequence

from membuilder.types import Bank, Entry


def older_versions(entries: Sequence[Entry], entry_id: str) -> set[str]:
    """Return the ids of an entry and of all that it replaced, through any number of steps."""
    found = {entry_id}
    for entry in reversed(entries):  # an entry is younger than those it supersedes
        if entry.id in found:
            found.update(entry.supersedes)
    return found


def history(bank: Bank, entry_id: str) -> list[Entry]:
    """Return what an entry replaced, the entry, and what replaced it, through any number of steps; the oldest first."""
    older, newer = older_versions(bank.entries, entry_id), {entry_id}
    for entry in bank.entries:
        if not newer.isdisjoint(entry.supersedes):
            newer.add(entry.id)
    return [entry for entry in bank.entries if entry.id in older | newer]
