"""An agent's text <-> operations. Model output never raises: what does not parse becomes a typed failure.

Think-blocks and code fences around the JSON are allowed; everything else is strict, by the schemas in `schemas.py`.

    parse('{"#2": "add"}', Agent.EPISODIC, num_turns=2, response_format=ResponseFormat.TURNS)
    -> AgentUpdate(operations=(Operation(kind=ADD, quote=(2,)),))
"""

import json
from collections.abc import Sequence

from membuilder.llm.json_output import load_json
from membuilder.schemes.four_agents.schemas import ResponseFormat, validator
from membuilder.text import HALF_CHARACTER, is_text
from membuilder.types import Agent, AgentUpdate, Entry, Failure, FailureKind, Operation, OperationKind


def parse(text: str, agent: Agent, num_turns: int, response_format: ResponseFormat) -> AgentUpdate:
    """Read the operations of one answer, or why it is not one. Turn numbers beyond the session are a failure too."""
    try:
        answer = load_json(text)
        if not is_text(json.dumps(answer, ensure_ascii=False)):
            return _failed(FailureKind.NOT_JSON, f"the answer {HALF_CHARACTER}")
        problem = next(iter(validator(agent, response_format, num_turns).iter_errors(answer)), None)
    except (ValueError, RecursionError) as error:  # untrusted text: any JSON fault is the model's
        return _failed(FailureKind.NOT_JSON, str(error))
    if problem is not None:
        return _failed(FailureKind.SCHEMA, f"{problem.json_path}: {problem.message[:200]}")
    if response_format is ResponseFormat.TURNS:
        return AgentUpdate(operations=_from_turns(answer, agent))
    operations = map(_operation, [answer] if agent is Agent.CORE else answer["operations"])
    operations = tuple(operation for operation in operations if operation.kind is not OperationKind.SKIP)
    beyond = [number for operation in operations for number in operation.quote if number > num_turns]
    if beyond:
        return _failed(FailureKind.UNKNOWN_TURN, f"turn {beyond[0]} of a session of {num_turns} turns")
    return AgentUpdate(operations=operations)


def split(text: str, agent: Agent, response_format: ResponseFormat) -> list[str]:
    """Return an answer as answers of one operation each. What holds no operations beside each other stays one."""
    is_one = agent is Agent.CORE and response_format is ResponseFormat.OPERATIONS
    try:
        answer = load_json(text)
        if is_one or not isinstance(answer, dict):
            return [text]
        pieces = []
        for key, value in answer.items():
            is_list = response_format is ResponseFormat.OPERATIONS and key == "operations" and isinstance(value, list)
            pieces += [{key: [item]} for item in value] if is_list else [{key: value}]
        return [json.dumps(piece, ensure_ascii=False) for piece in pieces]
    except (ValueError, RecursionError):
        return [text]


def render(update: AgentUpdate, agent: Agent, num_turns: int, shown: Sequence[Entry], fmt: ResponseFormat) -> str:
    """Return the JSON text an agent would answer for these operations; `parse` reads it back.

    Raises ValueError where the format cannot say it (`turns` cannot carry a written text).
    """
    labels = {entry.id: f"e{position}" for position, entry in enumerate(shown, start=1)}
    if fmt is ResponseFormat.TURNS:
        return json.dumps(_to_turns(update.operations, num_turns, labels), separators=(",", ":"))
    if agent is Agent.CORE:
        return json.dumps(_to_core(update.operations), ensure_ascii=False)
    actions = [_to_action(operation, labels) for operation in update.operations]
    return json.dumps({"operations": actions}, ensure_ascii=False)


def _failed(kind: FailureKind, detail: str) -> AgentUpdate:
    return AgentUpdate(failure=Failure(kind=kind, detail=detail))


def _from_turns(answer: dict[str, str], agent: Agent) -> tuple[Operation, ...]:
    operations = []
    for key, decision in answer.items():
        quote = (int(key[1:]),)
        if decision == "add":
            targets, kind = (), OperationKind.APPEND if agent is Agent.CORE else OperationKind.ADD
        else:
            targets = tuple(decision.split("+"))
            kind = OperationKind.UPDATE if len(targets) == 1 else OperationKind.MERGE
        operations.append(Operation(kind=kind, quote=quote, targets=targets))
    return tuple(operations)


def _operation(answer: dict) -> Operation:
    """Read one operation of the `operations` format, of whatever agent."""
    return Operation(
        kind=OperationKind(answer.get("operation") or answer["action"]),
        text=next((answer[key] for key in ("content", "new_text", "memory", "new_memory") if key in answer), None),
        quote=tuple(map(int, answer.get("quote", ()))),  # to JSON schema 3.0 is an integer too
        targets=tuple(answer.get("old_memories", [answer["old_memory"]] if "old_memory" in answer else ())),
        old_text=answer.get("old_text"),
    )


def _to_turns(operations: Sequence[Operation], num_turns: int, labels: dict[str, str]) -> dict[str, str]:
    answer = {}
    for operation in sorted(operations, key=lambda operation: operation.quote):
        numbers = operation.quote
        if len(numbers) != 1 or not 1 <= numbers[0] <= num_turns or f"#{numbers[0]}" in answer:
            raise ValueError(f"the turns format says one turn of the session per operation, each once, got {operation}")
        targets = [labels.get(target, target) for target in operation.targets]
        answer[f"#{numbers[0]}"] = "+".join(targets) or "add"
    return answer


def _to_core(operations: Sequence[Operation]) -> dict:
    if not operations:
        return {"operation": "SKIP"}
    if all(operation.kind is OperationKind.APPEND and operation.quote for operation in operations):
        quote = [number for operation in operations for number in operation.quote]
        return {"operation": "APPEND", "quote": quote}
    if len(operations) > 1:
        raise ValueError(f"core answers hold one operation, got {len(operations)}")
    (operation,) = operations
    if operation.quote:
        raise ValueError(f"a core {operation.kind} cannot quote")
    if operation.kind is OperationKind.REPLACE:
        return {"operation": "REPLACE", "old_text": operation.old_text, "new_text": operation.text}
    return {"operation": operation.kind.value, "content": operation.text}


def _to_action(operation: Operation, labels: dict[str, str]) -> dict:
    answer: dict = {"action": operation.kind.value}
    targets = [labels.get(target, target) for target in operation.targets]
    if operation.kind is OperationKind.UPDATE:
        answer["old_memory"] = targets[0]
    if operation.kind is OperationKind.MERGE:
        answer["old_memories"] = targets
    if operation.quote:
        return answer | {"quote": list(operation.quote)}
    return answer | {"memory" if operation.kind is OperationKind.ADD else "new_memory": operation.text}
