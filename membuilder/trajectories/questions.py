"""Lets a model write questions about one session of an expert's building, and models check them.

A question is kept if it is of a kind asked for, names evidence that exists and fits its kind, repeats nothing, is
answered from that evidence alone, and, where a model is given for it, is not answered without any. What is dropped is
counted by reason; a place for which no question passed stays empty.
"""

import asyncio
import json
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from string import Template
from typing import Any

from rapidfuzz.fuzz import token_set_ratio

from membuilder.errors import ChatError
from membuilder.llm.answer_and_judge import Strictness, answer, judge
from membuilder.llm.chat_model import ChatModel, Message, read_json, read_words
from membuilder.schemes.scheme import Step
from membuilder.text import HALF_CHARACTER, is_text, on_one_line, quoted
from membuilder.trajectories.question_plan import Kind
from membuilder.types import Entry, Question, Turn

TEMPLATES = Path(__file__).parent / "templates"
EARLIER_ENTRIES_PER_PART = 7
"""About the published 20 earlier entries in all."""
ATTEMPTS = 3
"""Times that a model is asked for questions about a session."""
SAME_QUESTION = 90
"""Likeness (rapidfuzz's token_set_ratio, 0 to 100) from which two questions with equal answers are the same."""
MAX_ASKED_SHOWN = 40


_TEXT = {"type": "string", "pattern": r"\S"}
_LABEL = {"type": "string", "pattern": r"^(#|e)[1-9][0-9]*$(?!\n)"}
_DRAFT = {
    "type": "object",
    "properties": {
        "question": _TEXT,
        "answer": _TEXT,
        "type": {"enum": [kind.value for kind in Kind]},
        "evidence": {"type": "array", "items": _LABEL, "minItems": 1, "uniqueItems": True},
    },
    "required": ["question", "answer", "type", "evidence"],
    "additionalProperties": False,
}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"questions": {"type": "array", "items": _DRAFT}},
    "required": ["questions"],
    "additionalProperties": False,
}


@dataclass(frozen=True, kw_only=True)
class Models:
    writer: ChatModel
    checker: ChatModel
    """Answers from the evidence, and judges."""
    closed_book: ChatModel | None
    """Must fail to answer without memory; None: not checked."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """A question that passed."""

    question: str
    answer: str
    kind: Kind
    evidence: tuple[Turn | Entry, ...]

    @property
    def sources(self) -> list[str]:
        """Return the turns and entries it is answered from, as `turn:ID` and `entry:ID`."""
        return [f"{'turn' if isinstance(each, Turn) else 'entry'}:{each.id}" for each in self.evidence]

    @property
    def source_turns(self) -> list[str] | None:
        """Return the turns that hold the answer; None if an entry of its evidence does not say what it was made of."""
        turns = [(each.id,) if isinstance(each, Turn) else each.source_turns for each in self.evidence]
        return list(dict.fromkeys(turn for ids in turns for turn in ids)) if all(turns) else None


@dataclass(frozen=True, kw_only=True, slots=True)
class SessionQuestions:
    kept: tuple[Asked, ...]
    dropped: Counter[str]
    """Reason -> number of drafts; `chat_*` and `not_json` count whole replies."""
    missing: Counter[Kind]
    """Questions asked for that nobody wrote well enough."""


async def write_questions(
    step: Step, speakers: Sequence[str], wanted: Mapping[Kind, int], before: Sequence[Asked], models: Models
) -> SessionQuestions:
    """Write questions about a session from the memory after it; `before` are those of the sessions before.

    Raises ChatError where a server fails: its outage is not the writer's lack of questions.
    """
    shown = _shown_entries(step)
    missing, dropped, kept = Counter(dict(wanted)), Counter(), []
    messages = [_message("user", _prompt(step, shown, speakers, missing, before))]
    for _ in range(ATTEMPTS):
        try:
            reply = await models.writer.complete(messages, schema=SCHEMA)
            drafts = _read(reply)
        except ChatError as error:
            if not error.models_fault:
                raise
            dropped[f"chat_{error.kind}"] += 1
            break
        except ValueError as error:
            dropped["not_json"] += 1
            correction = f"That was not the JSON object asked for ({error}). Write it again."
            messages += [_message("assistant", reply), _message("user", correction)]
            continue
        good, refused = _sort_out(drafts, step, shown, missing, [*before, *kept], [each.question for each in kept])
        faults = await asyncio.gather(*(_fault(each, step, models) for each in good), return_exceptions=True)
        for asked, fault in zip(good, faults, strict=True):
            if isinstance(fault, BaseException):
                raise fault
            if fault is None:
                kept.append(asked)
                missing[asked.kind] -= 1
            else:
                refused.append((asked.question, fault))
        dropped.update(reason for _, reason in refused)
        missing = +missing
        if not missing:
            break
        messages += [_message("assistant", reply), _message("user", _more(refused, missing))]
    return SessionQuestions(kept=tuple(kept), dropped=dropped, missing=missing)


def _read(reply: str) -> list[dict[str, Any]]:
    """Return the drafts; raises ValueError for anything but the JSON asked for."""
    answered = read_json(reply, SCHEMA)
    if not is_text(json.dumps(answered, ensure_ascii=False)):
        raise ValueError(HALF_CHARACTER)
    return answered["questions"]


def _shown_entries(step: Step) -> list[Entry]:
    """Return earlier entries most related to the session, then those it wrote; none that is out of date."""
    current = step.result.bank.current()
    known = {entry.id for entry in current}
    by_part: dict[str, list[Entry]] = {}
    for entry in (each for shown in step.shown.values() for each in shown if each.id in known):
        by_part.setdefault(entry.agent, []).append(entry)
    earlier = [entry for shown in by_part.values() for entry in shown[:EARLIER_ENTRIES_PER_PART]]
    return earlier + [entry for entry in current if entry.session == step.session.index]


def _sort_out(
    drafts: Sequence[dict[str, Any]],
    step: Step,
    shown: Sequence[Entry],
    missing: Mapping[Kind, int],
    before: Sequence[Asked],
    asked_here: Sequence[str],
) -> tuple[list[Asked], list[tuple[str, str]]]:
    """Return the drafts that may be put to the checker, and the others with the reason. Needs no model."""
    room, good, refused = Counter(missing), [], []
    labels: dict[str, Turn | Entry] = {f"#{n}": turn for n, turn in enumerate(step.session.turns, start=1)}
    labels |= {f"e{n}": entry for n, entry in enumerate(shown, start=1)}
    for draft in drafts:
        kind, question = Kind(draft["type"]), draft["question"].strip()
        known = all(label in labels for label in draft["evidence"])
        evidence = tuple(labels[label] for label in draft["evidence"]) if known else ()
        asked = Asked(question=question, answer=draft["answer"].strip(), kind=kind, evidence=evidence)
        sessions = {each.session if isinstance(each, Entry) else step.session.index for each in evidence}
        here = {_words(each) for each in (*asked_here, *(other.question for other in good))}
        if not known:
            refused.append((question, "unknown_evidence"))
        elif not room[kind]:
            refused.append((question, "not_asked_for"))
        elif not _fits(kind, sessions, step.session.index):
            refused.append((question, f"not_{kind}"))
        elif _words(question) in here or _is_duplicate(asked, [*before, *good]):
            refused.append((question, "duplicate"))
        else:
            good.append(asked)
            room[kind] -= 1
    return good, refused


def _fits(kind: Kind, sessions: Collection[int], here: int) -> bool:
    if kind is Kind.SINGLE_SESSION:
        return set(sessions) == {here}
    return kind is Kind.TEMPORAL or (here in sessions and len(sessions) > 1)


def _is_duplicate(asked: Asked, others: Sequence[Asked]) -> bool:
    """Return whether another question is much like it and has its answer; a new answer makes a new question."""
    answer_words, question = _words(asked.answer), " ".join(_words(asked.question))
    return any(
        _words(other.answer) == answer_words
        and token_set_ratio(" ".join(_words(other.question)), question) >= SAME_QUESTION
        for other in others
    )


def _words(text: str) -> tuple[str, ...]:
    return tuple(word for word in re.findall(r"\w+", text.casefold()) if word not in ("a", "an", "the"))


async def _fault(asked: Asked, step: Step, models: Models) -> str | None:
    """Return why a question must not be kept; None: it passed."""
    now = step.session.timestamp
    question = Question(id="", text=asked.question, answer=asked.answer, category=asked.kind, evidence=(), asked_at=now)
    memories = [each.text if isinstance(each, Entry) else quoted(step.session, each) for each in asked.evidence]
    try:
        told = await answer(question, core="", memories=memories, model=models.checker)
        verdict = await judge(question, told, Strictness.STRICT, models.checker)
        if verdict.correct is not True:
            return "unjudged" if verdict.correct is None else "not_answerable"
        if models.closed_book is None:
            return None
        guess = await _guess(question, now, models.closed_book)
        verdict = await judge(question, guess, Strictness.LENIENT, models.checker)
    except ChatError as error:
        if not error.models_fault:
            raise
        return f"chat_{error.kind}"
    if verdict.correct is not False:
        return "unjudged" if verdict.correct is None else "closed_book"
    return None


async def _guess(question: Question, today: datetime, model: ChatModel) -> str:
    prompt = _template("qa_closed_book").substitute(today=f"{today:%Y-%m-%d}", question=on_one_line(question.text))
    return read_words(await model.complete([_message("user", prompt)]))


def _prompt(
    step: Step, shown: Sequence[Entry], speakers: Sequence[str], wanted: Counter[Kind], before: Sequence[Asked]
) -> str:
    entries = [f"e{n} ({entry.timestamp:%Y-%m-%d}) {on_one_line(entry.text)}" for n, entry in enumerate(shown, start=1)]
    turns = [f"[{n}] {on_one_line(f'{t.speaker}: {t.content}')}" for n, t in enumerate(step.session.turns, start=1)]
    asked = [f"  - {on_one_line(each.question)}" for each in before[-MAX_ASKED_SHOWN:]]
    return _template("qa_questions").substitute(
        speakers=" and ".join(speakers),
        core=step.result.bank.core or "(empty)",
        entries="\n".join(entries) or "(none)",
        date=f"{step.session.timestamp:%A, %Y-%m-%d %H:%M}",
        turns="\n".join(turns),
        num=wanted.total(),
        mix=_mix(wanted),
        asked="\n".join(asked) or "  (none yet)",
    )


def _more(refused: Sequence[tuple[str, str]], missing: Counter[Kind]) -> str:
    reasons = "\n".join(f"- {on_one_line(question)}: {reason}" for question, reason in refused) or "- (too few)"
    return f"These were not kept:\n{reasons}\nWrite {missing.total()} other questions: {_mix(missing)}. The same JSON."


def _mix(wanted: Mapping[Kind, int]) -> str:
    return ", ".join(f"{wanted[kind]} {kind}" for kind in Kind if wanted[kind])


def _message(role: str, text: str) -> Message:
    return {"role": role, "content": text}


@cache
def _template(name: str) -> Template:
    return Template((TEMPLATES / f"{name}.txt").read_text(encoding="utf-8"))
