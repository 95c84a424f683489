"""What a model does for instances that are built: it finds keywords of summaries, and answers without the text.

A question that it answers so is dropped: its answer would be a reward for no memory.
"""

import asyncio
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from string import Template
from typing import Any

from membuilder.errors import ChatError
from membuilder.instances.keywords import MAX_KEYWORDS
from membuilder.instances.records import Instance, Step
from membuilder.instances.sources import ModelTask
from membuilder.llm.chat_model import ChatModel, Role, read_json, read_words
from membuilder.llm.client import ChatClient
from membuilder.llm.concurrency import for_each
from membuilder.llm.costs import Costs
from membuilder.llm.endpoints import ModelAccess
from membuilder.text import on_one_line

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"keywords": {"type": "array", "items": {"type": "string"}}},
    "required": ["keywords"],
    "additionalProperties": False,
}
_TEMPLATES = Path(__file__).parent / "templates"


async def with_keywords(instance: Instance, model: ChatModel, dropped: Counter[str]) -> Instance:
    """Replace the answer by the model's keywords that stand in the text; without any the question is dropped."""
    if not instance.summary:
        return instance
    prompt = _template("keywords").substitute(most=MAX_KEYWORDS, summary=instance.summary)
    try:
        found = read_json(await model.complete([_user(prompt)], schema=SCHEMA), SCHEMA)["keywords"]
    except ChatError as error:
        if not error.models_fault:
            raise
        found = []
    except ValueError:  # the model's answer is no such JSON
        found = []
    text = "\n".join(instance.chunks).lower()
    words = dict.fromkeys(" ".join(word.split()) for word in found)
    kept = [word for word in words if word and word.lower() in text][:MAX_KEYWORDS]
    if not kept:
        dropped["no_keywords_from_the_model"] += 1
        return replace(instance, questions=())
    (question,) = instance.questions
    return replace(instance, questions=({**question, "answer": ", ".join(kept)},))


async def not_known(instance: Instance, model: ChatModel, dropped: Counter[str], limit: int) -> Instance:
    """Return the instance without the questions that the model answers without its chunks."""
    known: set[int] = set()

    async def ask(index: int) -> None:
        question = instance.questions[index]
        if await _guesses(question, model):
            known.add(index)

    await for_each(ask, range(len(instance.questions)), limit)
    dropped["answered_without_the_text"] += len(known)
    kept = tuple(each for index, each in enumerate(instance.questions) if index not in known)
    return replace(instance, questions=kept)


async def _guesses(question: Mapping[str, Any], model: ChatModel) -> bool:
    prompt = _template("closed_book").substitute(question=on_one_line(question["question"]))
    try:
        guess = read_words(await model.complete([_user(prompt)]))
    except ChatError as error:
        if not error.models_fault:
            raise
        return False  # it says nothing, so it does not know
    golds = question["answer"] if isinstance(question["answer"], list) else [question["answer"]]
    return any(gold.lower() in guess.lower() for gold in golds)


@contextmanager
def model_step(access: ModelAccess, costs: Costs, task: ModelTask) -> Iterator[Step]:
    """Give what asks the model about one instance after another. Raises ChatError where the model is not to be had."""
    limit = access.endpoint.concurrency

    async def opened() -> ChatClient:
        client = ChatClient(access, Role.QUESTIONER, costs)
        await client.check()
        return client

    with asyncio.Runner() as runner:
        client = runner.run(opened())

        def step(instance: Instance, dropped: Counter[str]) -> Instance:
            if task is ModelTask.KEYWORDS:
                return runner.run(with_keywords(instance, client, dropped))
            return runner.run(not_known(instance, client, dropped, limit))

        try:
            yield step
        finally:
            runner.run(client.__aexit__())


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


@cache
def _template(name: str) -> Template:
    return Template((_TEMPLATES / f"{name}.txt").read_text(encoding="utf-8"))
