"""Questions about the facts of a dialogue, and some about facts it never tells."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime

from membuilder.generate.facts import DATED, PLAIN, PROCEDURES, Fact, draw_values, months_after
from membuilder.generate.times import resolve
from membuilder.generate.topics import Ask
from membuilder.generate.values import Supply
from membuilder.types import Question

SECOND_ASK_CHANGE = 0.5
SECOND_ASK_OTHER = 0.25
UNANSWERABLE_PER_ANSWERABLE = 0.11


@dataclass(frozen=True, kw_only=True, slots=True)
class Draft:
    """A question before its dialogue numbers and dates it."""

    text: str
    answer: str | None
    category: str
    evidence: tuple[str, ...]


def answerable_questions(
    rng: random.Random,
    facts: Sequence[Fact],
    speakers: tuple[str, str],
    days: Sequence[date],
    turn_ids: dict[tuple[int, int], tuple[str, ...]],
) -> list[Draft]:
    """Questions with evidence, in the order of its last session; `turn_ids` maps (fact, stage) to the turns told."""
    asked = []
    for index, fact in enumerate(facts):
        for ask in _choose_asks(rng, fact):
            told = fact.stages[ask.stages[-1]]
            when = {"date": resolve(told.phrase, days[told.session])} if ask.needs_date else {}
            draft = Draft(
                text=rng.choice(ask.texts).format_map(fact.values | {"name": speakers[fact.owner]}),
                answer=ask.answer.format_map(fact.values | when),
                category=ask.category,
                evidence=tuple(turn_id for stage in ask.stages for turn_id in turn_ids[index, stage]),
            )
            asked.append((told.session, draft))
    return [draft for _, draft in sorted(asked, key=lambda pair: pair[0])]


def unanswerable_questions(
    rng: random.Random,
    supply: Supply,
    speakers: tuple[str, str],
    used_subjects: tuple[set[str], set[str]],
    last_day: date,
    count: int,
) -> list[Draft]:
    """Questions on subjects that the person asked about never mentions; fewer than `count` once subjects run out."""
    drafts = []
    for _ in range(count):
        owner = rng.randrange(2)
        topics = [t for t in PLAIN + DATED + PROCEDURES if t.subject_key not in used_subjects[owner]]
        if not topics:
            continue
        topic = rng.choice(topics)
        used_subjects[owner].add(topic.subject_key)
        values = draw_values(topic, supply, months_after(rng, last_day)) | {"name": speakers[owner]}
        text = rng.choice(rng.choice(topic.asks).texts).format_map(values)
        drafts.append(Draft(text=text, answer=None, category="unanswerable", evidence=()))
    return drafts


def _choose_asks(rng: random.Random, fact: Fact) -> list[Ask]:
    """One question on a fact, its defining kind first, and sometimes a second one."""
    asks = [ask for ask in fact.topic.asks if not ask.needs_date or fact.stages[ask.stages[0]].phrase is not None]
    is_change = len(fact.stages) > 1
    if is_change:
        defining = [ask for ask in asks if ask.category in ("knowledge-update", "multi-session")]
    else:
        defining = [ask for ask in asks if ask.needs_date] or asks
    first = rng.choice(defining)
    rest = [ask for ask in asks if ask is not first]
    if rest and rng.random() < (SECOND_ASK_CHANGE if is_change else SECOND_ASK_OTHER):
        return [first, rng.choice(rest)]
    return [first]


def finish(drafts: Sequence[Draft], dialogue_id: str, asked_at: datetime) -> tuple[Question, ...]:
    return tuple(
        Question(
            id=f"{dialogue_id}-q{number}",
            text=draft.text,
            answer=draft.answer,
            category=draft.category,
            evidence=draft.evidence,
            asked_at=asked_at,
            answerable=bool(draft.evidence),
        )
        for number, draft in enumerate(drafts, start=1)
    )
