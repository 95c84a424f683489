"""An answer <-> the calls in it. Model output never raises: a call that cannot be read has an outcome that says why.

    parse('<tool_call>\\n{"name": "memory_insert", "arguments": {"memory_type": "semantic_memory", "lines": [2]}}\\n'
          '</tool_call>', config, num_lines=8)
    -> AgentUpdate(operations=(Operation(kind=ADD, part="semantic", quote=(2,)),))

JSON is read as it stands: nothing is mended, so nothing is done that was not said. Words around the calls are no part
of them, and neither is anything in a think-block. A broken call ends at the next mark, and those behind it are read.
Marks inside the JSON of a call are text. A whole answer may also be one JSON object, as `answer_schema` describes it.
"""

import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from membuilder.llm.json_output import load_json, no_duplicate_keys
from membuilder.schemes.memalpha import compact
from membuilder.schemes.memalpha.config import CallFormat, MemAlphaConfig
from membuilder.schemes.memalpha.tools import Refused, call_of, operation_of, tools
from membuilder.schemes.scheme import CallOutcome
from membuilder.text import HALF_CHARACTER, in_short, is_text
from membuilder.types import AgentUpdate, Operation, UnreadCall

NOTHING = "Done"
"""An answer without a call."""
OPEN, CLOSE = "<tool_call>", "</tool_call>"
FUNCTION, ARGUMENTS, RESULT, RETURN = (f"✿{word}✿" for word in ("FUNCTION", "ARGS", "RESULT", "RETURN"))
MARKS = {
    CallFormat.HERMES: (OPEN, CLOSE),
    CallFormat.MARKS: (FUNCTION, ARGUMENTS, RESULT, RETURN),
    CallFormat.COMPACT: compact.TAGS,
}
"""Format -> the texts that say where calls begin and end."""
_THINK, _THOUGHT = "<think>", "</think>"
_TAG = re.compile(f"{OPEN}|{_THOUGHT}")
_NEXT = re.compile(rf"\s*(?:{CLOSE}|(?={OPEN})|\Z)")
_RESUME = re.compile(rf"{CLOSE}|(?<=\n)(?={OPEN})")
_MARK = re.compile(f"{FUNCTION}|{RESULT}|{RETURN}|{_THOUGHT}")
_NAMED = re.compile(rf":[^\S\n]*([^\n✿]*?)\s*{ARGUMENTS}:\s*")


class Said(NamedTuple):
    """A call as it stands in an answer."""

    name: str
    arguments: Any
    problem: str | None = None
    """Why it is not JSON; None where it is."""


def parse(text: str, config: MemAlphaConfig, num_lines: int) -> AgentUpdate:
    """Read the calls of one answer about a chunk of so many lines."""
    if config.response_format is CallFormat.COMPACT and _whole(text) is None:
        _, _, answer = _behind_thoughts(text).rpartition(_THOUGHT)
        read = compact.read_calls(answer, config, num_lines)
    else:
        read = [(said.name, said.arguments, _read(said, config, num_lines)) for said in _said(text, config)]
    operations: list[Operation] = []
    unread: list[UnreadCall] = []
    for number, (name, arguments, found) in enumerate(read):
        if number >= config.max_calls:
            found = Refused(CallOutcome.TOO_MANY_CALLS, f"at most {config.max_calls} calls are run")
        if isinstance(found, Refused):
            place, known = len(operations), arguments if isinstance(arguments, dict) else {}
            outcome, detail = found
            unread.append(UnreadCall(place=place, name=name, arguments=known, outcome=outcome, detail=detail))
        else:
            operations.append(found)
    return AgentUpdate(operations=tuple(operations), unread=tuple(unread))


def write(operations: Sequence[Operation], config: MemAlphaConfig) -> str:
    """Return the text a model would answer for these operations. Raises ValueError where the format cannot say it."""
    if config.response_format is CallFormat.COMPACT:
        return compact.write_calls(operations)
    calls = [call_of(operation) for operation in operations]
    if config.response_format is CallFormat.HERMES:
        written = [f"{OPEN}\n{_json({'name': name, 'arguments': given})}\n{CLOSE}" for name, given in calls]
    else:
        written = [f"{FUNCTION}: {name}\n{ARGUMENTS}: {_json(given)}" for name, given in calls]
    return "\n".join(written) or NOTHING


def answer_schema(config: MemAlphaConfig) -> dict[str, Any]:
    """Return the JSON schema of a whole answer, for endpoints that hold a model to one: `{"calls": [...]}`."""
    calls = [
        {
            "type": "object",
            "properties": {"name": {"type": "string", "const": tool["name"]}, "arguments": tool["parameters"]},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for tool in (each["function"] for each in tools(config))
    ]
    listed = {"type": "array", "items": {"anyOf": calls}}
    return {"type": "object", "properties": {"calls": listed}, "required": ["calls"], "additionalProperties": False}


def _read(said: Said, config: MemAlphaConfig, num_lines: int) -> Operation | Refused:
    if said.problem is not None:
        return Refused(CallOutcome.NOT_JSON, said.problem)
    return operation_of(said.name, said.arguments, config, num_lines)


def _said(text: str, config: MemAlphaConfig) -> list[Said]:
    if (whole := _whole(text)) is not None:
        return whole
    answer = _behind_thoughts(text)
    return _tagged(answer) if config.response_format is CallFormat.HERMES else _marked(answer)


def _behind_thoughts(text: str) -> str:
    """Return what follows the think-block with which an answer begins; nothing, where that has no end."""
    return text.partition(_THOUGHT)[2] if text.lstrip().startswith(_THINK) else text


def _whole(text: str) -> list[Said] | None:
    """Return the calls of an answer that is one JSON object; None where it is none."""
    try:
        match load_json(text):
            case {"calls": list(calls), **rest} if not rest:
                return [_called(call) for call in calls]
    except (ValueError, RecursionError):
        pass
    return None


def _tagged(text: str) -> list[Said]:
    """Return the calls between the tags that the chat templates of Qwen3, Hermes and others write."""
    found: list[Said] = []
    position = 0
    while (mark := _TAG.search(text, position)) is not None:
        position = mark.end()
        if mark[0] == _THOUGHT:
            found.clear()  # what stood before were thoughts
            continue
        call, stop = _json_at(text, position)
        behind = _NEXT.match(text, stop)
        if call.problem is None and behind is None:
            call = Said("", {}, "something stands behind the JSON")
        found.append(call)
        if call.problem is None:
            position = behind.end()
        else:
            resume = _RESUME.search(text, stop)
            position = len(text) if resume is None else resume.end()
    return found


def _marked(text: str) -> list[Said]:
    """Return the calls behind the marks of Qwen-Agent; what follows the mark of a result is no part of the answer."""
    found: list[Said] = []
    position = 0
    while (mark := _MARK.search(text, position)) is not None:
        position = mark.end()
        if mark[0] == _THOUGHT:
            found.clear()
        elif mark[0] != FUNCTION:
            break
        elif (named := _NAMED.match(text, position)) is None:
            found.append(Said("", {}, f"a name and {ARGUMENTS} do not follow {FUNCTION}"))
        else:
            arguments, position = _decoded(text, named.end())
            name = named[1].strip()
            found.append(arguments._replace(name=name) if arguments.problem else Said(name, arguments.arguments))
    return found


def _json_at(text: str, start: int) -> tuple[Said, int]:
    """Return the call whose JSON stands there, and where that ends, or could not be read any further."""
    value, stop = _decoded(text, start)
    return (value if value.problem else _called(value.arguments)), stop


def _called(value: Any) -> Said:
    match value:
        case {"name": str(name), "arguments": arguments, **rest} if not rest:
            return Said(name, arguments)
        case {"name": str(name)}:
            return Said(name, None)
    return Said("", None)


def _decoded(text: str, start: int) -> tuple[Said, int]:
    """Read the JSON value at a place into `arguments`."""
    start += len(text[start:]) - len(text[start:].lstrip())
    try:
        value, stop = _DECODER.raw_decode(text, start)
    except (ValueError, RecursionError) as error:
        return Said("", {}, in_short(error)), start
    if not is_text(_json(value)):
        return Said("", {}, HALF_CHARACTER), stop
    return Said("", value), stop


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=no_duplicate_keys, parse_constant=_refuse_constant)
