"""Lets a reader search the memory itself, in rounds, before it answers.

It begins with what was found for the question. Each call of `search_memory` shows the best items that it has not seen
yet. After the last round it is asked once more, without the tool, and must answer.
"""

import asyncio
import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from membuilder.errors import ChatError, ChatErrorKind
from membuilder.evaluation.protocols.prompts import ANSWER_NOW, SEARCH, filled
from membuilder.evaluation.recall import Item, Search
from membuilder.llm.answer_and_judge import answer_prompt
from membuilder.llm.chat_model import ChatModel, read_words
from membuilder.llm.json_output import load_json
from membuilder.text import HALF_CHARACTER, is_text, on_one_line
from membuilder.types import Question

TOOL = {
    "type": "function",
    "function": {
        "name": "search_memory",
        "description": "Search the memory; returns the notes most related to the query that you have not seen yet.",
        "parameters": {
            "type": "object",
            "properties": {"query": {"type": "string"}},
            "required": ["query"],
            "additionalProperties": False,
        },
    },
}
_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)
_THOUGHT = "</think>"
NOTHING_NEW = "(nothing new)"


async def answer_by_search(
    question: Question,
    *,
    core: str,
    given: Sequence[Item],
    search: Search,
    rounds: int,
    per_search: int,
    model: ChatModel,
    searching: asyncio.Lock,
    now: datetime | None = None,
    form: str | None = None,
) -> str:
    """Return the answer. Raises ChatError where there is none, also where a call stands in its place at the end.

    `searching` is held while the memory is searched, in a thread: requests in flight go on, and no two searches meet.
    """
    prompt = answer_prompt(question, core=core, memories=[item.text for item in given], now=now, form=form)
    messages = [{"role": "user", "content": prompt + filled(SEARCH, rounds=rounds)}]
    seen = {_identity(item) for item in given}
    for left in reversed(range(rounds)):
        reply = await model.complete(messages, tools=[TOOL])
        calls = _calls(reply)
        if not calls:
            return read_words(reply)
        shown = []
        for call in calls:
            query, problem = _query(call)
            if query is None:
                shown.append(f"A call could not be read: {problem}")
                continue
            search.queries.append(query)
            async with searching:
                found = await asyncio.to_thread(search.find, query)
            new = [item for item in found if _identity(item) not in seen][:per_search]
            seen.update(map(_identity, new))
            lines = "\n".join(f"- {on_one_line(item.text)}" for item in new) or NOTHING_NEW
            shown.append(f"Found for {on_one_line(query)!r}:\n{lines}")
        told = "\n\n".join([*shown, *([] if left else [filled(ANSWER_NOW)])])
        messages += [{"role": "assistant", "content": reply}, {"role": "user", "content": told}]
    reply = await model.complete(messages)
    if _calls(reply):
        raise ChatError(ChatErrorKind.NO_TEXT, f"the reader searched on after its {rounds} rounds")
    return read_words(reply)


def _identity(item: Item) -> str:
    return item.entry_id or item.text


def _calls(reply: str) -> list[str]:
    """Return what stands between the tags of calls, behind the thoughts."""
    return _CALL.findall(reply.rpartition(_THOUGHT)[2])


def _query(call: str) -> tuple[str | None, str]:
    """Return the query of a call; None and why there is none."""
    try:
        value: Any = load_json(call)
    except (ValueError, RecursionError) as error:
        return None, f"it is no JSON ({error})"[:200]
    match value:
        case {"name": "search_memory", "arguments": {"query": str(query)}} if query.strip():
            return (query, "") if is_text(query) else (None, f"its query {HALF_CHARACTER}")
    return None, 'expected {"name": "search_memory", "arguments": {"query": "..."}}'
