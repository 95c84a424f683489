"""Asks the models of an evaluation for an answer from what was found and for two verdicts on it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime

from membuilder.errors import ChatError
from membuilder.evaluation.metrics import JUDGES, RUBRIC, Outcome
from membuilder.evaluation.protocols.prompts import ANSWER_NOW, SEARCH, protocol_hashes
from membuilder.evaluation.protocols.search_rounds import answer_by_search
from membuilder.evaluation.recall import Ranking
from membuilder.evaluation.source_metrics import SourceMetric, form_of, metric_of
from membuilder.llm.answer_and_judge import PROMPTS, SOURCE_PROMPTS, AnswerVerdict, Strictness, prompt_hashes
from membuilder.llm.answer_and_judge import answer as answer_from
from membuilder.llm.answer_and_judge import judge as judge_answer
from membuilder.llm.chat_model import Role
from membuilder.llm.client import ChatClient
from membuilder.llm.concurrency import for_each
from membuilder.llm.costs import Costs
from membuilder.llm.endpoints import ModelAccess
from membuilder.types import Question

Answer = Callable[[Question, Ranking, datetime], Awaitable[str | None]]
"""(question, what was found, date of the last session) -> the answer; None: the call failed, which is no answer."""
Judge = Callable[[str, Question, str], Awaitable[AnswerVerdict]]
"""(strict, lenient or rubric, question, answer) -> verdict; raises only where no call can succeed any more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Roles:
    """Who answers and who judges."""

    answer: Answer
    judge: Judge
    prompts: Mapping[str, str] = field(default_factory=dict)
    """The SHA-256 of every prompt they are asked with, by name."""


@asynccontextmanager
async def open_roles(
    answerer: ModelAccess,
    judge: ModelAccess,
    top_k: int,
    costs: Costs,
    by_source: bool = False,
    rounds: int | None = None,
) -> AsyncIterator[Roles]:
    """Both models, checked with one small call each before anything costly begins.

    `by_source`: answers are asked for in the form that their source is scored in. `rounds`: so often the answerer may
    search what can be searched.
    """
    async with AsyncExitStack() as stack:
        answering = await stack.enter_async_context(ChatClient(answerer, Role.ANSWERER, costs))
        judging = await stack.enter_async_context(ChatClient(judge, Role.JUDGE, costs))
        past_cache = judging
        if costs.answers is not None:  # a missing verdict is asked for again past the cache, which would repeat it
            past_cache = await stack.enter_async_context(ChatClient(judge, Role.JUDGE, replace(costs, answers=None)))
        await answering.check()
        await judging.check()

        searching = asyncio.Lock()

        async def ask(question: Question, ranking: Ranking, now: datetime) -> str | None:
            given = ranking.items[:top_k] if ranking.given is None else ranking.given
            asked = {
                "core": ranking.always.text if ranking.always else "",
                "model": answering,
                "now": now,
                "form": form_of(question) if by_source else None,
            }
            try:
                if rounds is not None and ranking.search is not None:
                    of_search = {"search": ranking.search, "rounds": rounds, "per_search": top_k}
                    return await answer_by_search(question, given=given, searching=searching, **of_search, **asked)
                return await answer_from(question, memories=[item.text for item in given], **asked)
            except ChatError as error:
                if error.fatal:
                    raise
                return None

        async def grade(name: str, question: Question, answer: str) -> AnswerVerdict:
            return await judge_answer(question, answer, Strictness(name), judging, past_cache)

        prompts = prompt_hashes(SOURCE_PROMPTS if by_source else PROMPTS)
        of_search = {} if rounds is None else protocol_hashes((SEARCH, ANSWER_NOW))
        yield Roles(answer=ask, judge=grade, prompts={**prompts, **of_search})


async def ask_all(cases: Iterable[Outcome], roles: Roles, concurrency: int, write: Callable[[Outcome], None]) -> None:
    """Answer and judge each question, at most `concurrency` at once; each is written as soon as it is whole.

    An answer that could not be had stays None. Without a gold answer nothing is judged, nor counts as unjudged.
    """

    async def ask(case: Outcome) -> None:
        question, verdicts = case.question, []
        answer = await roles.answer(question, case.ranking, case.dialogue.sessions[-1].timestamp)
        judges = _judges_of(case)
        if answer is not None and (question.answer is not None or not question.answerable):
            verdicts = await asyncio.gather(*(roles.judge(name, question, answer) for name in judges))
        write(replace(case, answer=answer, verdicts=dict(zip(judges, verdicts, strict=False))))

    await for_each(ask, cases, concurrency)


def _judges_of(case: Outcome) -> tuple[str, ...]:
    """Return who judges an answer; where sources have metrics of their own, only what a rubric grades is judged."""
    if case.source is None:
        return JUDGES
    return (RUBRIC,) if metric_of(case.question) is SourceMetric.RUBRIC else ()
