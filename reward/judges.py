"""Judges: does what a bank holds and retrieval found answer the question?

A judge is any callable `(question, bank, retrieval) -> Verdict`, plain or `async def`. Those of BUILT_IN work offline;
`llm` asks models (reward/llm_judge.py). One of the user's own is named `path/to/file.py:function`:

    async def judge(question: Question, bank: Bank, retrieval: Retrieval) -> Verdict:
        memory = "\\n".join([bank.core, *(entry.text for entry in retrieval.entries)])
        answer = await ask(question.text, memory, question.asked_at)
        return Verdict(correct=await grade(question.answer, answer), reason=answer)

It may return its reply as a text in place of a verdict: the metric of the question's source then scores that.
An async one runs while the engine still decodes, for `max_concurrent` questions at once. A plain one is called for one
question after another, in a thread of its own. What cannot be judged is a Verdict with `correct=None`; so is what takes
too long, and what raises a TimeoutError or ConnectionError (its client's own kinds translated to these). Any other
exception is a fault in the judge and ends the run.
"""

import re
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Protocol

from membuilder.bank.retrieve import Retrieval
from membuilder.errors import ConfigError
from membuilder.evaluation.source_metrics import SourceMetric, metric_of, source_score
from membuilder.plugins import load_function
from membuilder.types import Bank, Question
from reward import readers

# English function words. Left out because they can be the answer itself: "no", "not", "may" (May), "will" (Will).
_FUNCTION_WORDS = frozenset(
    "a an the and or but if of to in on at by for with from as into about after before during over under up down out"
    " i me my we us our you your he him his she her it its they them their this that these those who whom which what"
    " when where why how am is are was were be been being do does did have has had would can could shall should might"
    " must s t re ve ll d m so than then there here also just very too".split()
)

NO_GOLD = "no_gold_answer"
NO_REPLY, NO_GRADER = "no_reply", "no_grader"


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    correct: float | None
    """Share of the answer that is right, 0 to 1; None when it could not be judged: missing, not wrong."""
    reason: str
    cause: str = ""
    """Why it could not be judged, in one word, by which missing verdicts are counted."""
    rests_on: tuple[str, ...] | None = None
    """Ids of the entries that the answer was taken from; None: nobody knows."""

    def __post_init__(self) -> None:
        if self.correct is not None and not 0 <= self.correct <= 1:
            raise ValueError(f"a verdict's correct must be None or between 0 and 1, got {self.correct!r}")


class Judge(Protocol):
    def __call__(self, question: Question, bank: Bank, retrieval: Retrieval) -> Verdict | Awaitable[Verdict]: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgeLimits:
    """How much is asked of a judge at once, and how long it may take before its verdict is missing."""

    max_concurrent: int = 64
    question_seconds: float = 300.0
    step_seconds: float = 600.0


def evidence(question: Question, bank: Bank, retrieval: Retrieval) -> Verdict:
    """Give 1 if every evidence turn stands verbatim in the core or a retrieved entry, else 0; no gold answer needed."""
    if not question.answerable or not question.evidence:
        return Verdict(correct=None, reason="the question names no evidence for an answer", cause="no_evidence")
    found = {turn_id for entry in retrieval.entries for turn_id in entry.source_turns}.union(bank.core_sources)
    absent = [turn_id for turn_id in question.evidence if turn_id not in found]
    if absent:
        return Verdict(correct=0.0, reason=f"not found: {', '.join(absent)}")
    holding = [entry.id for entry in retrieval.entries if not set(question.evidence).isdisjoint(entry.source_turns)]
    return Verdict(correct=1.0, reason="all found", rests_on=tuple(holding))


def coverage(question: Question, bank: Bank, retrieval: Retrieval) -> Verdict:
    """Give the share of the gold answer's content words that stand in the core or a retrieved entry, as whole words.

    Case and English function words do not count; nothing is stemmed. Works for memories in the model's own words. Of
    several gold answers the one counts that is covered best.
    """
    if not question.answerable or not question.golds:
        return Verdict(correct=None, reason="the question has no gold answer", cause=NO_GOLD)
    wanted = [words for gold in question.golds if (words := _words(gold) - _FUNCTION_WORDS)]
    if not wanted:
        return Verdict(correct=None, reason="the gold answer has no content word", cause="no_content_word")
    found = _words(bank.core).union(*(_words(entry.text) for entry in retrieval.entries))
    share, absent = max((1 - len(words - found) / len(words), sorted(words - found)) for words in wanted)
    return Verdict(correct=share, reason=f"not found: {', '.join(absent)}" if absent else "all found")


def score_reply(question: Question, reply: str) -> Verdict:
    """Score a reply as the question's source is scored. One without words, or that tells of an error, is missing."""
    if not reply.strip() or reply.lstrip().startswith(("Error:", "ERROR:")):
        return Verdict(correct=None, reason=f"no reply: {reply[:200]!r}", cause=NO_REPLY)
    return _scored(question, reply, None)


def _scored(question: Question, reply: str, rests_on: tuple[str, ...] | None) -> Verdict:
    score = source_score(question, reply)
    if score is not None:
        return Verdict(correct=score, reason=f"{reply[:200]!r}", rests_on=rests_on)
    if metric_of(question) is SourceMetric.RUBRIC:
        problem = f"questions of {question.category} are graded by a model: judge: llm with reward.grader"
        return Verdict(correct=None, reason=problem, cause=NO_GRADER)
    return Verdict(correct=None, reason="the question has no gold answer", cause=NO_GOLD)


def _judge_by(reader: readers.Reader) -> Judge:
    """Return the judge that scores what a reader replies, which is wrong where it finds nothing to reply."""

    def judge(question: Question, bank: Bank, retrieval: Retrieval) -> Verdict:
        reply = reader(question, bank, retrieval)
        return _scored(question, reply.text, reply.entries)

    return judge


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.casefold()))


READERS: dict[str, Judge] = {
    "excerpt": _judge_by(readers.excerpt),
    "nearest": _judge_by(readers.nearest),
    "offline": _judge_by(readers.offline),
}
BUILT_IN: dict[str, Judge] = {"evidence": evidence, "coverage": coverage} | READERS


def load_judge(name: str) -> Judge:
    """Load one of BUILT_IN, or `path/to/file.py:function`; ConfigError where there is no such judge."""
    if name in BUILT_IN:
        return BUILT_IN[name]
    if ":" not in name:
        known = ", ".join((*BUILT_IN, "llm"))
        raise ConfigError(f"judge {name!r} is none of {known}, and no path/to/file.py:function")
    return load_function(name, "question", "bank", "retrieval")
