"""The scheme that a config or a command names."""

import re
from pathlib import Path

from membuilder.errors import ConfigError
from membuilder.plugins import load_function
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
    if not scheme.roles or len(set(scheme.roles)) < len(scheme.roles):
        raise ConfigError(f"scheme '{name}': needs at least one role, and each name once; it has {scheme.roles}")
    for role in scheme.roles:
        if not ROLE_NAME.fullmatch(role):
            raise ConfigError(f"scheme '{name}': role {role!r} must be lower-case letters and _")
    return scheme
