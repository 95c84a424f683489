"""The journal: what was sampled and scored since the last checkpoint, so that a resumed run does not do it again.

It has one file per step with the sessions of all processes. Beside these files stand the settings that they were
sampled under, because a run with other settings must not learn from them.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from os.path import commonprefix  # of any sequences
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


_OF_CALLS = (b',"calls":[]', b',"later":[]', b',"deleted":[]')
"""Fields that only a scheme with tools fills; texts have no bare quotation marks, so that no text holds them."""
_OF_MIXTURES = b',"routed_experts":null'
"""A field that only a mixture of experts fills."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Experience:
    """What one step learns from."""

    scored: list[ScoredGroup]
    steered: dict[str, float]
    """Metrics of the length controller: what it measured and set."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _KeptGroup(ScoredGroup):
    """A group as the file has it: what the prompts of a role begin with in all rollouts stands in it once."""

    shared_prompts: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Kept:
    scored: list[_KeptGroup]
    steered: dict[str, float]


class RolloutCache:
    """The journal of a run, which one process reads and writes for all."""

    def __init__(self, root: Path | None, world: World, settings: Mapping[str, Any], anew: bool) -> None:
        """Open the journal in `root`; None means that the run keeps none.

        Raises ConfigError where it holds steps that were sampled under other settings, or any steps at all if the run
        starts `anew`, because it would write over them.
        """
        self._root, self._world = root, world
        self._writes = root is not None and world.rank == 0
        if not self._writes:
            return
        steps = [path for path, _ in self._files() if path.suffix == ".json"]
        if not steps:
            content = encode(dict(settings), dict[str, Any], SETTINGS_LABEL)
            write_atomic(root / SETTINGS, *seal(SETTINGS_LABEL, content))
            return
        if anew:
            raise ConfigError(
                f"resume=never, but '{root}' holds what an earlier run sampled in {len(steps)} step(s): give "
                "resume=auto to go on with it, or another `out` to start anew"
            )
        remedy = f"remove '{root}' to sample its steps again"
        check_settings(root, unseal(root / SETTINGS, SETTINGS_LABEL, dict, remedy), settings)

    def read(self, step: int) -> Experience | None:
        """Return the experience that was given to `write`, or None; a damaged file is a CheckpointError."""
        if self._root is None:
            return None
        found, path = None, self._root / f"step_{step}.json"
        if self._writes and path.exists():
            kept = unseal(path, f"journal of step {step}", _Kept, "delete the file to sample that step again")
            found = Experience(scored=[_whole(group) for group in kept.scored], steered=kept.steered)
        return self._world.gather(found)[0]

    def write(self, step: int, experience: Experience) -> None:
        """Keep a step's experience, and remove later steps, which another policy sampled.

        Raises CheckpointError, naming the group, for a value that would not come back the same, such as nan.
        """
        if not self._writes:
            return
        for path, of_step in self._files():
            if of_step > step:
                path.unlink(missing_ok=True)
        groups = [_encode(_cut(group), f"step {step}, group '{group.id}'") for group in experience.scored]
        separated = [part for group in groups for part in (b",", group)][1:]
        steered = encode(experience.steered, dict[str, float], f"step {step}, steering")
        content = (b'{"scored":[', *separated, b'],"steered":', steered, b"}")
        write_atomic(self._root / f"step_{step}.json", *seal(f"journal of step {step}", *content))

    def forget(self, before_step: int) -> None:
        """Remove the files of earlier steps, half-written ones too."""
        for path, step in self._files() if self._writes else ():
            if step < before_step:
                path.unlink(missing_ok=True)

    def _files(self) -> list[tuple[Path, int]]:
        """Everything in the journal, as pairs (file, step)."""
        found = [(path, NAME.fullmatch(path.name)) for path in self._root.glob("*")]
        return [(path, int(match[1])) for path, match in found if match]


def _cut(group: ScoredGroup) -> _KeptGroup:
    prompts: dict[str, list[tuple[int, ...]]] = {}
    for rollout in group.rollouts:
        for role, sample in rollout.samples.items():
            prompts.setdefault(role, []).append(sample.prompt_token_ids)
    shared = {role: commonprefix(of_role) for role, of_role in prompts.items()}
    cut = _with_prompts(group, lambda role, prompt: prompt[len(shared[role]) :])
    return _KeptGroup(**_values(cut), shared_prompts=shared)


def _whole(kept: _KeptGroup) -> ScoredGroup:
    # a file of a version before has whole prompts, and nothing that they share
    whole = _with_prompts(kept, lambda role, prompt: kept.shared_prompts.get(role, ()) + prompt)
    return ScoredGroup(**_values(whole))


def _with_prompts(group: ScoredGroup, change: Callable[[str, tuple[int, ...]], tuple[int, ...]]) -> ScoredGroup:
    rollouts = []
    for rollout in group.rollouts:
        changed = {
            role: replace(sample, prompt_token_ids=change(role, sample.prompt_token_ids))
            for role, sample in rollout.samples.items()
        }
        rollouts.append(replace(rollout, samples=changed))
    return replace(group, rollouts=tuple(rollouts))


def _values(group: ScoredGroup) -> dict[str, Any]:
    return {each.name: getattr(group, each.name) for each in fields(ScoredGroup)}


def _encode(group: _KeptGroup, name: str) -> bytes:
    """Leave out fields that nothing fills: such a journal has the bytes of one before there were such fields."""
    encoded = encode(group, _KeptGroup, name)
    if b'"arguments":' not in encoded:  # they may hold anything
        for unfilled in (*_OF_CALLS, _OF_MIXTURES):
            encoded = encoded.replace(unfilled, b"")
    return encoded
