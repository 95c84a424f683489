"""One line of `answers.jsonl` per question and system: what was asked, found, answered, judged and scored.

    {"system": "rag-turn", "dialogue": "conv-26", "question_id": "conv-26_q1", "question": "...", "gold": "...",
     "category": "multi-hop", "group": "multi-hop", "answerable": true, "evidence": ["D1:3"],
     "retrieved": [{"source_turns": ["D1:3"], "score": 0.61}, ...], "core_turns": [],
     "answer": "...", "verdicts": {"strict": {"correct": true, "reason": "..."}}, "scores": {"recall@10": 1.0, ...}}

An item of a bank also has its `entry_id`, its `text` and the index of the `session` it was written in; a turn or session of
the dialogue is found in the data by its turns.
A score that does not apply is null, such as turn recall where nothing that was found knows its turns. An answer or a
verdict that could not be had is null as well, and counted as unanswered or unjudged.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from membuilder.datasets.fields import take
from membuilder.datasets.files import read_appended
from membuilder.evaluation.scorers import (
    ADVERSARIAL,
    CUTOFFS,
    Recall,
    abstention,
    evidence_recall,
    exact_match,
    substring_match,
    token_f1,
    wrongly_abstained,
)
from membuilder.evaluation.systems import Item, Ranking
from membuilder.types import Dialogue, Question

JUDGES = ("strict", "lenient")
ABSTENTION = "abstention"
ANSWER_SCORES = {
    "f1": token_f1,
    "exact": exact_match,
    "substring": substring_match,
    "abstention": abstention,
    "wrongly_abstained": wrongly_abstained,
}
RECALLS = tuple(
    f"{level}recall{kind}@{k}" for level in ("", "session_") for kind in ("", "_any", "_mean") for k in CUTOFFS
)
JUDGE_SCORES = tuple(f"judge_{name}" for name in JUDGES)
METRICS = (*RECALLS, *ANSWER_SCORES, *JUDGE_SCORES)

Record = dict[str, Any]
_KEPT: dict[str, type | tuple[type, ...]] = {
    "system": str,
    "dialogue": str,
    "question_id": str,
    "group": str,
    "question": str,
    "evidence": list,
    "answer": (str, type(None)),
    "verdicts": dict,
    "scores": dict,
}
"""What reports and comparisons read of a record."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredVerdict:
    correct: bool | None
    """None: it could not be judged."""
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Answered:
    text: str
    verdicts: Mapping[str, StoredVerdict] = field(default_factory=dict)
    """By judge, of those that apply to the question."""


def record_of(
    system: str, dialogue: Dialogue, question: Question, ranking: Ranking, answered: Answered | None
) -> Record:
    """`answered` is None where nobody was asked, or no answer could be had: what was found counts all the same."""
    verdicts = {} if answered is None else answered.verdicts
    return {
        "system": system,
        "dialogue": dialogue.id,
        "question_id": question.id,
        "question": question.text,
        "gold": question.answer,
        "category": question.category,
        "group": group_of(question),
        "answerable": question.answerable,
        "evidence": list(question.evidence),
        "retrieved": [_retrieved(item) for item in ranking.items],
        "core_turns": list(ranking.always.source_turns) if ranking.always else [],
        "answer": None if answered is None else answered.text,
        "verdicts": {
            name: {"correct": verdict.correct, "reason": verdict.reason} for name, verdict in verdicts.items()
        },
        "scores": _scores(dialogue, question, ranking, answered),
    }


def group_of(question: Question) -> str:
    """The column a question counts in: its category, unless it is adversarial or asks for abstention."""
    if question.category == ADVERSARIAL:
        return ADVERSARIAL
    return question.category if question.answerable else ABSTENTION


def _retrieved(item: Item) -> dict[str, Any]:
    found = {"source_turns": list(item.source_turns), "score": item.score}
    if item.entry_id is None:
        return found
    return {"entry_id": item.entry_id, "text": item.text, "session": item.session, **found}


def _scores(
    dialogue: Dialogue, question: Question, ranking: Ranking, answered: Answered | None
) -> dict[str, float | None]:
    scores: dict[str, float | None] = {}
    session_of = dialogue.session_of_turn()
    for level, sessions in (("", None), ("session_", session_of)):
        recalls = {k: evidence_recall(question, ranking, k, sessions) for k in CUTOFFS}
        for k, recall in recalls.items():
            scores |= _named(recall, level, k)
    for name, score in ANSWER_SCORES.items():
        scores[name] = None if answered is None else score(question, answered.text)
    for name in JUDGES:
        verdict = None if answered is None else answered.verdicts.get(name)
        scores[f"judge_{name}"] = None if verdict is None or verdict.correct is None else float(verdict.correct)
    return scores


def _named(recall: Recall | None, level: str, k: int) -> dict[str, float | None]:
    values = (None, None, None) if recall is None else (recall.all, recall.any, recall.mean)
    return {f"{level}recall{kind}@{k}": value for kind, value in zip(("", "_any", "_mean"), values, strict=True)}


def key_of(record: Record) -> tuple[str, str, str]:
    return record["system"], record["dialogue"], record["question_id"]


def is_whole(record: Record, is_answered: bool) -> bool:
    """Whether neither the answer, in a run that has them, nor a verdict is missing; else the next run asks again."""
    if is_answered and record["answer"] is None:
        return False
    return all(verdict["correct"] is not None for verdict in record["verdicts"].values())


def read_records(path: Path) -> list[Record]:
    """The records of an answers file, the last one of each question; a last line cut short by a kill is cut off."""
    records = {}
    for number, record in read_appended(path, "remove the line to have its question asked again"):
        for key, kind in _KEPT.items():
            take(record, key, kind, path, f"line {number}")
        records[key_of(record)] = record
    return list(records.values())
