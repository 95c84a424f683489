"""Which agent's memories were used: the weight its policy term gets. Kept apart from reward and advantage."""

from collections.abc import Mapping

from membuilder.types import ENTRY_AGENTS, Agent


def attribution_weights(counts: Mapping[Agent, int], alpha: float = 4.0) -> dict[Agent, float]:
    """`alpha` for the agent most often retrieved, 1 for the others and the core; a tie boosts nobody.

    {EPISODIC: 12, SEMANTIC: 30, PROCEDURAL: 8} -> {CORE: 1.0, EPISODIC: 1.0, SEMANTIC: 4.0, PROCEDURAL: 1.0}
    """
    most = max(counts[agent] for agent in ENTRY_AGENTS)
    leaders = [agent for agent in ENTRY_AGENTS if counts[agent] == most]
    boosted = leaders if len(leaders) == 1 else []
    return {agent: alpha if agent in boosted else 1.0 for agent in Agent}
