"""A bank, opened to be asked, with an index of its entries, exact or approximate as `IndexConfig` says.

memory = open_memory("memory.db", Embedder())
memory.retrieve(["Where does Ann live?"], k=10)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from membuilder.bank.index import IndexConfig, VectorIndex
from membuilder.bank.index_file import index_path, open_index
from membuilder.bank.ranking import SearchMethod, WordIndex
from membuilder.bank.retrieve import Retrieval, search
from membuilder.bank.store import reading
from membuilder.embedding.identity import VECTOR, other_embedder, probed
from membuilder.embedding.local import TextEmbedder
from membuilder.embedding.pieces import Pieces, in_pieces
from membuilder.errors import StoreError
from membuilder.types import Bank, Entry


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexedBank:
    bank: Bank
    index: VectorIndex
    """Of the bank's entries, in its order, or of their pieces."""
    pieces: Pieces | None = None
    """Set where long entries were embedded in pieces."""
    embedder: TextEmbedder
    _words: dict[bool, WordIndex] = field(default_factory=dict, init=False)
    """With superseded entries or without; made once they are searched by words."""
    _candidates: dict[bool, tuple[Sequence[Entry], np.ndarray | None]] = field(default_factory=dict, init=False)
    """With superseded entries or without: which they are, and of all which are allowed; None: all are."""

    def retrieve(
        self,
        queries: Sequence[str],
        k: int = 10,
        include_superseded: bool = True,
        method: SearchMethod = SearchMethod.DENSE,
    ) -> list[Retrieval]:
        """Return what `membuilder.bank.retrieve.retrieve` gives for this bank: the same where the index is exact."""
        if include_superseded not in self._candidates:
            self._candidates[include_superseded] = self._chosen(include_superseded)
        entries, allowed = self._candidates[include_superseded]

        def nearest(number: int) -> tuple[np.ndarray, np.ndarray]:
            ids, scores = self._nearest(self.embedder.embed(queries), number, allowed)
            return ids if allowed is None else np.searchsorted(np.flatnonzero(allowed), ids), scores

        def word_scores() -> np.ndarray:
            if include_superseded not in self._words:
                self._words[include_superseded] = WordIndex([entry.text for entry in entries])
            return self._words[include_superseded].scores(queries)

        return search(entries, k, method, nearest, word_scores)

    def _chosen(self, include_superseded: bool) -> tuple[Sequence[Entry], np.ndarray | None]:
        entries = self.bank.kept() if include_superseded else self.bank.current()
        if len(entries) == len(self.bank.entries):
            return entries, None
        there = {entry.id for entry in entries}
        return entries, np.array([entry.id in there for entry in self.bank.entries])

    def _nearest(self, queries: np.ndarray, k: int, allowed: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Return the places and similarities of the k entries nearest to each query. # (Q, k)"""
        if self.pieces is None:
            return self.index.search(queries, k, allowed)
        rows = None if allowed is None else allowed[self.pieces.owners]
        return self.pieces.texts_of(*self.index.search(queries, k * self.pieces.most, rows), k)


def open_memory(
    path: str | Path,
    embedder: TextEmbedder,
    config: IndexConfig | None = None,
    identity: Mapping[str, Any] | None = None,
) -> IndexedBank:
    """Open the store at `path` as it stands. Raises StoreError, also where another embedder built it.

    `identity` is that of the embedder where its name is known (`membuilder.embedding.identity`).
    """
    with reading(path) as store:
        settings, bank, vectors = store.settings(), store.bank(), store.vectors()
    if identity is None:  # nothing is embedded for a store that has nothing to compare
        identity = probed(embedder) if VECTOR in settings else {"dimension": embedder.dimension}
    if problem := other_embedder(settings, identity):
        raise StoreError(path, f"{problem}; open it with the first, or build anew")
    return _indexed(bank, vectors, embedder, index_path(path), config)


def keep_index(path: Path, config: IndexConfig) -> None:
    """Leave an index beside a store that is large enough for an approximate one."""
    with reading(path) as store:
        open_index(index_path(path), store.vectors(), config)


def memory_of(
    bank: Bank, embedder: TextEmbedder, config: IndexConfig | None = None, path: str | Path | None = None
) -> IndexedBank:
    """Embed a bank that no store holds. An approximate index is kept beside the bank's file `path`, if it has one."""
    vectors = embedder.embed([entry.text for entry in bank.entries])  # (N, D)
    return _indexed(bank, vectors, embedder, None if path is None else index_path(path), config)


def _indexed(
    bank: Bank, vectors: np.ndarray, embedder: TextEmbedder, path: Path | None, config: IndexConfig | None
) -> IndexedBank:
    config, pieces = config or IndexConfig(), None
    if config.pieces:
        pieces = in_pieces([entry.text for entry in bank.entries], embedder)
        vectors = pieces.vectors
    if path is not None:
        index = open_index(path, vectors, config)
    else:
        index = VectorIndex(vectors.shape[1], config.kind_for(len(vectors)), config)
        index.add(vectors)
    return IndexedBank(bank=bank, index=index, pieces=pieces, embedder=embedder)
