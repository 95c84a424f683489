"""Holds the ways to find what answers a question, which all return a ranked list of items per question.

A system is a function of a dialogue. Another one joins by `from_memories`, given a function from a dialogue to the
memory it built.

    rankings = Retriever(unit=Unit.TURN, method=Method.HYBRID, embedder=embedder)(dialogue, depth=20)
    rankings[0].items[0].source_turns  # ("D1:3",)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

import numpy as np

from membuilder.bank.indexed_bank import IndexedBank
from membuilder.bank.ranking import ANSWERING, SearchMethod, best_of, bm25_scores, scores_by
from membuilder.bank.retrieve import Retrieval
from membuilder.datasets.windows import sessions_of_windows
from membuilder.embedding.local import TextEmbedder
from membuilder.embedding.pieces import in_pieces
from membuilder.errors import ConfigError
from membuilder.evaluation.names import RANDOM_LINES, RULES
from membuilder.evaluation.reading import Reading
from membuilder.evaluation.recall import Item, Ranking, Search
from membuilder.schemes.four_agents.prompts import PromptConfig
from membuilder.schemes.four_agents.scheme import FourAgents
from membuilder.schemes.scheme import Scheme, build
from membuilder.text import quoted
from membuilder.types import Bank, Dialogue

System = Callable[[Dialogue, int], list[Ranking]]
"""(dialogue, depth) -> one ranking of at most `depth` items per question, in the order of the questions."""


class Unit(StrEnum):
    TURN = "turn"
    SESSION = "session"


@dataclass(frozen=True, kw_only=True, slots=True)
class Retriever:
    """Searches the raw dialogue by the turn or the session.

    Dense search ranks a session by its turn nearest to the question, because it is longer than an embedding model
    reads. BM25 returns only what shares a word with the question. Hybrid is reciprocal rank fusion of both.
    """

    unit: Unit
    method: SearchMethod
    embedder: TextEmbedder
    """What dense and hybrid search embed with."""
    pieces: bool = False
    """As in IndexConfig."""

    def __call__(self, dialogue: Dialogue, depth: int) -> list[Ranking]:
        items = _items(dialogue, self.unit)
        queries = [question.text for question in dialogue.questions]
        if not queries or not items:
            return [Ranking() for _ in queries]
        scores = scores_by(
            self.method,
            lambda: self._dense(dialogue, queries),
            lambda: bm25_scores([item.text for item in items], queries),
        )
        return [
            Ranking(items=tuple(replace(items[i], score=score) for i, score in zip(*found, strict=True)))
            for found in best_of(scores, depth, self.method)
        ]

    def _dense(self, dialogue: Dialogue, queries: Sequence[str]) -> np.ndarray:
        texts, asked = turn_texts(dialogue), self.embedder.embed(queries)
        if self.pieces:
            similarities = in_pieces(texts, self.embedder).similarities(asked)
        else:
            similarities = asked @ self.embedder.embed(texts).T  # (Q, turns)
        if self.unit is Unit.TURN:
            return similarities
        lengths = [len(item.source_turns) for item in _items(dialogue, Unit.SESSION)]
        first_turns = np.cumsum([0, *lengths[:-1]])
        return np.maximum.reduceat(similarities, first_turns, axis=1)  # (Q, sessions)


def full_context(dialogue: Dialogue, depth: int) -> list[Ranking]:
    """Give every question the whole dialogue."""
    return [Ranking(items=(_joined(_items(dialogue, Unit.SESSION), "\n\n"),)) for _ in dialogue.questions]


def nothing(dialogue: Dialogue, depth: int) -> list[Ranking]:
    """Give no memory at all: the answering model has only what it knows by itself."""
    return [Ranking(memory=()) for _ in dialogue.questions]


@dataclass(frozen=True, kw_only=True, slots=True)
class MemorySearch:
    """Searches the memory of a dialogue; its core is read with every question."""

    memory_of: Callable[[Dialogue], IndexedBank]
    reading: Reading
    """How the builder read."""
    method: SearchMethod
    empty: set[str] = field(default_factory=set)
    """Ids of the dialogues searched so far whose memory holds nothing."""

    def __call__(self, dialogue: Dialogue, depth: int) -> list[Ranking]:
        memory = self.memory_of(dialogue)
        if not memory.bank.memory_text():
            self.empty.add(dialogue.id)
        core, sessions = memory.bank.core, sessions_of_windows(dialogue, self.reading.max_turns)
        always = Item(text=core, source_turns=memory.bank.core_sources) if core else None
        queries = [question.text for question in dialogue.questions]

        def found(texts: Sequence[str]) -> list[tuple[Item, ...]]:
            superseded = self.reading.prompts.include_superseded
            return [entry_items(each, sessions) for each in memory.retrieve(texts, depth, superseded, self.method)]

        kept = tuple(memory.bank.memory_text())
        return [
            Ranking(items=items, always=always, memory=kept, search=Search(lambda query: found([query])[0]))
            for items in found(queries)
        ]


def from_memories(
    memory_of: Callable[[Dialogue], IndexedBank], reading: Reading | None = None, method: SearchMethod | None = None
) -> MemorySearch:
    """Make a system of anything that builds a memory.

    `reading` says how the builder read; None: whole sessions. `method` None: as the reading says, else ANSWERING.
    """
    reading = reading or Reading()
    return MemorySearch(memory_of=memory_of, reading=reading, method=method or reading.prompts.retrieval or ANSWERING)


def entry_items(found: Retrieval, sessions: Sequence[int]) -> tuple[Item, ...]:
    """Return the entries that were found as items; `sessions` gives the session of each window that was read."""
    return tuple(
        Item(
            text=entry.text,
            source_turns=entry.source_turns,
            session=sessions[entry.session],
            score=score,
            entry_id=entry.id,
        )
        for entry, score in zip(found.entries, found.scores, strict=True)
    )


def build_by_rules(
    dialogue: Dialogue,
    embedder: TextEmbedder,
    on_session: Callable[[], object] = lambda: None,
    scheme: Scheme | None = None,
) -> Bank:
    """Return the bank that the offline expert of a scheme builds; None: that of the four agents.

    Raises ConfigError for a scheme without one.
    """
    if scheme is None:
        # The turns as they are stored and searched, in one go: session by session they would come a few at a time.
        embedder.embed(turn_texts(dialogue))
        scheme = FourAgents(PromptConfig())
    if scheme.expert is None:
        raise ConfigError(f"scheme '{scheme.name}' has no offline expert, which {RULES} and {RANDOM_LINES} need")
    bank = Bank()
    for step in build(dialogue, scheme.expert, scheme, embedder):
        bank = step.result.bank
        on_session()
    return bank


def turn_texts(dialogue: Dialogue) -> list[str]:
    """Return the texts that dense search and the rules embed of a dialogue."""
    return [item.text for item in _items(dialogue, Unit.TURN)]


def _items(dialogue: Dialogue, unit: Unit) -> list[Item]:
    """Return the turns as a memory would quote them, dated, with speakers, one by one or those of a session as one.

    A session without turns is left out.
    """
    sessions = [
        [Item(text=quoted(session, turn), source_turns=(turn.id,)) for turn in session.turns]
        for session in dialogue.sessions
    ]
    if unit is Unit.TURN:
        return [item for items in sessions for item in items]
    return [_joined(items, "\n") for items in sessions if items]


def _joined(items: Sequence[Item], between: str) -> Item:
    turns = tuple(turn_id for item in items for turn_id in item.source_turns)
    return Item(text=between.join(item.text for item in items), source_turns=turns)
