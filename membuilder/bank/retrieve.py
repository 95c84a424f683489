"""Finding entries of a bank: for a question, and for an agent about to read a session."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from membuilder.bank.ranking import SearchMethod, best_of, bm25_scores, scores_by
from membuilder.embedding.local import TextEmbedder
from membuilder.text import quoted
from membuilder.types import Bank, Entry, Session


@dataclass(frozen=True, kw_only=True, slots=True)
class Retrieval:
    """Entries found for one query, the best first; equal scores keep the order of the bank."""

    entries: tuple[Entry, ...]
    scores: tuple[float, ...]
    """One per entry: cosine similarity, BM25, or the sum of both reciprocal ranks."""


FUSED = 1000
"""The nearest entries that have a rank by meaning in a fusion, so that an approximate index need not rank all."""


def retrieve(
    bank: Bank,
    queries: Sequence[str],
    embedder: TextEmbedder,
    k: int = 10,
    agent: str | None = None,
    include_superseded: bool = True,
    method: SearchMethod = SearchMethod.DENSE,
) -> list[Retrieval]:
    """Find the k best entries for each query in the whole bank: entries of every session compete alike.

    `agent` and `include_superseded` choose the candidates before the search, so k of them come back if there are k; by
    words alone only those that share one with the query. What is deleted is no candidate.
    """
    from membuilder.bank.index import top_k  # it loads FAISS, which commands need only once they search

    candidates = _candidates(bank, agent, include_superseded)

    def nearest(number: int) -> tuple[np.ndarray, np.ndarray]:
        return top_k(_embed_entries(candidates, embedder), embedder.embed(queries), number)

    def word_scores() -> np.ndarray:
        return bm25_scores([entry.text for entry in candidates], queries)

    return search(candidates, k, method, nearest, word_scores)


def search(
    entries: Sequence[Entry],
    k: int,
    method: SearchMethod,
    nearest: Callable[[int], tuple[np.ndarray, np.ndarray]],
    word_scores: Callable[[], np.ndarray],
) -> list[Retrieval]:
    """Find the k best of N entries for each of Q queries.

    `nearest(number)` gives the places and similarities of so many entries (Q, number), the nearest first, and
    `word_scores` the BM25 scores of all (Q, N); only what `method` needs is called.
    """

    def similarities() -> np.ndarray:
        ids, scores = nearest(FUSED)
        found = np.full((len(ids), len(entries)), -np.inf, dtype=np.float32)
        np.put_along_axis(found, ids, scores, axis=1)
        return found

    if method is SearchMethod.DENSE:
        ids, scores = nearest(k)
        found = zip(ids.tolist(), scores.tolist(), strict=True)
    else:
        found = best_of(scores_by(method, similarities, word_scores), k, method)
    return [Retrieval(entries=tuple(entries[row] for row in rows), scores=tuple(scores)) for rows, scores in found]


def related(
    bank: Bank,
    session: Session,
    agent: str,
    embedder: TextEmbedder,
    k: int = 20,
    include_superseded: bool = True,
    method: SearchMethod = SearchMethod.DENSE,
) -> tuple[Entry, ...]:
    """Find the agent's own entries to show it beside a session, the most related first.

    A whole session is longer than an embedding model reads (256 word pieces for MiniLM), so each turn is a query and
    an entry ranks by its score for the turn it fits best. A turn is embedded as it would be stored, so one that is
    stored later costs nothing again.
    """
    from membuilder.bank.index import top_k

    candidates = _candidates(bank, agent, include_superseded)
    if not candidates or not session.turns:
        return ()
    turns, texts = [quoted(session, turn) for turn in session.turns], [entry.text for entry in candidates]

    def similarities() -> np.ndarray:
        return top_k(embedder.embed(turns), embedder.embed(texts), k=1)[1].T  # (1, N)

    def word_scores() -> np.ndarray:
        return bm25_scores(texts, turns).max(axis=0, keepdims=True)  # (1, N)

    ((rows, _),) = best_of(scores_by(method, similarities, word_scores), k, method)
    return tuple(candidates[row] for row in rows)


def _candidates(bank: Bank, agent: str | None, include_superseded: bool) -> list[Entry]:
    entries = bank.kept() if include_superseded else bank.current()
    return [entry for entry in entries if agent in (None, entry.agent)]


def _embed_entries(entries: Sequence[Entry], embedder: TextEmbedder) -> np.ndarray:
    return embedder.embed([entry.text for entry in entries])  # (N, D)
