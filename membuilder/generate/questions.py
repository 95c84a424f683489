"""Questions about the facts of a dialogue, and some about facts it never tells."""

import random
from collections.abc import Sequence
from dataclasses import replace
from datetime import date, datetime

from membuilder.generate.facts import Fact, draw_values, months_after
from membuilder.generate.library import Library
from membuilder.generate.supply import Supply
from membuilder.generate.times import resolve
from membuilder.generate.topics import QuestionTemplate
from membuilder.types import Question

SECOND_QUESTION_CHANGE = 0.5
SECOND_QUESTION_OTHER = 0.25
"""Chance that a fact that changed, or another fact, is asked about twice."""
UNANSWERABLE_PER_ANSWERABLE = 0.11


def answerable_questions(
    rng: random.Random,
    facts: Sequence[Fact],
    speakers: tuple[str, str],
    days: Sequence[date],
    turn_ids: dict[tuple[int, int], tuple[str, ...]],
) -> list[Question]:
    """Ask about what was told, in the order of the session that completes it; ids and dates come later.

    `turn_ids` maps (fact, stage) to the turns that tell it.
    """
    asked = []
    for index, fact in enumerate(facts):
        for question in _choose(rng, fact):
            told = fact.stages[question.stages[-1]]
            when = {"date": resolve(told.phrase, days[told.session])} if question.needs_date else {}
            draft = Question(
                id="",
                text=rng.choice(question.texts).format_map(fact.values | {"name": speakers[fact.owner]}),
                answer=question.answer.format_map(fact.values | when),
                category=question.category,
                evidence=tuple(turn_id for stage in question.stages for turn_id in turn_ids[index, stage]),
            )
            asked.append((told.session, draft))
    return [draft for _, draft in sorted(asked, key=lambda pair: pair[0])]


def unanswerable_questions(
    rng: random.Random,
    library: Library,
    supply: Supply,
    speakers: tuple[str, str],
    used_subjects: tuple[set[str], set[str]],
    last_day: date,
    count: int,
) -> list[Question]:
    """Ask about subjects that the person never mentions; there are fewer than `count` if subjects run out."""
    drafts = []
    told_once = library.plain + library.dated + library.procedures
    for _ in range(count):
        owner = rng.randrange(2)
        topics = [topic for topic in told_once if topic.subject not in used_subjects[owner]]
        if not topics:
            continue
        topic = rng.choice(topics)
        used_subjects[owner].add(topic.subject)
        values = draw_values(topic, supply, months_after(rng, last_day)) | {"name": speakers[owner]}
        text = rng.choice(rng.choice(topic.questions).texts).format_map(values)
        drafts.append(Question(id="", text=text, answer=None, category="unanswerable", evidence=(), answerable=False))
    return drafts


def _choose(rng: random.Random, fact: Fact) -> list[QuestionTemplate]:
    """Choose a question of the kind that a fact was told for (its change, its date), and sometimes another."""
    possible = [q for q in fact.topic.questions if not q.needs_date or fact.stages[q.stages[0]].phrase is not None]
    is_change = len(fact.stages) > 1
    if is_change:
        defining = [question for question in possible if question.category in ("knowledge-update", "multi-session")]
    else:
        defining = [question for question in possible if question.needs_date] or possible
    first = rng.choice(defining)
    rest = [question for question in possible if question is not first]
    if rest and rng.random() < (SECOND_QUESTION_CHANGE if is_change else SECOND_QUESTION_OTHER):
        return [first, rng.choice(rest)]
    return [first]


def finish(drafts: Sequence[Question], dialogue_id: str, asked_at: datetime) -> tuple[Question, ...]:
    """Number and date the questions."""
    numbered = enumerate(drafts, start=1)
    return tuple(replace(draft, id=f"{dialogue_id}-q{number}", asked_at=asked_at) for number, draft in numbered)
