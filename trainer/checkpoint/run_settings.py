"""The settings a run began with: it goes on with no others, and nothing sampled under others is learned from."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import DistributedType
from omegaconf import OmegaConf

from membuilder.config import dump
from membuilder.errors import ConfigError
from membuilder.settings import described, difference
from trainer.distributed.process_group import zero_stage

FREE = {"out", "resume", "save_every", "keep_last", "log_completions", "wandb_project", "journal", "max_skipped"}
"""Keys that may change when a run goes on."""
LAUNCH = ("processes", "wrapper")


def resolved(config) -> dict[str, Any]:
    """Return the whole configuration as plain data."""
    return OmegaConf.to_container(OmegaConf.create(dump(config)))


def settings_of(config, accelerator: Accelerator) -> dict[str, Any]:
    """Return the resolved configuration without the keys of FREE, and how the run was launched."""
    kept = {key: value for key, value in resolved(config).items() if key not in FREE}
    return kept | {"processes": accelerator.num_processes, "wrapper": _wrapper(accelerator)}


def check_settings(where: Path, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise ConfigError where what stands at `where` was begun with other settings than this run's."""
    if differing := difference(then, now):
        launch = "start it on as many processes, with the same file of configs/accelerate"
        remedy = launch if differing.keys() & set(LAUNCH) else "give the same settings"
        raise ConfigError(f"'{where}' {described(differing)}; {remedy}, or another `out` to start anew")


def _wrapper(accelerator: Accelerator) -> str:
    stage = zero_stage(accelerator)
    if stage is not None:
        return f"DeepSpeed ZeRO-{stage}"
    return "none" if accelerator.distributed_type is DistributedType.NO else "DDP"
