"""What a run needs to go on as if nothing had happened: written every `save_every` steps, read at the start.

OUT/checkpoints/step_N/state      Accelerate's: model, optimizer, random states of every process
OUT/checkpoints/step_N/progress   the loop's own place: a record of its own type, with the id of the W&B run
OUT/checkpoints/step_N/model      what else a model folder needs (configuration, tokenizer), for trainer.export
OUT/checkpoints/step_N/manifest.json      checksums; settings, and the whole configuration as it was resolved
The learning rate is a function of the step. A judge has no position: the verdicts of a step stand in the journal with
its rollouts, one file a step. A run goes on only with the settings it began with.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from accelerate import Accelerator
from accelerate.utils import MODEL_NAME
from transformers import PreTrainedModel

from membuilder.files import write_atomic
from trainer.checkpoint import folders
from trainer.checkpoint.checksummed_json import encode, seal, unseal
from trainer.checkpoint.files import files_of, write_all
from trainer.checkpoint.folders import MODEL, WRITE_ERRORS
from trainer.checkpoint.run_settings import check_settings, resolved, settings_of
from trainer.distributed.process_group import World, zero_stage


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """Where a loop stands, as a checkpoint keeps it; a loop with more to remember adds fields."""

    step: int
    best: float | None
    """The best evaluation so far; its checkpoint is kept."""
    wandb_run_id: str | None


Kind = TypeVar("Kind", bound=Progress)


@dataclass(frozen=True, kw_only=True)
class Best:
    """Which checkpoint is the best one."""

    metric: str
    higher_is_better: bool

    def is_beaten(self, best: float | None, value: float | None) -> bool:
        """By a value measured now. None: not measured; one that is not finite is no better than none."""
        if value is None or not math.isfinite(value):
            return False
        return best is None or (value > best if self.higher_is_better else value < best)


@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    root: Path
    settings: dict
    """See trainer/checkpoint/run_settings.py."""
    config: dict
    """All of it, to read; a run goes on by `settings`."""
    accelerator: Accelerator
    world: World
    model_files: dict[str, bytes]
    """Path in a model folder -> content of all files but the weights, whose own writers hide a full disk."""

    @classmethod
    def of(cls, config, accelerator: Accelerator, world: World, model: PreTrainedModel, tokenizer) -> "Checkpoints":
        return cls(
            root=Path(config.out) / "checkpoints",
            settings=settings_of(config, accelerator),
            config=resolved(config),
            accelerator=accelerator,
            world=world,
            model_files=files_of(model.config, model.generation_config, tokenizer),
        )

    def load(self, resume: str, kind: type[Kind]) -> Kind | None:
        """Put model, optimizer and random states back; returns the loop's place, or None to start anew."""
        folder = None
        if self.world.rank == 0:
            folders.recover(self.root)
            folder = folders.choose(self.root, resume)
        folder = self.world.gather(folder)[0]
        if folder is None:
            return None
        check_settings(folder, folders.read_manifest(folder).meta["settings"], self.settings)
        self.accelerator.load_state(str(folder / "state"))
        self.accelerator.print(f"resuming from '{folder}'")
        return unseal(folder / "progress", "progress", kind, "give resume=previous")

    def save(self, progress: Progress, keep_last: int, metrics: Mapping[str, float], best: Best) -> None:
        """Write the checkpoint of `progress` and drop all but the last and the best; all processes call it."""
        deepspeed = zero_stage(self.accelerator) is not None

        def fill(partial: Path) -> None:
            if deepspeed:
                with errors_after_the_last_barrier(self.accelerator):
                    # its file `latest` would be written outside of what is caught, and nothing here reads it
                    self.accelerator.save_state(str(partial / "state"), save_latest=False)
            else:
                self.accelerator.save_state(str(partial / "state"))
            if self.world.rank == 0:
                write_all(partial / MODEL, self.model_files)
                write_atomic(partial / "progress", seal("progress", encode(progress, type(progress), "progress")))

        meta = {"settings": self.settings, "config": self.config, best.metric: metrics.get(best.metric)}
        whole_folders = [f"state/{MODEL_NAME}"] if deepspeed else []
        folders.write(self.root, progress.step, fill, meta, self.world, whole_folders)
        if self.world.rank == 0:
            folders.prune(self.root, keep_last, folders.best_step(self.root, best.metric, best.higher_is_better))


@contextmanager
def errors_after_the_last_barrier(accelerator: Accelerator) -> Iterator[None]:
    """DeepSpeed's processes meet after each has written: one that could not would leave the others waiting for it."""
    engine = accelerator.deepspeed_engine_wrapped.engine
    writers, kept = [(engine.checkpoint_engine, "save"), (engine, "_copy_recovery_script")], []

    def keeping(write: Callable) -> Callable:
        def attempt(*args, **kwargs) -> None:
            try:
                if not kept:
                    write(*args, **kwargs)
            except WRITE_ERRORS as error:
                kept.append(error)

        return attempt

    for owner, name in writers:
        setattr(owner, name, keeping(getattr(owner, name)))
    try:
        yield
    finally:
        for owner, name in writers:
            delattr(owner, name)
    if kept:
        raise kept[0]
