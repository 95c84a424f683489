"""Records of a run -> `results.json`. What counts in which mean is written beside the numbers."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from membuilder.evaluation.intervals import LEVEL, RESAMPLES, bootstrap
from membuilder.evaluation.records import ABSTENTION, ANSWER_SCORES, JUDGES, METRICS, RECALLS, Record
from membuilder.evaluation.scorers import ADVERSARIAL, CUTOFFS

SET_APART = (ADVERSARIAL, ABSTENTION)
CATEGORY_POLICY = {
    "evidence_recall": "every question with evidence, adversarial and abstention questions among them "
    "(`answerable` and `set_apart` give the two apart); questions without evidence count nowhere, and neither do, by turns, "
    "those for which nothing but a model's own words was found, which stand for no turn (`questions_without_turns`); where "
    "some of what was found quotes turns and some does not, recall by turns is a lower bound",
    "f1, exact, substring, judge, wrongly_abstained": "answerable questions only; adversarial and abstention questions "
    "are in `set_apart` and in columns of their own in `by_category`",
    "abstention": "questions that the dialogue does not answer, in `set_apart` only",
    "unjudged, unanswered": "left out of every mean of verdicts or answers, though not of recall, and counted; the run fails "
    "where above 1% of one system's are missing",
}
_RECALL_BLOCKS = {
    "evidence_recall": "recall",
    "evidence_recall_any": "recall_any",
    "evidence_recall_mean": "recall_mean",
    "evidence_recall_session": "session_recall",
    "evidence_recall_session_any": "session_recall_any",
    "evidence_recall_session_mean": "session_recall_mean",
}


def summarize(records: Sequence[Record], seed: int, is_answered: bool = True) -> dict[str, Any]:
    """All numbers of one system; intervals are 95% bootstrap over questions. `is_answered`: answers were asked for."""
    set_apart = [record for record in records if record["group"] in SET_APART]
    answerable = [record for record in records if record["group"] not in SET_APART]
    # categories in the order of the questions, the set-apart ones last
    groups = dict.fromkeys([*(record["group"] for record in answerable), *(record["group"] for record in set_apart)])
    by_group = {group: [record for record in records if record["group"] == group] for group in groups}
    return (
        _block(answerable, seed)
        | _recalls(records, seed)
        | {
            "questions": len(records),
            "questions_set_apart": len(set_apart),
            "unanswered": sum(map(_is_unanswered, records)) if is_answered else None,
            "answerable": _block(answerable, seed),
            "set_apart": _block(set_apart, seed),
            "by_category": {group: _block(members, seed) for group, members in by_group.items()},
        }
    )


def unjudged_share(records: Sequence[Record]) -> float:
    """Of the verdicts asked of one judge, those that could not be had; the worse of the two judges."""
    given = [[record["verdicts"][name] for record in records if name in record["verdicts"]] for name in JUDGES]
    shares = [sum(each["correct"] is None for each in verdicts) / len(verdicts) for verdicts in given if verdicts]
    return max(shares, default=0.0)


def unanswered_share(records: Sequence[Record]) -> float:
    """Of the answers asked for, those that could not be had."""
    return sum(map(_is_unanswered, records)) / len(records) if records else 0.0


def _is_unanswered(record: Record) -> bool:
    return record["answer"] is None


def _block(records: Sequence[Record], seed: int) -> dict[str, Any]:
    means, intervals = _means(records, seed)
    answers = {name: means[name] for name in ANSWER_SCORES}
    return (
        {"questions": len(records)}
        | _recalls(records, seed)
        | answers
        | {
            "judge": {name: _judge(records, name, means, intervals) for name in JUDGES},
            "intervals": {name: intervals[name] for name in ANSWER_SCORES},
        }
    )


def _recalls(records: Sequence[Record], seed: int) -> dict[str, Any]:
    means, intervals = _means(records, seed)
    blocks = {block: {str(k): means[f"{metric}@{k}"] for k in CUTOFFS} for block, metric in _RECALL_BLOCKS.items()}
    bounds = {str(k): intervals[f"recall@{k}"] for k in CUTOFFS}
    with_evidence = [record for record in records if record["evidence"]]
    counts = {
        "questions_with_evidence": len(with_evidence),
        "questions_without_turns": sum(record["scores"][RECALLS[0]] is None for record in with_evidence),
    }
    return {**counts, **blocks, "evidence_recall_interval": bounds}


def _judge(records: Sequence[Record], name: str, means: Mapping, intervals: Mapping) -> dict[str, Any] | None:
    verdicts = [record["verdicts"][name]["correct"] for record in records if name in record["verdicts"]]
    if not verdicts:
        return None
    metric = f"judge_{name}"
    unjudged = sum(correct is None for correct in verdicts)
    return {
        "accuracy": means[metric],
        "interval": intervals[metric],
        "judged": len(verdicts) - unjudged,
        "unjudged": unjudged,
    }


def _means(records: Sequence[Record], seed: int) -> tuple[dict[str, float | None], dict[str, list[float] | None]]:
    """Mean and interval of each metric over the questions it applies to; None where there are none."""
    if not records:
        return dict.fromkeys(METRICS), dict.fromkeys(METRICS)
    values = np.array([[record["scores"][name] for name in METRICS] for record in records], dtype=np.float64)  # (N, M)
    present = ~np.isnan(values)
    sums, counts = np.where(present, values, 0.0).sum(axis=0), present.sum(axis=0)
    bounds = bootstrap(values, seed)
    means = {name: round(float(sums[i] / counts[i]), 6) if counts[i] else None for i, name in enumerate(METRICS)}
    intervals = {
        name: None if np.isnan(bounds[i]).any() else [round(float(bound), 6) for bound in bounds[i]]
        for i, name in enumerate(METRICS)
    }
    return means, intervals


def results(systems: Mapping[str, Sequence[Record]], run: Mapping[str, Any]) -> dict[str, Any]:
    """What `results.json` holds; `run` is how the numbers came about (settings, models, versions, hashes)."""
    return {
        "systems": {
            name: summarize(records, run["seed"], run["answer_model"] is not None) for name, records in systems.items()
        },
        "category_policy": CATEGORY_POLICY,
        "intervals": f"{LEVEL:.0%} percentile bootstrap over questions, {RESAMPLES} resamples, seed {run['seed']}",
        "run": dict(run),
    }
