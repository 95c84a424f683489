"""The reward of `memalpha` (Mem-alpha, arXiv 2509.25911), its parts by name. Pure: numbers in, numbers out.

    reward of a chunk = r1 + r2 + beta x r3 + gamma x r4

r1: mean score of the instance's questions on the final memory. r2: share of the chunk's calls that ran. r3: one minus
memory tokens over chunk tokens, both of the policy's tokenizer. r4: mean validity of what the calls stored.

Differs from the published code where that misleads training: r1 and r4 that could not be had make the reward missing
in place of 0, failed calls are not judged and deletes not punished, and a chunk with nothing to store is no failure.
"""

from collections.abc import Mapping
from dataclasses import fields
from operator import attrgetter
from statistics import fmean

from membuilder.schemes.load import FOUR_AGENTS, MEMALPHA
from membuilder.schemes.scheme import CallOutcome
from reward.credit import evidence_shares
from reward.memalpha_config import Credit, MemAlphaRewardConfig
from reward.qa import QAResult
from reward.score import RewardConfig, RewardStatus, RoleOutput, Score, status_of


def score(outputs: Mapping[str, RoleOutput], qa: QAResult, config: RewardConfig) -> Score:
    """Score one chunk of one rollout; `qa` holds the answers of the memory at the end of the episode."""
    parts = {role: _parts(output, qa, config) for role, output in outputs.items()}
    reward = {role: _reward(output, parts[role], config) for role, output in outputs.items()}
    lost = sum(verdict is None for output in outputs.values() for verdict in output.validity)
    names = ["r1", "r2", "r3", "r4", *(["chunk"] if config.chunk_questions else [])]
    return Score(
        reward=reward,
        status={role: _status(outputs[role], reward[role], qa) for role in outputs},
        qa=qa.accuracy,
        parts={name: {role: parts[role][name] for role in outputs} for name in names},
        weights={role: config.memalpha.weights.get(output.source, 1.0) for role, output in outputs.items()},
        retrieval_counts=dict(qa.retrieval_counts),
        num_missing_verdicts=qa.num_missing + lost,
    )


def total(parts: Mapping[str, float | None], config: RewardConfig) -> float:
    """Return the reward of parts that are there; r3, r4 and chunk are None where there was nothing to measure."""
    weights = {"r1": 1.0, "r2": 1.0, "r3": config.memalpha.beta, "r4": config.memalpha.gamma}
    weights["chunk"] = config.memalpha.chunk_weight
    return sum(weights[name] * value for name, value in parts.items() if value is not None)


def _parts(output: RoleOutput, qa: QAResult, config: RewardConfig) -> dict[str, float | None]:
    """Return every part by its name; one that is missing is None, as is one without anything to measure."""
    return {
        "r1": _answered(output, qa, config),
        "r2": ran_share(output, config.memalpha.empty_is_valid),
        "r3": compression(output.memory_tokens, output.chunk_tokens),
        "r4": valid_share(output, config.memalpha.empty_is_valid),
        "chunk": None if output.chunk_qa is None else output.chunk_qa.accuracy,
    }


def _answered(output: RoleOutput, qa: QAResult, config: RewardConfig) -> float | None:
    if config.credit is Credit.EVIDENCE:
        shares = evidence_shares(qa, output.num_sessions, config.memalpha.evidence_share)
        return None if shares is None else shares[output.session]
    threshold = config.memalpha.r1_threshold
    if qa.accuracy is None or threshold is None:
        return qa.accuracy
    return float(qa.accuracy >= threshold)


def ran_share(output: RoleOutput, empty_is_valid: bool) -> float:
    """Return the share of the calls that ran. An answer that could not be read is none without calls."""
    if not output.calls:
        return float(empty_is_valid and output.failure is None)
    return fmean(call.outcome is CallOutcome.RAN for call in output.calls)


def compression(memory_tokens: int, chunk_tokens: int) -> float | None:
    """Return how much shorter the memory is than what was read, below 0 where it is longer; None: nothing was read."""
    return None if chunk_tokens == 0 else 1 - memory_tokens / chunk_tokens


def valid_share(output: RoleOutput, empty_is_valid: bool) -> float | None:
    """Return the mean validity of what was stored. Deletes and searches that ran store nothing, and cost nothing.

    None where no call ran, so that there is nothing to judge, and where no verdict could be had.
    """
    if output.validity:
        had = [verdict for verdict in output.validity if verdict is not None]
        return fmean(had) if had else None
    if any(call.outcome is CallOutcome.RAN for call in output.calls):
        return 1.0
    return None if output.calls or output.failure is not None else float(empty_is_valid)


def _reward(output: RoleOutput, parts: Mapping[str, float | None], config: RewardConfig) -> float | None:
    if output.is_valid is None or parts["r1"] is None or _is_lost(output, config):
        return None
    return total(parts, config)


def _is_lost(output: RoleOutput, config: RewardConfig) -> bool:
    """Tell whether a part that counts was measured and could not be had."""
    lost_validity = bool(output.validity) and not any(verdict is not None for verdict in output.validity)
    asked = output.chunk_qa is not None and bool(output.chunk_qa.verdicts)
    lost_chunk = asked and output.chunk_qa.accuracy is None
    return (lost_validity and config.memalpha.gamma > 0) or (lost_chunk and config.memalpha.chunk_weight > 0)


def _status(output: RoleOutput, reward: float | None, qa: QAResult) -> RewardStatus:
    if output.is_valid is None:
        return RewardStatus.PROMPT_TOO_LONG
    status = status_of(True, qa)
    is_lost = status is RewardStatus.SCORED and reward is None
    return RewardStatus.NOT_JUDGED if is_lost else status


def refuse_unused(scheme: str, config: RewardConfig, is_dense: bool) -> None:
    """Raise ValueError for keys of `reward` that have no effect under a built-in scheme."""
    own = (
        "credit",
        "chunk_questions",
        "validator",
        *(f"memalpha.{field.name}" for field in fields(MemAlphaRewardConfig)),
    )
    unread = {FOUR_AGENTS: own, MEMALPHA: ("alpha", "length_weight", "length", "num_questions", "earlier_questions")}
    names = [*unread.get(scheme, ()), *(["question_share"] if is_dense and scheme == FOUR_AGENTS else [])]
    standard = RewardConfig()
    changed = [name for name in names if attrgetter(name)(config) != attrgetter(name)(standard)]
    if changed:
        named = ", ".join(f"reward.{name}" for name in changed)
        raise ValueError(f"{named} without effect under scheme={scheme}: leave out what is named")
