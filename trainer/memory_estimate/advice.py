"""What to change where a run would not fit.

Each change is tried on the estimate, from what costs least to what costs most.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from trainer.configs import TrainConfig
from trainer.memory_estimate.estimate import GIB, estimate
from trainer.memory_estimate.options import Launch
from trainer.rl_config import RLConfig

MIN_TOKENS = 4000
"""Smallest `max_tokens` worth proposing."""


class Change(NamedTuple):
    """A run after a change, and how the change is written."""

    text: str
    config: TrainConfig
    launch: Launch

    @property
    def excess(self) -> float:
        return estimate(self.config, self.launch).excess


Option = Callable[[TrainConfig, Launch], Change | None]
"""Applies one change, or has none to make."""


def advise(config: TrainConfig, launch: Launch) -> list[str]:
    """Name each change that makes the run fit by itself, or else several that do so together, with none to spare."""
    single = [change.text for option in OPTIONS if (change := option(config, launch)) and not change.excess]
    if single:
        return ["Fits with any one of", *(f"  {text}" for text in single)]
    chosen: list[Option] = []
    at = Change("", config, launch)
    for option in OPTIONS:
        change = option(at.config, at.launch)
        if change is not None and change.excess < at.excess:
            chosen, at = [*chosen, option], change
    if at.excess:
        return ["Nothing above makes it fit: more or larger GPUs, or a smaller model (model.path)"]
    for option in reversed(chosen):
        fewer = [other for other in chosen if other is not option]
        if not _apply(fewer, config, launch)[-1].excess:
            chosen = fewer
    return ["Fits with all of", *(f"  {change.text}" for change in _apply(chosen, config, launch))]


def _apply(options: Sequence[Option], config: TrainConfig, launch: Launch) -> list[Change]:
    """The changes one after the other; one that has nothing left to change is left out."""
    changes = []
    for option in options:
        if change := option(config, launch):
            changes.append(change)
            config, launch = change.config, change.launch
    return changes


def _checkpointing(config: TrainConfig, launch: Launch) -> Change | None:
    if config.model.gradient_checkpointing:
        return None
    changed = replace(config, model=replace(config.model, gradient_checkpointing=True))
    return Change("model.gradient_checkpointing=true", changed, launch)


def _sleep(config: TrainConfig, launch: Launch) -> Change | None:
    if not isinstance(config, RLConfig) or config.engine_sleep or config.engine != "vllm":
        return None
    return Change("engine_sleep=true", replace(config, engine_sleep=True), launch)


def _zero(stage: int, config: TrainConfig, launch: Launch) -> Change | None:
    if launch.zero_stage >= stage or launch.num_processes == 1:
        return None
    return Change(f"--zero {stage}: configs/accelerate/zero{stage}.yaml", config, replace(launch, zero_stage=stage))


def _max_tokens(config: TrainConfig, launch: Launch) -> Change | None:
    largest = largest_micro_batch(config, launch)
    if not MIN_TOKENS <= largest < config.max_tokens:
        return None
    return Change(f"max_tokens={largest}, if no session has more", replace(config, max_tokens=largest), launch)


def _engine_memory(config: TrainConfig, launch: Launch) -> Change | None:
    """Lower engine_memory to what two of the longest sequences need, in whole hundredths."""
    if not isinstance(config, RLConfig) or config.engine != "vllm":
        return None
    found = estimate(config, launch)
    room = 2 * config.max_model_len * found.kv_bytes_per_token
    share = -(-(config.engine_memory * found.gpu_bytes - found.kv_bytes + room) * 100 // found.gpu_bytes) / 100
    if share >= config.engine_memory:
        return None
    return Change(f"engine_memory={share:.2f}", replace(config, engine_memory=share), launch)


def _offload(config: TrainConfig, launch: Launch) -> Change | None:
    if launch.offload_optimizer or launch.zero_stage not in (1, 2):
        return None
    text = "--offload: optimizer in host memory, configs/accelerate/zero2_offload.yaml"
    return Change(text, config, replace(launch, offload_optimizer=True))


def _no_reference(config: TrainConfig, launch: Launch) -> Change | None:
    if not isinstance(config, RLConfig) or not config.loss.kl_coef:
        return None
    text = "loss.kl_coef=0: no reference policy (another objective than the published one)"
    return Change(text, replace(config, loss=replace(config.loss, kl_coef=0.0)), launch)


OPTIONS: tuple[Option, ...] = (
    _checkpointing, _sleep, partial(_zero, 2), _max_tokens, _engine_memory, partial(_zero, 3), _offload, _no_reference,
)  # fmt: skip
"""The changes to try, from what costs least to what costs most."""


def largest_micro_batch(config: TrainConfig, launch: Launch) -> int:
    """Packed tokens that fit, in thousands. Memory grows in proportion to them, so two estimates tell."""
    half, whole = (estimate(config, launch, count).phases["update"] for count in (16_000, 32_000))
    spare = launch.gpu_memory_gib * GIB - whole
    return max(0, int((32_000 + spare * 16_000 / (whole - half)) // 1000 * 1000))
