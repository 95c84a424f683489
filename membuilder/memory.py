"""A memory for programs: add conversations, search what was kept, ask questions; all of it in one file.

    with Memory("ann.db", ModelEndpoint(name="gpt-4.1-mini")) as memory:
        memory.add([{"role": "user", "name": "Ann", "content": "I adopted a cat called Miso."}])
        memory.search("Which pets does Ann have?").entries[0].text
        memory.answer("What is the cat called?")

The file is a store as `membuilder.build` writes it: `membuilder.inspect` shows it, and every `add` is one transaction.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from datetime import datetime
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from anyio.from_thread import start_blocking_portal

from membuilder.bank.indexed_bank import open_memory
from membuilder.bank.ranking import ANSWERING
from membuilder.bank.retrieve import Retrieval
from membuilder.bank.session_ids import free_session_id
from membuilder.bank.store import writing
from membuilder.building.builder import Builder, ask_expert, ask_model
from membuilder.building.config import RULES, BuildConfig, Keys
from membuilder.datasets.windows import in_windows
from membuilder.embedding.naming import identity_of
from membuilder.embedding.options import embedder_of
from membuilder.errors import ConfigError, DataError
from membuilder.llm.answer_and_judge import answer
from membuilder.llm.chat_model import Role
from membuilder.llm.client import ChatClient
from membuilder.llm.costs import Costs
from membuilder.llm.endpoints import ModelEndpoint
from membuilder.llm.usage import Usage
from membuilder.schemes.four_agents.rules import warn_of_unread_turns
from membuilder.schemes.load import FOUR_AGENTS, scheme_of
from membuilder.types import Bank, Dialogue, Entry, Question, Session, Turn

ROLES = ("user", "assistant")


class Memory(AbstractContextManager):
    """One person's or conversation's memory; it belongs to one thread at a time.

    `model` writes the memories and answers; without one the offline rules write, and nobody answers. `settings` are
    keys of BuildConfig, such as `scheme` or `embedding_model`. A file that was begun with others is refused. Raises
    ConfigError, ChatError where the model's server does not answer a small request, and StoreError.
    """

    def __init__(
        self, path: str | Path, model: ModelEndpoint | None = None, *, api_key: str | None = None, **settings: Any
    ) -> None:
        endpoint = model or ModelEndpoint(name=RULES, temperature=None)
        self._path, self.usage = Path(path), Usage()
        self._config = BuildConfig(out=str(path), model=endpoint, **settings)
        keys, costs = Keys(chat=api_key), Costs(usage=self.usage)
        scheme = scheme_of(self._config)
        with ExitStack() as stack:
            self._portal = stack.enter_context(start_blocking_portal())
            self._client = None
            if model is not None:
                self._client = self._portal.call(ChatClient, self._config.chat(keys), Role.BUILDER, costs)
                stack.callback(self._portal.call, self._client.__aexit__)
                self._portal.call(self._client.check)
            self._embedder = stack.enter_context(embedder_of(self._config.embedder(keys), costs))
            on_bad = self._config.on_bad_operation
            ask = ask_expert(scheme) if self._client is None else ask_model(self._client, scheme, on_bad)
            self._builder = Builder(ask=ask, embedder=self._embedder, scheme=scheme)
            stack.callback(self._builder.close)
            self._stack = stack.pop_all()

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End connections and threads; the file stays."""
        self._stack.close()

    def add(self, messages: Sequence[Mapping[str, str]], when: datetime | None = None) -> tuple[Entry, ...]:
        """Let the model read one conversation, had at `when` (now), and return the entries it wrote.

        A message has `role` (user or assistant), `content`, and `name` where the speaker has one. Raises DataError, and
        BuildStopped where the server fails: nothing of this conversation is stored then.
        """
        dialogue = Dialogue(id=self._path.stem, speakers=(), sessions=(), questions=())
        with writing(self._path, self._config.settings(dialogue, self._identity)) as store:
            before = tuple(stored.session for stored in store.sessions())
            new = _session(messages, before, when or datetime.now().replace(microsecond=0), self._path)
            if before and (before[-1].timestamp.tzinfo is None) != (new.timestamp.tzinfo is None):
                raise DataError(self._path, f"session {new.id}", "when", "give all times a zone, or none of them")
            if self._client is None and self._config.scheme == FOUR_AGENTS:
                warn_of_unread_turns([replace(dialogue, sessions=(new,))])
            dialogue = in_windows(replace(dialogue, sessions=(*before, new)), self._config.max_turns)
            bank = self._portal.call(self._builder.build, dialogue, store)
        return tuple(entry for entry in bank.entries if entry.session >= len(before))

    def search(self, query: str, k: int = 10) -> Retrieval:
        """Find the k entries that fit a text best, the best first."""
        return self._found(query, k)[1]

    def answer(self, question: str, k: int = 10) -> str:
        """Let the model answer from the core and the k entries that fit the question best. Raises ChatError."""
        if self._client is None:
            raise ConfigError("rules do not answer: open it with a model, Memory(path, ModelEndpoint(name=...))")
        bank, found = self._found(question, k)
        asked = Question(id="asked", text=question, answer=None, category="", evidence=(), asked_at=datetime.now())
        memories = [entry.text for entry in found.entries]
        return self._portal.call(partial(answer, asked, core=bank.core, memories=memories, model=self._client))

    @cached_property
    def _identity(self) -> dict[str, Any]:
        return identity_of(self._embedder, self._config.embedder(Keys()))

    def _found(self, query: str, k: int) -> tuple[Bank, Retrieval]:
        opened = open_memory(self._path, self._embedder, self._config.index, self._identity)
        prompts = self._config.prompts
        (found,) = opened.retrieve([query], k, prompts.include_superseded, prompts.retrieval or ANSWERING)
        return opened.bank, found


def _session(messages: Sequence[Mapping[str, str]], before: Sequence[Session], when: datetime, path: Path) -> Session:
    """Return a conversation as the session behind others. Raises DataError for a message that is none."""
    turns, name_of_session = [], free_session_id(before, len(before) + 1)
    for number, message in enumerate(messages, start=1):
        role, content, name = message.get("role"), message.get("content"), message.get("name")
        if role not in ROLES:
            raise DataError(path, f"message {number}", "role", f"is {role!r}, expected one of {ROLES}")
        if not isinstance(content, str) or not content.strip():
            raise DataError(path, f"message {number}", "content", f"is {content!r:.80}, expected a text")
        turns.append(Turn(id=f"{name_of_session}:{number}", speaker=name or role, role=role, text=content))
    if not turns:
        raise DataError(path, "messages", "role", "there is no message; give at least one")
    return Session(id=name_of_session, index=len(before), timestamp=when, turns=tuple(turns))
