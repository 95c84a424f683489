"""Computes the numbers of each system from the records of a run, and writes beside them what counts in which mean."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from membuilder.evaluation.by_source import SourceScores, by_source
from membuilder.evaluation.intervals import LEVEL, RESAMPLES, bootstrap
from membuilder.evaluation.metrics import ANSWER_SCORES, CUTOFFS, JUDGES, METRICS, RECALLS, RUBRIC
from membuilder.evaluation.records import Record

CATEGORY_POLICY = {
    "evidence_recall": "every question with evidence, adversarial and abstention questions among them "
    "(`answerable` and `set_apart` give the two apart); questions without evidence count nowhere, and neither do, by "
    "turns, those for which nothing but a model's own words was found, which stand for no turn "
    "(`questions_without_turns`); where some of what was found quotes turns and some does not, recall by turns is a "
    "lower bound",
    "f1, exact, substring, judge, wrongly_abstained": "answerable questions only; adversarial and abstention questions "
    "are in `set_apart` and in columns of their own in `by_category`",
    "abstention": "questions that the dialogue does not answer, in `set_apart` only",
    "unjudged, unanswered": "left out of every mean of verdicts or answers, though not of recall, and counted; the run "
    "fails where above 1% of one system's are missing",
}


class Estimate(NamedTuple):
    """A mean over the questions that a metric applies to."""

    mean: float | None = None
    """The mean; None where there are no such questions."""
    interval: tuple[float, float] | None = None
    """95% bootstrap interval; None where resamples may have no value."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """The numbers of one system over some of the questions."""

    questions: int
    questions_with_evidence: int
    questions_without_turns: int
    """Questions with evidence for which nothing was found but a model's own words, which stand for no turn."""
    estimates: dict[str, Estimate]
    """An estimate for each name of METRICS."""
    judges: Mapping[str, dict[str, int]]
    """How many answers each judge `judged` and left `unjudged`; a judge that was asked nothing is left out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """All numbers of one system."""

    overall: Block
    """Recall over all questions; answers and verdicts over the answerable ones."""
    answerable: Block
    set_apart: Block
    by_category: Mapping[str, Block]
    """The categories in the order of the records, adversarial and abstention questions last."""
    unanswered: int | None
    """Answers that could not be had; None where none were asked for."""
    sources: SourceScores | None
    """Scores by the sources of instances; None for datasets that have none."""


def summarize(records: Sequence[Record], seed: int, is_answered: bool = True) -> Summary:
    """Compute the numbers of one system's records; `is_answered` says whether answers were asked for.

    The order of the records, which depends on which answer came first, changes no number.
    """
    groups = dict.fromkeys(record.group for record in sorted(records, key=lambda record: record.is_set_apart))
    records = sorted(records, key=lambda record: record.key)
    set_apart = [record for record in records if record.is_set_apart]
    answerable = [record for record in records if not record.is_set_apart]
    every, of_answerable = _block(records, seed), _block(answerable, seed)
    recalls = {name: every.estimates[name] for name in RECALLS}
    return Summary(
        overall=replace(every, estimates=of_answerable.estimates | recalls, judges=of_answerable.judges),
        answerable=of_answerable,
        set_apart=_block(set_apart, seed),
        by_category={group: _block([each for each in records if each.group == group], seed) for group in groups},
        unanswered=sum(record.answer is None for record in records) if is_answered else None,
        sources=by_source(records, seed) if is_answered else None,
    )


def unjudged_share(records: Sequence[Record]) -> float:
    """Return the share of the verdicts asked of one judge that could not be had; the worse of the two judges."""
    counts = _judge_counts(records).values()
    return max((each["unjudged"] / sum(each.values()) for each in counts), default=0.0)


def _block(records: Sequence[Record], seed: int) -> Block:
    with_evidence = [record for record in records if record.evidence]
    return Block(
        questions=len(records),
        questions_with_evidence=len(with_evidence),
        questions_without_turns=sum(record.scores[RECALLS[0]] is None for record in with_evidence),
        estimates=_estimates(records, seed),
        judges=_judge_counts(records),
    )


def _judge_counts(records: Sequence[Record]) -> dict[str, dict[str, int]]:
    counts = {}
    for name in (*JUDGES, RUBRIC):
        if verdicts := [record.verdicts[name].correct for record in records if name in record.verdicts]:
            unjudged = verdicts.count(None)
            counts[name] = {"judged": len(verdicts) - unjudged, "unjudged": unjudged}
    return counts


def _estimates(records: Sequence[Record], seed: int) -> dict[str, Estimate]:
    if not records:
        return dict.fromkeys(METRICS, Estimate())
    values = np.array([[record.scores[name] for name in METRICS] for record in records], dtype=np.float64)  # (N, M)
    estimates = {}
    for name, column, bounds in zip(METRICS, values.T, bootstrap(values, seed).tolist(), strict=True):
        taken = column[~np.isnan(column)]
        interval = None if np.isnan(bounds).any() else (round(bounds[0], 6), round(bounds[1], 6))
        estimates[name] = Estimate(round(float(taken.mean()), 6) if len(taken) else None, interval)
    return estimates


def results(systems: Mapping[str, Summary], run: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `results.json` holds; `run` is how the numbers came about (settings, models, versions, hashes)."""
    return {
        "systems": {name: summary_json(summary) for name, summary in systems.items()},
        "category_policy": CATEGORY_POLICY,
        "intervals": intervals_text(run["seed"]),
        "run": dict(run),
    }


def intervals_text(seed: int) -> str:
    return f"{LEVEL:.0%} percentile bootstrap over questions, {RESAMPLES} resamples, seed {seed}"


def summary_json(summary: Summary) -> dict[str, Any]:
    """Return the numbers of one system as they stand in `results.json`."""
    sources = {} if summary.sources is None else {"by_source": asdict(summary.sources)}
    return (
        _block_json(summary.overall)
        | sources
        | {
            "questions_set_apart": summary.set_apart.questions,
            "unanswered": summary.unanswered,
            "answerable": _block_json(summary.answerable),
            "set_apart": _block_json(summary.set_apart),
            "by_category": {group: _block_json(block) for group, block in summary.by_category.items()},
        }
    )


def _block_json(block: Block) -> dict[str, Any]:
    means = {name: estimate.mean for name, estimate in block.estimates.items()}
    bounds = {name: estimate.interval for name, estimate in block.estimates.items()}
    recalls = {
        f"evidence_recall{by}{kind}": {str(k): means[f"{level}recall{kind}@{k}"] for k in CUTOFFS}
        for by, level in (("", ""), ("_session", "session_"))
        for kind in ("", "_any", "_mean")
    }
    return {
        "questions": block.questions,
        "questions_with_evidence": block.questions_with_evidence,
        "questions_without_turns": block.questions_without_turns,
        **recalls,
        "evidence_recall_interval": {str(k): bounds[f"recall@{k}"] for k in CUTOFFS},
        **{name: means[name] for name in ANSWER_SCORES},
        "judge": {name: _judge_json(block, name) for name in JUDGES},
        "intervals": {name: bounds[name] for name in ANSWER_SCORES},
    }


def _judge_json(block: Block, name: str) -> dict[str, Any] | None:
    if name not in block.judges:
        return None
    estimate = block.estimates[f"judge_{name}"]
    return {"accuracy": estimate.mean, "interval": estimate.interval, **block.judges[name]}
