"""Long texts as several vectors: a text is as near to a question as its nearest piece."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from membuilder.embedding.local import TextEmbedder


class PieceEmbedder(TextEmbedder, Protocol):
    def pieces(self, text: str) -> list[str]:
        """Cut a text into pieces that are embedded whole; one that is short enough is its only piece."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pieces:
    """The vectors of N texts in P pieces."""

    vectors: np.ndarray
    """float32 unit vectors, those of a text side by side. # (P, D)"""
    owners: np.ndarray
    """The place of the text that a piece belongs to, ascending. # (P,)"""

    def similarities(self, queries: np.ndarray) -> np.ndarray:
        """Return the largest similarity of any piece of each text to each query (Q, D). # (Q, N)"""
        firsts = np.flatnonzero(np.diff(self.owners, prepend=-1))
        return np.maximum.reduceat(queries @ self.vectors.T, firsts, axis=1)

    @property
    def most(self) -> int:
        """Return the number of pieces of the text that has the most."""
        return int(np.bincount(self.owners).max(initial=0))

    def texts_of(self, rows: np.ndarray, scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Turn the nearest pieces of each query, best first (Q, R), into the nearest texts and their scores. # (Q, k)

        R pieces hold k texts where R is at least k times `most`.
        """
        owners = self.owners[rows]
        firsts = [np.sort(np.unique(row, return_index=True)[1])[:k] for row in owners]
        kept = np.array(firsts, dtype=np.int64).reshape(len(rows), -1)
        return np.take_along_axis(owners, kept, axis=1), np.take_along_axis(scores, kept, axis=1)


def in_pieces(texts: Sequence[str], embedder: PieceEmbedder) -> Pieces:
    """Embed every piece of every text. Raises ConfigError where nobody knows how much the embedding model reads."""
    pieces = [embedder.pieces(text) for text in texts]
    vectors = embedder.embed([piece for each in pieces for piece in each])
    owners = np.repeat(np.arange(len(pieces)), [len(each) for each in pieces])
    return Pieces(vectors=vectors, owners=owners)
