"""What was sampled and scored since the last checkpoint, so that a resumed run neither generates nor judges it again.

    journal.begin(root, settings, anew=False)
    experience = journal.read(root, step)
    if experience is None:
        experience = sample_and_score(step)
        journal.write(root, step, experience)
    ...
    journal.forget(root, before_step=41)        once checkpoint 41 is written; step 41 is the first it has not done

One file per step, of all processes' sessions, written by one of them; beside them the settings they were sampled under,
because no run with others may learn from them.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from membuilder.errors import CheckpointError, ConfigError
from membuilder.files import write_atomic
from reward.rollouts import ScoredGroup
from trainer.checkpoint.checksummed_json import encode, seal, unseal
from trainer.checkpoint.run_settings import check_settings
from trainer.distributed.process_group import World

SETTINGS, SETTINGS_LABEL = "settings.json", "settings of the journal"
NAME = re.compile(r"step_(\d+)\.json(\.partial)?")


@dataclass(frozen=True, kw_only=True, slots=True)
class Experience:
    """What one step learns from."""

    scored: list[ScoredGroup]
    steered: dict[str, float]
    """What the steering of lengths measured and set."""


def begin(root: Path, settings: Mapping[str, Any], anew: bool) -> None:
    """Open the journal for a run with these settings; one process calls it, before any step is read or written.

    Raises ConfigError where steps stand that another run sampled: under other settings, or any at all for one that
    starts `anew`, which would write over them.
    """
    steps = [path for path, _ in _files(root) if path.suffix == ".json"]
    if not steps:
        _make(root)
        write_atomic(root / SETTINGS, seal(SETTINGS_LABEL, encode(dict(settings), dict[str, Any], SETTINGS_LABEL)))
        return
    if anew:
        raise ConfigError(
            f"resume=never, but '{root}' holds what an earlier run sampled in {len(steps)} step(s): give resume=auto to go "
            "on with it, or another `out` to start anew"
        )
    remedy = f"remove '{root}' to sample its steps again"
    check_settings(root, unseal(root / SETTINGS, SETTINGS_LABEL, dict, remedy), settings)


def write(root: Path, step: int, experience: Experience) -> Path:
    """Keep a step's experience. Later steps in the journal are of a policy that was left behind, and are removed.

    Raises CheckpointError, naming the group, for a value that would not come back the same (a log-prob that is nan),
    and where the file cannot be written.
    """
    _make(root)
    for path, of_step in _files(root):
        if of_step > step:
            path.unlink(missing_ok=True)
    groups = [encode(group, ScoredGroup, f"step {step}, group '{group.id}'") for group in experience.scored]
    steered = encode(experience.steered, dict[str, float], f"step {step}, steering")
    path = _path(root, step)
    content = b'{"scored":[' + b",".join(groups) + b'],"steered":' + steered + b"}"
    write_atomic(path, seal(_label(step), content))
    return path


def read(root: Path, step: int) -> Experience | None:
    """The experience exactly as it was given to `write`; None where nothing was written.

    A whole number in a field of floats comes back as the float of that value. A damaged file is a CheckpointError.
    """
    path = _path(root, step)
    if not path.exists():
        return None
    return unseal(path, _label(step), Experience, "delete the file to sample that step again")


def forget(root: Path, before_step: int) -> None:
    """Remove the files of earlier steps, half-written ones too; called by one process."""
    for path, step in _files(root):
        if step < before_step:
            path.unlink(missing_ok=True)


def _make(root: Path) -> None:
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"the journal in '{root}' cannot be written: {error}") from error


def _files(root: Path) -> list[tuple[Path, int]]:
    """(file, step) of everything in the journal."""
    found = [(path, NAME.fullmatch(path.name)) for path in root.glob("*")]
    return [(path, int(match[1])) for path, match in found if match]


def _path(root: Path, step: int) -> Path:
    return root / f"step_{step}.json"


def _label(step: int) -> str:
    return f"journal of step {step}"


class RolloutCache:
    """The journal as a loop uses it: one process reads and writes, all get what it holds."""

    def __init__(self, root: Path | None, world: World, settings: Mapping, anew: bool) -> None:
        """Made once the checkpoints accepted the run; see `begin`. `root` is None where no journal is kept."""
        self._root, self._world = root, world
        self._writes = root is not None and world.rank == 0
        if self._writes:
            begin(root, settings, anew)

    def read(self, step: int) -> Experience | None:
        """The step's experience as it was written down; None where it was not."""
        if self._root is None:
            return None
        return self._world.gather(read(self._root, step) if self._writes else None)[0]

    def write(self, step: int, experience: Experience) -> None:
        if self._writes:
            write(self._root, step, experience)

    def forget(self, before_step: int) -> None:
        if self._writes:
            forget(self._root, before_step)
