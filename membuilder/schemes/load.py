"""The scheme that a config or a command names, with the settings that belong to it."""

import inspect
import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Protocol

from membuilder.errors import ConfigError
from membuilder.plugins import check_arguments, load_function
from membuilder.schemes.four_agents.prompts import PromptConfig, template_hashes
from membuilder.schemes.four_agents.scheme import FourAgents
from membuilder.schemes.memalpha import prompts as memalpha_prompts
from membuilder.schemes.memalpha.config import MemAlphaConfig
from membuilder.schemes.memalpha.scheme import MemAlpha
from membuilder.schemes.scheme import Scheme
from membuilder.types import CountTokens
from membuilder.value_types import Section

FOUR_AGENTS, MEMALPHA = "four_agents", "memalpha"
BUILT_IN = (FOUR_AGENTS, MEMALPHA)
READ_BY_ALL = {"chat_template_kwargs"}
"""Keys of `prompts` that are about the model and not about the four agents' prompts."""
MAX_TURNS = 60
"""Turns of a session that a model reads at once, where nothing else is said: a long one is more than it can deal with.
A chunk of memalpha is made to be read whole."""
ROLE_NAME = re.compile(r"[a-z][a-z_]*")


class NamesScheme(Protocol):
    """The keys of a configuration that say how memory is written."""

    scheme: str
    prompts: PromptConfig
    memalpha: MemAlphaConfig | None


@dataclass(kw_only=True)
class SchemeSettings(Section):
    """It holds these keys and nothing else."""

    scheme: str = FOUR_AGENTS
    prompts: PromptConfig = field(default_factory=PromptConfig)
    memalpha: MemAlphaConfig | None = None


def templates_of(config: NamesScheme) -> dict[str, str]:
    """Map each template that a model is asked with to its SHA-256; those of a scheme of your own are in its code."""
    if config.scheme != MEMALPHA:
        return template_hashes(config.prompts.template_set)
    return memalpha_prompts.template_hashes((config.memalpha or MemAlphaConfig()).prompts.template_set)


def turns_at_once(scheme: str, max_turns: int | None) -> int | None:
    """Return how many turns of a session are read at once under a scheme: `max_turns`, else its default. None: all."""
    return MAX_TURNS if max_turns is None and scheme != MEMALPHA else max_turns


def scheme_of(config: NamesScheme, count_tokens: CountTokens | None = None) -> Scheme:
    """Return the scheme that a configuration names, as `load_scheme` does."""
    return load_scheme(config.scheme, config.prompts, config.memalpha, count_tokens)


def load_scheme(
    name: str,
    prompts: PromptConfig,
    memalpha: MemAlphaConfig | None = None,
    count_tokens: CountTokens | None = None,
) -> Scheme:
    """Return `four_agents`, `memalpha` or the scheme in a folder. `count_tokens`: as the model in training counts.

    Raises ConfigError for no scheme, for ill-named roles, and for settings that the scheme named never reads.
    """
    if name == MEMALPHA:
        _refuse_prompts(prompts)
        settings = memalpha or MemAlphaConfig()
        return MemAlpha(settings, count_tokens if settings.tokenizer is None else None)
    if memalpha is not None:
        named = ", ".join(f"memalpha.{key}" for key in _changed(memalpha, MemAlphaConfig())) or "memalpha"
        raise ConfigError(f"{named} without effect under scheme={name}: set scheme={MEMALPHA} or memalpha=null")
    if name == FOUR_AGENTS:
        return FourAgents(prompts)
    if not (Path(name) / "scheme.py").is_file():
        known = ", ".join(BUILT_IN)
        raise ConfigError(f"scheme: '{name}' is none of {known}, and no folder with a scheme.py in it")
    scheme = load_function(f"{name}/scheme.py:make_scheme", "prompts")(prompts)
    _check_members(name, scheme)
    if not scheme.roles or len(set(scheme.roles)) < len(scheme.roles):
        raise ConfigError(f"scheme '{name}': needs at least one role, and each name once; it has {scheme.roles}")
    for role in scheme.roles:
        if not ROLE_NAME.fullmatch(role):
            raise ConfigError(f"scheme '{name}': role {role!r} must be lower-case letters and _")
    return scheme


def _refuse_prompts(prompts: PromptConfig) -> None:
    """Raise ConfigError, naming them, where settings of the four agents' prompts are given to a scheme without them."""
    changed = [key for key in _changed(prompts, PromptConfig()) if key not in READ_BY_ALL]
    if changed:
        named = ", ".join(f"prompts.{key}" for key in changed)
        back = " ".join(f"prompts.{key}={_written(getattr(PromptConfig(), key))}" for key in changed)
        raise ConfigError(
            f"{named} without effect under scheme={MEMALPHA}, whose own keys are memalpha.*; leave it out or set {back}"
        )


def _changed(section: object, default: object) -> list[str]:
    return [each.name for each in fields(default) if getattr(section, each.name) != getattr(default, each.name)]


def _written(value: object) -> str:
    """Write a value as an override of the command line does."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _check_members(name: str, scheme: object) -> None:
    """Raise ConfigError for a member that a scheme lacks, or that takes other arguments."""
    methods = {key: member for key, member in vars(Scheme).items() if inspect.isfunction(member) and key[0] != "_"}
    absent = [key for key in (*Scheme.__annotations__, *methods) if not hasattr(scheme, key)]
    if absent:
        raise ConfigError(f"scheme '{name}': what make_scheme returns has no {', '.join(absent)}")
    for key, method in methods.items():
        parameters = list(inspect.signature(method).parameters)[1:]
        check_arguments(f"scheme '{name}': {key}", getattr(scheme, key), parameters)
