"""Who answers and who judges: the seam between an evaluation and the language models it asks.

An evaluation needs two coroutines only; `open_roles` makes them out of membuilder's client and prompts. The client is
imported here and late, so that retrieval is scored without it.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from membuilder.evaluation.records import JUDGES, Verdict
from membuilder.evaluation.systems import Ranking
from membuilder.types import Question

Answer = Callable[[Question, Ranking, datetime], Awaitable[str | None]]
"""(question, what was found, date of the last session) -> the answer; None: the call failed, which is no answer."""
Judge = Callable[[str, Question, str], Awaitable[Verdict]]
"""(strict or lenient, question, answer) -> verdict; raises only where no call can succeed any more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Roles:
    answer: Answer
    judge: Judge
    judges: Sequence[str] = JUDGES
    report: Callable[[], dict[str, Any]] = field(default=dict)
    """What they used: tokens, cost, latency, prompts' hashes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelOptions:
    model: str
    provider: str
    base_url: str | None = None
    api_key: str | None = field(default=None, repr=False)


def make_chat_model(options: ModelOptions, role: str, usage: Any) -> Any:
    """membuilder's client of one role, an async context manager; see membuilder/client.py."""
    from membuilder.chat import Role
    from membuilder.client import ChatClient
    from membuilder.endpoints import ChatConfig, EndpointConfig, Provider

    endpoint = EndpointConfig(provider=Provider(options.provider), base_url=options.base_url)
    config = ChatConfig(model=options.model, endpoint=endpoint)
    return ChatClient(config, Role(role), usage, api_key=options.api_key)


@asynccontextmanager
async def open_roles(answerer: ModelOptions, judge: ModelOptions, top_k: int) -> AsyncIterator[Roles]:
    """Both models checked with one small call each, before anything costly begins."""
    from membuilder.answering import Strictness, prompt_hashes
    from membuilder.answering import answer as answer_from
    from membuilder.answering import judge as judge_answer
    from membuilder.errors import ChatError
    from membuilder.usage import Usage

    usage = Usage()
    async with AsyncExitStack() as stack:
        answering = await stack.enter_async_context(make_chat_model(answerer, "answerer", usage))
        judging = await stack.enter_async_context(make_chat_model(judge, "judge", usage))
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

        async def grade(name: str, question: Question, answer: str) -> Verdict:
            judgement = await judge_answer(question, answer, Strictness(name), judging)
            return Verdict(correct=judgement.correct, reason=judgement.reason)

        def report() -> dict[str, Any]:
            return {"usage": usage.report(), "prompts": dict(prompt_hashes())}

        yield Roles(answer=ask, judge=grade, report=report)
