"""One line of `answers.jsonl` per question and system: what was asked, found, answered, judged and scored.

    {"system": "rag-turn", "dialogue": "conv-26", "question_id": "conv-26_q1", "question": "...", "gold": "...",
     "category": "multi-hop", "group": "multi-hop", "answerable": true, "evidence": ["D1:3"],
     "retrieved": [{"source_turns": ["D1:3"], "score": 0.61}, ...], "core_turns": [],
     "answer": "...", "verdicts": {"strict": {"correct": true, "reason": "..."}}, "scores": {"recall@10": 1.0, ...}}

An item of a bank also has its `entry_id`, its `text` and the index of the `session` it was written in; a turn or
session of the dialogue is found in the data by its turns. A score that does not apply is null, such as turn recall
where nothing that was found knows its turns. An answer or a verdict that could not be had is null as well, and counted
as unanswered or unjudged.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import msgspec
from msgspec import UNSET, UnsetType

from membuilder.datasets.files import read_appended
from membuilder.datasets.typed import typed
from membuilder.errors import DataError
from membuilder.evaluation.metrics import METRICS, SET_APART, Outcome, group_of
from membuilder.evaluation.recall import Item
from membuilder.llm.answer_and_judge import AnswerVerdict

_ADVICE = "remove the line to have its question asked again"


@dataclass(frozen=True, kw_only=True, slots=True)
class Retrieved:
    """One item that was found; the first three fields belong to entries of a bank."""

    entry_id: str | UnsetType = UNSET
    text: str | UnsetType = UNSET
    session: int | None | UnsetType = UNSET
    source_turns: tuple[str, ...]
    score: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One question put to one system."""

    system: str
    dialogue: str
    question_id: str
    question: str
    gold: str | None
    category: str
    group: str
    """The column it counts in: its category, `adversarial` or `abstention`."""
    answerable: bool
    evidence: tuple[str, ...]
    retrieved: tuple[Retrieved, ...]
    core_turns: tuple[str, ...]
    answer: str | None
    verdicts: dict[str, AnswerVerdict]
    scores: dict[str, float | None]
    """The score of each name in METRICS."""
    source: str | None | UnsetType = UNSET
    """Where the instance comes from, in datasets of instances."""
    memory_tokens: int | UnsetType = UNSET
    """Tokens of all that the system keeps to answer from."""
    chunk_tokens: int | UnsetType = UNSET
    """Tokens of the whole dialogue."""
    cut_tokens: int | UnsetType = UNSET
    """Tokens of the dialogue that were cut out for this question, where the context is limited."""
    searches: tuple[str, ...] | UnsetType = UNSET
    """What the reader searched for itself before it answered."""

    @property
    def key(self) -> tuple[str, str, str]:
        return self.system, self.dialogue, self.question_id

    @property
    def is_set_apart(self) -> bool:
        return self.group in SET_APART

    def is_whole(self, is_answered: bool) -> bool:
        """Tell whether neither the answer, in a run that has them, nor a verdict is missing; else it is asked again."""
        is_judged = all(verdict.correct is not None for verdict in self.verdicts.values())
        return is_judged and not (is_answered and self.answer is None)

    def to_json(self) -> str:
        return json.dumps(msgspec.to_builtins(self), ensure_ascii=False)


def record_of(outcome: Outcome) -> Record:
    """Return the record of an outcome; where no answer could be had, what was found counts all the same."""
    question, ranking = outcome.question, outcome.ranking
    return Record(
        system=outcome.system,
        dialogue=outcome.dialogue.id,
        question_id=question.id,
        question=question.text,
        gold=question.answer,
        category=question.category,
        group=group_of(question),
        answerable=question.answerable,
        evidence=question.evidence,
        retrieved=tuple(map(_retrieved, ranking.items)),
        core_turns=ranking.always.source_turns if ranking.always else (),
        answer=outcome.answer,
        verdicts=dict(outcome.verdicts),
        scores={name: metric.score(outcome) for name, metric in METRICS.items()},
        source=outcome.source or UNSET,
        memory_tokens=_or_unset(outcome.memory_tokens),
        chunk_tokens=_or_unset(outcome.chunk_tokens),
        cut_tokens=_or_unset(ranking.cut_tokens),
        searches=tuple(ranking.search.queries) if ranking.search and ranking.search.queries else UNSET,
    )


def _or_unset(number: int | None) -> int | UnsetType:
    return UNSET if number is None else number


def _retrieved(item: Item) -> Retrieved:
    of_entry = {} if item.entry_id is None else {name: getattr(item, name) for name in ("entry_id", "text", "session")}
    return Retrieved(source_turns=item.source_turns, score=item.score, **of_entry)


def read_records(path: Path) -> list[Record]:
    """Return an answers file's records, the last one of each question; a last line that a kill cut short is cut off."""
    lines = read_appended(path, _ADVICE)
    records = [typed(Record, line, path, f"line {number}", advice=_ADVICE) for number, line in lines]
    for (number, _), record in zip(lines, records, strict=True):
        if absent := METRICS.keys() - record.scores.keys():
            problem = f"has no {min(absent)}: edited, or of another version; {_ADVICE}"
            raise DataError(path, f"line {number}", "scores", problem)
    return list({record.key: record for record in records}.values())
