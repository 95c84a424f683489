"""Memory built by a language model: every role of a scheme at once on each session, into a store.

    builder = Builder(ask=ask_model(model, scheme), embedder=Embedder(), scheme=scheme)
    with writing("memory.db", settings) as store:
        await builder.build(dialogue, store)  # goes on behind the last session stored

The scheme says what each role sees, reads its answer and applies it, as in training. An unusable answer of the model
changes nothing and is stored with its reason. A server that fails ends the build, because its outage is no memory.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import numpy as np

from membuilder.bank.memory_store import MemoryStore
from membuilder.bank.session_ids import with_ids_of, without_ids
from membuilder.bank.store_rows import Answer, Reason
from membuilder.building.ask_role import RoleAsker
from membuilder.building.read_answer import OnBadOperation
from membuilder.building.standing import Answers, Standing, standing_answers
from membuilder.embedding.local import TextEmbedder, in_rows
from membuilder.errors import BuildStopped, ChatError, ConfigError, DataError, StoreError
from membuilder.llm.chat_model import ChatModel
from membuilder.schemes.scheme import Scheme, Shown
from membuilder.text import HALF_CHARACTER, is_text
from membuilder.types import AgentUpdate, Bank, Dialogue, Failure, Session

Ask = Callable[[Session, Bank, Shown, Sequence[str]], Awaitable[Answers]]
"""Asks the roles named about a session: the bank before it and the entries shown stand beside it."""


def ask_model(model: ChatModel, scheme: Scheme, on_bad: OnBadOperation = OnBadOperation.APPLY) -> Ask:
    """Let one model answer in all roles of a scheme, which are asked at once.

    A ChatError that is not the model's fault is raised after all calls have ended.
    """
    asker = RoleAsker(model=model, scheme=scheme, on_bad=on_bad)

    async def ask(session: Session, bank: Bank, shown: Shown, roles: Sequence[str]) -> Answers:
        calls = [asker.ask(role, session, bank, shown) for role in roles]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        for failed in (answer for answer in answers if isinstance(answer, BaseException)):
            raise failed
        return dict(zip(roles, answers, strict=True))

    return ask


def ask_expert(scheme: Scheme) -> Ask:
    """Let the scheme's offline expert answer; its updates are written as a model would have written them."""
    propose = scheme.expert
    if propose is None:
        raise ConfigError(f"scheme '{scheme.name}' has no offline expert: name a model to build with")

    async def ask(session: Session, bank: Bank, shown: Shown, roles: Sequence[str]) -> Answers:
        asked_at, began = datetime.now(UTC), time.perf_counter()
        updates = propose(session, bank, shown)
        seconds = (time.perf_counter() - began) / len(scheme.roles)
        answers = {}
        for role in roles:
            update = updates[role]
            text = scheme.write(role, update, session, shown)
            answer = Answer(text=text, operations=update.operations, seconds=seconds, asked_at=asked_at)
            answers[role] = update, answer
        return answers

    return ask


@dataclass(frozen=True, kw_only=True)
class Builder:
    """It builds any number of dialogues, also at once: their embeddings share one thread."""

    ask: Ask
    embedder: TextEmbedder
    scheme: Scheme
    _thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "embed"), init=False)

    async def build(
        self, dialogue: Dialogue, store: MemoryStore, on_session: Callable[[Session], object] = lambda session: None
    ) -> Bank:
        """Build every session that `store` does not hold yet, in a transaction each; return the bank after the last.

        Raises DataError for a dialogue that cannot be built, StoreError, and BuildStopped where a server fails.
        """
        check_dialogue(dialogue)
        num_stored = _check_same(dialogue, store)
        bank = store.bank()
        embedder = _knowing(self.embedder, store, bank)
        for session in dialogue.sessions[num_stored:]:
            nothing = Standing(answers={}, shown={})
            bank = await self._add_session(dialogue, session, bank, nothing, store, embedder)
            on_session(session)
        return bank

    async def retry(
        self, dialogue: Dialogue, store: MemoryStore, fresh: MemoryStore, on_session: Callable[[Session], object]
    ) -> None:
        """Write the sessions of `store` into `fresh`, where a retry that was stopped goes on.

        Answers stand as they are stored, and only roles without one are asked: those that failed, and those whose
        answer no longer fits what others now wrote before it. Raises as `build` does.
        """
        check_dialogue(dialogue)
        _check_same(dialogue, store)
        old, bank = store.bank(), fresh.bank()
        embedder = _knowing(_knowing(self.embedder, store, old), fresh, bank)
        for stored in store.sessions()[fresh.num_sessions() :]:
            standing = standing_answers(stored, old, bank, self.scheme)
            bank = await self._add_session(dialogue, stored.session, bank, standing, fresh, embedder)
            on_session(stored.session)

    async def _add_session(
        self,
        dialogue: Dialogue,
        session: Session,
        bank: Bank,
        standing: Standing,
        store: MemoryStore,
        embedder: TextEmbedder,
    ) -> Bank:
        """Ask the roles that have no answer yet, store the session with all answers and return the bank after it."""
        shown, answers = standing.shown, standing.answers
        missing = [role for role in self.scheme.roles if role not in answers]
        if missing:
            shown = await self._in_thread(self.scheme.show, session, bank, embedder) | shown
        if session.turns and missing:  # an empty session is not read
            try:
                answers = answers | await self.ask(session, bank, shown, missing)
            except ChatError as error:
                raise BuildStopped(store.path, dialogue.id, session.id, session.index, error) from error
        updates = {role: AgentUpdate() for role in self.scheme.roles}
        updates |= {role: update for role, (update, _) in answers.items()}
        result = self.scheme.apply(session, bank, updates, shown)
        new = [entry.text for entry in result.bank.entries[len(bank.entries) :]]
        vectors = await self._in_thread(embedder.embed, new)
        in_order = {role: answers[role] for role in self.scheme.roles if role in answers}
        store.append(session, _stored(in_order, result.failures, shown), result.bank, vectors)
        return result.bank

    def close(self) -> None:
        """End the thread after what runs in it."""
        self._thread.shutdown(cancel_futures=True)

    async def _in_thread(self, function: Callable, *arguments: object):
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)


def check_dialogue(dialogue: Dialogue) -> None:
    """Raise DataError unless sessions are numbered in time order, ids are unique and every text is text."""

    def refuse(session: Session, name: str, problem: str) -> None:
        raise DataError(f"dialogue {dialogue.id}", f"session {session.id}", name, problem)

    session_ids, turn_ids = set(), set()
    for position, session in enumerate(dialogue.sessions):
        if session.index != position:
            refuse(session, "index", f"is {session.index} at position {position}; number the sessions from 0")
        if position and session.timestamp < dialogue.sessions[position - 1].timestamp:
            refuse(session, "timestamp", f"{session.timestamp} lies before the session before it; sort them by date")
        if session.id in session_ids:
            refuse(session, "id", "names two sessions; every session needs its own")
        session_ids.add(session.id)
        for turn in session.turns:
            if turn.id in turn_ids:
                refuse(session, "turns", f"{turn.id!r} names two turns; every turn needs its own id")
            turn_ids.add(turn.id)
            if not is_text(f"{turn.id}{turn.speaker}{turn.role}{turn.content}"):
                refuse(session, "turns", f"turn {turn.id!r} {HALF_CHARACTER}; remove it")


class _WithStored:
    """It knows the vectors of stored entries, so that a build goes on with the very numbers it wrote."""

    def __init__(self, embedder: TextEmbedder, bank: Bank, vectors: np.ndarray):
        self._embedder, self.dimension = embedder, embedder.dimension
        self._vectors = {entry.text: vector for entry, vector in zip(bank.entries, vectors, strict=True)}

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        if new := [text for text in dict.fromkeys(texts) if text not in self._vectors]:
            self._vectors.update(zip(new, self._embedder.embed(new), strict=True))
        return in_rows(self._vectors, texts, self.dimension)


def _knowing(embedder: TextEmbedder, store: MemoryStore, bank: Bank) -> TextEmbedder:
    return _WithStored(embedder, bank, store.vectors()) if bank.entries else embedder


def _stored(answers: Answers, failures: Mapping[str, Failure], shown: Shown) -> dict[str, Answer]:
    reasons = {role: Reason(kind=failure.kind.value, detail=failure.detail) for role, failure in failures.items()}
    ids = {role: tuple(entry.id for entry in entries) for role, entries in shown.items()}
    return {
        role: replace(answer, failure=reasons.get(role, answer.failure), shown=ids[role])
        for role, (_, answer) in answers.items()
    }


def _check_same(dialogue: Dialogue, store: MemoryStore) -> int:
    """Count the stored sessions, which must be the first ones of this dialogue, word for word.

    Where ids alone differ, as those of a file without ids do after an edit, the store takes over the dialogue's.
    """
    stored = [each.session for each in store.sessions()]
    pairs = list(zip(stored, dialogue.sessions, strict=False))
    differs = [mine.id for mine, theirs in pairs if mine != theirs and without_ids(mine) != without_ids(theirs)]
    if not differs and len(stored) <= len(dialogue.sessions):
        if any(mine != theirs for mine, theirs in pairs):
            store.replace(with_ids_of(store.memory(), dialogue.sessions[: len(stored)]))
        return len(stored)
    problem = f"holds {len(stored)} sessions already, more than the {len(dialogue.sessions)} to build"
    if differs:
        problem = f"session {differs[0]} was read with another date or other turns than {dialogue.id} has there"
    advice = "build into a new file, or make store and dialogue say the same (`python -m membuilder.edit`)"
    raise StoreError(store.path, f"{problem}; {advice}")
