"""r4: is what a call stored worth being in the part of the memory where it stands?

    validity = make_validity(config)
    validity([("episodic", "[2024-01-02] Ann: I moved to Oslo.")])  ->  [Verdict(correct=1.0, reason="")]

By rules, offline: a text says something, is not about the memory itself, and belongs to its part; an event has a date.
Or by a model, through the client, with a prompt per part. A verdict that cannot be had is missing, by its cause.
"""

import asyncio
import re
from collections.abc import Callable, Sequence

from membuilder.errors import ChatError
from membuilder.llm.answer_and_judge import ask_validity
from membuilder.llm.chat_model import Role
from membuilder.llm.client import ChatClient
from membuilder.llm.concurrency import for_each
from membuilder.llm.costs import Costs
from membuilder.llm.endpoints import chat_address
from membuilder.llm.response_cache import AnswerCache
from membuilder.llm.usage import Usage
from reward.judges import Verdict
from reward.llm_judge import access_of, missing_verdict, usage_metrics
from reward.memalpha_config import ValidityBy
from reward.score import RewardConfig

VALIDATOR = "validator"
Stored = tuple[str, str]
"""Part of the memory, and the text stored there."""
Validity = Callable[[Sequence[Stored]], list[Verdict]]

_QUOTED = re.compile(r"(?m)^\[\d{4}-\d\d-\d\d\] [^:\n]{1,80}: ")
"""Stands before a line that was stored word for word: its date and speaker are not the writer's words."""
_WORD = re.compile(r"\w*[^\W\d_]\w*")
_PLACEHOLDER = re.compile(
    r"\W*(?:n/?a|none|null|nil|empty|nothing(?: \w+){0,3}|todo|tbd|unknown|placeholder|done|no (?:new )?\w+|\.+|-+"
    r"|lorem ipsum.*|(?:some|your|the|new)? ?(?:text|content|memory|information|fact|event)s?(?: here)?)\W*",
    re.IGNORECASE | re.DOTALL,
)
_ABOUT_ITSELF = re.compile(
    r"\b(?:(?:this|the|my|our) (?:core |semantic |episodic |procedural )?memory(?! of)"
    r"|(?:core|semantic|episodic|procedural)[ _]memor(?:y|ies)|memory_(?:insert|update|delete)"
    r"|(?:this|the|previous|current|next|new) chunk"
    r"|i (?:have|will|should|need to) (?:stored?|remembered?|memori[sz]ed?|updated?)"
    r"|as an (?:ai|assistant|language model))\b",
    re.IGNORECASE,
)
_MONTH = r"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\.?"
_DATE = re.compile(
    rf"\b\d{{4}}[-/.]\d{{1,2}}(?:[-/.]\d{{1,2}})?\b|\b\d{{1,2}}[-/.]\d{{1,2}}[-/.](?:\d{{4}}|\d\d)\b|\b{_MONTH}\s+\d{{1,4}}\b"
    rf"|\b\d{{1,2}}(?:st|nd|rd|th)?\s+(?:of\s+)?{_MONTH}\b|\b(?:1[5-9]|20)\d\d\b|\d+\s*[\u5e74\u6708\u65e5]|\b\d{{1,2}}:\d\d\b",
    re.IGNORECASE,
)
_LABELLED = re.compile(r"\blabels?\s*[:=]\s*\S", re.IGNORECASE)


def by_rules(stored: Stored) -> Verdict:
    """Judge one text by rules."""
    part, text = stored
    said = _QUOTED.sub("", text).strip()
    problem = None
    if not _WORD.search(said) or _PLACEHOLDER.fullmatch(said):
        problem = "says nothing"
    elif said == text.strip() and _ABOUT_ITSELF.search(said):
        problem = "is about the memory itself"
    elif part == "episodic" and not _DATE.search(text):
        problem = "is no event with a date"
    elif part == "episodic" and _LABELLED.search(said):
        problem = "is a labelled example, which belongs to the semantic part"
    elif part == "semantic" and said == text.strip() and _DATE.match(said.lstrip("[(*- ")):
        problem = "is an event that begins with its date, which belongs to the episodic part"
    return Verdict(correct=float(problem is None), reason=problem or "")


def make_validity(config: RewardConfig) -> Validity:
    """Return what judges texts as a configuration says. Raises ConfigError where a key it needs is not set."""
    if config.memalpha.validity is ValidityBy.RULES:
        return lambda stored: [by_rules(each) for each in stored]
    return ValidityModel(config)


class ValidityModel:
    """It asks `reward.validator` about texts: many at once, each text of a part once."""

    def __init__(self, config: RewardConfig) -> None:
        self._config, self._access = config, access_of(config.validator)
        chat_address(self._access)  # a key that is not set is told at once
        self._cache = None if config.cache is None else AnswerCache(config.cache)
        self.usage = Usage()

    def check(self) -> None:
        """Ask for one small answer. Raises ChatError, saying what to do, where none comes."""
        asyncio.run(self._check())

    async def _check(self) -> None:
        # not counted: a run that goes on checks once more, and its steps count what one that was not stopped counts
        async with ChatClient(self._access, Role.JUDGE, Costs(usage=Usage())) as model:
            await model.check()

    def __call__(self, stored: Sequence[Stored]) -> list[Verdict]:
        verdicts = asyncio.run(self._judge(list(dict.fromkeys(stored))))
        return [verdicts[each] for each in stored]

    def metrics(self) -> dict[str, float]:
        """Return the sums over all calls since it was last asked for them."""
        usage, self.usage = self.usage, Usage()
        return usage_metrics(usage, {Role.JUDGE: VALIDATOR})

    async def _judge(self, stored: Sequence[Stored]) -> dict[Stored, Verdict]:
        late = Verdict(correct=None, reason="no verdict in time", cause=f"{VALIDATOR}_deadline")
        verdicts = dict.fromkeys(stored, late)
        costs = Costs(usage=self.usage, answers=self._cache)
        async with (
            ChatClient(self._access, Role.JUDGE, costs) as model,
            ChatClient(self._access, Role.JUDGE, Costs(usage=self.usage)) as past_cache,
        ):

            async def ask(each: Stored) -> None:
                verdicts[each] = await self._verdict(each, model, past_cache)

            try:
                async with asyncio.timeout(self._config.step_deadline_seconds):
                    await for_each(ask, stored, self._config.max_concurrent)
            except TimeoutError:
                pass  # those that did not come stay missing
        return verdicts

    async def _verdict(self, stored: Stored, model: ChatClient, past_cache: ChatClient) -> Verdict:
        try:
            found = await ask_validity(*stored, model, past_cache)
        except ChatError as error:
            return missing_verdict(VALIDATOR, error)
        if found.correct is None:
            return Verdict(correct=None, reason=found.reason, cause=f"{VALIDATOR}_undecided")
        return Verdict(correct=float(found.correct), reason=found.reason)
