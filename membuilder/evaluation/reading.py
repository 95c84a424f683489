"""How the builder of a memory reads and writes: its scheme, its prompts and what it reads at once."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from membuilder.config import from_mappings, read
from membuilder.errors import ConfigError
from membuilder.schemes.four_agents.prompts import PromptConfig
from membuilder.schemes.load import FOUR_AGENTS, MEMALPHA, turns_at_once
from membuilder.schemes.memalpha.config import MemAlphaConfig
from membuilder.types import Agent


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How the builder's model reads and writes."""

    scheme: str = FOUR_AGENTS
    prompts: PromptConfig = field(default_factory=PromptConfig)
    memalpha: MemAlphaConfig | None = None
    max_turns: int | None = None
    """Turns read at once, so that a longer session becomes several of the same date; None: whole sessions."""


def reading_of(path: Path | None, scheme: str | None = None, excluded: Sequence[Agent] | None = None) -> Reading:
    """Return the reading that a training run's `config.yaml` tells; None: as real models read. Raises ConfigError.

    `scheme` is that of --scheme, and `excluded` the parts that --exclude-memory names.
    """
    if path is None:
        known = scheme or FOUR_AGENTS
        told = Reading(scheme=known, max_turns=turns_at_once(known, None))
    else:
        told = _told(path)
        if scheme not in (None, told.scheme):
            raise ConfigError(f"{path} was trained under scheme {told.scheme!r}: leave out --scheme {scheme}")
    return told if excluded is None else without_parts(told, excluded)


def without_parts(reading: Reading, excluded: Sequence[Agent]) -> Reading:
    """Return a reading of scheme memalpha whose memory lacks these parts too. Raises ConfigError."""
    if reading.scheme != MEMALPHA:
        raise ConfigError(f"--exclude-memory names parts of scheme {MEMALPHA}, not of {reading.scheme!r}; add --scheme")
    settings = reading.memalpha or MemAlphaConfig()
    try:
        settings = replace(settings, exclude_memory=[*settings.exclude_memory, *excluded])
    except ValueError as error:
        raise ConfigError(f"--exclude-memory: {error}") from error
    return replace(reading, memalpha=settings)


def _told(path: Path) -> Reading:
    match read(path):
        case {"scheme": str(scheme), "prompts": {} as prompts, "data": {"max_turns": int() | None as max_turns}}:
            known = from_mappings(PromptConfig, (prompts, f"{path}: prompts"))
            own = read(path).get("memalpha")
            memalpha = None if own is None else from_mappings(MemAlphaConfig, (own, f"{path}: memalpha"))
            return Reading(scheme=scheme, prompts=known, memalpha=memalpha, max_turns=max_turns)
    problem = "no keys `scheme`, `prompts` and `data.max_turns`; name the config.yaml that a training run wrote"
    raise ConfigError(f"{path}: {problem}")
