"""Ways to find what answers a question, all asked alike: per question a ranked list of items with their source turns.

A system is a function of a dialogue. Another one, such as the four-agent builder or a trained checkpoint, joins by
`from_memories`, given a function from a dialogue to the memory it built.

    turn = rag(dialogue, Retriever(unit=Unit.TURN, method=Method.HYBRID, embedder=embedder), depth=20)
    turn[0].items[0].source_turns  # ("D1:3",)
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from membuilder.bank.indexed_bank import Memory
from membuilder.bank.retrieve import Retrieval
from membuilder.datasets.windows import sessions_of_windows
from membuilder.embedding.local import TextEmbedder
from membuilder.evaluation import bm25
from membuilder.schemes.four_agents.prompts import PromptConfig
from membuilder.schemes.four_agents.scheme import FourAgents
from membuilder.schemes.scheme import build
from membuilder.text import quoted
from membuilder.types import Bank, Dialogue, Session

RRF_CONSTANT = 60
"""Of reciprocal rank fusion: Cormack, Clarke and Buettcher, SIGIR 2009."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    text: str
    source_turns: tuple[str, ...]
    """Turns that stand in it word for word; empty for what a model wrote in its own words."""
    session: int | None = None
    """Index of the session it was written in, which is known of every entry of a bank."""
    score: float | None = None
    """None where nothing was ranked."""
    entry_id: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranking:
    """What one question finds."""

    items: tuple[Item, ...] = ()
    """The best first; recall at k looks at the first k."""
    always: Item | None = None
    """Read with every question and outside the k: the core of a bank."""

    def sources(self, k: int) -> set[str]:
        """Turns that the first k items and what is always read stand on."""
        return {turn_id for item in self._read(k) for turn_id in item.source_turns}

    def sessions(self, k: int, session_of: Mapping[str, int]) -> set[int]:
        """Sessions of those turns, and of those items that know no turn but their session."""
        own_words = {item.session for item in self._read(k) if not item.source_turns and item.session is not None}
        return own_words | {session_of[turn_id] for turn_id in self.sources(k)}

    def knows_turns(self) -> bool:
        """Whether evidence could have been seen in it: False where all that was found is in a model's own words."""
        read = self._read(len(self.items))
        return not read or any(item.source_turns for item in read)

    def knows_sessions(self) -> bool:
        read = self._read(len(self.items))
        return not read or any(item.source_turns or item.session is not None for item in read)

    def _read(self, k: int) -> list[Item]:
        return [*self.items[:k], *([self.always] if self.always else [])]


System = Callable[[Dialogue, int], list[Ranking]]
"""(dialogue, depth) -> one ranking of at most `depth` items per question, in the order of the questions."""


class Unit(StrEnum):
    TURN = "turn"
    SESSION = "session"


class Method(StrEnum):
    DENSE = "dense"
    BM25 = "bm25"
    HYBRID = "hybrid"


@dataclass(frozen=True, kw_only=True, slots=True)
class Retriever:
    """Raw dialogue by the turn or the session.

    Dense search ranks a session by its turn nearest to the question, because it is longer than an embedding model reads.
    Hybrid is reciprocal rank fusion of dense and BM25.
    """

    unit: Unit
    method: Method
    embedder: TextEmbedder | None = None
    """For dense and hybrid."""

    def __post_init__(self) -> None:
        if self.method is not Method.BM25 and self.embedder is None:
            raise ValueError(f"method {self.method} needs an embedder")

    def __call__(self, dialogue: Dialogue, depth: int) -> list[Ranking]:
        items = _turn_items(dialogue) if self.unit is Unit.TURN else _session_items(dialogue)
        queries = [question.text for question in dialogue.questions]
        if not queries or not items:
            return [Ranking() for _ in queries]
        scores = self._scores(dialogue, items, queries)  # (Q, N)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :depth]
        return [
            Ranking(items=tuple(_scored(items[i], row[i]) for i in best))
            for row, best in zip(scores.tolist(), order.tolist(), strict=True)
        ]

    def _scores(self, dialogue: Dialogue, items: Sequence[Item], queries: Sequence[str]) -> np.ndarray:
        lexical = None if self.method is Method.DENSE else bm25.scores([item.text for item in items], queries)
        if self.method is Method.BM25:
            return lexical
        dense = self._dense(dialogue, queries)
        return dense if lexical is None else reciprocal_ranks(dense) + reciprocal_ranks(lexical)

    def _dense(self, dialogue: Dialogue, queries: Sequence[str]) -> np.ndarray:
        texts = self.embedder.embed(turn_texts(dialogue))
        similarities = self.embedder.embed(queries) @ texts.T  # (Q, turns)
        if self.unit is Unit.TURN:
            return similarities
        first_turns = np.cumsum([0] + [len(session.turns) for session in _spoken(dialogue)[:-1]])
        return np.maximum.reduceat(similarities, first_turns, axis=1)  # (Q, sessions)


def reciprocal_ranks(scores: np.ndarray) -> np.ndarray:
    """1 / (60 + rank), rank from 1, per row; the earlier of equal scores ranks first. # (Q, N)"""
    order = np.argsort(-scores, axis=1, kind="stable")
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(1, scores.shape[1] + 1)[None, :], axis=1)
    return 1.0 / (RRF_CONSTANT + ranks)


def full_context(dialogue: Dialogue, depth: int) -> list[Ranking]:
    """The whole dialogue for every question."""
    text = "\n\n".join(item.text for item in _session_items(dialogue))
    whole = Item(text=text, source_turns=tuple(turn.id for session in dialogue.sessions for turn in session.turns))
    return [Ranking(items=(whole,)) for _ in dialogue.questions]


def nothing(dialogue: Dialogue, depth: int) -> list[Ranking]:
    """No memory at all: what the answering model knows by itself."""
    return [Ranking() for _ in dialogue.questions]


def from_memories(
    memory_of: Callable[[Dialogue], Memory], max_turns: int | None = None, include_superseded: bool = True
) -> System:
    """A system out of anything that builds a memory; its core is read with every question.

    `max_turns`: how many turns the builder read at once; None: whole sessions.
    """

    def find(dialogue: Dialogue, depth: int) -> list[Ranking]:
        memory = memory_of(dialogue)
        core, sessions = memory.bank.core, sessions_of_windows(dialogue, max_turns)
        always = Item(text=core, source_turns=memory.bank.core_sources) if core else None
        queries = [question.text for question in dialogue.questions]
        found = memory.retrieve(queries, depth, include_superseded=include_superseded)
        return [Ranking(items=tuple(_entry_items(retrieval, sessions)), always=always) for retrieval in found]

    return find


def _entry_items(found: Retrieval, sessions: Sequence[int]) -> Iterator[Item]:
    for entry, score in zip(found.entries, found.scores, strict=True):
        yield Item(
            text=entry.text,
            source_turns=entry.source_turns,
            session=sessions[entry.session],
            score=score,
            entry_id=entry.id,
        )


def build_by_rules(dialogue: Dialogue, embedder: TextEmbedder) -> Bank:
    # The turns as they are stored and searched, in one go: session by session they would come a few at a time.
    embedder.embed(turn_texts(dialogue))
    scheme = FourAgents(PromptConfig())
    *_, last = build(dialogue, scheme.expert, scheme, embedder)
    return last.result.bank


def turn_texts(dialogue: Dialogue) -> list[str]:
    """What dense search and the rules embed of a dialogue."""
    return [item.text for item in _turn_items(dialogue)]


def _turn_items(dialogue: Dialogue) -> list[Item]:
    """Each turn as a memory would quote it: dated, with its speaker."""
    return [
        Item(text=quoted(session, turn), source_turns=(turn.id,))
        for session in dialogue.sessions
        for turn in session.turns
    ]


def _session_items(dialogue: Dialogue) -> list[Item]:
    return [
        Item(text=_session_text(session), source_turns=tuple(turn.id for turn in session.turns))
        for session in _spoken(dialogue)
    ]


def _spoken(dialogue: Dialogue) -> list[Session]:
    """An empty session is nothing to be found."""
    return [session for session in dialogue.sessions if session.turns]


def _session_text(session: Session) -> str:
    return "\n".join(quoted(session, turn) for turn in session.turns)


def _scored(item: Item, score: float) -> Item:
    return Item(text=item.text, source_turns=item.source_turns, score=score)
