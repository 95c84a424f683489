"""Mem-alpha as a scheme: this folder's functions behind the seam of `schemes/scheme.py`.

    scheme = MemAlpha(MemAlphaConfig(response_format="hermes"), count_tokens)

There is one role, `writer`, and entries are of the part that it names. The parts are those of the configuration.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from membuilder.bank.okapi import find_parts
from membuilder.bank.ranking import SearchMethod
from membuilder.bank.retrieve import Retrieval
from membuilder.embedding.local import TextEmbedder
from membuilder.instances.tokens import counter
from membuilder.schemes.memalpha import compact
from membuilder.schemes.memalpha.calls import MARKS, answer_schema, parse, write
from membuilder.schemes.memalpha.changes import apply_calls
from membuilder.schemes.memalpha.config import CallFormat, MemAlphaConfig
from membuilder.schemes.memalpha.expert import proposals, propose
from membuilder.schemes.memalpha.prompts import bare_texts, disarmed, label_of, shown_text, write_prompt
from membuilder.schemes.memalpha.view import shown_entries
from membuilder.schemes.scheme import Call, CallOutcome, Message, Prompt, SessionResult, Shown
from membuilder.types import Agent, AgentUpdate, Bank, CountTokens, Entry, Failure, FailureKind, Session

WRITER = "writer"
LONG_LABEL = "\n[m99999] "
"""Its tokens are those of any id before an entry, or more."""
TINY_MAX_SHOWN = 20
"""Labels of shown entries (e1, e2, ...) that a tiny policy's tokenizer keeps whole."""
_FAILURES = {
    CallOutcome.UNKNOWN_TOOL: FailureKind.SCHEMA,
    CallOutcome.NOT_JSON: FailureKind.NOT_JSON,
    CallOutcome.SCHEMA: FailureKind.SCHEMA,
    CallOutcome.UNKNOWN_TURN: FailureKind.UNKNOWN_TURN,
    CallOutcome.UNKNOWN_ID: FailureKind.UNKNOWN_TARGET,
    CallOutcome.AMBIGUOUS_ID: FailureKind.AMBIGUOUS_TARGET,
    CallOutcome.DISABLED_PART: FailureKind.SCHEMA,
    CallOutcome.CORE_LIMIT: FailureKind.CORE_LIMIT,
    CallOutcome.TOO_MANY_CALLS: FailureKind.SCHEMA,
}
"""What the answer as a whole failed by where no call of it ran; one that is stored already is no fault of its form."""


def token_counter(tokenizer: str | None) -> CountTokens:
    """Return what counts the tokens of texts: by the tokenizer of a model folder, else four characters a token."""
    count = counter(None if tokenizer is None else Path(tokenizer))
    return lambda texts: sum(map(count, texts))


@dataclass(frozen=True)
class MemAlpha:
    """One writer that calls tools on the parts of a memory. Its members are explained in `Scheme`."""

    config: MemAlphaConfig
    count_tokens: CountTokens | None = None
    """That of the model in training; None: as `config.tokenizer` says."""
    name = "memalpha"
    roles = (WRITER,)
    _count: CountTokens = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_count", self.count_tokens or token_counter(self.config.tokenizer))

    @property
    def parts(self) -> tuple[str, ...]:
        """Return what the `agent` of an entry may be."""
        return tuple(part.value for part in self.config.parts)

    @property
    def searches_by_words(self) -> bool:
        """Tell whether a question is answered without any embedding (reward/asking.py)."""
        return self.config.retrieval is SearchMethod.BM25

    @property
    def max_turns(self) -> int:
        return self.config.max_turns

    @property
    def marks(self) -> tuple[str, ...]:
        return MARKS[self.config.response_format]

    @property
    def expert(self) -> Callable[[Session, Bank, Shown], Mapping[str, AgentUpdate]]:
        return self._propose

    def _propose(self, session: Session, bank: Bank, shown: Shown) -> dict[str, AgentUpdate]:
        return {WRITER: propose(session, bank, shown[WRITER], self.config, self._count)}

    def other_proposals(self, session: Session, bank: Bank, shown: Shown) -> list[dict[str, AgentUpdate]]:
        """Return what the expert might as well have proposed, of `expert_draws` draws; the first is its proposal."""
        number = self.config.expert_draws
        updates = proposals(session, bank, shown[WRITER], self.config, self._count, number)
        return [{WRITER: update} for update in updates[1:]]

    def show(self, session: Session, bank: Bank, embedder: TextEmbedder) -> Shown:
        """Show entries of every part, as many as leave the prompt within its budget."""
        room = self.config.prompts.max_tokens - self._count(bare_texts(session, bank, self.config))

        def tokens_of(entry: Entry) -> int:
            return self._count([LONG_LABEL, shown_text(entry, self.config)])

        return {WRITER: shown_entries(session, bank, self.config, embedder, room, tokens_of)}

    def ask(self, role: str, session: Session, bank: Bank, shown: Shown) -> str | Prompt:
        return write_prompt(session, bank, shown[role], self.config)

    def schema(self, role: str, session: Session) -> dict[str, Any]:
        return answer_schema(self.config)

    def parse(self, role: str, text: str, session: Session) -> AgentUpdate:
        """Read the calls; one that asks for nothing that can be done stands in `unread`, and the others count."""
        return parse(text, self.config, len(session.turns))

    def parse_cut(self, role: str, text: str, session: Session) -> AgentUpdate:
        """Read an answer without its end: the calls that are whole count."""
        if self.config.response_format is CallFormat.COMPACT:
            text = compact.whole_calls(text)
        return self.parse(role, text, session)

    def write(self, role: str, update: AgentUpdate, session: Session, shown: Shown) -> str:
        operations = update.operations
        if self.config.response_format is CallFormat.COMPACT:
            labels = {entry.id: label_of(entry, place, self.config) for place, entry in enumerate(shown[role], 1)}
            named = (tuple(labels.get(each, each) for each in operation.targets) for operation in operations)
            pairs = zip(operations, named, strict=True)
            operations = tuple(replace(operation, targets=targets) for operation, targets in pairs)
        return write(operations, self.config)

    def ending(self, role: str) -> str:
        return write((), self.config)

    def apply(self, session: Session, bank: Bank, updates: Mapping[str, AgentUpdate], shown: Shown) -> SessionResult:
        """Apply every call that can be; where none could be used, the first one says why the answer failed."""
        update = updates[WRITER]
        if update.failure is not None:
            return SessionResult(bank=bank, written={WRITER: ()}, failures={WRITER: update.failure})
        applied = apply_calls(bank, session, update, shown[WRITER], self.config, self._count)
        failure, told = _failure(applied.calls), {}
        if applied.calls and self.config.max_turns > 1:
            told[WRITER] = tuple(_message(result) for result in applied.results)
        return SessionResult(
            bank=applied.bank,
            written={WRITER: tuple(call.text for call in applied.calls if call.text is not None)},
            failures={} if failure is None else {WRITER: failure},
            calls={WRITER: applied.calls},
            more=told,
        )

    def find(self, bank: Bank, questions: Sequence[str], embedder: TextEmbedder, k: int) -> list[Retrieval]:
        """Find the k best current entries of each part, within the budget. The question alone is the query."""
        entries = tuple(entry for entry in bank.entries if entry.agent in self.parts)
        there = replace(bank, entries=entries)
        method, budget = self.config.retrieval, self.config.answer_tokens
        return find_parts(there, questions, k, method, budget, self._count, embedder)

    def tiny_tokens(self, max_turns: int) -> list[str]:
        """Return line numbers, labels of entries and the tags of the compact format."""
        lines = [f"#{number}" for number in range(1, max_turns + 1)]
        labels = [f"e{place}" for place in range(1, TINY_MAX_SHOWN + 1)]
        tags = [tag for tag in compact.TAGS if compact.PART_TAGS.get(tag, Agent.CORE) in (*self.parts, Agent.CORE)]
        return [*lines, *labels, *tags, "[calls]"]


def _failure(calls: Sequence[Call]) -> Failure | None:
    if not calls or any(call.outcome in (CallOutcome.RAN, CallOutcome.DUPLICATE) for call in calls):
        return None
    return Failure(kind=_FAILURES[calls[0].outcome], detail=calls[0].detail)


def _message(result: Mapping[str, Any]) -> Message:
    return {"role": "tool", "content": disarmed(json.dumps(result, ensure_ascii=False))}
