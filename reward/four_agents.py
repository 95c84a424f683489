"""The four agents' reward (MemBuilder, arXiv 2601.05488), its parts by name. Pure: numbers in, numbers out.

    reward of an agent = format x qa x (1 - length_weight x length penalty)

Differs from MemBuilder's released code where that misleads training: lengths share one unit, an unreachable judge makes
the reward missing instead of a fallback, and a tie in attribution boosts nobody.
"""

from collections.abc import Mapping

from membuilder.types import ENTRY_AGENTS, Agent
from reward.length import length_penalty
from reward.qa import QAResult
from reward.score import RewardConfig, RoleOutput, Score, status_of


def score(outputs: Mapping[str, RoleOutput], qa: QAResult, config: RewardConfig) -> Score:
    """Score one rollout from its four outputs and the answers its bank gave; one agent's failure leaves the others."""
    counts = {agent: qa.retrieval_counts.get(agent, 0) for agent in ENTRY_AGENTS}
    valid = {agent: outputs[agent].is_valid for agent in Agent}
    length = {
        agent: None
        if outputs[agent].failure is not None
        else length_penalty(agent, outputs[agent].model_tokens, outputs[agent].expert_tokens, config.length)
        for agent in Agent
    }
    return Score(
        reward={agent: _reward(valid[agent], qa.accuracy, length[agent], config.length_weight) for agent in Agent},
        status={agent: status_of(valid[agent], qa) for agent in Agent},
        qa=qa.accuracy,
        parts={
            "format": {agent: None if valid[agent] is None else float(valid[agent]) for agent in Agent},
            "length_penalty": length,
        },
        weights=attribution_weights(counts, config.alpha),
        retrieval_counts=counts,
        num_missing_verdicts=qa.num_missing,
    )


def attribution_weights(counts: Mapping[Agent, int], alpha: float) -> dict[Agent, float]:
    """Weigh the agent most often retrieved by `alpha`, the others and the core by 1; a tie boosts nobody.

    {EPISODIC: 12, SEMANTIC: 30, PROCEDURAL: 8} -> {CORE: 1.0, EPISODIC: 1.0, SEMANTIC: 4.0, PROCEDURAL: 1.0}
    """
    most = max(counts[agent] for agent in ENTRY_AGENTS)
    leaders = [agent for agent in ENTRY_AGENTS if counts[agent] == most]
    return {agent: alpha if leaders == [agent] else 1.0 for agent in Agent}


def _reward(valid: bool | None, accuracy: float | None, length: float | None, length_weight: float) -> float | None:
    if accuracy is None or valid is None:
        return None
    if not valid:
        return 0.0
    assert length is not None, "a valid output has a length"
    return accuracy * (1 - length_weight * length)
