"""Asks the models of an evaluation for an answer from what was found and for two verdicts on it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime

from membuilder.errors import ChatError
from membuilder.evaluation.metrics import JUDGES, Answered, Outcome, StoredVerdict
from membuilder.evaluation.recall import Ranking
from membuilder.llm.answer_and_judge import Strictness, prompt_hashes
from membuilder.llm.answer_and_judge import answer as answer_from
from membuilder.llm.answer_and_judge import judge as judge_answer
from membuilder.llm.chat_model import Role
from membuilder.llm.client import open_chat
from membuilder.llm.concurrency import for_each
from membuilder.llm.costs import Costs
from membuilder.llm.endpoints import ModelAccess
from membuilder.types import Dialogue, Question

Answer = Callable[[Question, Ranking, datetime], Awaitable[str | None]]
"""(question, what was found, date of the last session) -> the answer; None: the call failed, which is no answer."""
Judge = Callable[[str, Question, str], Awaitable[StoredVerdict]]
"""(strict or lenient, question, answer) -> verdict; raises only where no call can succeed any more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Roles:
    """Who answers and who judges."""

    answer: Answer
    judge: Judge
    judges: Sequence[str] = JUDGES
    prompts: Mapping[str, str] = field(default_factory=dict)
    """Name -> SHA-256 of every prompt they are asked with."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One question with what one system found for it."""

    system: str
    dialogue: Dialogue
    question: Question
    ranking: Ranking

    def outcome(self, answered: Answered | None) -> Outcome:
        return Outcome(dialogue=self.dialogue, question=self.question, ranking=self.ranking, answered=answered)


@asynccontextmanager
async def open_roles(answerer: ModelAccess, judge: ModelAccess, top_k: int, costs: Costs) -> AsyncIterator[Roles]:
    """Both models, checked with one small call each before anything costly begins."""
    async with AsyncExitStack() as stack:
        answering = await stack.enter_async_context(open_chat(answerer, Role.ANSWERER, costs))
        judging = await stack.enter_async_context(open_chat(judge, Role.JUDGE, costs))
        past_cache = judging
        if (
            costs.answers is not None
        ):  # a verdict that was none is asked for again past the cache, which would repeat it
            past_cache = await stack.enter_async_context(open_chat(judge, Role.JUDGE, costs.without_cache()))
        await answering.check()
        await judging.check()

        async def ask(question: Question, ranking: Ranking, now: datetime) -> str | None:
            core = ranking.always.text if ranking.always else ""
            memories = [item.text for item in ranking.items[:top_k]]
            try:
                return await answer_from(question, core=core, memories=memories, model=answering, now=now)
            except ChatError as error:
                if error.fatal:
                    raise
                return None

        async def grade(name: str, question: Question, answer: str) -> StoredVerdict:
            verdict = await judge_answer(question, answer, Strictness(name), judging, past_cache)
            return StoredVerdict(correct=verdict.correct, reason=verdict.reason)

        yield Roles(answer=ask, judge=grade, prompts=prompt_hashes())


async def ask_all(
    cases: Iterable[Case], roles: Roles, concurrency: int, write: Callable[[Case, Answered | None], None]
) -> None:
    """Answer and judge each question, at most `concurrency` at once; each is written as soon as it is whole.

    An answer that could not be had is written as None.
    """

    async def ask(case: Case) -> None:
        write(case, await _ask(case, roles))

    await for_each(ask, cases, concurrency)


async def _ask(case: Case, roles: Roles) -> Answered | None:
    text = await roles.answer(case.question, case.ranking, case.dialogue.sessions[-1].timestamp)
    if text is None:
        return None
    names = list(_judges(case, roles))
    verdicts = await asyncio.gather(*(roles.judge(name, case.question, text) for name in names))
    return Answered(text=text, verdicts=dict(zip(names, verdicts, strict=True)))


def _judges(case: Case, roles: Roles) -> Iterator[str]:
    """Judges of the question; one that has an answer but no gold one cannot be judged, nor counts as unjudged."""
    if case.question.answer is not None or not case.question.answerable:
        yield from roles.judges
