"""Who answers and who judges: the seam between an evaluation and the language models it asks.

An evaluation needs two coroutines only; `open_roles` makes them out of membuilder's client and prompts. The client is
imported here and late, so that retrieval is scored without it.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from membuilder.errors import ChatError, ConfigError
from membuilder.evaluation.records import JUDGES, StoredVerdict
from membuilder.evaluation.systems import Ranking
from membuilder.llm.endpoints import PriceConfig
from membuilder.types import Question

Answer = Callable[[Question, Ranking, datetime], Awaitable[str | None]]
"""(question, what was found, date of the last session) -> the answer; None: the call failed, which is no answer."""
Judge = Callable[[str, Question, str], Awaitable[StoredVerdict]]
"""(strict or lenient, question, answer) -> verdict; raises only where no call can succeed any more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Roles:
    answer: Answer
    judge: Judge
    judges: Sequence[str] = JUDGES
    prompts: Mapping[str, str] = field(default_factory=dict)
    """Name -> SHA-256 of every prompt they are asked with."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelOptions:
    model: str
    provider: str
    base_url: str | None = None
    api_key: str | None = field(default=None, repr=False)
    concurrency: int = 16
    """Requests in flight at once."""
    max_tokens: int = 4096
    price: PriceConfig | None = None
    """None: unknown."""


def make_chat_model(options: ModelOptions, role: str, usage: Any, cache: Any = None) -> Any:
    """membuilder's client of one role, an async context manager; see membuilder/llm/client.py."""
    from membuilder.llm.chat_model import Role
    from membuilder.llm.client import ChatClient
    from membuilder.llm.endpoints import ChatConfig, EndpointConfig, Provider

    try:
        endpoint = EndpointConfig(
            provider=Provider(options.provider), base_url=options.base_url, concurrency=options.concurrency
        )
        config = ChatConfig(model=options.model, endpoint=endpoint, max_tokens=options.max_tokens, price=options.price)
    except ValueError as error:
        raise ConfigError(f"model {options.model!r}: {error}") from error
    return ChatClient(config, Role(role), usage, api_key=options.api_key, cache=cache)


@asynccontextmanager
async def open_roles(
    answerer: ModelOptions, judge: ModelOptions, top_k: int, usage: Any, cache: Any = None
) -> AsyncIterator[Roles]:
    """Both models checked with one small call each, before anything costly begins."""
    from membuilder.llm.answer_and_judge import Strictness, prompt_hashes
    from membuilder.llm.answer_and_judge import answer as answer_from
    from membuilder.llm.answer_and_judge import judge as judge_answer

    async with AsyncExitStack() as stack:
        answering = await stack.enter_async_context(make_chat_model(answerer, "answerer", usage, cache))
        judging = await stack.enter_async_context(make_chat_model(judge, "judge", usage, cache))
        past_cache = judging
        if cache is not None:
            past_cache = await stack.enter_async_context(make_chat_model(judge, "judge", usage))
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
            judgement = await judge_answer(question, answer, Strictness(name), judging, past_cache)
            return StoredVerdict(correct=judgement.correct, reason=judgement.reason)

        yield Roles(answer=ask, judge=grade, prompts=prompt_hashes())
