"""Calls in as few tokens as can be, for tiny policies that point at lines and never write text.

    <semantic>#3<update>e2#5<delete>e1<done>     store line 3, let line 5 replace the shown entry e2, remove e1

A part stores lines as one entry (`<core>` replaces the whole core), `update` and `delete` name an entry by its label.
"""

import re
from collections.abc import Sequence
from typing import Any

from membuilder.schemes.memalpha.config import PARTS, MemAlphaConfig
from membuilder.schemes.memalpha.tools import Refused
from membuilder.schemes.scheme import CallOutcome
from membuilder.types import Agent, Operation, OperationKind

UPDATE, DELETE, DONE = "<update>", "<delete>", "<done>"
PART_TAGS = {f"<{part}>": part for part in PARTS}
TAGS = (*PART_TAGS, UPDATE, DELETE, DONE)

_CALL = re.compile(r"(<[a-z_]+>)([^<]*)")
_LINES = re.compile(r"(?:#[1-9][0-9]{0,8})+")
_LABEL = re.compile(r"e[1-9][0-9]{0,8}")

Read = tuple[str, dict[str, Any], Operation | Refused]


def read_calls(text: str, config: MemAlphaConfig, num_lines: int) -> list[Read]:
    """Return what each call is called and given, and what it asks for."""
    text, _, _ = text.partition(DONE)
    return [_read(tag, given.strip(), config, num_lines) for tag, given in _CALL.findall(text)]


def whole_calls(text: str) -> str:
    """Return an answer that was cut as far as its calls are whole: the last number may lack digits."""
    return text if DONE in text else text[: max(text.rfind("<"), 0)]


def write_calls(operations: Sequence[Operation]) -> str:
    """Write operations. Raises ValueError for a text of the model's own, which this form cannot carry."""
    return "".join([*map(_written, operations), DONE])


def _read(tag: str, given: str, config: MemAlphaConfig, num_lines: int) -> Read:
    said = {"given": given}

    def refused(outcome: CallOutcome, detail: str) -> Read:
        return tag, said, Refused(outcome, detail)

    part = PART_TAGS.get(tag)
    if part is None and tag not in (UPDATE, DELETE):
        return refused(CallOutcome.UNKNOWN_TOOL, f"no call is written {tag[:80]!r}")
    if (part or given) == Agent.CORE and Agent.CORE not in config.parts:
        return refused(CallOutcome.DISABLED_PART, "this memory has no part 'core'")
    if tag == DELETE and given == Agent.CORE:
        return tag, said, Operation(kind=OperationKind.DELETE, part=Agent.CORE.value)
    if part is not None and part not in config.parts:
        return refused(CallOutcome.DISABLED_PART, f"this memory has no part {part.value!r}")
    label = None if part is not None else _LABEL.match(given)
    shown = given[label.end() :] if label else given
    numbers = [int(number) for number in shown.split("#")[1:]] if _LINES.fullmatch(shown) else []
    has_lines = bool(numbers) if tag != DELETE else not shown
    if (part is None and label is None) or not has_lines or len(set(numbers)) < len(numbers):
        return refused(CallOutcome.SCHEMA, f"{tag} is not followed by what it needs: {given[:80]!r}")
    if max(numbers, default=0) > num_lines:
        return refused(CallOutcome.UNKNOWN_TURN, f"line {max(numbers)} of a chunk of {num_lines} lines")
    kind = OperationKind.UPDATE if tag == UPDATE else OperationKind.DELETE
    if part is not None:
        kind = OperationKind.REWRITE if part is Agent.CORE else OperationKind.ADD
    targets = () if label is None else (label[0],)
    operation = Operation(kind=kind, quote=tuple(numbers), targets=targets, part=None if part is None else part.value)
    return tag, said, operation


def _written(operation: Operation) -> str:
    if operation.text is not None or operation.kind not in (
        OperationKind.ADD,
        OperationKind.REWRITE,
        OperationKind.UPDATE,
        OperationKind.DELETE,
    ):
        raise ValueError(f"the compact format cannot write {operation}")
    lines = "".join(f"#{number}" for number in operation.quote)
    if operation.kind is OperationKind.DELETE:
        return f"{DELETE}{operation.targets[0] if operation.targets else operation.part}"
    if operation.kind is OperationKind.UPDATE:
        return f"{UPDATE}{operation.targets[0]}{lines}"
    return f"<{operation.part}>{lines}"
