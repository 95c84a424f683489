"""Records that cross package borders. Standard library only; all frozen.

A dialogue is an ordered list of sessions; a session has a timestamp and turns. Four agents turn each session into
operations on a memory bank. Worked example:

    turn = Turn(id="D1:3", speaker="Ann", role="user", text="I adopted a cat called Miso.")
    session = Session(id="D1", index=0, timestamp=datetime(2023, 5, 8, 13, 56), turns=(turn,))
    entry = Entry(id="m1", agent=Agent.EPISODIC, text="[2023-05-08] Ann: I adopted a cat called Miso.", session=0,
                  timestamp=session.timestamp, source_turns=("D1:3",), supersedes=())
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

CountTokens = Callable[[Sequence[str]], int]
"""Counts the tokens of texts, all together."""


class Agent(StrEnum):
    CORE = "core"
    EPISODIC = "episodic"
    SEMANTIC = "semantic"
    PROCEDURAL = "procedural"


ENTRY_AGENTS = (Agent.EPISODIC, Agent.SEMANTIC, Agent.PROCEDURAL)


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    id: str
    """Unique in its dialogue."""
    speaker: str
    role: str
    """`user` or `assistant`; in a dialogue of two people the first named speaker is `user`."""
    text: str
    caption: str | None = None
    """What a shared picture shows, if the turn shares one."""

    @property
    def content(self) -> str:
        """Join text and picture caption to one string: what agents and retrieval see."""
        return self.text if self.caption is None else f"{self.text} [shares {self.caption}]".strip()


@dataclass(frozen=True, kw_only=True, slots=True)
class Session:
    id: str
    index: int
    """Position in its dialogue, from 0, in time order."""
    timestamp: datetime
    turns: tuple[Turn, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    id: str
    text: str
    answer: str | None
    """Gold answer; None when the data has none (LoCoMo's adversarial questions)."""
    category: str
    evidence: tuple[str, ...]
    """Ids of the turns that hold the answer; all exist in the dialogue."""
    asked_at: datetime | None = None
    answerable: bool = True
    """False: the right reply is that the dialogue does not say."""
    other_answers: tuple[str, ...] | None = None
    """Gold answers as right as `answer`; None where the data gives one text and no list."""

    @property
    def golds(self) -> tuple[str, ...]:
        """Return every gold answer, `answer` first; none where the data has none."""
        return () if self.answer is None else (self.answer, *(self.other_answers or ()))


@dataclass(frozen=True, kw_only=True, slots=True)
class Dialogue:
    id: str
    speakers: tuple[str, ...]
    sessions: tuple[Session, ...]
    questions: tuple[Question, ...]

    def session_of_turn(self) -> dict[str, int]:
        """Map each turn id to the index of its session."""
        return {turn.id: session.index for session in self.sessions for turn in session.turns}

    def questions_by_session(self) -> list[list[Question]]:
        """List per session the answerable questions whose last evidence lies in it: a dense reward asks them then."""
        where = self.session_of_turn()
        asked: list[list[Question]] = [[] for _ in self.sessions]
        for question in self.questions:
            if question.answerable and question.evidence:
                asked[max(where[turn_id] for turn_id in question.evidence)].append(question)
        return asked


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    id: str
    agent: str
    """The part of the memory it belongs to: the name of the role that wrote it, or the part that this role named."""
    text: str
    session: int
    timestamp: datetime
    source_turns: tuple[str, ...]
    """Turns quoted verbatim by this entry; empty when a model wrote the text itself."""
    supersedes: tuple[str, ...] = ()
    """Ids of the entries this one updates or merges; they stay in the bank."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CoreQuote:
    """A turn quoted into the core, as `speaker: content`. It counts as a source while that still stands there."""

    turn_id: str
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Bank:
    core: str = ""
    core_quotes: tuple[CoreQuote, ...] = ()
    entries: tuple[Entry, ...] = ()
    """Every entry ever written, also what is out of date: the history."""
    deleted: tuple[str, ...] = ()
    """Ids of the entries that are no longer part of the memory: nothing shows, finds or counts them."""

    @property
    def core_sources(self) -> tuple[str, ...]:
        return tuple(quote.turn_id for quote in self.core_quotes)

    def superseded_ids(self) -> frozenset[str]:
        return frozenset(old for entry in self.entries for old in entry.supersedes)

    def kept(self) -> tuple[Entry, ...]:
        """Return the entries that are not deleted, also those that a later one updates or merges."""
        deleted = frozenset(self.deleted)
        return tuple(entry for entry in self.entries if entry.id not in deleted) if deleted else self.entries

    def current(self) -> tuple[Entry, ...]:
        """Return the entries that are neither deleted nor superseded."""
        old = self.superseded_ids()
        return tuple(entry for entry in self.kept() if entry.id not in old)

    def memory_text(self) -> list[str]:
        """Return every stored text, core first: the thing whose tokens are 'memory tokens'."""
        return ([self.core] if self.core else []) + [entry.text for entry in self.kept()]


class OperationKind(StrEnum):
    ADD = "ADD"
    UPDATE = "UPDATE"
    MERGE = "MERGE"
    APPEND = "APPEND"
    REPLACE = "REPLACE"
    REWRITE = "REWRITE"
    SKIP = "SKIP"
    DELETE = "DELETE"
    SEARCH = "SEARCH"
    """It changes nothing: the role is told what was found."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Operation:
    """One change of the bank. Text comes from `text` or, verbatim, from the turns in `quote`; never both.

    Operation(kind=OperationKind.UPDATE, targets=("m4",), quote=(7,)) replaces m4 by turn 7 of the session.
    """

    kind: OperationKind
    text: str | None = None
    quote: tuple[int, ...] = ()
    """Turn numbers of the session, from 1, in the order to quote them."""
    targets: tuple[str, ...] = ()
    """UPDATE, MERGE, DELETE: the entries meant, each a shown label (e1, e2, ...), a bank id or a shown text."""
    old_text: str | None = None
    """REPLACE: the core text to replace."""
    part: str | None = None
    """The part of the memory it is about, where one role writes to several; None where the role is the part."""
    turn: int | None = None
    """Which further answer of its role to the session asked for it, from 1; None: the first."""


class FailureKind(StrEnum):
    NOT_JSON = "not_json"
    SCHEMA = "schema"
    UNKNOWN_TURN = "unknown_turn"
    UNKNOWN_TARGET = "unknown_target"
    AMBIGUOUS_TARGET = "ambiguous_target"
    ABSENT_TEXT = "absent_text"
    CORE_LIMIT = "core_limit"
    TRUNCATED = "truncated"
    PROMPT_TOO_LONG = "prompt_too_long"
    """The agent was not asked: no fault of its own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """Why an agent's output changed nothing. Model output never raises; it fails with one of these."""

    kind: FailureKind
    detail: str


@dataclass(frozen=True, kw_only=True, slots=True)
class UnreadCall:
    """A call of a tool in an answer that asks for no operation."""

    place: int
    """How many operations of the answer stand before it."""
    name: str
    arguments: dict[str, Any]
    outcome: str
    """A `CallOutcome` (membuilder/schemes/scheme.py)."""
    detail: str


@dataclass(frozen=True, kw_only=True, slots=True)
class AgentUpdate:
    """What one agent asked for in one session: operations, or the reason there are none to apply."""

    operations: tuple[Operation, ...] = field(default=())
    failure: Failure | None = None
    unread: tuple[UnreadCall, ...] = ()
    """Calls beside the operations, where the answer is calls of tools that stand or fail one by one."""

    def in_order(self) -> list[Operation | UnreadCall]:
        """Return operations and unread calls as the answer has them."""
        items: list[tuple[int, Operation | UnreadCall]] = [(each.place, each) for each in self.unread]
        items += enumerate(self.operations)
        return [item for _, item in sorted(items, key=lambda pair: pair[0])]  # stable: the unread come first
