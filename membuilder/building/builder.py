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
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np

from membuilder.bank.store import Store
from membuilder.bank.store_rows import Answer, Reason
from membuilder.embedding.local import TextEmbedder
from membuilder.errors import BuildStopped, ChatError, ConfigError, DataError, StoreError
from membuilder.llm.chat_model import ChatModel
from membuilder.schemes.scheme import Scheme, SessionResult, Shown
from membuilder.types import AgentUpdate, Bank, Dialogue, Session

EMBED_AHEAD_TURNS = 48
"""Turns of one job of embedding ahead: enough for batches, and done in less than a second on one core."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RoleAnswer:
    """One role's answer, before anything is applied."""

    text: str | None
    """The model's text; None when none came."""
    update: AgentUpdate = AgentUpdate()
    chat_failure: Reason | None = None
    seconds: float = 0.0
    asked_at: datetime | None = None


Ask = Callable[[Session, Bank, Shown], Awaitable[dict[str, RoleAnswer]]]


def ask_model(model: ChatModel, scheme: Scheme) -> Ask:
    """Let one model answer in all roles of a scheme, which are asked at once.

    A ChatError that is not the model's fault is raised after all calls have ended.
    """

    async def ask(session: Session, bank: Bank, shown: Shown) -> dict[str, RoleAnswer]:
        calls = [_ask_role(model, scheme, role, session, bank, shown) for role in scheme.roles]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
        return dict(zip(scheme.roles, answers, strict=True))

    return ask


def ask_expert(scheme: Scheme) -> Ask:
    """Let the scheme's offline expert answer; its updates are written as a model would have written them."""
    propose = scheme.expert
    if propose is None:
        raise ConfigError(f"scheme '{scheme.name}' has no offline expert: name a model to build with")

    async def ask(session: Session, bank: Bank, shown: Shown) -> dict[str, RoleAnswer]:
        asked_at, began = datetime.now(UTC), time.perf_counter()
        updates = propose(session, bank, shown)
        seconds = (time.perf_counter() - began) / len(scheme.roles)
        texts = {role: scheme.write(role, update, session, shown) for role, update in updates.items()}
        return {
            role: RoleAnswer(text=texts[role], update=update, seconds=seconds, asked_at=asked_at)
            for role, update in updates.items()
        }

    return ask


@dataclass(frozen=True, kw_only=True)
class Builder:
    """It builds any number of dialogues, also at once: their embeddings share one thread."""

    ask: Ask
    embedder: TextEmbedder
    scheme: Scheme
    _thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "embed"), init=False)

    async def build(
        self, dialogue: Dialogue, store: Store, on_session: Callable[[Session], object] = lambda session: None
    ) -> Bank:
        """Build every session that `store` does not hold yet, in a transaction each; return the bank after the last.

        Raises DataError for a dialogue that cannot be built, StoreError, and BuildStopped where a server fails.
        """
        check_dialogue(dialogue)
        num_stored = _check_same(dialogue, store)
        bank = store.bank()
        embedder = _WithStored(self.embedder, bank, store.vectors()) if bank.entries else self.embedder
        sessions = dialogue.sessions[num_stored:]
        ahead = asyncio.create_task(self._embed_ahead(sessions[1:], embedder))
        try:
            for session in sessions:
                shown = await self._in_thread(self.scheme.show, session, bank, embedder)
                answers = await self.ask(session, bank, shown) if session.turns else {}  # an empty session is not read
                updates = {role: AgentUpdate() for role in self.scheme.roles}
                updates |= {role: answer.update for role, answer in answers.items()}
                result = self.scheme.apply(session, bank, updates, shown)
                new = [entry.text for entry in result.bank.entries[len(bank.entries) :]]
                vectors = await self._in_thread(_embed, embedder, new)
                bank = result.bank
                store.append(session, _stored_answers(answers, result, shown), bank, vectors)
                on_session(session)
        except ChatError as error:
            raise BuildStopped(store.path, dialogue.id, session.id, session.index, error) from error
        finally:
            ahead.cancel()
            await asyncio.wait({ahead})  # what could not be embedded ahead, a session above could not either
            with suppress(asyncio.CancelledError):
                ahead.exception()  # asked for, so that asyncio does not report it as never retrieved
        return bank

    def close(self) -> None:
        """End the thread after what runs in it."""
        self._thread.shutdown(cancel_futures=True)

    async def _embed_ahead(self, sessions: Sequence[Session], embedder: TextEmbedder) -> None:
        """Embed the turns of sessions to come while the model writes, for embedders that remember what they embedded.

        The jobs are small, because an embedding that is needed now waits for the job that runs.
        """
        texts: list[str] = []
        for session in sessions:
            texts += self.scheme.show_queries(session)
            if len(texts) >= EMBED_AHEAD_TURNS or session is sessions[-1]:
                await self._in_thread(_embed, embedder, texts)
                texts = []

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
            try:
                "".join((turn.id, turn.speaker, turn.role, turn.content)).encode()
            except UnicodeEncodeError:  # JSON files may hold one
                refuse(session, "turns", f"turn {turn.id!r} holds half a surrogate pair, which is no text; remove it")


class _WithStored:
    """An embedder that knows the stored entries already, so that a build goes on with the very numbers it wrote."""

    def __init__(self, embedder: TextEmbedder, bank: Bank, vectors: np.ndarray):
        self._embedder, self._vectors = embedder, vectors
        self._rows = {entry.text: row for row, entry in enumerate(bank.entries)}

    @property
    def dimension(self) -> int:
        return self._embedder.dimension

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        is_stored = np.fromiter((text in self._rows for text in texts), dtype=bool, count=len(texts))
        vectors = np.empty((len(texts), self.dimension), dtype=np.float32)
        vectors[is_stored] = self._vectors[[self._rows[text] for text in texts if text in self._rows]]
        if not is_stored.all():
            vectors[~is_stored] = self._embedder.embed([text for text in texts if text not in self._rows])
        return vectors


async def _ask_role(
    model: ChatModel, scheme: Scheme, role: str, session: Session, bank: Bank, shown: Shown
) -> RoleAnswer:
    asked_at, began = datetime.now(UTC), time.perf_counter()
    prompt = scheme.ask(role, session, bank, shown)
    try:
        text = await model.complete([{"role": "user", "content": prompt}], schema=scheme.schema(role, session))
        given = {"text": text, "update": scheme.parse(role, text, session)}
    except ChatError as error:
        if not error.models_fault:
            raise
        given = {"text": None, "chat_failure": Reason(kind=f"chat_{error.kind}", detail=str(error))}
    return RoleAnswer(**given, seconds=time.perf_counter() - began, asked_at=asked_at)


def _embed(embedder: TextEmbedder, texts: Sequence[str]) -> np.ndarray:
    return embedder.embed(texts) if texts else np.empty((0, embedder.dimension), dtype=np.float32)


def _stored_answers(answers: Mapping[str, RoleAnswer], result: SessionResult, shown: Shown) -> dict[str, Answer]:
    stored = {}
    for role, answer in answers.items():
        failure = answer.chat_failure
        if role in result.failures:
            failure = Reason(kind=result.failures[role].kind.value, detail=result.failures[role].detail)
        stored[role] = Answer(
            text=answer.text,
            operations=answer.update.operations,
            failure=failure,
            shown=tuple(entry.id for entry in shown[role]),
            seconds=answer.seconds,
            asked_at=answer.asked_at,
        )
    return stored


def _check_same(dialogue: Dialogue, store: Store) -> int:
    """Count the stored sessions, which must be the first ones of this dialogue, word for word."""
    stored = [each.session for each in store.sessions()]
    differs = [mine.id for mine, theirs in zip(stored, dialogue.sessions, strict=False) if mine != theirs]
    problem = ""
    if differs:
        problem = (
            f"session {differs[0]} was read with another date or other turns than dialogue {dialogue.id} has there"
        )
    elif len(stored) > len(dialogue.sessions):
        problem = f"holds {len(stored)} sessions already, more than the {len(dialogue.sessions)} to build"
    if problem:
        raise StoreError(store.path, f"{problem}; build into a new file")
    return len(stored)
