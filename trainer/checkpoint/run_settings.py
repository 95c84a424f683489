"""The settings a run began with, and which of them may differ when it goes on.

What changes neither samples nor updates may differ (FREE), and so may the place of a file that holds the same. What
changes the numbers by rounding alone, and the length of the run, may differ and is told. Anything else is refused.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import DistributedType
from omegaconf import OmegaConf

from membuilder.config import dump
from membuilder.errors import ConfigError
from membuilder.settings import described, difference
from trainer.checkpoint.input_files import KEYS, contents
from trainer.distributed.process_group import World, zero_stage

FREE = {
    "out", "resume", "resume_other_processes", "save_every", "save_at_end", "keep_last", "log_completions",
    "wandb_project", "journal", "max_skipped", "max_idle_steps", "max_missing_share", "parity_bound", "shared_bound",
    "eval_every", "data.allow_test_ids", "data.eval_files", "data.allow_leaks", "reward.cache", "reward.max_concurrent",
    "reward.question_timeout_seconds", "reward.step_deadline_seconds",
    *(f"reward.{model}.{key}" for model in ("answerer", "grader") for key in ("concurrency", "timeout_seconds")),
}  # fmt: skip
"""Keys none of which changes a sample or an update; how long a judge is waited for changes what is missing alone."""
ROUNDING = {"max_tokens", "model.gradient_checkpointing", "engine_memory", "engine_sleep", "parity_every"}
"""Keys by which sums are added up in another order, or an engine batches otherwise, and no more than that."""
LENGTH = {"num_steps", "num_epochs", "max_steps"}
LAUNCH = {"processes", "wrapper"}
FILES = "files"
"""Where settings keep what `contents` says of the files they name."""


def resolved(config) -> dict[str, Any]:
    """Return the whole configuration as plain data."""
    return OmegaConf.to_container(OmegaConf.create(dump(config)))


def settings_of(config, accelerator: Accelerator, world: World) -> dict[str, Any]:
    """Return what a run's numbers may depend on: its resolved configuration, its files and how it was launched.

    The main process reads the files for all.
    """
    settings = resolved(config)
    files = world.gather(contents(settings) if world.rank == 0 else {})[0]
    return settings | {FILES: files, "processes": accelerator.num_processes, "wrapper": _wrapper(accelerator)}


def check_settings(where: Path, then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return what is to be said of the settings that may differ from those that what stands at `where` was begun with.

    Raises ConfigError, naming both values, where others differ.
    """
    differing = _that_matter(then, now)
    told, refused = [], {}
    for key, values in differing.items():
        if (consequence := _consequence(key, differing, now)) is None:
            refused[key] = values
        else:
            told.append(f"{key}={values[0]!r} (now {values[1]!r}): {consequence}")
    if refused:
        remedy = _remedy(refused, refused.keys() <= LAUNCH and _is_whole(differing, now))
        raise ConfigError(f"'{where}' {described(refused)}; {remedy}, or another `out` to start anew")
    return told


def _that_matter(then: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the settings that differ, without those of FREE and without files that only lie elsewhere."""
    differing = difference(then, now)
    for key in KEYS:
        differing.pop(f"{FILES}.{key}", None)
        # a version before did not write down what its files held: they are known by their paths
        contents_of = [side[FILES].get(key) if FILES in side else None for side in (then, now)]
        if None in contents_of:
            continue
        functions = {str(value).partition(":")[2] for value in differing.get(key, ())}
        if len(functions) < 2:
            differing.pop(key, None)
        if len(set(contents_of)) == 2:
            differing[f"what lies at {key}"] = tuple(f"sha256 {each[:12]}" for each in contents_of)
    return {key: values for key, values in differing.items() if key not in FREE and key != FILES}


def _consequence(key: str, differing: Mapping[str, tuple[Any, Any]], now: Mapping[str, Any]) -> str | None:
    """Say what a setting changes of a run that goes on; None where it must not."""
    if key in ROUNDING:
        return "the same numbers up to rounding"
    if key in LENGTH:
        return "the learning rate follows the schedule of the new length from this step on"
    if key in LAUNCH and _is_whole(differing, now) and now["resume_other_processes"]:
        return "the same samples give the same numbers up to rounding; vLLM draws other samples"
    return None


def _is_whole(differing: Mapping[str, tuple[Any, Any]], now: Mapping[str, Any]) -> bool:
    """Tell whether the optimizer's state is one file for any number of processes; DeepSpeed cuts it into theirs."""
    return {now["wrapper"], *differing.get("wrapper", ())} <= {"none", "DDP"}


def _remedy(refused: Mapping[str, tuple[Any, Any]], whole: bool) -> str:
    if not refused.keys() & LAUNCH:
        return "that changes the numbers: give the same settings"
    same = "start it on as many processes, with the same file of configs/accelerate"
    return f"{same}, or add resume_other_processes=true" if whole else same


def _wrapper(accelerator: Accelerator) -> str:
    stage = zero_stage(accelerator)
    if stage is not None:
        return f"DeepSpeed ZeRO-{stage}"
    return "none" if accelerator.distributed_type is DistributedType.NO else "DDP"
