"""Holds the ways to find what answers a question, which all return a ranked list of items per question.

A system is a function of a dialogue. Another one joins by `from_memories`, given a function from a dialogue to the
memory it built.

    rankings = Retriever(unit=Unit.TURN, method=Method.HYBRID, embedder=embedder)(dialogue, depth=20)
    rankings[0].items[0].source_turns  # ("D1:3",)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from typing import Any

import numpy as np

from membuilder.bank.indexed_bank import IndexedBank, memory_of
from membuilder.bank.retrieve import Retrieval
from membuilder.datasets.windows import sessions_of_windows
from membuilder.embedding.local import TextEmbedder
from membuilder.evaluation.agents import manifest_of
from membuilder.evaluation.banks import BUILT_FROM, BankFolder
from membuilder.evaluation.options import AGENTS, RETRIEVERS, RULES, STORED, Options, Reading
from membuilder.evaluation.recall import Item, Ranking
from membuilder.schemes.four_agents.prompts import PromptConfig
from membuilder.schemes.four_agents.scheme import FourAgents
from membuilder.schemes.scheme import build
from membuilder.text import quoted
from membuilder.types import Bank, Dialogue

RRF_CONSTANT = 60
"""The constant of reciprocal rank fusion: Cormack, Clarke and Buettcher, SIGIR 2009."""

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
    """Searches the raw dialogue by the turn or the session.

    Dense search ranks a session by its turn nearest to the question, because it is longer than an embedding model
    reads. Hybrid is reciprocal rank fusion of dense and BM25.
    """

    unit: Unit
    method: Method
    embedder: TextEmbedder
    """What dense and hybrid search embed with."""

    def __call__(self, dialogue: Dialogue, depth: int) -> list[Ranking]:
        items = _items(dialogue, self.unit)
        queries = [question.text for question in dialogue.questions]
        if not queries or not items:
            return [Ranking() for _ in queries]
        if self.method is Method.DENSE:
            scores = self._dense(dialogue, queries)
        else:
            scores = bm25_scores([item.text for item in items], queries)
        if self.method is Method.HYBRID:
            scores = reciprocal_ranks(self._dense(dialogue, queries)) + reciprocal_ranks(scores)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :depth]
        return [
            Ranking(items=tuple(replace(items[i], score=row[i]) for i in best))
            for row, best in zip(scores.tolist(), order.tolist(), strict=True)
        ]

    def _dense(self, dialogue: Dialogue, queries: Sequence[str]) -> np.ndarray:
        texts = self.embedder.embed(turn_texts(dialogue))
        similarities = self.embedder.embed(queries) @ texts.T  # (Q, turns)
        if self.unit is Unit.TURN:
            return similarities
        lengths = [len(item.source_turns) for item in _items(dialogue, Unit.SESSION)]
        first_turns = np.cumsum([0, *lengths[:-1]])
        return np.maximum.reduceat(similarities, first_turns, axis=1)  # (Q, sessions)


def bm25_scores(texts: Sequence[str], queries: Sequence[str]) -> np.ndarray:
    """BM25 score of each text for each query, over lower-cased words that are no English stop words. # (Q, N)"""
    import bm25s  # it loads scipy

    index = bm25s.BM25(k1=1.5, b=0.75)  # in Lucene's variant
    tokenize = partial(bm25s.tokenize, stopwords="en", show_progress=False, return_ids=False)
    words, asked = tokenize(list(texts)), tokenize(list(queries))
    found = np.zeros((len(queries), len(texts)), dtype=np.float32)
    if any(words):
        index.index(words, show_progress=False)
        for row, query in enumerate(asked):
            if known := [word for word in query if word in index.vocab_dict]:
                found[row] = index.get_scores(known)
    return found


def reciprocal_ranks(scores: np.ndarray) -> np.ndarray:
    """1 / (60 + rank), rank from 1, per row; the earlier of equal scores ranks first. # (Q, N)"""
    from scipy.stats import rankdata  # seconds to import, and only hybrid search needs it

    return 1.0 / (RRF_CONSTANT + rankdata(-scores, method="ordinal", axis=1))


def full_context(dialogue: Dialogue, depth: int) -> list[Ranking]:
    """Give every question the whole dialogue."""
    return [Ranking(items=(_joined(_items(dialogue, Unit.SESSION), "\n\n"),)) for _ in dialogue.questions]


def nothing(dialogue: Dialogue, depth: int) -> list[Ranking]:
    """Give no memory at all: the answering model has only what it knows by itself."""
    return [Ranking() for _ in dialogue.questions]


def from_memories(memory_of: Callable[[Dialogue], IndexedBank], reading: Reading | None = None) -> System:
    """Make a system of anything that builds a memory; its core is read with every question.

    `reading` says how the builder read; None: whole sessions.
    """
    reading = reading or Reading()

    def find(dialogue: Dialogue, depth: int) -> list[Ranking]:
        memory = memory_of(dialogue)
        core, sessions = memory.bank.core, sessions_of_windows(dialogue, reading.max_turns)
        always = Item(text=core, source_turns=memory.bank.core_sources) if core else None
        queries = [question.text for question in dialogue.questions]
        found = memory.retrieve(queries, depth, include_superseded=reading.prompts.include_superseded)
        return [Ranking(items=_entry_items(retrieval, sessions), always=always) for retrieval in found]

    return find


def _entry_items(found: Retrieval, sessions: Sequence[int]) -> tuple[Item, ...]:
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


def build_by_rules(dialogue: Dialogue, embedder: TextEmbedder) -> Bank:
    # The turns as they are stored and searched, in one go: session by session they would come a few at a time.
    embedder.embed(turn_texts(dialogue))
    scheme = FourAgents(PromptConfig())
    *_, last = build(dialogue, scheme.expert, scheme, embedder)
    return last.result.bank


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


def open_system(name: str, options: Options, settings: dict[str, Any], embedder: TextEmbedder) -> System:
    """Return the system of that name. Nothing is built or embedded before it is called.

    Raises EvaluationError where --db-path holds other banks.
    """
    if name == "full-context":
        return full_context
    if name == "none":
        return nothing
    if name == STORED:
        folder = BankFolder(options.db_path)
        folder.check(settings, options.flags.build_model)
        return _stored(folder, options, embedder)
    if name == AGENTS:
        return _stored(BankFolder(options.db_path, manifest_of(options, settings)), options, embedder)
    if name == RULES:
        return _by_rules(options, settings, embedder)
    _, unit, *method = name.split("-")
    return Retriever(unit=Unit(unit), method=Method(*(method or ["dense"])), embedder=embedder)


def embeds_turns(name: str) -> bool:
    """Tell whether a system embeds every turn of a dialogue."""
    return name == RULES or (name in RETRIEVERS and not name.endswith("-bm25"))


def _stored(folder: BankFolder, options: Options, embedder: TextEmbedder) -> System:
    def open_bank(dialogue: Dialogue) -> IndexedBank:
        return memory_of(folder.load(dialogue), embedder, options.index, folder.path(dialogue))

    return from_memories(open_bank, folder.reading)


def _by_rules(options: Options, settings: dict[str, Any], embedder: TextEmbedder) -> System:
    """Return the rules as a system; banks are kept in --db-path where it is theirs."""
    if options.db_path is None or AGENTS in options.systems:
        return from_memories(lambda dialogue: memory_of(build_by_rules(dialogue, embedder), embedder, options.index))
    folder = BankFolder(options.db_path, {"builder": RULES} | {key: settings[key] for key in BUILT_FROM})
    search = _stored(folder, options, embedder)

    def build_and_search(dialogue: Dialogue, depth: int) -> list[Ranking]:
        if not folder.has(dialogue):
            folder.save(dialogue, build_by_rules(dialogue, embedder))
        return search(dialogue, depth)

    return build_and_search
