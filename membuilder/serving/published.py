"""The endpoints of Mem-alpha's published server, so that programs written for it run: they answer from a memory that
stands in the request, and nothing is stored.

    POST /batch_process      {"memories": [{"core": "...", "semantic": [{"a1b2": "..."}], "episodic": []}],
                              "questions": [["..."]]}    ->  {"result": [["..."]], "errors": [[null]], ...}
    POST /process            the same, from the whole memory as long as it fits
    POST /agentic_process    the same, and the model may search on before it answers
    POST /analyze_function   whether what calls of tools stored is worth being in its part of a memory

A question that cannot be answered fails alone: its result is null and its error says why. Models, sampling and how many
questions are asked at once are the server's own; what a request says of these is read past.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple

from fastapi import APIRouter
from fastapi.routing import APIRoute

from membuilder.bank.okapi import find_parts, forget_indexes
from membuilder.bank.ranking import SearchMethod
from membuilder.errors import ChatError
from membuilder.evaluation.protocols.search_rounds import answer_by_search
from membuilder.evaluation.recall import Item, Search
from membuilder.llm.answer_and_judge import answer, ask_validity
from membuilder.llm.chat_model import ChatModel, Message
from membuilder.llm.concurrency import for_each
from membuilder.schemes.memalpha.config import PARTS
from membuilder.schemes.memalpha.scheme import token_counter
from membuilder.schemes.memalpha.tools import OTHER_NAMES, SUFFIX, TEXT_OF
from membuilder.serving.errors import UnavailableError
from membuilder.serving.http_records import MAX_CHARACTERS
from membuilder.serving.published_records import Analyses, Batch, Calls, Results, SearchedResults, SearchingBatch
from membuilder.serving.service import MemoryService
from membuilder.text import HALF_CHARACTER, is_text
from membuilder.types import Bank, Entry, Question

FOUND, FOUND_FIRST, FOUND_IN_ROUND, SHOWN_IN_ROUND, FOUND_OF_LONG = 20, 2, 10, 2, 15
"""Entries of each part that an answer is given, that a searching one begins with, that it finds in a round, those of
them that it is shown, and what `/process` gives of a memory beyond its tokens: as published."""
TOKENS, PROCESS_TOKENS = 30_000, 30_720
AT_ONCE = 32
"""Questions or calls that the model is asked about at a time, as far as its `concurrency` lets them through."""

_count_tokens = token_counter(None)


class _Asked(NamedTuple):
    """A question, with what was found for it."""

    memory: int
    place: int
    text: str
    found: tuple[Entry, ...]


def published_routes(service: MemoryService, route: type[APIRoute]) -> APIRouter:
    """Return the endpoints; they raise NoAnswererError, and UnavailableError where the model is away."""
    routes = APIRouter(tags=["published"], route_class=route)

    @routes.post("/batch_process")
    async def batch_process(given: Batch) -> Results:
        """Answer questions from the entries of each memory that fit best."""
        return await _process(given, service.answerer(), FOUND, TOKENS)

    @routes.post("/process")
    async def process(given: Batch) -> Results:
        """Answer questions from each whole memory, or from what of it fits best where it is long."""
        return await _process(given, service.answerer(), None, PROCESS_TOKENS)

    @routes.post("/agentic_process")
    async def agentic_process(given: SearchingBatch) -> SearchedResults:
        """Answer questions, and let the model search each memory in rounds."""
        return await _agentic(given, service.answerer())

    @routes.post("/analyze_function")
    async def analyze_function(given: Calls) -> Analyses:
        """Judge what calls of tools stored."""
        return await _analyze(given, service.answerer())

    return routes


async def _process(given: Batch, model: ChatModel, k: int | None, budget: int) -> Results:
    banks = [memory.bank() for memory in given.memories]

    async def ask(asked: _Asked) -> str:
        core, memories = banks[asked.memory].core, [entry.text for entry in asked.found]
        return await answer(_question(asked.text), core=core, memories=memories, model=model)

    return await _answered(given, banks, ask, k, budget)


async def _agentic(given: SearchingBatch, model: ChatModel) -> SearchedResults:
    banks = [memory.bank() for memory in given.memories]
    searching, told = asyncio.Lock(), [[[] for _ in each] for each in given.questions]

    async def ask(asked: _Asked) -> str:
        bank, counting, steps = banks[asked.memory], _Counting(model), told[asked.memory][asked.place]
        seen = {entry.id for entry in asked.found}

        def find(query: str) -> list[Item]:
            found = _found(bank, [query], FOUND_IN_ROUND, TOKENS)[0]
            new = [entry for entry in found if entry.id not in seen][:SHOWN_IN_ROUND]
            seen.update(entry.id for entry in new)
            step = {"iteration": counting.calls, "memory_type": "all", "query": query, "search_method": "bm25"}
            steps.append(step | {"results_count": len(found), "new_items": len(new)})
            return _items(new)

        text = await answer_by_search(
            _question(asked.text), core=bank.core, given=_items(asked.found), search=Search(find), model=counting,
            rounds=given.max_iterations, per_search=SHOWN_IN_ROUND, searching=searching,
        )  # fmt: skip
        steps.append({"iteration": counting.calls, "action": "answer", "message": "answered from what was found"})
        return text

    results = await _answered(given, banks, ask, FOUND_FIRST, TOKENS)
    return SearchedResults(**results.model_dump(), search_iterations=told)


async def _answered(
    given: Batch, banks: Sequence[Bank], ask: Callable[[_Asked], Awaitable[str]], k: int | None, budget: int
) -> Results:
    """Search each memory once for all its questions, then ask; what goes wrong with one question stands beside it."""
    result = [[None] * len(each) for each in given.questions]
    errors = [[_problem(text) for text in each] for each in given.questions]

    def search() -> list[_Asked]:
        asked = []
        for memory, bank in enumerate(banks):
            sound = [place for place, problem in enumerate(errors[memory]) if problem is None]
            texts = [given.questions[memory][place] for place in sound]
            most = k or (len(bank.entries) if _count_tokens(bank.memory_text()) <= budget else FOUND_OF_LONG)
            found = _found(bank, texts, most, budget)
            asked += [_Asked(memory, *each) for each in zip(sound, texts, found, strict=True)]
        return asked

    async def one(asked: _Asked) -> None:
        try:
            result[asked.memory][asked.place] = await ask(asked)
        except ChatError as error:
            errors[asked.memory][asked.place] = _reason(error)

    try:
        await for_each(one, await asyncio.to_thread(search), AT_ONCE)
    finally:
        forget_indexes()  # nothing of what was sent stays
    total = sum(map(len, given.questions))
    is_whole = not any(problem for each in errors for problem in each)
    return Results(result=result, errors=errors, status="success" if is_whole else "partial", processed_count=total)


def _found(bank: Bank, questions: Sequence[str], k: int, budget: int) -> list[tuple[Entry, ...]]:
    if not questions or not bank.entries:
        return [()] * len(questions)
    # words alone are looked for, so there is nothing to embed
    found = find_parts(bank, questions, k, SearchMethod.BM25, budget, _count_tokens, embedder=None)
    return [each.entries for each in found]


async def _analyze(given: Calls, model: ChatModel) -> Analyses:
    nothing = _analysis(False, error="it stored no text in a part of the memory")
    analyses = [[nothing] * len(group) for group in given.batch]
    texts = [
        (group, place, *stored)
        for group, calls in enumerate(given.batch)
        for place, call in enumerate(calls)
        if (stored := _stored(call)) is not None
    ]

    async def judge(each: tuple[int, int, str, str]) -> None:
        group, place, part, text = each
        try:
            verdict = await ask_validity(part, text, model)
        except ChatError as error:
            analyses[group][place] = _analysis(None, error=_reason(error))
            return
        if verdict.correct is None:
            analyses[group][place] = _analysis(None, error="the answering model gave no verdict")
        else:
            issues = [] if verdict.correct else [verdict.reason]
            analyses[group][place] = _analysis(verdict.correct, issues=issues, explanation=verdict.reason)

    await for_each(judge, texts, AT_ONCE)
    items = sum(map(len, given.batch))
    is_whole = all(each["score"] is not None for group in analyses for each in group)
    return Analyses(
        scores=[_mean([each["score"] for each in group]) for group in analyses],
        detailed_analyses=analyses,
        total_processed=items,
        total_items=items,
        total_groups=len(analyses),
        llm_processed=len(texts),
        status="success" if is_whole else "partial",
    )


def _stored(call: Any) -> tuple[str, str] | None:
    """Return the part and the text that a call stored; None where there is nothing to judge."""
    match call:
        case {"success": False}:
            return None
        case {"name": str(name), "arguments": {"memory_type": str(part)} as arguments}:
            text = arguments.get(TEXT_OF.get(OTHER_NAMES.get(name, name), ""))
            part = part.removesuffix(SUFFIX)
            if part in PARTS and isinstance(text, str) and text.strip() and is_text(text):
                return part, text[:MAX_CHARACTERS]
    return None


def _analysis(is_valid: bool | None, **told: Any) -> dict[str, Any]:
    return {"is_valid": is_valid, "score": None if is_valid is None else float(is_valid)} | told


def _mean(scores: Sequence[float | None]) -> float | None:
    """Return the mean of the scores that there are; 0 for a group without calls."""
    there = [score for score in scores if score is not None]
    if scores and not there:
        return None
    return sum(there) / len(there) if there else 0.0


def _problem(question: str) -> str | None:
    """Say why a question cannot be asked."""
    if not question.strip():
        return "the question is blank"
    if not is_text(question):
        return f"the question {HALF_CHARACTER}"
    return f"the question is longer than {MAX_CHARACTERS} characters" if len(question) > MAX_CHARACTERS else None


def _reason(error: ChatError) -> str:
    """Return why one call failed. Raises UnavailableError where every other will fail too."""
    if error.fatal:
        raise UnavailableError("the answering model", error) from error
    return f"the answering model gave no answer ({error.kind})"


def _question(text: str) -> Question:
    return Question(id="asked", text=text, answer=None, category="", evidence=(), asked_at=None)


def _items(entries: Sequence[Entry]) -> list[Item]:
    return [Item(text=entry.text, source_turns=(), entry_id=entry.id) for entry in entries]


class _Counting:
    """A model that counts what it is asked."""

    def __init__(self, model: ChatModel):
        self._model, self.calls = model, 0

    async def complete(
        self, messages: Sequence[Message], *, schema: Mapping | None = None, tools: Sequence[Mapping] = ()
    ) -> str:
        self.calls += 1
        return await self._model.complete(messages, schema=schema, tools=tools)
