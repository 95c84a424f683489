"""Memory built by a language model: four agents at once on each session, session after session, into a store.

    builder = Builder(ask=chat_agents(model, prompts), embedder=Embedder(), prompts=prompts)
    with writing("memory.db", settings) as store:
        await builder.build(dialogue, store)  # goes on behind the last session stored

Each agent sees its most related entries, the core agent the core; answers are parsed by `operations.py` and applied by
`apply.py` in one fixed order, as in training. An answer that is no operations, through the model's fault, changes nothing and is
stored with its reason. A server that fails ends the build: its outage is nothing the model remembers.
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
from membuilder.errors import BuildStopped, ChatError, DataError, StoreError, StoreErrorKind
from membuilder.llm.chat_model import ChatModel
from membuilder.schemes.four_agents.apply import SessionResult, apply_session
from membuilder.schemes.four_agents.operations import parse, render
from membuilder.schemes.four_agents.prompts import PromptConfig, render_prompt
from membuilder.schemes.four_agents.rules import propose
from membuilder.schemes.four_agents.schemas import schema
from membuilder.schemes.four_agents.session import Shown, shown_entries
from membuilder.text import quoted
from membuilder.types import Agent, AgentUpdate, Bank, Dialogue, Session

EMBED_AHEAD_TURNS = 48
"""Turns of one job of embedding ahead: enough for batches, and done in less than a second on one core."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AgentAnswer:
    """One agent's answer, before anything is applied."""

    text: str | None
    """None when none came."""
    update: AgentUpdate = AgentUpdate()
    chat_failure: Reason | None = None
    seconds: float = 0.0
    asked_at: datetime | None = None


Ask = Callable[[Session, Bank, Shown], Awaitable[dict[Agent, AgentAnswer]]]


def chat_agents(model: ChatModel, prompts: PromptConfig) -> Ask:
    """The four agents as four prompts to one model, asked at once. A ChatError that is not the model's fault is raised, after all
    have ended: an outage must not pass for an answer."""

    async def ask(session: Session, bank: Bank, shown: Shown) -> dict[Agent, AgentAnswer]:
        calls = [_ask_agent(model, prompts, agent, session, bank, shown) for agent in Agent]
        replies = await asyncio.gather(*calls, return_exceptions=True)
        for reply in replies:
            if isinstance(reply, BaseException):
                raise reply
        return dict(zip(Agent, replies, strict=True))

    return ask


def rule_agents(prompts: PromptConfig) -> Ask:
    """The offline expert in the place of a model; its operations are rendered as a model would have written them."""

    async def ask(session: Session, bank: Bank, shown: Shown) -> dict[Agent, AgentAnswer]:
        asked_at, began = datetime.now(UTC), time.perf_counter()
        updates, num_turns = propose(session, bank, shown), len(session.turns)
        seconds = (time.perf_counter() - began) / len(Agent)
        return {
            agent: AgentAnswer(
                text=render(update, agent, num_turns, shown[agent], prompts.response_format),
                update=update,
                seconds=seconds,
                asked_at=asked_at,
            )
            for agent, update in updates.items()
        }

    return ask


@dataclass(frozen=True, kw_only=True)
class Builder:
    """Builds any number of dialogues, also at once: their embeddings share one thread, models wait side by side."""

    ask: Ask
    embedder: TextEmbedder
    prompts: PromptConfig
    _thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "embed"), init=False)

    async def build(
        self, dialogue: Dialogue, store: Store, on_session: Callable[[Session], object] = lambda session: None
    ) -> Bank:
        """Every session of `dialogue` that `store` does not hold yet, one transaction each; the bank after the last.

        Raises DataError for a dialogue that cannot be built, StoreError, and BuildStopped where a server fails, of chat
        or of embeddings. The sessions before stay stored.
        """
        check_dialogue(dialogue)
        num_stored = _check_same(dialogue, store)
        bank = store.bank()
        embedder = _WithStored(self.embedder, bank, store.vectors()) if bank.entries else self.embedder
        sessions = dialogue.sessions[num_stored:]
        ahead = asyncio.create_task(self._embed_ahead(sessions[1:], embedder))
        try:
            for session in sessions:
                shown = await self._in_thread(shown_entries, session, bank, embedder, self.prompts)
                replies = await self.ask(session, bank, shown) if session.turns else {}  # nobody is asked about nothing
                updates = {agent: replies[agent].update for agent in replies} or dict.fromkeys(Agent, AgentUpdate())
                result = apply_session(bank, session, updates, shown, self.prompts.core_limit_chars)
                new = [entry.text for entry in result.bank.entries[len(bank.entries) :]]
                vectors = await self._in_thread(_embed, embedder, new)
                bank = result.bank
                store.append(session, _answers(replies, result, shown), bank, vectors)
                on_session(session)
        except ChatError as error:
            raise BuildStopped(store.path, dialogue.id, session.id, session.index, error) from error
        finally:
            ahead.cancel()
            await asyncio.wait({ahead})  # what could not be embedded ahead, a session above could not either
            with suppress(asyncio.CancelledError):
                ahead.exception()  # seen
        return bank

    def close(self) -> None:
        """Ends the thread, after what runs in it."""
        self._thread.shutdown(cancel_futures=True)

    async def _embed_ahead(self, sessions: Sequence[Session], embedder: TextEmbedder) -> None:
        """Embeds the turns of sessions to come while the model writes, for embedders that remember what they embedded.

        In small jobs, so that one of these is all that what is needed now may have to wait for.
        """
        texts: list[str] = []
        for session in sessions if self.prompts.entries_shown else ():
            texts += [quoted(session, turn) for turn in session.turns]  # the queries of `related`
            if len(texts) >= EMBED_AHEAD_TURNS:
                await self._in_thread(embedder.embed, texts)
                texts = []
        if texts:
            await self._in_thread(embedder.embed, texts)

    async def _in_thread(self, function: Callable, *arguments: object):
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)


def check_dialogue(dialogue: Dialogue) -> None:
    """Raises DataError unless sessions are numbered in time order, ids are unique and every text is text."""

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


async def _ask_agent(
    model: ChatModel, prompts: PromptConfig, agent: Agent, session: Session, bank: Bank, shown: Shown
) -> AgentAnswer:
    asked_at, began = datetime.now(UTC), time.perf_counter()
    prompt = render_prompt(agent, session, bank, shown[agent], prompts)
    num_turns = len(session.turns)
    try:
        text = await model.complete(
            [{"role": "user", "content": prompt}], schema=schema(agent, prompts.response_format, num_turns)
        )
    except ChatError as error:
        if not error.models_fault:
            raise
        reason = Reason(kind=f"chat_{error.kind}", detail=str(error))
        return AgentAnswer(text=None, chat_failure=reason, seconds=time.perf_counter() - began, asked_at=asked_at)
    update = parse(text, agent, num_turns, prompts.response_format)
    return AgentAnswer(text=text, update=update, seconds=time.perf_counter() - began, asked_at=asked_at)


def _embed(embedder: TextEmbedder, texts: Sequence[str]) -> np.ndarray:
    return embedder.embed(texts) if texts else np.empty((0, embedder.dimension), dtype=np.float32)


def _answers(replies: Mapping[Agent, AgentAnswer], result: SessionResult, shown: Shown) -> dict[Agent, Answer]:
    answers = {}
    for agent, reply in replies.items():
        failure = reply.chat_failure
        if agent in result.failures:
            failure = Reason(kind=result.failures[agent].kind.value, detail=result.failures[agent].detail)
        answers[agent] = Answer(
            text=reply.text,
            operations=reply.update.operations,
            failure=failure,
            shown=tuple(entry.id for entry in shown[agent]),
            seconds=reply.seconds,
            asked_at=reply.asked_at,
        )
    return answers


def _check_same(dialogue: Dialogue, store: Store) -> int:
    """How many sessions are stored; they must be the first ones of this dialogue, word for word."""
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
        raise StoreError(StoreErrorKind.OTHER_BUILD, store.path, f"{problem}; build into a new file")
    return len(stored)
