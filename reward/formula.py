"""The reward formula that belongs to a scheme."""

from pathlib import Path

from membuilder.errors import ConfigError
from membuilder.plugins import load_function
from membuilder.schemes.load import FOUR_AGENTS
from reward import four_agents
from reward.score import Formula


def load_formula(scheme: str) -> Formula:
    """Return `score` of `four_agents`, or of reward.py in a scheme's folder. Raises ConfigError where there is none."""
    if scheme == FOUR_AGENTS:
        return four_agents.score
    if not (Path(scheme) / "reward.py").is_file():
        raise ConfigError(f"scheme: '{scheme}' has no reward.py, which must define score(outputs, qa, config)")
    return load_function(f"{scheme}/reward.py:score", "outputs", "qa", "config")
