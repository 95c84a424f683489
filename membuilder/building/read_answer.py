"""Reads a model's answer: as a whole, and where that cannot be applied, operation by operation.

Training reads with `scheme.parse` and `scheme.apply` alone, to which an answer is right as a whole or wrong.
"""

import json
from dataclasses import dataclass, replace
from enum import StrEnum

from membuilder.bank.store_rows import Dropped, storable
from membuilder.llm.model_output import read_model_json
from membuilder.schemes.scheme import Call, CallOutcome, Scheme, SessionResult, Shown, SplitsAnswers
from membuilder.types import AgentUpdate, Bank, Failure, FailureKind, Operation, OperationKind, Session

UNREADABLE = (FailureKind.NOT_JSON, FailureKind.SCHEMA)


class OnBadOperation(StrEnum):
    """What becomes of an answer some of whose operations cannot be applied."""

    APPLY = "apply"
    """The others are applied, and these recorded."""
    RETRY = "retry"
    """It is asked for once more, naming each problem; what is still bad then is left out as by `apply`."""
    DROP = "drop"
    """It fails as a whole, as in training."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadAnswer:
    update: AgentUpdate
    """What can be applied; the answer as it was read where nothing can. Calls of tools may fail beside it."""
    problems: tuple[Dropped, ...] = ()
    """What cannot be applied; the whole answer, where it cannot be taken apart."""
    stands: bool = True
    """Whether all of the answer can be applied, or at least one operation."""
    alone: SessionResult | None = None
    """What applying it came to, where it is calls of tools: the bank, and what the model reads before it goes on."""

    @property
    def is_unreadable(self) -> bool:
        return self.update.failure is not None and self.update.failure.kind in UNREADABLE

    def complaint(self) -> str:
        """Name the problems to the model, so that it answers once more."""
        if self.is_unreadable and len(self.problems) < 2:
            return f"That was not the JSON object asked for ({self.update.failure.detail}). Write it again."
        problems = "\n".join(f"- {each.operation[:200]}: {each.kind}, {each.detail}" for each in self.problems)
        return f"This cannot be applied:\n{problems}\nWrite the whole answer again, with that put right."


def read_whole(scheme: Scheme, role: str, text: str, session: Session) -> ReadAnswer:
    """Read an answer that is usable as a whole or not at all; the bank it is applied to may refuse it still."""
    update, _ = _parsed(scheme, role, text, session)
    return ReadAnswer(update=update, stands=update.failure is None)


def read_operations(scheme: Scheme, role: str, text: str, session: Session, bank: Bank, shown: Shown) -> ReadAnswer:
    """Read an answer of which every operation stands that can be applied to `bank` behind those before it."""

    def applied(update: AgentUpdate) -> SessionResult:
        return scheme.apply(session, bank, dict.fromkeys(scheme.roles, AgentUpdate()) | {role: update}, shown)

    def failure_of(operations: tuple[Operation, ...]) -> Failure | None:
        return applied(AgentUpdate(operations=operations)).failures.get(role)

    update, text = _parsed(scheme, role, text, session)
    if update.failure is None and (calls := (result := applied(update)).calls.get(role)):
        return replace(_read_calls(update, calls, result.failures.get(role)), alone=result)
    if (failure := update.failure or failure_of(update.operations)) is None:
        return ReadAnswer(update=update)
    kept, problems = (), []
    for piece in scheme.split(role, text) if isinstance(scheme, SplitsAnswers) else ():
        part = scheme.parse(role, piece, session)
        if (bad := part.failure or failure_of(kept + part.operations)) is None:
            kept += part.operations
        else:
            problems.append(_dropped(piece, bad))
    if kept and problems:
        return ReadAnswer(update=AgentUpdate(operations=kept), problems=tuple(problems))
    return ReadAnswer(update=update, problems=tuple(problems) or (_dropped(text, failure),), stands=False)


def _read_calls(update: AgentUpdate, calls: tuple[Call, ...], failure: Failure | None) -> ReadAnswer:
    """Read an answer of which every call stands or falls alone; `failure` says why none of them could be used."""
    kept, problems = [], []
    for item, call in zip(update.in_order(), calls, strict=True):
        if call.outcome is not CallOutcome.RAN:
            said = json.dumps({"name": call.name, "arguments": call.arguments}, ensure_ascii=False)
            problems.append(Dropped(operation=storable(said), kind=call.outcome.value, detail=storable(call.detail)))
        elif isinstance(item, Operation) and item.kind is OperationKind.DELETE and call.entry is not None:
            kept.append(replace(item, targets=(call.entry,)))  # whatever the model called it: labels and texts change
        else:
            kept.append(item)
    read = AgentUpdate(operations=tuple(kept), failure=failure)
    return ReadAnswer(update=read, problems=tuple(problems), stands=failure is None)


def _parsed(scheme: Scheme, role: str, text: str, session: Session) -> tuple[AgentUpdate, str]:
    """Read a text as the scheme reads a policy's; else the one JSON value that stands in it. Return what was read."""
    update = scheme.parse(role, text, session)
    if update.failure is None or update.failure.kind not in UNREADABLE:
        return update, text
    try:
        found = json.dumps(read_model_json(text), ensure_ascii=False)
    except ValueError:
        return update, text
    return scheme.parse(role, found, session), found


def _dropped(piece: str, failure: Failure) -> Dropped:
    return Dropped(operation=storable(piece), kind=failure.kind.value, detail=storable(failure.detail))
