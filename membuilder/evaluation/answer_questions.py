"""Answers and verdicts for many questions at once; each is written as soon as it is whole."""

import asyncio
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from membuilder.evaluation.answerer import Roles
from membuilder.evaluation.records import Answered
from membuilder.evaluation.systems import Ranking
from membuilder.llm.concurrency import for_each
from membuilder.types import Dialogue, Question


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    system: str
    dialogue: Dialogue
    question: Question
    ranking: Ranking


async def ask_all(
    cases: Iterable[Case], roles: Roles, concurrency: int, write: Callable[[Case, Answered | None], None]
) -> None:
    """At most `concurrency` questions in flight. An answer that could not be had is written as None."""

    async def ask(case: Case) -> None:
        write(case, await _ask(case, roles))

    await for_each(ask, cases, concurrency)


async def _ask(case: Case, roles: Roles) -> Answered | None:
    now = case.dialogue.sessions[-1].timestamp
    text = await roles.answer(case.question, case.ranking, now)
    if text is None:
        return None
    names = list(_judges(case, roles))
    verdicts = await asyncio.gather(*(roles.judge(name, case.question, text) for name in names))
    return Answered(text=text, verdicts=dict(zip(names, verdicts, strict=True)))


def _judges(case: Case, roles: Roles) -> Iterator[str]:
    """A question that has an answer but no gold one cannot be judged, and is not counted as unjudged."""
    if case.question.answer is not None or not case.question.answerable:
        yield from roles.judges
