"""Finds the JSON in what a model wrote; only a think-block and a code fence may stand around it."""

import json
import re
from typing import Any

_THINK = re.compile(r"^\s*<think>.*?</think>", re.DOTALL)
# Linear on any text: a run of newlines must not be open to many readings.
_FENCE = re.compile(r"```(?:json)?[^\S\n]*\n(.*)\n[^\S\n]*```", re.DOTALL)


def _without_thoughts(text: str) -> str:
    """Return an answer without the think-block some models put before it."""
    return _THINK.sub("", text).strip()


def load_json(text: str) -> Any:
    """Return the one JSON value of an answer. Raises ValueError, or RecursionError for JSON nested too deeply."""
    body = _without_thoughts(text)
    fenced = _FENCE.fullmatch(body)
    return json.loads(fenced.group(1) if fenced else body, object_pairs_hook=no_duplicate_keys)


def no_duplicate_keys(pairs: list[tuple[str, object]]) -> dict:
    keys = [key for key, _ in pairs]
    if len(set(keys)) != len(keys):
        raise ValueError("an object names the same key twice")
    return dict(pairs)
