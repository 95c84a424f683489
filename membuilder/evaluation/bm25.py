"""BM25 by the bm25s library. The only file that imports it."""

from collections.abc import Sequence

import bm25s
import numpy as np

K1, B = 1.5, 0.75
"""Lucene's variant with the parameters of the library."""


def scores(texts: Sequence[str], queries: Sequence[str]) -> np.ndarray:
    """Float32 BM25 score of each text for each query, over lower-cased words of two letters or more. # (Q, N)

    English stop words are left out. A query without a known word scores 0 everywhere.
    """
    index = bm25s.BM25(k1=K1, b=B)
    words = bm25s.tokenize(list(texts), stopwords="en", show_progress=False, return_ids=False)
    if not any(words):
        return np.zeros((len(queries), len(texts)), dtype=np.float32)
    index.index(words, show_progress=False)
    asked = bm25s.tokenize(list(queries), stopwords="en", show_progress=False, return_ids=False)
    found = np.zeros((len(queries), len(texts)), dtype=np.float32)
    for row, query in enumerate(asked):
        known = [word for word in query if word in index.vocab_dict]
        if known:
            found[row] = index.get_scores(known)
    return found
