"""The seam between a way of writing memory and everything that builds with it, trains it or judges it.

A scheme asks one model in several roles about each session of a dialogue. Per session, in this order:

    shown = scheme.show(session, bank, embedder)                    which entries each role sees
    prompt = scheme.ask(role, session, bank, shown)                 what each role reads
    update = scheme.parse(role, text, session)                      what it answered, or why that is no answer
    result = scheme.apply(session, bank, updates, shown)            the bank after the session
    found = scheme.find(bank, questions, embedder, k)               what the answerer of a question gets

A role may go on with the same session (`TakesTurns`): where `result.more` holds messages for it, it reads them behind
its own answer, and its next answer is parsed and applied to `result.bank`.

`four_agents` and `memalpha` are built in. A scheme of your own is a folder with two files: `scheme.py`, whose
`make_scheme(prompts)` returns an object with the members below, and `reward.py`, whose `score` turns measured parts
into rewards (reward/score.py). docs/schemes.md holds a whole one.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol, runtime_checkable

from membuilder.bank.retrieve import Retrieval
from membuilder.embedding.local import TextEmbedder
from membuilder.types import AgentUpdate, Bank, Dialogue, Entry, Failure, Session

Shown = dict[str, tuple[Entry, ...]]
"""Role -> the entries it sees beside a session, in the order it sees them."""
Message = dict[str, str]
"""A message of a chat: its `role` (system, user, assistant, tool) and its `content`."""
Propose = Callable[[Session, Bank, Shown], Mapping[str, AgentUpdate]]
"""An expert that needs no model: session, bank before it, entries shown -> an update for every role."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """What a role reads where one user message does not say it all."""

    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()
    """Functions it may call, as JSON schemas that the tokenizer's chat template writes into the prompt."""


def messages_of(prompt: str | Prompt) -> list[Message]:
    """Return the messages of a prompt; a text is one user message."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(map(dict, prompt.messages))


def text_of(prompt: str | Prompt) -> str:
    """Return all that a prompt says as one text: of messages and tools what they say, without a chat template."""
    if isinstance(prompt, str):
        return prompt
    tools = [json.dumps(tool, ensure_ascii=False) for tool in prompt.tools]
    return "\n".join([*tools, *(each["content"] for each in prompt.messages)])


class CallOutcome(StrEnum):
    """What became of one call."""

    RAN = "ran"
    DUPLICATE = "duplicate"
    UNKNOWN_TOOL = "unknown_tool"
    NOT_JSON = "not_json"
    SCHEMA = "schema"
    UNKNOWN_TURN = "unknown_turn"
    UNKNOWN_ID = "unknown_id"
    AMBIGUOUS_ID = "ambiguous_id"
    DISABLED_PART = "disabled_part"
    CORE_LIMIT = "core_limit"
    TOO_MANY_CALLS = "too_many_calls"


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """One call of a tool and what became of it; only one that ran has changed the bank."""

    name: str
    arguments: dict[str, Any]
    """As the model gave them; empty where they are not JSON."""
    outcome: CallOutcome
    detail: str = ""
    """Why it did not run, for the model and for whoever reads the log."""
    text: str | None = None
    """The memory text it stored; None where it stored none."""
    entry: str | None = None
    """Id of the entry it wrote, or removed; None for the core and where it did not run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SessionResult:
    """A bank after all roles have answered, and per role what it wrote or why it wrote nothing."""

    bank: Bank
    written: dict[str, tuple[str, ...]]
    """Memory texts; what a length penalty counts."""
    failures: dict[str, Failure]
    """Only of the roles that failed."""
    calls: dict[str, tuple[Call, ...]] = field(default_factory=dict)
    """Of each role that answers by calls of tools, in their order; a scheme without tools leaves it empty."""
    more: dict[str, tuple[Message, ...]] = field(default_factory=dict)
    """What a role is told before it goes on with the same session (results of its calls); no role: all are done."""


class Scheme(Protocol):
    """How a model writes memory. Every method is a pure function of its arguments."""

    name: str
    """As in the config where it is built in, else a name of its own, for messages."""
    roles: tuple[str, ...]
    """Names of the roles, in the order in which their updates are applied; lower-case letters and `_`."""
    expert: Propose | None
    """Proposes updates without a model: for SFT and for lengths to compare with. None: there is no such expert."""

    def show(self, session: Session, bank: Bank, embedder: TextEmbedder) -> Shown:
        """Choose the entries each role sees beside the session."""

    def ask(self, role: str, session: Session, bank: Bank, shown: Shown) -> str | Prompt:
        """Write the prompt of a role; a text is one user message.

        Roles whose prompts begin alike share the computation of that part.
        """

    def schema(self, role: str, session: Session) -> dict[str, Any]:
        """Return the JSON schema of a role's answer, for endpoints that can hold a model to one."""

    def parse(self, role: str, text: str, session: Session) -> AgentUpdate:
        """Read what a role answered. A text that is no answer gives an update with a failure; nothing is raised."""

    def write(self, role: str, update: AgentUpdate, session: Session, shown: Shown) -> str:
        """Write the text a model would have answered for an update; `parse` reads it back."""

    def apply(self, session: Session, bank: Bank, updates: Mapping[str, AgentUpdate], shown: Shown) -> SessionResult:
        """Return the bank after the session. A role whose update fails changes nothing, and the others are applied."""

    def find(self, bank: Bank, questions: Sequence[str], embedder: TextEmbedder, k: int) -> list[Retrieval]:
        """Find the k entries of the bank that the answerer gets for each of one or more questions, besides the core."""

    def tiny_tokens(self, max_turns: int) -> list[str]:
        """Return strings that the tokenizer of a tiny policy keeps whole, for sessions of at most so many turns."""


@runtime_checkable
class SplitsAnswers(Protocol):
    """A scheme may have this too: then one bad operation loses none of the others when a model builds.

    Without it an answer stands or fails as a whole, as it always does in training.
    """

    def split(self, role: str, text: str) -> list[str]:
        """Return an answer as answers of one operation each, in their order; `parse` reads every one alone."""


@runtime_checkable
class TakesTurns(Protocol):
    """A scheme may have this too: then a role for which `SessionResult.more` has messages answers once more.

    `shown` stays what the first prompt showed; `bank` is the one after the answer before.
    """

    max_turns: int
    """Most answers of a role to one session, from 1."""


@runtime_checkable
class EndsTurns(Protocol):
    """A scheme that takes turns may have this too: then SFT also imitates how a role ends them.

    Without it an expert's answers to a session end with the last one that did something.
    """

    def ending(self, role: str) -> str:
        """Return the answer of a role that was told what became of its calls and has nothing to add."""


@runtime_checkable
class ReadsCutAnswers(Protocol):
    """A scheme may have this too: then what stands whole in an answer that was cut at `max_tokens` still counts.

    Without it such an answer fails as a whole.
    """

    def parse_cut(self, role: str, text: str, session: Session) -> AgentUpdate:
        """Read an answer without its end; no operation, where none is whole."""


@runtime_checkable
class WritesMarks(Protocol):
    """A scheme may have this too: then these texts are part of an answer also where the tokenizer has them as special.

    Without it no special token is part of an answer but the tags of thinking.
    """

    marks: tuple[str, ...]
    """What calls are written with, such as `<tool_call>`."""


def marks_of(scheme: Scheme) -> tuple[str, ...]:
    """Return the texts of an answer that a tokenizer may have as special tokens."""
    return scheme.marks if isinstance(scheme, WritesMarks) else ()


@runtime_checkable
class ProposesOthers(Protocol):
    """A scheme may have this too: then SFT imitates all that its expert might as well have proposed for a session."""

    def other_proposals(self, session: Session, bank: Bank, shown: Shown) -> list[dict[str, AgentUpdate]]:
        """Return further proposals beside that of `expert`, from which the build goes on."""


@runtime_checkable
class NamesParts(Protocol):
    """A scheme may have this too: then an entry is of a part of the memory that its role names, not of the role."""

    parts: tuple[str, ...]
    """What `Entry.agent` may be."""


def entry_agents(scheme: Scheme) -> tuple[str, ...]:
    """Return what `Entry.agent` may be under a scheme: its parts, where it names some, else its roles."""
    return scheme.parts if isinstance(scheme, NamesParts) else scheme.roles


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One session of an expert's build: what stood before it, what was shown and proposed, and what came of it."""

    session: Session
    bank_before: Bank
    shown: Shown
    updates: dict[str, AgentUpdate]
    result: SessionResult


def build(dialogue: Dialogue, propose: Propose, scheme: Scheme, embedder: TextEmbedder) -> Iterator[Step]:
    """Walk through a dialogue from an empty bank, a step a session, with whoever proposes the updates."""
    bank = Bank()
    for session in dialogue.sessions:
        shown = scheme.show(session, bank, embedder)
        updates = dict(propose(session, bank, shown))
        result = scheme.apply(session, bank, updates, shown)
        yield Step(session=session, bank_before=bank, shown=shown, updates=updates, result=result)
        bank = result.bank
