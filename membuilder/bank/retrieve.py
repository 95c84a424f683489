"""Finding entries of a bank: for a question, and for an agent about to read a session."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from membuilder.embedding.local import TextEmbedder
from membuilder.text import quoted
from membuilder.types import Bank, Entry, Session


@dataclass(frozen=True, kw_only=True, slots=True)
class Retrieval:
    """Entries found for one query, the most similar first; equal scores keep the order of the bank."""

    entries: tuple[Entry, ...]
    scores: tuple[float, ...]
    """Cosine similarities, one per entry."""


def retrieve(
    bank: Bank,
    queries: Sequence[str],
    embedder: TextEmbedder,
    k: int = 10,
    agent: str | None = None,
    include_superseded: bool = True,
) -> list[Retrieval]:
    """Find the k entries most similar to each query in the whole bank: entries of every session compete alike.

    `agent` and `include_superseded` choose the candidates before the search, so k of them come back if there are k.
    """
    from membuilder.bank.index import top_k  # it loads FAISS, which commands need only once they search

    candidates = _candidates(bank, agent, include_superseded)
    ids, scores = top_k(_embed_entries(candidates, embedder), embedder.embed(queries), k)
    return [
        Retrieval(entries=tuple(candidates[row] for row in found), scores=tuple(similarities))
        for found, similarities in zip(ids.tolist(), scores.tolist(), strict=True)
    ]


def related(
    bank: Bank,
    session: Session,
    agent: str,
    embedder: TextEmbedder,
    k: int = 20,
    include_superseded: bool = True,
) -> tuple[Entry, ...]:
    """Find the agent's own entries to show it beside a session, the most related first.

    A whole session is longer than an embedding model reads (256 word pieces for MiniLM), so each turn is a query and
    an entry ranks by its similarity to the turn it fits best. A turn is embedded as it would be stored, so one that is
    stored later costs nothing again.
    """
    from membuilder.bank.index import top_k

    candidates = _candidates(bank, agent, include_superseded)
    if not candidates or not session.turns:
        return ()
    turns = embedder.embed([quoted(session, turn) for turn in session.turns])
    _, best = top_k(turns, _embed_entries(candidates, embedder), k=1)  # (N, 1)
    order = np.argsort(-best[:, 0], kind="stable")[:k]
    return tuple(candidates[row] for row in order)


def _candidates(bank: Bank, agent: str | None, include_superseded: bool) -> list[Entry]:
    dropped = frozenset() if include_superseded else bank.superseded_ids()
    return [entry for entry in bank.entries if agent in (None, entry.agent) and entry.id not in dropped]


def _embed_entries(entries: Sequence[Entry], embedder: TextEmbedder) -> np.ndarray:
    return embedder.embed([entry.text for entry in entries])  # (N, D)
