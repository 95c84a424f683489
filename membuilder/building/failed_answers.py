"""Says what stores hold, counts the answers that failed, and ends a command for which they are too many."""

import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from membuilder.bank.store import reading
from membuilder.building.dialogues import dropped_operations, failures, listed, told_failures


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerCounts:
    num_answers: int
    failed: Counter[str]
    """Kind of failure -> answers."""

    @property
    def failed_share(self) -> float:
        return self.failed.total() / self.num_answers if self.num_answers else 0.0


def count_answers(paths: Iterable[Path]) -> AnswerCounts:
    """Count the answers of all stores together."""
    num_answers, failed = 0, Counter()
    for path in paths:
        with reading(path) as store:
            sessions = store.sessions()
        num_answers += sum(len(stored.answers) for stored in sessions)
        failed += failures(sessions)
    return AnswerCounts(num_answers=num_answers, failed=failed)


def summary(path: Path) -> str:
    """Say in one line what a store holds, how many answers failed on the way and what was dropped of others."""
    with reading(path) as store:
        sessions, bank = store.sessions(), store.bank()
    counts = f"{len(sessions)} sessions, {len(bank.kept())} entries, core {len(bank.core)} characters"
    return f"{path}: {counts}; {told_failures(failures(sessions), dropped_operations(sessions))}"


def status_of(command: str, paths: Sequence[Path], max_failed: float) -> int:
    """Return the exit status of a command that wrote these stores: 1, said on stderr, where too many answers failed."""
    counts = count_answers(paths)
    if counts.failed_share <= max_failed:
        return 0
    print(
        f"{command}: {counts.failed.total()} of {counts.num_answers} answers failed ({counts.failed_share:.1%}, limit"
        f" {max_failed:.1%}): {listed(counts.failed)}. What they would have written is in no memory. Run the same"
        " command with --retry-failed to ask these again, or with a higher --max-failed to accept that.",
        file=sys.stderr,
    )
    return 1
