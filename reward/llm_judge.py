"""`judge: llm`: one model answers each question from the memory, another one grades the answer.

With `grading: source` the metric of the question's source scores the answer, and the grader is asked only where that
is a rubric. Both are any OpenAI-compatible endpoint, asked as an evaluation asks (membuilder/llm/answer_and_judge.py):
the same prompts, retries and cache. A call that fails leaves its verdict missing, by a cause such as `grader_timeout`;
only what no later call can mend, such as a refused key, ends the run.
"""

import asyncio
from collections.abc import Hashable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any, Self

from membuilder.bank.retrieve import Retrieval
from membuilder.errors import ChatError, ChatErrorKind
from membuilder.evaluation.source_metrics import SourceMetric, form_of, metric_of
from membuilder.llm.answer_and_judge import (
    RUBRICS,
    SOURCE_PROMPTS,
    VALIDITY_PROMPTS,
    Strictness,
    answer_prompt,
    ask_verdict,
    prompt_hashes,
    prompt_texts,
)
from membuilder.llm.answer_and_judge import answer as answer_from
from membuilder.llm.chat_model import Role
from membuilder.llm.client import ChatClient
from membuilder.llm.costs import Costs
from membuilder.llm.endpoints import SETTING_HINT, ModelAccess, chat_address
from membuilder.llm.response_cache import AnswerCache
from membuilder.llm.usage import Usage
from membuilder.types import Bank, Question
from reward.judges import NO_GOLD, Judge, Verdict, load_judge, score_reply
from reward.memalpha_config import ValidityBy
from reward.score import LLM, Grading, RewardConfig, RewardEndpoint

ANSWERER, GRADER = "answerer", "grader"
_WITHOUT_GOLD = Verdict(correct=None, reason="the question has no gold answer", cause=NO_GOLD)


def make_judge(config: RewardConfig) -> Judge:
    """Return the judge that a configuration names. Raises ConfigError, also where a key it needs is not set."""
    return LLMJudge(config) if config.judge == LLM else load_judge(config.judge)


def judge_prompts(config: RewardConfig) -> dict[str, dict[str, str]]:
    """Return the prompts that models are asked with for rewards, and their SHA-256; none where no model is asked."""
    used: list[str] = []
    if config.judge == LLM and config.grading is Grading.SOURCE:
        used += SOURCE_PROMPTS
    elif config.judge == LLM and config.grading is Grading.RUBRIC:
        used += ["answer", *dict.fromkeys(f"rubric_{each}" for each in RUBRICS.values()), "judge_unanswerable"]
    elif config.judge == LLM:
        used += ["answer", f"judge_{config.grading}", "judge_unanswerable"]
    if config.memalpha.validity is ValidityBy.LLM:
        used += VALIDITY_PROMPTS
    hashes, texts = prompt_hashes(used), prompt_texts(used)
    return {name: {"sha256": hashes[name], "text": texts[name]} for name in used}


def check_keys(config: RewardConfig) -> None:
    """Raise ConfigError, naming the variable, where a model that rewards are asked of lacks its key."""
    for endpoint in (*(endpoint for _, endpoint in _endpoints(config)), config.validator):
        if endpoint is not None:
            chat_address(access_of(endpoint))


class LLMJudge(AbstractAsyncContextManager):
    """It asks in one event loop at a time, which enters it; `usage` counts its calls from then on."""

    def __init__(self, config: RewardConfig) -> None:
        self._config = config
        self._cache = None if config.cache is None else AnswerCache(config.cache)
        self.usage = Usage()
        check_keys(config)

    def check(self) -> None:
        """Ask each model for one small answer. Raises ChatError, saying what to do, where none comes."""
        asyncio.run(self._check())

    async def _check(self) -> None:
        async with self:
            for name, _ in _endpoints(self._config):
                try:
                    await self._clients[name].check()
                except ChatError as error:
                    raise ChatError(error.kind, f"reward.{name}: {_told(name, error)}") from None

    async def __aenter__(self) -> Self:
        self._stack, self.usage = AsyncExitStack(), Usage()
        self._clients = {name: await self._client(name, endpoint, True) for name, endpoint in _endpoints(self._config)}
        self._again = self._clients.get(GRADER)
        if self._cache is not None and self._config.grader is not None:  # past the cache, which would repeat its reply
            self._again = await self._client(GRADER, self._config.grader, False)
        return self

    async def _client(self, name: str, endpoint: RewardEndpoint, with_cache: bool) -> ChatClient:
        costs = Costs(usage=self.usage, answers=self._cache if with_cache else None)
        role = Role.ANSWERER if name == ANSWERER else Role.JUDGE
        return await self._stack.enter_async_context(ChatClient(access_of(endpoint), role, costs))

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    def key(self, question: Question, bank: Bank, retrieval: Retrieval) -> Hashable:
        """Return all that is asked about: rollouts of one group often find the same."""
        asked = (question.text, question.golds, question.answerable, question.asked_at, question.category)
        return (*asked, bank.core, *(entry.text for entry in retrieval.entries))

    def prompt(self, question: Question, bank: Bank, retrieval: Retrieval) -> str:
        """Return what the answerer is asked."""
        return answer_prompt(question, **_memory(bank, retrieval), form=self._form(question))

    def _form(self, question: Question) -> str | None:
        return form_of(question) if self._config.grading is Grading.SOURCE else None

    async def __call__(self, question: Question, bank: Bank, retrieval: Retrieval) -> Verdict:
        """Have the question answered and graded."""
        if not _has_gold(question):
            return _WITHOUT_GOLD
        try:
            asked = {**_memory(bank, retrieval), "form": self._form(question)}
            text = await answer_from(question, **asked, model=self._clients[ANSWERER])
        except ChatError as error:
            return missing_verdict(ANSWERER, error)
        return await self.grade(question, text)

    async def grade(self, question: Question, answer_text: str) -> Verdict:
        """Have an answer graded, as strictly as the configuration says."""
        if not _has_gold(question):
            return _WITHOUT_GOLD
        strictness = self._config.grading
        if strictness is Grading.SOURCE:
            strictness = Grading.RUBRIC
            if metric_of(question) is not SourceMetric.RUBRIC or GRADER not in self._clients:
                return score_reply(question, answer_text)
        try:
            found = await ask_verdict(
                question, answer_text, Strictness(strictness), self._clients[GRADER], again=self._again
            )
        except ChatError as error:
            return missing_verdict(GRADER, error)
        if found.correct is None:
            return Verdict(correct=None, reason=found.reason, cause=f"{GRADER}_undecided")
        return Verdict(correct=float(found.correct), reason=f"{answer_text[:200]!r}: {found.reason}")

    def metrics(self) -> dict[str, float]:
        """Return the sums over all calls since it was entered, once: they are then forgotten."""
        usage, self.usage = self.usage, Usage()
        return usage_metrics(usage, {Role.ANSWERER: ANSWERER, Role.JUDGE: GRADER})


def usage_metrics(usage: Usage, names: Mapping[Role, str]) -> dict[str, float]:
    """Return the sums over calls as metrics such as `llm/grader/calls`; `names` has that of each role."""
    sums: dict[str, float] = {}
    for role, report in usage.report().items():
        name = f"{LLM}/{names[Role(role)]}"
        sums |= {f"{name}/calls": float(report["calls"]), f"{name}/cached": float(report["cached"])}
        sums |= {f"{name}/failed_{kind}": float(count) for kind, count in report["failed_attempts"].items()}
        if report["usd"]:
            sums[f"{name}/usd"] = report["usd"]
    return sums


def _endpoints(config: RewardConfig) -> list[tuple[str, RewardEndpoint]]:
    both = ((ANSWERER, config.answerer), (GRADER, config.grader))
    return [(name, endpoint) for name, endpoint in both if isinstance(endpoint, RewardEndpoint)]


def _has_gold(question: Question) -> bool:
    return not question.answerable or any(gold.strip() for gold in question.golds)


def _memory(bank: Bank, retrieval: Retrieval) -> dict[str, Any]:
    return {"core": bank.core, "memories": [entry.text for entry in retrieval.entries]}


def access_of(endpoint: RewardEndpoint) -> ModelAccess:
    """Return an endpoint as the client takes it; its key comes from the environment."""
    return ModelAccess(endpoint=endpoint, key_flag=None)


def missing_verdict(name: str, error: ChatError) -> Verdict:
    """Return the verdict of a call that failed; raise where no later call can fare better."""
    reason = f"reward.{name}: {_told(name, error)}"
    if error.fatal and error.kind is not ChatErrorKind.UNREACHABLE:  # a network may come back
        raise ChatError(error.kind, reason) from None
    return Verdict(correct=None, reason=reason, cause=f"{name}_{error.kind}")


def _told(name: str, error: ChatError) -> str:
    """Return the message of an error with the place where a training run sets a key of the endpoint."""
    return str(error).replace(SETTING_HINT, f"(a key of reward.{name})")
