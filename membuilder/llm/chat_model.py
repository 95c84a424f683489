"""Describes what the program needs of a language model, without a client library; `client.py` holds the real one."""

import json
import re
from collections.abc import Mapping, Sequence
from enum import StrEnum
from functools import lru_cache
from typing import Any, Protocol

from jsonschema import Draft202012Validator

from membuilder.errors import ChatError, ChatErrorKind
from membuilder.llm.endpoints import SETTING_HINT
from membuilder.llm.model_output import read_model_json, read_model_text

Message = dict[str, str]  # {"role": "system"|"user"|"assistant", "content": text}


class Role(StrEnum):
    """The part that a model plays in a call is its role; usage is counted by it."""

    BUILDER = "builder"
    ANSWERER = "answerer"
    JUDGE = "judge"
    EXPERT = "expert"
    QUESTIONER = "questioner"
    EMBEDDER = "embedder"


class ChatModel(Protocol):
    """It answers messages. Of the ChatError it raises, `fatal` tells a run that must stop from a call that failed."""

    async def complete(
        self, messages: Sequence[Message], *, schema: Mapping | None = None, tools: Sequence[Mapping] = ()
    ) -> str:
        """Return the answer, with calls of tools as `<tool_call>{"name": ..., "arguments": ...}</tool_call>` in it."""


_PORTABLE = ("type", "enum", "required", "additionalProperties", "minItems", "maxItems", "description", "$ref")
_WHOLE = re.compile(r"\^(?!.*\(\?).*\$")


def sendable(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return a schema as servers take it: what JSON Schema, xgrammar, outlines and OpenAI mean alike, and nothing else.

    Answers are checked against all of it. A pattern goes out only where it names the whole text, because grammars match
    the whole text: to xgrammar `\\S` is one character.
    """
    sent: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "const":
            sent["enum"] = [value]
        elif key in ("oneOf", "anyOf"):
            sent["anyOf"] = [sendable(option) for option in value]
        elif key in ("properties", "$defs"):
            sent[key] = {name: sendable(part) for name, part in value.items()}
        elif key == "items":
            sent[key] = sendable(value)
        elif key in _PORTABLE or (key == "pattern" and _WHOLE.fullmatch(value)):
            sent[key] = value
    return sent


def response_format(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a request that asks the server to hold to a schema."""
    # not `strict`: OpenAI's strict mode takes no optional property and no choice at the top
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": sendable(schema), "strict": False}}


def read_json(text: str, schema: Mapping) -> Any:
    """Return the JSON of an answer that fits `schema`, in whatever a real model puts around it.

    A schema sent with a request binds only servers that honour it, so the answer is checked all the same. Raises
    ValueError saying what is wrong.
    """
    answer = read_model_json(text)
    problem = next(iter(_validator(json.dumps(schema)).iter_errors(answer)), None)
    if problem is not None:
        raise ValueError(f"{problem.json_path}: {problem.message[:200]}")
    return answer


def read_words(text: str) -> str:
    """Return an answer in words without the reasoning before it. Raises ChatError where there is nothing else."""
    try:
        return read_model_text(text)
    except ValueError as error:
        raise ChatError(ChatErrorKind.NO_TEXT, f"{error}; raise max_tokens {SETTING_HINT}") from error


@lru_cache(maxsize=256)
def _validator(schema: str) -> Draft202012Validator:
    """Return the validator of a schema in JSON; it is kept, because making one costs more than a check."""
    return Draft202012Validator(json.loads(schema))
