"""The scheme that a config or a command names."""

import inspect
import re
from pathlib import Path

from membuilder.errors import ConfigError
from membuilder.plugins import check_arguments, load_function
from membuilder.schemes.four_agents.prompts import PromptConfig
from membuilder.schemes.four_agents.scheme import FourAgents
from membuilder.schemes.scheme import Scheme

FOUR_AGENTS = "four_agents"
ROLE_NAME = re.compile(r"[a-z][a-z_]*")


def load_scheme(name: str, prompts: PromptConfig) -> Scheme:
    """Return `four_agents` or the scheme in a folder. Raises ConfigError for no scheme and for ill-named roles."""
    if name == FOUR_AGENTS:
        return FourAgents(prompts)
    if not (Path(name) / "scheme.py").is_file():
        raise ConfigError(f"scheme: '{name}' is neither {FOUR_AGENTS} nor a folder with a scheme.py in it")
    scheme = load_function(f"{name}/scheme.py:make_scheme", "prompts")(prompts)
    _check_members(name, scheme)
    if not scheme.roles or len(set(scheme.roles)) < len(scheme.roles):
        raise ConfigError(f"scheme '{name}': needs at least one role, and each name once; it has {scheme.roles}")
    for role in scheme.roles:
        if not ROLE_NAME.fullmatch(role):
            raise ConfigError(f"scheme '{name}': role {role!r} must be lower-case letters and _")
    return scheme


def _check_members(name: str, scheme: object) -> None:
    """Raise ConfigError for a member that a scheme lacks, or that takes other arguments."""
    methods = {key: member for key, member in vars(Scheme).items() if inspect.isfunction(member) and key[0] != "_"}
    absent = [key for key in (*Scheme.__annotations__, *methods) if not hasattr(scheme, key)]
    if absent:
        raise ConfigError(f"scheme '{name}': what make_scheme returns has no {', '.join(absent)}")
    for key, method in methods.items():
        parameters = list(inspect.signature(method).parameters)[1:]
        check_arguments(f"scheme '{name}': {key}", getattr(scheme, key), parameters)
