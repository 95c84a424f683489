"""What everything that asks a language model needs of it. No client library here; `client.py` holds the real one."""

import json
import re
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, Protocol

from jsonschema import Draft202012Validator

Message = dict[str, str]  # {"role": "system"|"user"|"assistant", "content": text}

_THINK = re.compile(r"^\s*<think>.*?</think>", re.DOTALL)
# Linear on any text: a run of newlines must not be open to many readings.
_FENCE = re.compile(r"```(?:json)?[^\S\n]*\n(.*)\n[^\S\n]*```", re.DOTALL)


class Role(StrEnum):
    """Whom a call serves; usage is counted per role."""

    BUILDER = "builder"
    ANSWERER = "answerer"
    JUDGE = "judge"
    EXPERT = "expert"
    QUESTIONER = "questioner"
    EMBEDDER = "embedder"


class ChatModel(Protocol):
    """Raises `membuilder.errors.ChatError`; its `fatal` tells a run that must stop from one call that failed."""

    async def complete(self, messages: Sequence[Message], *, schema: Mapping | None = None) -> str: ...


def without_thoughts(text: str) -> str:
    """An answer without the think-block some models put before it."""
    return _THINK.sub("", text).strip()


def read_json(text: str, schema: Mapping) -> Any:
    """The JSON of an answer that fits `schema`; a think-block and a code fence around it are allowed, nothing else.

    A schema sent with a request binds only servers that honour it, so the answer is checked all the same. Raises
    ValueError saying what is wrong.
    """
    body = without_thoughts(text)
    fenced = _FENCE.fullmatch(body)
    try:
        answer = json.loads(fenced.group(1) if fenced else body, object_pairs_hook=_no_duplicate_keys)
    except RecursionError as error:
        raise ValueError("JSON nested too deeply") from error
    problem = next(iter(Draft202012Validator(schema).iter_errors(answer)), None)
    if problem is not None:
        raise ValueError(f"{problem.json_path}: {problem.message[:200]}")
    return answer


def _no_duplicate_keys(pairs: list[tuple[str, object]]) -> dict:
    keys = [key for key, _ in pairs]
    if len(set(keys)) != len(keys):
        raise ValueError("an object names the same key twice")
    return dict(pairs)
