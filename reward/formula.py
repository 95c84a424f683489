"""The reward formula that belongs to a scheme."""

from pathlib import Path

from membuilder.errors import ConfigError
from membuilder.plugins import load_function
from membuilder.schemes.load import FOUR_AGENTS, MEMALPHA
from reward import four_agents, memalpha
from reward.score import Formula

BUILT_IN: dict[str, Formula] = {FOUR_AGENTS: four_agents.score, MEMALPHA: memalpha.score}


def load_formula(scheme: str) -> Formula:
    """Return `score` of a built-in scheme, or of reward.py in a scheme's folder. ConfigError where there is none."""
    if scheme in BUILT_IN:
        return BUILT_IN[scheme]
    if not (Path(scheme) / "reward.py").is_file():
        raise ConfigError(f"scheme: '{scheme}' has no reward.py, which must define score(outputs, qa, config)")
    return load_function(f"{scheme}/reward.py:score", "outputs", "qa", "config")
