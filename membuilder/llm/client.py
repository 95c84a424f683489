"""Chat over the OpenAI protocol: schemas and cache; what is sent and tried again is in connection.py.

async with ChatClient(ModelAccess(endpoint=ModelEndpoint(name="gpt-4.1-mini")), Role.JUDGE, costs) as judge:
    await judge.check()  # a refused key, an unknown model or a dead server shows here
    text = await judge.complete([{"role": "user", "content": "..."}], schema=VERDICT_SCHEMA)
"""

import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from functools import partial
from typing import Any

from membuilder.errors import ChatError, ChatErrorKind
from membuilder.llm.chat_model import Message, Role, response_format
from membuilder.llm.connection import CHECK_ATTEMPTS, Connection
from membuilder.llm.costs import Costs
from membuilder.llm.endpoints import ModelAccess, Provider, chat_address
from membuilder.llm.response_cache import content_key
from membuilder.llm.responses import read_chat

CHECK_SCHEMA = {
    "type": "object",
    "properties": {"ready": {"type": "boolean"}},
    "required": ["ready"],
    "additionalProperties": False,
}
CHECK_MESSAGES = [{"role": "user", "content": 'Answer with this JSON object and nothing else: {"ready": true}'}]
ABOUT_ALL = (ChatErrorKind.BAD_REQUEST, ChatErrorKind.NO_TEXT)
"""Failures that may concern this prompt or every prompt; only another request can tell."""
_SIMPLEST = content_key(schema=CHECK_SCHEMA)

_log = logging.getLogger(__name__)


class ChatClient(AbstractAsyncContextManager):
    """It is a `ChatModel` in one role of a command, for one event loop; `async with` closes its connections.

    Raises ConfigError where a key is needed and there is none.
    """

    def __init__(self, access: ModelAccess, role: Role, costs: Costs):
        self._endpoint = replace(access.endpoint, price=costs.price_of(access.endpoint))
        self._role, self._usage, self._cache = role, costs.usage, costs.answers
        self._connection = Connection(self._endpoint, chat_address(access), role, costs.usage)
        self._refused_schemas: set[str] = set()
        """Keys of the schemas that the server refused; one that refuses the simplest refuses all."""

    async def __aexit__(self, *_: object) -> None:
        await self._connection.close()

    async def check(self) -> None:
        """Ask for one small answer past the cache, which proves address, key, model and settings before a run.

        Raises ChatError within `check_timeout_seconds`, saying what to do.
        """
        await self._connection.checked(self._check())

    async def _check(self) -> None:
        try:
            await self._ask(self._body(CHECK_MESSAGES), CHECK_SCHEMA, CHECK_ATTEMPTS)
        except ChatError as error:
            if error.kind is ChatErrorKind.UNKNOWN_MODEL and (names := await self._connection.model_names()):
                raise ChatError(error.kind, f"{error} It lists: {', '.join(names[:20])}") from None
            if error.kind is not ChatErrorKind.TRUNCATED:  # a talkative model is a model
                raise

    async def complete(
        self, messages: Sequence[Message], *, schema: Mapping | None = None, tools: Sequence[Mapping] = ()
    ) -> str:
        """Return the model's answer. The server is asked to hold to the schema; check the answer all the same.

        Calls of `tools` stand in it as text, also where the server names them apart from it. Raises ChatError.
        """
        body = self._body(messages, tools)
        if self._cache is None:
            return await self._answer(body, schema)
        key = content_key(kind="chat/1", url=self._connection.base_url, schema=schema, body=body)
        stored = self._cache.get(key)
        if stored is None:
            stored = {"text": await self._answer(body, schema)}
            self._cache.put(key, stored)
        else:
            self._usage.add_cached(self._role)
        return stored["text"]

    async def _answer(self, body: dict[str, Any], schema: Mapping | None) -> str:
        """Ask; where the server refuses, ask the small check request too, because words may blame the wrong thing."""
        try:
            return await self._ask(body, schema, self._endpoint.max_attempts)
        except ChatError as error:
            if error.kind not in ABOUT_ALL:
                raise
            refusal = error
        try:
            await self._ask(self._body(CHECK_MESSAGES), None, CHECK_ATTEMPTS)
        except ChatError as error:
            if error.kind in ABOUT_ALL:
                problem = f"{refusal} It refuses the smallest request too: {error}"
                raise ChatError(ChatErrorKind.REFUSES_ALL, problem) from None
            if not error.models_fault:
                raise
        raise refusal

    async def _ask(self, body: dict[str, Any], schema: Mapping | None, max_attempts: int) -> str:
        send = partial(self._connection.post, "/chat/completions")
        read = partial(read_chat, with_calls="tools" in body)
        name = None if schema is None else content_key(schema=schema)
        if name is None or not self._refused_schemas.isdisjoint({name, _SIMPLEST}):
            return await send(body, read, max_attempts)
        try:
            return await send(body | {"response_format": response_format(schema)}, read, max_attempts)
        except ChatError as error:
            if error.kind is not ChatErrorKind.BAD_REQUEST:
                raise
            refusal = str(error)
        # Was it the schema? Only the same request without it can tell; a refusal of that one is about the rest.
        reply = await send(body, read, max_attempts)
        if name not in self._refused_schemas:
            self._refused_schemas.add(name)
            what = "JSON schemas" if name == _SIMPLEST else "one of the JSON schemas"
            _log.warning("%s refuses %s; asking without, and answers may not parse: %s", self._role, what, refusal)
        return reply

    def _body(self, messages: Sequence[Message], tools: Sequence[Mapping] = ()) -> dict[str, Any]:
        endpoint = self._endpoint
        settings = {"temperature": endpoint.temperature, "top_p": endpoint.top_p, "seed": endpoint.seed}
        given = {name: value for name, value in settings.items() if value is not None}
        said = list(messages)
        if tools:
            given["tools"] = list(tools)
        if tools and endpoint.provider is Provider.VLLM:  # its template writes them, and calls stay text as in training
            # also where the tokenizer has the tags of calls as special tokens
            given |= {"tool_choice": "none", "skip_special_tokens": False}
        elif tools:  # no result without a call that the server numbered
            said = [_of_user(each) if each["role"] == "tool" else each for each in said]
        required = {"model": endpoint.name, "messages": said, endpoint.tokens_field: endpoint.max_tokens}
        return required | given | endpoint.extra_body


def _of_user(result: Message) -> Message:
    return {"role": "user", "content": f"<tool_response>\n{result['content']}\n</tool_response>"}
