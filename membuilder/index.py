"""Exact inner-product search. The only file that imports faiss."""

import faiss
import numpy as np

# Above this size FAISS hands the products to BLAS, whose rounding depends on a row's position: equal vectors would no
# longer score equal, and a score would change with the number of queries.
faiss.cvar.distance_compute_blas_threshold = 2**31 - 1


def top_k(vectors: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k rows of `vectors` (N, D) with the largest inner product to each query, best first, and those products.

    `queries` (Q, D) gives ids and scores (Q, min(k, N)); one query (D,) gives (min(k, N),). Equal scores come in row
    order. Raises ValueError unless both are float32 of one width and k >= 0.
    """
    _check(vectors, queries, k)
    rows = np.atleast_2d(queries)
    if not (len(vectors) and len(rows) and k):
        ids = np.empty((len(rows), 0), dtype=np.int64)
        scores = np.empty((len(rows), 0), dtype=np.float32)
    else:
        index = faiss.IndexFlatIP(vectors.shape[1])
        index.add(np.ascontiguousarray(vectors))
        # All rows, cut only after sorting: at the cut FAISS would keep the later of two equal rows.
        scores, ids = index.search(np.ascontiguousarray(rows), len(vectors))
        order = np.lexsort((ids, -scores))[:, :k]
        ids, scores = np.take_along_axis(ids, order, axis=1), np.take_along_axis(scores, order, axis=1)
    return (ids, scores) if queries.ndim == 2 else (ids[0], scores[0])


def _check(vectors: np.ndarray, queries: np.ndarray, k: int) -> None:
    if vectors.ndim != 2 or queries.ndim not in (1, 2) or vectors.shape[1] != queries.shape[-1]:
        raise ValueError(f"vectors (N, D) and queries (Q, D) or (D,) needed, got {vectors.shape} and {queries.shape}")
    if vectors.dtype != np.float32 or queries.dtype != np.float32:
        raise ValueError(f"vectors and queries must be float32, got {vectors.dtype} and {queries.dtype}")
    if k < 0:
        raise ValueError(f"k must be at least 0, got {k}")
