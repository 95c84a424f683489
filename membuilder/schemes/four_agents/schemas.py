"""JSON schemas of what each agent may answer.

Two response formats. `operations` is the published one (MemBuilder, arXiv 2601.05488) plus `quote`, our extension: turn
numbers instead of a text. `turns` is ours, for small policies: a decision for each turn worth keeping, so that a model
points at turns and never copies text:

    {"#2": "add", "#3": "e1"}        add turn 2, let turn 3 update the shown entry e1; every other turn is skipped
"""

from enum import StrEnum
from functools import cache

from jsonschema import Draft202012Validator

from membuilder.types import Agent


class ResponseFormat(StrEnum):
    OPERATIONS = "operations"
    TURNS = "turns"


_TEXT = {"type": "string", "minLength": 1, "pattern": r"\S"}
_QUOTE = {"type": "array", "items": {"type": "integer", "minimum": 1}, "minItems": 1, "uniqueItems": True}


def _object(**properties: dict) -> dict:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _kind(name: str) -> dict:
    return {"type": "string", "const": name}


def _skip(key: str) -> list[dict]:
    """Return skipping without a reason and with one: OpenAI's strict mode knows no optional property."""
    return [_object(**{key: _kind("SKIP")}), _object(**{key: _kind("SKIP")}, reason={"type": "string"})]


def _named(key: str, kind: str, text_key: str, **more: dict) -> list[dict]:
    """Return the operation with a written text, and the same with a quote."""
    tag = {key: _kind(kind)}
    return [_object(**tag, **more, **{text_key: _TEXT}), _object(**tag, **more, quote=_QUOTE)]


def _operations_schema(agent: Agent) -> dict:
    if agent is Agent.CORE:
        options = [
            *_named("operation", "APPEND", "content"),
            _object(operation=_kind("REPLACE"), old_text=_TEXT, new_text=_TEXT),
            _object(operation=_kind("REWRITE"), content=_TEXT),
            *_skip("operation"),
        ]
        return {"type": "object", "oneOf": options}
    options = [*_named("action", "ADD", "memory"), *_named("action", "UPDATE", "new_memory", old_memory=_TEXT)]
    if agent is Agent.EPISODIC:
        old = {"type": "array", "items": _TEXT, "minItems": 2, "uniqueItems": True}
        options += _named("action", "MERGE", "new_memory", old_memories=old)
    if agent is Agent.SEMANTIC:
        options += _skip("action")
    return _object(operations={"type": "array", "items": {"oneOf": options}})


def _turns_schema(agent: Agent, num_turns: int) -> dict:
    decisions = ["add"]
    if agent is not Agent.CORE:
        decisions.append("e[0-9]+")
    if agent is Agent.EPISODIC:
        decisions.append(r"e[0-9]+(\+e[0-9]+)+")
    # the second part, because Python's $ also matches before a final newline
    decision = {"type": "string", "pattern": f"^({'|'.join(decisions)})$", "not": {"pattern": "\n"}}
    turns = {f"#{number}": decision for number in range(1, num_turns + 1)}
    return _object(**turns) | {"required": []}


def schema(agent: Agent, response_format: ResponseFormat, num_turns: int) -> dict:
    """Return the JSON schema of one agent's answer about a session of `num_turns` turns."""
    if response_format is ResponseFormat.OPERATIONS:
        return _operations_schema(agent)
    return _turns_schema(agent, num_turns)


@cache
def validator(agent: Agent, response_format: ResponseFormat, num_turns: int) -> Draft202012Validator:
    return Draft202012Validator(schema(agent, response_format, num_turns))
