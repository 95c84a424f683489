"""What to change where a run would not fit.

Each change is tried on the estimate, from what costs least to what costs most.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from trainer.configs import LoRAConfig, TrainConfig
from trainer.memory_estimate.estimate import GIB, estimate, longest_sequence
from trainer.memory_estimate.options import Launch
from trainer.rl_config import RLConfig

MIN_TOKENS = 4000
"""Smallest `max_tokens` worth proposing."""
CHANGES = (
    "checkpointing", "sleep", "ZeRO-2", "max_tokens", "engine_memory", "ZeRO-3", "offload", "LoRA",
    "no reference",
)  # fmt: skip
"""Names of the changes to try, from what costs least to what costs most."""


class Change(NamedTuple):
    """A run after a change, and how the change is written."""

    text: str
    config: TrainConfig
    launch: Launch

    @property
    def excess(self) -> float:
        return estimate(self.config, self.launch).excess


def advise(config: TrainConfig, launch: Launch) -> list[str]:
    """Name each change that makes the run fit by itself, or else several that do so together, with none to spare."""
    single = [change.text for name in CHANGES if (change := make(name, config, launch)) and not change.excess]
    if single:
        return ["Fits with any one of", *(f"  {text}" for text in single)]
    chosen: list[str] = []
    at = Change("", config, launch)
    for name in CHANGES:
        change = make(name, at.config, at.launch)
        if change is not None and change.excess < at.excess:
            chosen, at = [*chosen, name], change
    if at.excess:
        return ["Nothing above makes it fit: more or larger GPUs, or a smaller model (model.path)"]
    for name in reversed(chosen):
        fewer = [other for other in chosen if other != name]
        if not _make_all(fewer, config, launch)[-1].excess:
            chosen = fewer
    return ["Fits with all of", *(f"  {change.text}" for change in _make_all(chosen, config, launch))]


def _make_all(names: Sequence[str], config: TrainConfig, launch: Launch) -> list[Change]:
    """Return the changes one after the other; one that has nothing left to change is left out."""
    changes = []
    for name in names:
        if change := make(name, config, launch):
            changes.append(change)
            config, launch = change.config, change.launch
    return changes


def make(name: str, config: TrainConfig, launch: Launch) -> Change | None:
    """Return the run after a change; None where it has nothing to change."""
    is_rl = isinstance(config, RLConfig)
    has_vllm = is_rl and config.engine == "vllm"
    match name:
        case "checkpointing" if not config.model.gradient_checkpointing:
            changed = replace(config, model=replace(config.model, gradient_checkpointing=True))
            return Change("model.gradient_checkpointing=true", changed, launch)
        case "sleep" if has_vllm and not config.engine_sleep:
            return Change("engine_sleep=true", replace(config, engine_sleep=True), launch)
        case "ZeRO-3" if config.model.lora is not None:
            return None  # refused
        case "ZeRO-2" | "ZeRO-3" if launch.zero_stage < (stage := int(name[-1])) and launch.num_processes > 1:
            text = f"--zero {stage}: configs/accelerate/zero{stage}.yaml"
            return Change(text, config, replace(launch, zero_stage=stage))
        case "max_tokens" if MIN_TOKENS <= (largest := largest_micro_batch(config, launch)) < config.max_tokens:
            longest, _ = longest_sequence(config)
            text = f"max_tokens={largest}" + ", if no sequence has more" * (longest > largest)
            return Change(text, replace(config, max_tokens=largest), launch)
        case "engine_memory" if has_vllm and (share := _engine_share(config, launch)) < config.engine_memory:
            return Change(f"engine_memory={share:.2f}", replace(config, engine_memory=share), launch)
        case "offload" if launch.zero_stage in (1, 2) and not launch.offload_optimizer:
            text = "--offload: optimizer in host memory, configs/accelerate/zero2_offload.yaml"
            return Change(text, config, replace(launch, offload_optimizer=True))
        case "LoRA" if config.model.lora is None and launch.zero_stage < 3:
            lora = LoRAConfig()
            text = f"model.lora.rank={lora.rank}: adapters are trained instead of the weights"
            return Change(text, replace(config, model=replace(config.model, lora=lora)), launch)
        case "no reference" if is_rl and config.loss.kl_coef:
            text = "loss.kl_coef=0: no reference policy (another objective than the published one)"
            return Change(text, replace(config, loss=replace(config.loss, kl_coef=0.0)), launch)
    return None


def _engine_share(config: RLConfig, launch: Launch) -> float:
    """Return the engine_memory that two of the longest sequences need, in whole hundredths."""
    found = estimate(config, launch)
    room = 2 * found.cache.bytes_of(config.max_model_len)
    return -(-(config.engine_memory * found.gpu_bytes - found.kv_bytes + room) * 100 // found.gpu_bytes) / 100


def largest_micro_batch(config: TrainConfig, launch: Launch) -> int:
    """Packed tokens that fit, in thousands. Memory grows in proportion to them, so two estimates tell."""
    half, whole = (estimate(config, launch, count).phases["update"] for count in (16_000, 32_000))
    spare = launch.gpu_memory_gib * GIB - whole
    return max(0, int((32_000 + spare * 16_000 / (whole - half)) // 1000 * 1000))
