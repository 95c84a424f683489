"""Describes what the program needs of a language model, without a client library; `client.py` holds the real one."""

import json
from collections.abc import Mapping, Sequence
from enum import StrEnum
from functools import lru_cache
from typing import Any, Protocol

from jsonschema import Draft202012Validator

from membuilder.llm.json_output import load_json

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

    async def complete(self, messages: Sequence[Message], *, schema: Mapping | None = None) -> str: ...


def response_format(schema: Any) -> dict[str, Any]:
    """Return the part of a request that asks a server to hold to a schema; answers are checked against all of it."""

    def known(part: dict[str, Any]) -> dict[str, Any]:
        # vLLM's grammars refuse `uniqueItems`; a property of that name is a schema of its own, and stays
        return {key: value for key, value in part.items() if key != "uniqueItems" or not isinstance(value, bool)}

    sendable = json.loads(json.dumps(schema), object_hook=known)
    # not `strict`: OpenAI's strict mode takes no optional property and no oneOf
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": sendable, "strict": False}}


def read_json(text: str, schema: Mapping) -> Any:
    """Return the JSON of an answer that fits `schema`; only a think-block and a code fence may stand around it.

    A schema sent with a request binds only servers that honour it, so the answer is checked all the same. Raises
    ValueError saying what is wrong.
    """
    try:
        answer = load_json(text)
    except RecursionError as error:
        raise ValueError("JSON nested too deeply") from error
    problem = next(iter(_validator(json.dumps(schema)).iter_errors(answer)), None)
    if problem is not None:
        raise ValueError(f"{problem.json_path}: {problem.message[:200]}")
    return answer


@lru_cache(maxsize=256)
def _validator(schema: str) -> Draft202012Validator:
    """Return the validator of a schema in JSON; it is kept, because making one costs more than a check."""
    return Draft202012Validator(json.loads(schema))
