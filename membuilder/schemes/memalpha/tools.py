"""The tools of the writer: their JSON schemas, and what a call of one asks for.

    tools(config)                                                        what the chat template writes into the prompt
    operation_of("memory_delete", {"memory_type": "semantic_memory", "memory_id": "m3"}, config, num_lines=8)
    -> Operation(kind=OperationKind.DELETE, part="semantic", targets=("m3",))

Names, arguments and enums are those of the published program. Ours are the name `memory_insert`, `lines`, and a part
`procedural`. An enum names only the parts that the memory has; a tool whose enum would be empty is not there.
"""

import re
from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

from jsonschema import Draft202012Validator

from membuilder.schemes.memalpha.config import PARTS, MemAlphaConfig
from membuilder.schemes.scheme import CallOutcome
from membuilder.types import Agent, Operation, OperationKind

INSERT, UPDATE, DELETE, SEARCH = "memory_insert", "memory_update", "memory_delete", "search_memory"
OTHER_NAMES = {"new_memory_insert": INSERT}
"""The published name of a tool -> ours."""
SUFFIX = "_memory"
WORDS = "bm25"
"""The way of searching that `search_method` names."""

_SHOWN_ID = re.compile(r"\s*\[(\w+)\]\s*")
_LISTS = tuple(part for part in PARTS if part is not Agent.CORE)
"""The parts that hold entries."""
_PARTS_OF = {INSERT: _LISTS, UPDATE: PARTS, DELETE: PARTS, SEARCH: _LISTS}
_REQUIRED = {
    INSERT: ("memory_type", "content"),
    UPDATE: ("memory_type", "new_content"),
    DELETE: ("memory_type",),
    SEARCH: ("memory_type", "query"),
}
TEXT_OF = {INSERT: "content", UPDATE: "new_content"}
"""A tool that stores a text -> the argument that holds it."""
_WHAT_FOR = {
    INSERT: "Store one new entry.",
    UPDATE: "Replace what is stored: an entry by its id, or the whole core.",
    DELETE: "Remove an entry by its id, or empty the core.",
    SEARCH: "Find entries that are not shown.",
}
_LINES = {
    "type": "array",
    "items": {"type": "integer", "minimum": 1},
    "minItems": 1,
    "uniqueItems": True,
    "description": "Numbers of lines of the chunk to store word for word, instead of a text of your own.",
}


class Refused(NamedTuple):
    """Why a call asks for nothing that can be done."""

    outcome: CallOutcome
    detail: str


def tools(config: MemAlphaConfig) -> tuple[dict[str, Any], ...]:
    """Return the functions that the writer may call. It may search only where it gets to read what was found."""
    return tuple(
        {
            "type": "function",
            "function": {"name": name, "description": _WHAT_FOR[name], "parameters": _parameters(*shape)},
        }
        for name in offered(config)
        for shape in [_shape(name, config)]
    )


def offered(config: MemAlphaConfig) -> tuple[str, ...]:
    """Return the names of the functions that the writer may call."""
    names = (INSERT, UPDATE, DELETE, SEARCH) if config.max_turns > 1 else (INSERT, UPDATE, DELETE)
    return tuple(name for name in names if _enabled(name, config))


def operation_of(name: str, arguments: Any, config: MemAlphaConfig, num_lines: int) -> Operation | Refused:
    """Return what a call asks for, or why that cannot be done to any memory. Nothing is raised."""
    tool = OTHER_NAMES.get(name, name)
    if tool not in _PARTS_OF or (tool == SEARCH and config.max_turns == 1):
        return Refused(CallOutcome.UNKNOWN_TOOL, f"no tool is called {name[:80]!r}")
    if not isinstance(arguments, dict):
        return Refused(CallOutcome.SCHEMA, "arguments: is no object")
    part = _part_named(arguments.get("memory_type"), tool)
    if part is not None and part not in _enabled(tool, config):
        return Refused(CallOutcome.DISABLED_PART, f"this memory has no part {part.value!r}")
    if tool not in offered(config):
        return Refused(CallOutcome.UNKNOWN_TOOL, f"no tool is called {name[:80]!r}")
    problem = next(iter(_validator(*_shape(tool, config)).iter_errors(arguments)), None)
    if problem is not None:
        return Refused(CallOutcome.SCHEMA, f"{problem.json_path[:80]}: {problem.message[:200]}")
    if detail := _unsaid(tool, part, arguments):
        return Refused(CallOutcome.SCHEMA, detail)
    quote = tuple(int(number) for number in arguments.get("lines", ()))
    if beyond := [number for number in quote if number > num_lines]:
        return Refused(CallOutcome.UNKNOWN_TURN, f"line {str(beyond[0])[:20]} of a chunk of {num_lines} lines")
    targets = () if part is Agent.CORE or tool in (INSERT, SEARCH) else (_id(arguments["memory_id"]),)
    if tool == SEARCH:
        return Operation(kind=OperationKind.SEARCH, text=arguments["query"], part=part.value)
    if tool == DELETE:
        return Operation(kind=OperationKind.DELETE, targets=targets, part=part.value)
    kind = OperationKind.ADD if tool == INSERT else OperationKind.UPDATE
    text = arguments.get(TEXT_OF[tool])
    return Operation(
        kind=OperationKind.REWRITE if part is Agent.CORE else kind,
        text=text,
        quote=quote,
        targets=targets,
        part=part.value,
    )


def call_of(operation: Operation) -> tuple[str, dict[str, Any]]:
    """Return the tool and the arguments that ask for an operation; `operation_of` reads them back.

    Raises ValueError for an operation that no tool offers.
    """
    name = {
        OperationKind.ADD: INSERT,
        OperationKind.UPDATE: UPDATE,
        OperationKind.REWRITE: UPDATE,
        OperationKind.DELETE: DELETE,
        OperationKind.SEARCH: SEARCH,
    }.get(operation.kind)
    if name is None:
        raise ValueError(f"no tool does {operation.kind}")
    arguments: dict[str, Any] = {}
    if operation.part is not None:  # a compact update leaves it to the entry that it names
        arguments["memory_type"] = f"{operation.part}{SUFFIX}"
    if name == SEARCH:
        arguments["query"] = operation.text
    elif operation.quote:
        arguments["lines"] = list(operation.quote)
    elif name in TEXT_OF:
        arguments[TEXT_OF[name]] = operation.text
    if operation.targets:
        arguments["memory_id"] = operation.targets[0]
    return name, arguments


def _id(memory_id: str) -> str:
    """Return an id also where it is written in brackets, as it is shown."""
    shown = _SHOWN_ID.fullmatch(memory_id)
    return memory_id.strip() if shown is None else shown[1]


def _part_named(memory_type: Any, tool: str) -> Agent | None:
    return next((part for part in _PARTS_OF[tool] if memory_type == f"{part}{SUFFIX}"), None)


def _enabled(tool: str, config: MemAlphaConfig) -> tuple[Agent, ...]:
    return tuple(part for part in _PARTS_OF[tool] if part in config.parts)


def _unsaid(tool: str, part: Agent, arguments: Mapping[str, Any]) -> str | None:
    """Say what a call that fits the schema leaves open: the text to store, the entry that is meant."""
    if tool in TEXT_OF:
        key = TEXT_OF[tool]
        if (key in arguments) == ("lines" in arguments):
            return f"give one of {key} and lines"
        if key in arguments and not arguments[key].strip():
            return f"{key} is blank"
    if tool == SEARCH and not arguments["query"].strip():
        return "query is blank"
    if tool in (UPDATE, DELETE) and part is not Agent.CORE and "memory_id" not in arguments:
        return f"memory_id is missing: which entry of {part.value}{SUFFIX}?"
    return None


Shape = tuple[str, tuple[Agent, ...], bool]
"""What the arguments of a tool depend on: its name, its parts, whether lines are taken."""


def _shape(tool: str, config: MemAlphaConfig) -> Shape:
    return tool, _enabled(tool, config), config.line_pointers


def _parameters(tool: str, parts: tuple[Agent, ...], takes_lines: bool) -> dict[str, Any]:
    text = {"type": "string"}
    properties: dict[str, Any] = {"memory_type": text | {"enum": [f"{part}{SUFFIX}" for part in parts]}}
    required = list(_REQUIRED[tool])
    if tool in TEXT_OF:
        properties[TEXT_OF[tool]] = text | {"description": "The text to store; it must be understood alone."}
        if takes_lines:
            properties["lines"] = _LINES
            required.remove(TEXT_OF[tool])
    if tool in (UPDATE, DELETE):
        properties["memory_id"] = text | {"description": "Id of the entry, as shown before it; the core has none."}
    if tool == SEARCH:
        properties |= {"query": text, "search_method": text | {"enum": [WORDS]}}
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


@cache
def _validator(tool: str, parts: tuple[Agent, ...], takes_lines: bool) -> Any:
    return Draft202012Validator(_parameters(tool, parts, takes_lines))
