"""Records of a run -> `results.json` and `table.md`. What counts in which mean is written beside the numbers."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from membuilder.evaluation.intervals import LEVEL, RESAMPLES, bootstrap
from membuilder.evaluation.records import ABSTENTION, ANSWER_SCORES, JUDGES, METRICS, Record
from membuilder.evaluation.scorers import ADVERSARIAL, CUTOFFS

SET_APART = (ADVERSARIAL, ABSTENTION)
CATEGORY_POLICY = {
    "evidence_recall": "every question with evidence, adversarial and abstention questions among them "
    "(`answerable` and `set_apart` give the two apart); questions without evidence count nowhere",
    "f1, exact, substring, judge, wrongly_abstained": "answerable questions only; adversarial and abstention questions "
    "are in `set_apart` and in columns of their own in `by_category`",
    "abstention": "questions that the dialogue does not answer, in `set_apart` only",
    "unjudged": "left out of the judge's mean and counted; above 1% the run fails",
}
_RECALL_BLOCKS = {
    "evidence_recall": "recall",
    "evidence_recall_any": "recall_any",
    "evidence_recall_mean": "recall_mean",
    "evidence_recall_session": "session_recall",
    "evidence_recall_session_any": "session_recall_any",
    "evidence_recall_session_mean": "session_recall_mean",
}


def summarize(records: Sequence[Record], seed: int) -> dict[str, Any]:
    """All numbers of one system; intervals are 95% bootstrap over questions."""
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
            "answerable": _block(answerable, seed),
            "set_apart": _block(set_apart, seed),
            "by_category": {group: _block(members, seed) for group, members in by_group.items()},
        }
    )


def unjudged_share(records: Sequence[Record]) -> float:
    """Of all verdicts asked for, those that could not be had."""
    verdicts = [verdict for record in records for verdict in record["verdicts"].values()]
    return sum(verdict["correct"] is None for verdict in verdicts) / len(verdicts) if verdicts else 0.0


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
    with_evidence = sum(bool(record["evidence"]) for record in records)
    return {"questions_with_evidence": with_evidence, **blocks, "evidence_recall_interval": bounds}


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
        "systems": {name: summarize(records, run["seed"]) for name, records in systems.items()},
        "category_policy": CATEGORY_POLICY,
        "intervals": f"{LEVEL:.0%} percentile bootstrap over questions, {RESAMPLES} resamples, seed {run['seed']}",
        "run": dict(run),
    }


def table(found: Mapping[str, Any]) -> str:
    """The numbers as Markdown: all systems in one table, then evidence recall at 10 by category."""
    systems = found["systems"]
    head = ["system", "questions", *(f"recall@{k}" for k in CUTOFFS), "f1", *(f"judge {name}" for name in JUDGES)]
    head += ["abstention (set apart)", "unjudged"]
    rows = [_row(name, system) for name, system in systems.items()]
    groups = list(dict.fromkeys(group for system in systems.values() for group in system["by_category"]))
    titles = [f"{group} (set apart)" if group in SET_APART else group for group in groups]
    by_group = [
        [
            name,
            *(_number(system["by_category"].get(group, {}).get("evidence_recall", {}).get("10")) for group in groups),
        ]
        for name, system in systems.items()
    ]
    counts = next(iter(systems.values()))["by_category"] if systems else {}
    sizes = ["questions with evidence", *(str(counts[group]["questions_with_evidence"]) for group in groups)]
    policy = [f"- {name}: {text}." for name, text in found["category_policy"].items()]
    return "\n".join(
        [
            *_markdown(head, rows),
            "",
            "Evidence recall@10 by category:",
            "",
            *_markdown(["system", *titles], [*by_group, sizes]),
            "",
            f"Intervals: {found['intervals']}. What counts where:",
            "",
            *policy,
            "",
        ]
    )


def _row(name: str, system: Mapping[str, Any]) -> list[str]:
    judges = [system["judge"][judge] for judge in JUDGES]
    return [
        name,
        str(system["questions"]),
        *(_number(system["evidence_recall"][str(k)], system["evidence_recall_interval"][str(k)]) for k in CUTOFFS),
        _number(system["f1"], system["intervals"]["f1"]),
        *("" if judge is None else _number(judge["accuracy"], judge["interval"]) for judge in judges),
        _number(system["set_apart"]["abstention"]),
        "" if not any(judges) else str(sum(judge["unjudged"] for judge in judges if judge)),
    ]


def _number(value: float | None, interval: Sequence[float] | None = None) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if interval is None else f"{value:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]"


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
