"""Applying operations: bank in, bank out. Pure; an agent's operations all take effect or none does."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from membuilder.schemes.scheme import SessionResult
from membuilder.text import on_one_line, quoted
from membuilder.types import (
    Agent,
    AgentUpdate,
    Bank,
    CoreQuote,
    Entry,
    Failure,
    FailureKind,
    Operation,
    OperationKind,
    Session,
    Turn,
)

CORE_LIMIT_CHARS = 5000
CUT = "..."
"""Behind a text that is shown to an agent in part."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Applied:
    bank: Bank
    written: tuple[str, ...] = ()
    """The memory texts this update wrote: what the length penalty counts."""
    failure: Failure | None = None


def apply_session(
    bank: Bank,
    session: Session,
    updates: Mapping[str, AgentUpdate],
    shown: Mapping[str, Sequence[Entry]],
    core_limit: int = CORE_LIMIT_CHARS,
) -> SessionResult:
    """Apply all four agents' updates, in one order whatever that of `updates`; one failing leaves the others."""
    written, failures = {}, {}
    for agent in Agent:
        applied = apply_update(bank, session, agent, updates[agent], shown[agent], core_limit)
        bank, written[agent] = applied.bank, applied.written
        if applied.failure is not None:
            failures[agent] = applied.failure
    return SessionResult(bank=bank, written=written, failures=failures)


def apply_update(
    bank: Bank,
    session: Session,
    agent: Agent,
    update: AgentUpdate,
    shown: Sequence[Entry],
    core_limit: int = CORE_LIMIT_CHARS,
) -> Applied:
    """Apply one agent's update; on the first failing operation the bank comes back as it was, with the reason."""
    if update.failure is not None:
        return Applied(bank=bank, failure=update.failure)
    changed, written = bank, []
    for operation in update.operations:
        if operation.kind is OperationKind.SKIP:
            continue
        if agent is Agent.CORE:
            step = _change_core(changed, session, operation, core_limit)
        else:
            step = _add_entry(changed, session, agent, operation, shown)
        if step.failure is not None:
            return Applied(bank=bank, failure=step.failure)
        changed = step.bank
        written += step.written
    return Applied(bank=changed, written=tuple(written))


def _turns(session: Session, operation: Operation) -> list[Turn] | Failure:
    beyond = [number for number in operation.quote if not 1 <= number <= len(session.turns)]
    if beyond:
        detail = f"turn {beyond[0]} of a session of {len(session.turns)} turns"
        return Failure(kind=FailureKind.UNKNOWN_TURN, detail=detail)
    return [session.turns[number - 1] for number in operation.quote]


def _text(session: Session, operation: Operation, turns: list[Turn]) -> str:
    return "\n".join(quoted(session, turn) for turn in turns) if turns else (operation.text or "")


def _add_entry(bank: Bank, session: Session, agent: Agent, operation: Operation, shown: Sequence[Entry]) -> Applied:
    turns = _turns(session, operation)
    if isinstance(turns, Failure):
        return Applied(bank=bank, failure=turns)
    supersedes = []
    for target in operation.targets:
        found = resolve(target, shown)
        if isinstance(found, Failure):
            return Applied(bank=bank, failure=found)
        if found.id in supersedes:
            detail = f"{target[:80]!r} is an entry named before"
            return Applied(bank=bank, failure=Failure(kind=FailureKind.AMBIGUOUS_TARGET, detail=detail))
        supersedes.append(found.id)
    entry = Entry(
        id=f"m{len(bank.entries) + 1}",
        agent=agent,
        text=_text(session, operation, turns),
        session=session.index,
        timestamp=session.timestamp,
        source_turns=tuple(turn.id for turn in turns),
        supersedes=tuple(supersedes),
    )
    return Applied(bank=replace(bank, entries=(*bank.entries, entry)), written=(entry.text,))


def resolve(target: str, shown: Sequence[Entry]) -> Entry | Failure:
    """Find the shown entry a target names: by label (e1 is the first), id, text, unambiguous prefix or shown line."""
    labels = {f"e{position}": entry for position, entry in enumerate(shown, start=1)}
    if target in labels:
        return labels[target]
    wanted = on_one_line(target)
    label, _, text = wanted.partition(" ")
    if label in labels and text:  # the whole line as it is shown, where the text is that entry's
        if on_one_line(labels[label].text).startswith(text.removesuffix(CUT) or text):
            return labels[label]
    begins = wanted.removesuffix(CUT) or wanted  # a long entry is shown cut, and may be named as it is shown
    for matches in (
        [entry for entry in shown if entry.id == target],
        [entry for entry in shown if on_one_line(entry.text) == wanted],
        [entry for entry in shown if on_one_line(entry.text).startswith(wanted)],
        [entry for entry in shown if on_one_line(entry.text).startswith(begins)],
    ):
        if len(matches) == 1:
            return matches[0]
        if matches:
            return Failure(
                kind=FailureKind.AMBIGUOUS_TARGET, detail=f"{len(matches)} shown entries fit {target[:80]!r}"
            )
    return Failure(kind=FailureKind.UNKNOWN_TARGET, detail=f"no shown entry is {target[:80]!r}")


def _change_core(bank: Bank, session: Session, operation: Operation, limit: int) -> Applied:
    turns = _turns(session, operation)
    if isinstance(turns, Failure):
        return Applied(bank=bank, failure=turns)
    text = _text(session, operation, turns)
    if operation.kind is OperationKind.REPLACE:
        occurrences = bank.core.count(operation.old_text or "")
        if occurrences != 1:
            kind = FailureKind.AMBIGUOUS_TARGET if occurrences else FailureKind.ABSENT_TEXT
            return Applied(bank=bank, failure=Failure(kind=kind, detail=f"{occurrences} times in core"))
        core = bank.core.replace(operation.old_text or "", text)
    elif operation.kind is OperationKind.REWRITE:
        core = text
    else:
        core = f"{bank.core}\n{text}" if bank.core else text
    if len(core) > limit:
        return Applied(bank=bank, failure=Failure(kind=FailureKind.CORE_LIMIT, detail=f"{len(core)} > {limit} chars"))
    quotes = bank.core_quotes + tuple(
        CoreQuote(turn_id=turn.id, text=f"{turn.speaker}: {turn.content}") for turn in turns
    )
    standing = tuple(quote for quote in quotes if quote.text in core)
    return Applied(bank=Bank(core=core, core_quotes=standing, entries=bank.entries), written=(text,))
