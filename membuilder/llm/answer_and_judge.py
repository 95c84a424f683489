"""Answers questions from memories, and judges those answers.

    text = await answer(question, core=bank.core, memories=[entry.text for entry in found], model=answerer)
    verdict = await judge(question, text, Strictness.STRICT, judge_model)
    verdict.correct  # True, False, or None: it could not be judged, which is not the same as wrong

The prompts are the files answer.txt, judge_*.txt and rubric_*.txt under templates/. A question that has no answer in
the dialogue is judged by a prompt of its own, under every strictness alike: the right reply is that it is not known.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from functools import cache
from pathlib import Path
from string import Template
from typing import Any

from membuilder.errors import ChatError, ChatErrorKind
from membuilder.llm.chat_model import ChatModel, Message, read_words
from membuilder.llm.model_output import read_model_json
from membuilder.text import on_one_line
from membuilder.types import Question

TEMPLATES = Path(__file__).parent / "templates"
PROMPTS = ("answer", "judge_strict", "judge_lenient", "judge_unanswerable")
RUBRICS = {
    "single-session-user": "fact",
    "single-session-assistant": "fact",
    "multi-session": "fact",
    "temporal-reasoning": "time",
    "knowledge-update": "update",
    "single-session-preference": "preference",
}
"""LongMemEval's types of questions -> what it judges them by."""
FORMS = ("label", "keywords")
"""What an answer may have to be in place of a short one; form_*.txt tell it."""
SOURCE_PROMPTS = ("answer", "form_label", "form_keywords", "judge_unanswerable")
SOURCE_PROMPTS += ("rubric_fact", "rubric_time", "rubric_update", "rubric_preference")
"""What is asked where each question is scored as its source is."""
VALIDITY_PROMPTS = tuple(f"validity_{part}" for part in ("core", "semantic", "episodic", "procedural"))
"""What is asked about a text that was stored in each part of a memory."""
VERDICT_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"reason": {"type": "string"}, "correct": {"type": "boolean"}},
    "required": ["correct"],
    "additionalProperties": False,
}
JUDGE_ATTEMPTS = 3
"""Times a judge is asked before an answer stays unjudged."""
_ANOTHER_TRY = (ChatErrorKind.TRUNCATED, ChatErrorKind.DECLINED)
"""Failures that another wording may mend; the client has already tried again where waiting may help."""
_SAID = {"true": True, "yes": True, "correct": True, "false": False, "no": False, "incorrect": False}
_SHORT = 'Reply with {"correct": true} or {"correct": false} and nothing else.'


class Strictness(StrEnum):
    STRICT = "strict"
    """Every fact of the gold answer is needed."""
    LENIENT = "lenient"
    """The same meaning counts."""
    RUBRIC = "rubric"
    """By the question's type, as LongMemEval judges it; a question of another type as one about a fact."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerVerdict:
    correct: bool | None
    """Whether the answer is right; None: it could not be judged, and belongs in no mean."""
    reason: str


async def answer(
    question: Question,
    *,
    core: str,
    memories: Sequence[str],
    model: ChatModel,
    now: datetime | None = None,
    form: str | None = None,
) -> str:
    """Ask for an answer from these memories alone, most related first. Raises ChatError.

    `now` is the date it is asked at where the question has none of its own, usually that of the last session. `form` is
    one of FORMS, where the answer is no short one.
    """
    prompt = answer_prompt(question, core=core, memories=memories, now=now, form=form)
    return read_words(await model.complete([_user(prompt)]))


def answer_prompt(
    question: Question, *, core: str, memories: Sequence[str], now: datetime | None = None, form: str | None = None
) -> str:
    """Return what `answer` asks."""
    asked_at = question.asked_at or now
    asked = _template("answer").substitute(
        core=core.strip() or "(empty)",
        memories="\n".join(f"- {on_one_line(memory)}" for memory in memories) or "(none found)",
        now=f"Today is {asked_at:%A, %Y-%m-%d}." if asked_at else "",
        question=question.text,
    )
    return asked if form is None else asked + _template(f"form_{form}").template


async def judge(
    question: Question, answer_text: str, strictness: Strictness, model: ChatModel, again: ChatModel | None = None
) -> AnswerVerdict:
    """Ask whether the answer is right; a useless reply is asked for again, JUDGE_ATTEMPTS times in all.

    The answer then stays unjudged, as it does where the call fails otherwise. `again` is asked from the second time on:
    the same model past the cache, which would repeat its reply. Raises ChatError only where it is `fatal`.
    """
    try:
        return await ask_verdict(question, answer_text, strictness, model, again)
    except ChatError as error:
        if error.fatal:
            raise
        return AnswerVerdict(correct=None, reason=f"judge failed: {error}")


async def ask_verdict(
    question: Question, answer_text: str, strictness: Strictness, model: ChatModel, again: ChatModel | None = None
) -> AnswerVerdict:
    """Ask as `judge` does. Raises ChatError for every call that failed."""
    if question.answerable and not any(gold.strip() for gold in question.golds):
        return AnswerVerdict(correct=None, reason="the question has no gold answer to compare with")
    return await _ask_verdict(judge_prompt(question, answer_text, strictness), model, again)


async def ask_validity(part: str, text: str, model: ChatModel, again: ChatModel | None = None) -> AnswerVerdict:
    """Ask whether a text is worth being in its part of a memory. Raises ChatError for every call that failed."""
    return await _ask_verdict(_template(f"validity_{part}").substitute(text=on_one_line(text)), model, again)


async def _ask_verdict(prompt: str, model: ChatModel, again: ChatModel | None) -> AnswerVerdict:
    messages, problem = [_user(prompt)], ""
    for asked in [model, *[again or model] * (JUDGE_ATTEMPTS - 1)]:
        try:
            reply = await asked.complete(messages, schema=VERDICT_SCHEMA)
            return read_verdict(reply)
        except ChatError as error:
            if error.kind not in _ANOTHER_TRY:
                raise
            problem = str(error)
            messages = [_user(f"{prompt}\n{_SHORT}")]  # another request: a temperature of 0 would repeat the same one
        except ValueError as error:
            problem = str(error)
            # the longer conversation is another request, so neither a cache nor a temperature of 0 repeats the reply
            complaint = _user(f"That was not the JSON object asked for ({problem}). {_SHORT}")
            messages += [{"role": "assistant", "content": reply}, complaint]
    return AnswerVerdict(correct=None, reason=f"no verdict in {JUDGE_ATTEMPTS} replies: {problem}")


def read_verdict(reply: str) -> AnswerVerdict:
    """Read a judge's reply, which may say yes or no in its own way. Raises ValueError where it says neither."""
    verdict = read_model_json(reply)
    said = verdict.get("correct") if isinstance(verdict, dict) else None
    correct = _SAID.get(str(said).strip().casefold())
    if correct is None:
        raise ValueError(f"expected an object with 'correct': true or false, found {reply[:200]!r}")
    return AnswerVerdict(correct=correct, reason=str(verdict.get("reason") or ""))


def judge_prompt(question: Question, answer_text: str, strictness: Strictness) -> str:
    gold = ", or equally right: ".join(filter(None, question.golds)) or "nothing in the conversation tells"
    return _template(_judge_name(question, strictness)).substitute(
        question=on_one_line(question.text), gold=on_one_line(gold), answer=on_one_line(answer_text) or "(no answer)"
    )


def _judge_name(question: Question, strictness: Strictness) -> str:
    if not question.answerable:
        return "judge_unanswerable"
    return (
        f"rubric_{RUBRICS.get(question.category, 'fact')}" if strictness is Strictness.RUBRIC else f"judge_{strictness}"
    )


def prompt_hashes(names: Sequence[str] = PROMPTS) -> Mapping[str, str]:
    """Return the SHA-256 of each prompt file, which a published number must name beside its judge."""
    return {name: hashlib.sha256(text.encode()).hexdigest() for name, text in prompt_texts(names).items()}


def prompt_texts(names: Sequence[str] = PROMPTS) -> Mapping[str, str]:
    """Return the text of each prompt file."""
    return {name: _template(name).template for name in names}


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


@cache
def _template(name: str) -> Template:
    return Template((TEMPLATES / f"{name}.txt").read_text(encoding="utf-8"))
