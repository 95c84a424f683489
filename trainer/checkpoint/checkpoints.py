"""What a run needs to go on as if nothing had happened: written every `save_every` steps, read at the start.

OUT/checkpoints/step_N/state      Accelerate's: model, optimizer, random states of every process
OUT/checkpoints/step_N/progress   the loop's own place: a record of its own type, with the id of the W&B run
OUT/checkpoints/step_N/model      what else a model folder needs (configuration, tokenizer), for trainer.export
OUT/checkpoints/step_N/manifest.json      checksums; settings, and the whole configuration as it was resolved
The learning rate is a function of the step. A judge has no position: the verdicts of a step stand in the journal with
its rollouts, one file a step. run_settings.py says which settings a run may go on with.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
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
from trainer.configs import TrainConfig
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


class Checkpoints:
    """The checkpoints of a run, whose configuration says where they are and how many are kept."""

    def __init__(
        self, config: TrainConfig, accelerator: Accelerator, world: World, model: PreTrainedModel, tokenizer, best: Best
    ) -> None:
        self.settings = settings_of(config, accelerator, world)
        self._root, self._config, self._best = Path(config.out) / "checkpoints", config, best
        self._accelerator, self._world = accelerator, world
        # all files of a model folder but the weights, whose own writers hide a full disk
        self._model_files = files_of(model.config, model.generation_config, tokenizer)

    def load(self, kind: type[Kind]) -> Kind | None:
        """Put model, optimizer and random states back; returns the loop's place, or None to start anew."""
        folder = None
        if self._world.rank == 0:
            folders.recover(self._root)
            folder = folders.choose(self._root, self._config.resume)
        folder = self._world.gather(folder)[0]
        if folder is None:
            return None
        told = check_settings(folder, folders.read_manifest(folder).meta["settings"], self.settings)
        self._accelerator.load_state(str(folder / "state"))
        self._accelerator.print("\n  ".join([f"resuming from '{folder}'", *told]))
        return unseal(folder / "progress", "progress", kind, "give resume=previous")

    def is_finished(self, begun: Progress | None, num_steps: int, key: str) -> bool:
        """Tell whether the run that goes on has no step left; it then says so, and that `key` makes it longer."""
        if begun is None or begun.step < num_steps:
            return False
        self._accelerator.print(
            f"nothing left to train: {begun.step} steps are done, and {key} asks for {num_steps} in all; "
            f"a larger {key} goes on from there"
        )
        return True

    def is_due(self, done: int, num_steps: int) -> bool:
        """Tell whether a checkpoint is to be written after `done` steps."""
        return done % self._config.save_every == 0 or (self._config.save_at_end and done == num_steps)

    def save(self, progress: Progress, metrics: Mapping[str, float]) -> None:
        """Write the checkpoint of `progress` and drop all but the last and the best; all processes call it."""
        deepspeed, best = zero_stage(self._accelerator) is not None, self._best

        def fill(folder: Path) -> None:
            with errors_after_the_last_barrier(self._accelerator) if deepspeed else nullcontext():
                # DeepSpeed's file `latest` would be written outside of what is caught, and nothing here reads it
                self._accelerator.save_state(str(folder / "state"), save_latest=False, exclude_frozen_parameters=True)
            if self._world.rank == 0:
                write_all(folder / MODEL, self._model_files)
                write_atomic(folder / "progress", *seal("progress", encode(progress, type(progress), "progress")))

        meta = {"settings": self.settings, "config": resolved(self._config), best.metric: metrics.get(best.metric)}
        whole_folders = [f"state/{MODEL_NAME}"] if deepspeed else []
        folders.write(self._root, progress.step, fill, meta, self._world, whole_folders)
        if self._world.rank == 0:
            best_step = folders.best_step(self._root, best.metric, best.higher_is_better)
            folders.prune(self._root, self._config.keep_last, best_step)


@contextmanager
def errors_after_the_last_barrier(accelerator: Accelerator) -> Iterator[None]:
    """DeepSpeed's processes meet after each has written: one that could not would leave the others waiting for it."""
    engine, kept = accelerator.deepspeed_engine_wrapped.engine, []
    writers = [(engine.checkpoint_engine, "save"), (engine, "_copy_recovery_script")]

    def attempt(write: Callable, *args, **kwargs) -> None:
        try:
            if not kept:
                write(*args, **kwargs)
        except WRITE_ERRORS as error:
            kept.append(error)

    for owner, name in writers:
        setattr(owner, name, partial(attempt, getattr(owner, name)))
    try:
        yield
    finally:
        for owner, name in writers:
            delattr(owner, name)
    if kept:
        raise kept[0]
