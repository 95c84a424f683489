"""What was sampled and scored since the last checkpoint, so that a resumed run neither generates nor judges it again.

    cache = RolloutCache(root, world, settings, anew=False)
    experience = cache.read(step)
    if experience is None:
        experience = sample_and_score(step)
        cache.write(step, experience)
    ...
    cache.forget(before_step=41)        once checkpoint 41 is written; step 41 is the first it has not done

This journal has one file per step, of all processes' sessions, written by one of them; beside them stand the settings
they were sampled under, because no run with others may learn from them.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from membuilder.errors import ConfigError
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
    """The metrics of the length controller: what it measured and set."""


class RolloutCache:
    """The journal of a run: one process reads and writes it, all get what it holds."""

    def __init__(self, root: Path | None, world: World, settings: Mapping[str, Any], anew: bool) -> None:
        """Open the journal once the checkpoints accepted the run; with `root` None there is none.

        Raises ConfigError where steps stand that another run sampled: under other settings, or any at all for one that
        starts `anew`, which would write over them.
        """
        self._root, self._world = root, world
        self._writes = root is not None and world.rank == 0
        if not self._writes:
            return
        steps = [path for path, _ in self._files() if path.suffix == ".json"]
        if not steps:
            content = encode(dict(settings), dict[str, Any], SETTINGS_LABEL)
            write_atomic(root / SETTINGS, seal(SETTINGS_LABEL, content))
            return
        if anew:
            raise ConfigError(
                f"resume=never, but '{root}' holds what an earlier run sampled in {len(steps)} step(s): give "
                "resume=auto to go on with it, or another `out` to start anew"
            )
        remedy = f"remove '{root}' to sample its steps again"
        check_settings(root, unseal(root / SETTINGS, SETTINGS_LABEL, dict, remedy), settings)

    def read(self, step: int) -> Experience | None:
        """The experience exactly as it was given to `write`; None where nothing was written.

        A whole number in a field of floats comes back as the float of that value. A damaged file is a CheckpointError.
        """
        if self._root is None:
            return None
        found, path = None, self._root / f"step_{step}.json"
        if self._writes and path.exists():
            found = unseal(path, f"journal of step {step}", Experience, "delete the file to sample that step again")
        return self._world.gather(found)[0]

    def write(self, step: int, experience: Experience) -> None:
        """Keep a step's experience. Later steps in the journal are of a policy that was left behind, and are removed.

        Raises CheckpointError, naming the group, for a value that would not come back the same, such as nan.
        """
        if not self._writes:
            return
        for path, of_step in self._files():
            if of_step > step:
                path.unlink(missing_ok=True)
        groups = [encode(group, ScoredGroup, f"step {step}, group '{group.id}'") for group in experience.scored]
        steered = encode(experience.steered, dict[str, float], f"step {step}, steering")
        content = b'{"scored":[' + b",".join(groups) + b'],"steered":' + steered + b"}"
        write_atomic(self._root / f"step_{step}.json", seal(f"journal of step {step}", content))

    def forget(self, before_step: int) -> None:
        """Remove the files of earlier steps, half-written ones too."""
        for path, step in self._files() if self._writes else ():
            if step < before_step:
                path.unlink(missing_ok=True)

    def _files(self) -> list[tuple[Path, int]]:
        """(file, step) of everything in the journal."""
        found = [(path, NAME.fullmatch(path.name)) for path in self._root.glob("*")]
        return [(path, int(match[1])) for path, match in found if match]
