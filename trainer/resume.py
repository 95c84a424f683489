"""What a run needs to go on as if nothing had happened: written every `save_every` steps, read at the start.

OUT/checkpoints/step_N/state      Accelerate's: model, optimizer, random states of every process
OUT/checkpoints/step_N/progress   the loop's own place: a record of its own type, with the id of the W&B run
OUT/checkpoints/step_N/model      what else a model folder needs (configuration, tokenizer), for trainer.export
The learning rate is a function of the step. Verdicts need no position: those of finished rollouts stand in the journal,
and a judge's answers on disk are found by their content. A run goes on only with the settings it began with.
"""

import math
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import TypeVar

from accelerate import Accelerator
from omegaconf import OmegaConf
from transformers import PreTrainedModel

from membuilder.config import dump
from membuilder.errors import ConfigError, DivergedError, Interrupted
from trainer import journal, snapshots
from trainer.checkpoint import write_file
from trainer.journal import Experience
from trainer.sealed import encode, seal, unseal
from trainer.world import World

Progress = TypeVar("Progress")

MODEL = "model"
FREE = {"out", "resume", "save_every", "keep_last", "log_completions", "wandb_project", "journal", "max_skipped"}
"""Keys that may change when a run goes on."""


@dataclass(frozen=True, kw_only=True)
class Best:
    """Which checkpoint is the best one."""

    metric: str
    higher_is_better: bool


@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    root: Path
    settings: dict
    """The run's configuration without the keys of FREE, and its number of processes."""
    accelerator: Accelerator
    world: World
    model_files: dict[str, bytes]
    """By path in a model folder: all that is not weights. Kept, because its writers fail on a full disk in ways of their own."""

    @classmethod
    def of(cls, config, accelerator: Accelerator, world: World, model: PreTrainedModel, tokenizer) -> "Checkpoints":
        settings = OmegaConf.to_container(OmegaConf.create(dump(config)))
        kept = {key: value for key, value in _flat(settings).items() if key not in FREE}
        return cls(
            root=Path(config.out) / "checkpoints",
            settings=kept | {"processes": world.size},
            accelerator=accelerator,
            world=world,
            model_files=_files_of(model.config, model.generation_config, tokenizer),
        )

    def load(self, resume: str, kind: type[Progress]) -> Progress | None:
        """Put model, optimizer and random states back; returns the loop's place, or None to start anew."""
        folder = None
        if self.world.rank == 0:
            snapshots.recover(self.root)
            folder = snapshots.choose(self.root, resume)
        folder = self.world.gather(folder)[0]
        if folder is None:
            return None
        self._check_settings(folder, snapshots.read_manifest(folder).meta["settings"])
        self.accelerator.load_state(str(folder / "state"))
        self.accelerator.print(f"resuming from '{folder}'")
        return unseal(folder / "progress", "progress", kind, "give resume=previous")

    def save(self, step: int, progress, keep_last: int, metrics: Mapping[str, float], best: Best) -> Path:
        """Write checkpoint `step` (so many steps done) and drop all but the last and the best; all processes call it."""

        def fill(partial: Path) -> None:
            self.accelerator.save_state(str(partial / "state"))
            if self.world.rank == 0:
                for name, content in self.model_files.items():
                    (partial / MODEL / name).parent.mkdir(parents=True, exist_ok=True)
                    (partial / MODEL / name).write_bytes(content)
                write_file(partial / "progress", seal("progress", encode(progress, type(progress), "progress")))

        meta = {"settings": self.settings, best.metric: metrics.get(best.metric)}
        folder = snapshots.write(self.root, step, fill, meta, self.world.rank == 0, self.world.meet)
        if self.world.rank == 0:
            snapshots.prune(self.root, keep_last, snapshots.best_step(self.root, best.metric, best.higher_is_better))
        return folder

    def _check_settings(self, folder: Path, then: dict) -> None:
        changed = [key for key in self.settings | then if self.settings.get(key) != then.get(key)]
        if changed:
            key = changed[0]
            raise ConfigError(
                f"'{folder}' was written with {key}={then.get(key)}, now it is {self.settings.get(key)} "
                f"({len(changed)} key(s) differ): give the same settings, or another `out` to start anew"
            )


def _files_of(*parts) -> dict[str, bytes]:
    """What the parts' `save_pretrained` write."""
    with TemporaryDirectory() as name:
        for part in parts:
            part.save_pretrained(name)
        files = [path for path in Path(name).rglob("*") if path.is_file()]
        return {path.relative_to(name).as_posix(): path.read_bytes() for path in files}


def _flat(tree: Mapping, prefix: str = "") -> dict:
    flat = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


class Diary:
    """The journal as a loop uses it: one process reads and writes, all get what it holds."""

    def __init__(self, root: Path, world: World, anew: bool) -> None:
        self._root, self._world = root, world
        if anew and world.rank == 0:
            journal.empty(root)

    def recall(self, step: int, collect: Callable[[int], Experience]) -> Experience:
        """The step's experience: as written down, else collected and written down."""
        main = self._world.rank == 0
        found = self._world.gather(journal.read(self._root, step) if main else None)[0]
        if found is None:
            found = collect(step)
            if main:
                journal.write(self._root, step, found)
        return found

    def forget(self, before_step: int) -> None:
        if self._world.rank == 0:
            journal.forget(self._root, before_step)


class Stop:
    """Remembers a SIGTERM, so that the step in hand can be finished and saved first."""

    def __init__(self, world: World) -> None:
        self._world, self._asked = world, False
        self._before = signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True

    @property
    def asked(self) -> bool:
        """Of any process; all must ask at the same place."""
        return any(self._world.gather(self._asked))

    def close(self) -> None:
        signal.signal(signal.SIGTERM, self._before)


def interrupted(step: int) -> Interrupted:
    return Interrupted(f"stopped by SIGTERM after step {step}, which is saved; start again with resume=auto")


@dataclass(kw_only=True)
class Skips:
    """Updates left out because their gradient was not finite, counted in a row."""

    limit: int
    in_a_row: int = 0

    def count(self, norm: float, ids: Sequence[str]) -> bool:
        """Whether an update with this gradient norm is left out. DivergedError when more than `limit` were, in a row."""
        if math.isfinite(norm):
            self.in_a_row = 0
            return False
        self.in_a_row += 1
        if self.in_a_row > self.limit:
            raise DivergedError(
                f"{self.in_a_row} updates in a row had a gradient that is not finite (allowed: max_skipped={self.limit}), the "
                f"last on {', '.join(ids[:5])}; their sessions stand in skipped.jsonl. Lower optim.lr, or look at the data"
            )
        return True
