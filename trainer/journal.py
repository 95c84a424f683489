"""What was sampled and scored since the last checkpoint, so that a resumed run neither generates nor judges it again.

    scored = journal.read(root, step, rank)
    if scored is None:
        scored = sample_and_score(step)
        journal.write(root, step, rank, scored)
    ...
    journal.forget(root, before_step=41)        once checkpoint 41 is written; step 41 is the first it has not done

One file per step and rank. It holds whatever the policy sampled, under the number of processes and the configuration of
that time: a run with others must start with an empty journal.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from membuilder.errors import CheckpointError
from reward.rollouts import ScoredGroup
from trainer.checkpoint import write_file
from trainer.sealed import encode, seal, unseal

NAME = re.compile(r"step_(\d+)\.rank_(\d+)\.json(\.partial)?")


def write(root: Path, step: int, rank: int, scored: Sequence[ScoredGroup]) -> Path:
    """Keep a rank's groups of a step. Its later steps in the journal are of a policy that was left behind: they go.

    Raises CheckpointError, naming the group, for a value that would not come back the same (a log-prob that is nan),
    and where the file cannot be written.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        for path, of_step, of_rank in _files(root):
            if of_step > step and of_rank == rank:
                path.unlink(missing_ok=True)
    except OSError as error:
        raise CheckpointError(f"the journal in '{root}' cannot be written: {error}") from error
    groups = [encode(group, ScoredGroup, f"step {step}, rank {rank}, group '{group.group.id}'") for group in scored]
    path = _path(root, step, rank)
    write_file(path, seal(_label(step, rank), b"[" + b",".join(groups) + b"]"))
    return path


def read(root: Path, step: int, rank: int) -> list[ScoredGroup] | None:
    """The groups exactly as they were given to `write`; None where nothing was written.

    A whole number in a field of floats comes back as the float of that value. A damaged file is a CheckpointError.
    """
    path = _path(root, step, rank)
    if not path.exists():
        return None
    return unseal(path, _label(step, rank), list[ScoredGroup], "delete the file to sample that step again")


def forget(root: Path, before_step: int) -> None:
    """Remove every rank's files of earlier steps, half-written ones too; called by one process."""
    for path, step, _ in _files(root):
        if step < before_step:
            path.unlink(missing_ok=True)


def _files(root: Path) -> list[tuple[Path, int, int]]:
    """(file, step, rank) of everything in the journal."""
    found = [(path, NAME.fullmatch(path.name)) for path in root.glob("*")]
    return [(path, int(match[1]), int(match[2])) for path, match in found if match]


def _path(root: Path, step: int, rank: int) -> Path:
    return root / f"step_{step}.rank_{rank}.json"


def _label(step: int, rank: int) -> str:
    return f"journal of step {step}, rank {rank}"
