"""What to change where a run would not fit: each change tried on the estimate, from what costs least to what costs most."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from trainer.memory_estimate.estimate import GIB, Workload, estimate
from trainer.memory_estimate.options import Launch

MIN_TOKENS = 4000
"""Smallest `max_tokens` worth proposing."""


@dataclass(frozen=True, kw_only=True)
class Change:
    text: str
    workload: Workload
    launch: Launch

    @property
    def excess(self) -> float:
        return estimate(self.workload, self.launch).excess

    @property
    def fits(self) -> bool:
        return self.excess == 0


Option = Callable[[Workload, Launch], Change | None]
"""Applies one change, or has none to make."""


def advise(workload: Workload, launch: Launch) -> list[str]:
    """Each change that makes the run fit by itself; where none does, several that do together and not with one less."""
    single = [change.text for option in OPTIONS if (change := option(workload, launch)) and change.fits]
    if single:
        return ["Fits with any one of", *(f"  {text}" for text in single)]
    chosen: list[Option] = []
    at = Change(text="", workload=workload, launch=launch)
    for option in OPTIONS:
        change = option(at.workload, at.launch)
        if change is not None and change.excess < at.excess:
            chosen, at = [*chosen, option], change
    if not at.fits:
        return ["Nothing above makes it fit: more or larger GPUs, or a smaller model (model.path)"]
    for option in reversed(chosen):
        fewer = [other for other in chosen if other is not option]
        if _apply(fewer, workload, launch)[-1].fits:
            chosen = fewer
    return ["Fits with all of", *(f"  {change.text}" for change in _apply(chosen, workload, launch))]


def _apply(options: Sequence[Option], workload: Workload, launch: Launch) -> list[Change]:
    """The changes one after the other; one that has nothing left to change is left out."""
    changes = []
    for option in options:
        change = option(workload, launch)
        if change is not None:
            changes.append(change)
            workload, launch = change.workload, change.launch
    return changes


def _checkpointing(workload: Workload, launch: Launch) -> Change | None:
    if workload.checkpointing:
        return None
    changed = replace(workload, checkpointing=True)
    return Change(text="model.gradient_checkpointing=true", workload=changed, launch=launch)


def _sleep(workload: Workload, launch: Launch) -> Change | None:
    rollouts = workload.rollouts
    if rollouts is None or rollouts.engine_sleep or rollouts.engine != "vllm":
        return None
    changed = replace(workload, rollouts=replace(rollouts, engine_sleep=True))
    return Change(text="engine_sleep=true", workload=changed, launch=launch)


def _zero2(workload: Workload, launch: Launch) -> Change | None:
    if launch.zero_stage >= 2 or launch.num_processes == 1:
        return None
    text = "--zero 2: configs/accelerate/zero2.yaml"
    return Change(text=text, workload=workload, launch=replace(launch, zero_stage=2))


def _max_tokens(workload: Workload, launch: Launch) -> Change | None:
    largest = largest_micro_batch(workload, launch)
    if not MIN_TOKENS <= largest < workload.max_tokens:
        return None
    return Change(
        text=f"max_tokens={largest}, if no session has more",
        workload=replace(workload, max_tokens=largest),
        launch=launch,
    )


def _engine_memory(workload: Workload, launch: Launch) -> Change | None:
    """As little as two sequences of the longest kind need, in whole hundredths."""
    if workload.rollouts is None or workload.rollouts.engine != "vllm":
        return None
    found = estimate(workload, launch)
    room = 2 * workload.rollouts.max_model_len * found.kv_bytes_per_token
    rollouts = workload.rollouts
    share = -(-(rollouts.engine_memory * found.gpu_bytes - found.kv_bytes + room) * 100 // found.gpu_bytes) / 100
    if share >= rollouts.engine_memory:
        return None
    changed = replace(workload, rollouts=replace(rollouts, engine_memory=share))
    return Change(text=f"engine_memory={share:.2f}", workload=changed, launch=launch)


def _zero3(workload: Workload, launch: Launch) -> Change | None:
    if launch.zero_stage == 3 or launch.num_processes == 1:
        return None
    text = "--zero 3: configs/accelerate/zero3.yaml"
    return Change(text=text, workload=workload, launch=replace(launch, zero_stage=3))


def _offload(workload: Workload, launch: Launch) -> Change | None:
    if launch.offload_optimizer or launch.zero_stage not in (1, 2):
        return None
    text = "--offload: optimizer in host memory, configs/accelerate/zero2_offload.yaml"
    return Change(text=text, workload=workload, launch=replace(launch, offload_optimizer=True))


def _no_reference(workload: Workload, launch: Launch) -> Change | None:
    if workload.rollouts is None or not workload.rollouts.has_reference:
        return None
    rollouts = replace(workload.rollouts, has_reference=False)
    text = "loss.kl_coef=0: no reference policy (another objective than the published one)"
    return Change(text=text, workload=replace(workload, rollouts=rollouts), launch=launch)


OPTIONS: tuple[Option, ...] = (
    _checkpointing, _sleep, _zero2, _max_tokens, _engine_memory, _zero3, _offload, _no_reference,
)  # fmt: skip
"""From what costs least to what costs most."""


def largest_micro_batch(workload: Workload, launch: Launch) -> int:
    """Packed tokens that fit, in thousands. Memory grows in proportion to them, so two estimates tell."""
    half, whole = (estimate(workload, launch, count).phases["update"] for count in (16_000, 32_000))
    spare = launch.gpu_memory_gib * GIB - whole
    return max(0, int((32_000 + spare * 16_000 / (whole - half)) // 1000 * 1000))
