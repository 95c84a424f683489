"""The metrics of a step, by role, under the names that users of TRL and veRL know."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean, pstdev
from types import MappingProxyType

from membuilder.errors import ConfigError, RewardError
from reward.rollouts import ScoredGroup, means_by_source
from reward.score import RewardStatus
from rollout.types import Sample, Trained
from trainer.experience.training_batch import Batch


def check_missing(scored: Sequence[ScoredGroup], max_share: float) -> None:
    """Raise RewardError if too many rewards could not be judged, ConfigError if every prompt was too long."""
    statuses = [status for group in scored for score in group.scores for status in score.status.values()]
    missing = sum(status is RewardStatus.NOT_JUDGED for status in statuses)
    if missing > max_share * len(statuses):
        causes = ", ".join(f"{cause} {count}" for cause, count in missing_causes(scored).items())
        raise RewardError(
            f"{missing} of {len(statuses)} rewards of this step could not be judged (allowed: {max_share:.0%}). "
            f"Missing verdicts by cause: {causes}. Is the judge reachable? Nothing was trained on this step."
        )
    if statuses and all(status is RewardStatus.PROMPT_TOO_LONG for status in statuses):
        raise ConfigError(
            "every prompt of this step is too long, so nothing can be learned: raise max_model_len or lower "
            "sampling.max_tokens, data.max_turns, prompts.max_turn_chars, prompts.entries_shown or "
            "prompts.max_entry_chars"
        )


def missing_causes(scored: Sequence[ScoredGroup]) -> dict[str, int]:
    """Return how many verdicts are missing for each cause, the most frequent first."""
    causes: Counter[str] = Counter()
    for group in scored:
        for score in group.scores:
            causes.update(score.missing)
    return dict(causes.most_common())


def rollout_metrics(
    scored: Sequence[ScoredGroup],
    batch: Batch,
    count_tokens: Callable[[Sequence[str]], int],
    sources: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, float]:
    """Return means over the step's rollouts; a mean over nothing is left out.

    `sources`: where dialogues come from, by their ids; the parts of rewards are logged for each source too.
    """
    scores = [score for group in scored for score in group.scores]
    rollouts = [rollout for group in scored for rollout in group.rollouts]
    samples = [sample for rollout in rollouts for sample in rollout.samples.values()]
    metrics = {
        "reward/mean": _mean(value for score in scores for value in score.reward.values()),
        "reward/std": _mean(
            _mean((score.reward[role] for score in group.scores), pstdev)
            for group, advantages in zip(scored, batch.advantages, strict=True)
            for role in advantages
        ),
        "qa/accuracy": _mean(score.qa for score in scores),
        "frac_reward_zero_std": batch.zero_std_share,
        **{f"qa/missing/{cause}": float(count) for cause, count in missing_causes(scored).items()},
        "rewards/missing": fmean(value is None for score in scores for value in score.reward.values()),
        "num_tokens": float(batch.num_run_tokens),
        "prompt_too_long": _mean(sample.completion is None for sample in samples),
        "completions/mean_length": _mean(len(turn.completion.token_ids) for turn in _completions(samples)),
    }
    for role in batch.advantages[0]:
        samples = [rollout.samples[role] for rollout in rollouts]
        completions = _completions(samples)
        metrics |= {
            f"reward/{role}": _mean(score.reward[role] for score in scores),
            **{f"{part}/{role}": _mean(score.parts[part][role] for score in scores) for part in scores[0].parts},
            f"attribution_weight/{role}": _mean(score.weights[role] for score in scores),
            f"memory_tokens/{role}": _mean(
                count_tokens(sample.written) for sample in samples if sample.completion is not None
            ),
            f"expert_tokens/{role}": _mean(group.expert_tokens.get(role) for group in scored),
            f"prompt_too_long/{role}": _mean(sample.completion is None for sample in samples),
            f"completions/{role}/mean_length": _mean(len(turn.completion.token_ids) for turn in completions),
            f"completions/{role}/clipped_ratio": _mean(turn.is_cut for turn in completions),
        }
    by_source = means_by_source([group for group in scored if group.dialogue_id in sources], sources)
    return {name: value for name, value in metrics.items() if value is not None} | by_source


def completion_rows(scored: Sequence[ScoredGroup], batch: Batch, step: int, num_per_role: int) -> list[dict]:
    """Return one row for each role of the first groups' first rollouts: the completion and every part of its reward."""
    rows = []
    for group, advantages in list(zip(scored, batch.advantages, strict=True))[:num_per_role]:
        score, rollout = group.scores[0], group.rollouts[0]
        for role, sample in rollout.samples.items():
            completion, failure = sample.completion, sample.failure
            row = {"step": step, "session": group.id, "agent": str(role), "completion": sample.text}
            row |= {"stored": list(sample.written), "status": score.status[role].value}
            row |= {"failure": failure.detail if failure else None, "reward": score.reward[role], "qa": score.qa}
            row |= {part: values[role] for part, values in score.parts.items()}
            row |= {"weight": score.weights[role], "advantage": advantages[role][0]}
            if sample.calls:
                row["calls"] = [{"name": call.name, "outcome": call.outcome.value} for call in sample.calls]
            if sample.later:
                row["later_completions"] = [turn.text for turn in sample.later if not turn.is_rest]
            rows.append(row | {"weight_version": None if completion is None else completion.weight_version})
    return rows


def _completions(samples: Iterable[Sample]) -> list[Trained]:
    return [turn for sample in samples for turn in sample.turns()]


def _mean(values: Iterable[float | None], mean: Callable[[list[float]], float] = fmean) -> float | None:
    present = [value for value in values if value is not None]
    return mean(present) if present else None
