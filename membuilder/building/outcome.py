"""Says what builds left in their stores, and whether too many answers failed on the way."""

import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from membuilder.bank.store import reading
from membuilder.building.dialogues import failures


def report(paths: Iterable[Path], max_failed: float, command: str) -> int:
    """Print what each store holds; return 1, and say why, where more than this share of all their answers failed."""
    failed, num_answers = Counter(), 0
    for path in paths:
        with reading(path) as store:
            sessions, bank = store.sessions(), store.bank()
        here = failures(sessions)
        counts = f"{len(sessions)} sessions, {len(bank.entries)} entries, core {len(bank.core)} characters"
        print(f"{path}: {counts}; failed answers: {_listed(here)}")
        failed += here
        num_answers += sum(len(session.answers) for session in sessions)
    share = failed.total() / num_answers if num_answers else 0.0
    if share <= max_failed:
        return 0
    problem = f"{failed.total()} of {num_answers} answers failed ({share:.1%}, more than --max-failed {max_failed:g})"
    advice = "these memories lack what would have been written. membuilder.inspect shows the answers;"
    advice += " mend the model's settings and build into a new place, or allow more"
    print(f"{command}: {problem}: {_listed(failed)}; {advice}.", file=sys.stderr)
    return 1


def too_many_failed(path: Path, max_failed: float) -> bool:
    """Tell whether more than this share of a store's answers failed, so that it is not to be called whole."""
    with reading(path) as store:
        sessions = store.sessions()
    num_answers = sum(len(session.answers) for session in sessions)
    return failures(sessions).total() > max_failed * num_answers


def _listed(failed: Counter[str]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in sorted(failed.items())) or "none"
