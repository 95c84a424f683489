"""What became of an entry: what it replaced and what replaced it."""

from membuilder.types import Bank, Entry


def history(bank: Bank, entry_id: str) -> list[Entry]:
    """Return what an entry replaced, the entry, and what replaced it, through any number of steps; the oldest first."""
    older, newer = {entry_id}, {entry_id}
    for entry in reversed(bank.entries):  # an entry is younger than those it supersedes
        if entry.id in older:
            older.update(entry.supersedes)
    for entry in bank.entries:
        if not newer.isdisjoint(entry.supersedes):
            newer.add(entry.id)
    return [entry for entry in bank.entries if entry.id in older | newer]
