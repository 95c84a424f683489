"""An entry corrected by hand: told as a session of its own, in which the user says what it is to say now.

So the history shows who changed it, and whatever reads the memory again finds the correction among the sessions.
"""

from collections.abc import Collection
from dataclasses import replace
from datetime import UTC, datetime
from uuid import uuid4

from membuilder.bank.memory_store import MemoryStore
from membuilder.bank.store_rows import Answer, StoredMemory, role_of
from membuilder.embedding.local import TextEmbedder
from membuilder.schemes.scheme import NamesParts, Scheme
from membuilder.serving.errors import MemoryConflict, NotThereError
from membuilder.types import AgentUpdate, Operation, OperationKind, Session, Turn

CORRECTION = "correction-"
"""How the id of such a session begins."""


def corrections_of(memory: StoredMemory, gone: Collection[str]) -> list[int]:
    """Return the indices of the sessions in which one of these entries was corrected, or such a correction once more.

    A correction says what the entry said, in other words, so it goes with it.
    """
    told = {each.session.index for each in memory.sessions if each.session.id.startswith(CORRECTION)}
    followed = set(gone)
    for entry in memory.entries:
        if entry.session in told and not followed.isdisjoint(entry.supersedes):
            followed.add(entry.id)
    return sorted({entry.session for entry in memory.entries if entry.id in followed} & told)


def corrected_entry(store: MemoryStore, entry_id: str, text: str, scheme: Scheme, embedder: TextEmbedder) -> None:
    """Let a new entry replace one of the memory (by its own id). Raises NotThereError and MemoryConflict."""
    bank, sessions = store.bank(), store.sessions()
    entry = next((each for each in bank.current() if each.id == entry_id), None)
    if entry is None:
        raise NotThereError("current entry", entry_id)
    role = role_of(entry, sessions[entry.session].answers)
    session = _told(text, sessions[-1].session)
    part = str(entry.agent) if isinstance(scheme, NamesParts) else None
    update = AgentUpdate(operations=(Operation(kind=OperationKind.UPDATE, text=text, targets=(entry.id,), part=part),))
    shown = {each: (entry,) if each == role else () for each in scheme.roles}
    updates = {each: update if each == role else AgentUpdate() for each in scheme.roles}
    result = scheme.apply(session, bank, updates, shown)
    refused = [call.detail for calls in result.calls.values() for call in calls if call.text is None]
    refused += [failure.detail for failure in result.failures.values()]
    if refused or len(result.bank.entries) == len(bank.entries):
        raise MemoryConflict("; ".join(refused) or "the scheme changed nothing")
    new = result.bank.entries[len(bank.entries) :]
    written = scheme.write(role, update, session, shown)
    answer = Answer(text=written, operations=update.operations, shown=(entry.id,), asked_at=datetime.now(UTC))
    vectors = embedder.embed([each.text for each in new])
    store.append(session, {role: answer}, result.bank, vectors)


def _told(text: str, last: Session) -> Session:
    now = datetime.now(UTC).replace(microsecond=0, tzinfo=UTC if last.timestamp.tzinfo else None)
    name = f"{CORRECTION}{uuid4().hex[:12]}"
    turn = Turn(id=f"{name}:1", speaker="user", role="user", text=text)
    return replace(last, id=name, index=last.index + 1, timestamp=max(now, last.timestamp), turns=(turn,))
