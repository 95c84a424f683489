"""Inner-product search, exact or approximate, on CPU or CUDA. The only file that imports faiss.

N rows of D numbers, Q queries, k results each.
"""

from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from membuilder.value_types import AtLeastTwo, PositiveInt, Section

if TYPE_CHECKING:
    import faiss

_TIE_MARGIN = 16
_MAX_GPU_RESULTS = 2048
"""FAISS's own limit."""
_MIN_ALLOWED_SHARE = 0.25
"""Below it the graph meets too few of the rows asked for, and scanning just these is as fast."""


class IndexKind(StrEnum):
    AUTO = "auto"
    EXACT = "exact"
    HNSW = "hnsw"
    """A graph of neighbours, approximate: fast to search, slow to build. Malkov and Yashunin, arXiv 1603.09320."""


@dataclass(kw_only=True)
class IndexConfig(Section):
    kind: IndexKind = IndexKind.AUTO
    """`auto` searches exactly below `approximate_from` entries and by `hnsw` from there on."""
    approximate_from: PositiveInt = 50_000
    """Entries from which `auto` is approximate."""
    hnsw_neighbors: AtLeastTwo = 32
    """Links of a row; more cost memory and find more."""
    hnsw_build_width: AtLeastTwo = 100
    """Candidates kept while a row is linked."""
    hnsw_search_width: AtLeastTwo = 256
    """Candidates kept while searching: what is found against how long it takes."""
    gpu: bool = True
    """Search exactly on the first CUDA device where there is one and FAISS was built for it (faiss-gpu)."""

    pieces: bool = False
    """Embed a text that is longer than the embedding model reads in pieces, whose nearest one counts; false: what
    stands behind that limit is not searched."""

    def kind_for(self, num_rows: int) -> IndexKind:
        if self.kind is not IndexKind.AUTO:
            return self.kind
        return IndexKind.EXACT if num_rows < self.approximate_from or self._on_gpu else IndexKind.HNSW

    def stored_settings(self) -> dict:
        """Return what a stored index depends on; what is chosen at search time is left out."""
        return {name: asdict(self)[name] for name in ("hnsw_neighbors", "hnsw_build_width")}

    @property
    def _on_gpu(self) -> bool:
        return self.gpu and _faiss().get_num_gpus() > 0


@cache
def _faiss() -> Any:
    """Load FAISS, which takes seconds that `--help` need not wait for."""
    import faiss

    # Above this size FAISS hands the products to BLAS, whose rounding depends on a row's position: equal vectors would
    # no longer score equal, and a score would change with the number of queries.
    faiss.cvar.distance_compute_blas_threshold = 2**31 - 1
    return faiss


def top_k(vectors: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the k rows of `vectors` (N, D) of largest inner product with each query, best first, and those products.

    `queries` (Q, D) gives ids and scores (Q, min(k, N)); one query (D,) gives (min(k, N),). Equal scores come in row
    order. Raises ValueError unless both are float32 of one width and k >= 0.
    """
    index = VectorIndex(vectors.shape[-1], IndexKind.EXACT, IndexConfig(gpu=False))
    index.add(vectors)
    return index.search(queries, k)


class VectorIndex:
    """Rows to search again and again; more can be added. Not for several threads at once."""

    def __init__(self, dimension: int, kind: IndexKind, config: IndexConfig, raw: "faiss.Index | None" = None):
        self.kind, self._config, self._dimension = kind, config, dimension
        self._index = _empty(dimension, kind, config) if raw is None else raw
        self._on_gpu: faiss.Index | None = None

    def __len__(self) -> int:
        return self._index.ntotal

    def to_bytes(self) -> np.ndarray:
        """Return the index as FAISS writes it. # (B,) uint8"""
        return _faiss().serialize_index(self._index)

    @classmethod
    def from_bytes(cls, data: np.ndarray, dimension: int, kind: IndexKind, config: IndexConfig) -> "VectorIndex":
        """Read what `to_bytes` gave. Use it only for bytes whose checksum was verified: FAISS trusts what it reads."""
        return cls(dimension, kind, config, raw=_faiss().deserialize_index(data))

    def add(self, vectors: np.ndarray) -> None:
        """Add rows, which are numbered on. # (M, D)"""
        if vectors.shape[1:] != (self._dimension,) or vectors.dtype != np.float32:
            raise ValueError(f"rows must be float32 (M, {self._dimension}), got {vectors.dtype} {vectors.shape}")
        if len(vectors):
            self._index.add(np.ascontiguousarray(vectors))
            if self.kind is IndexKind.EXACT and self._config._on_gpu:
                self._on_gpu = _faiss().index_cpu_to_gpu(_faiss().StandardGpuResources(), 0, self._index)

    def search(self, queries: np.ndarray, k: int, allowed: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Search the rows held as `top_k` does; `allowed` (N,) bool chooses the candidates before the search.

        Exactly min(k, candidates) rows come back. An approximate index may miss some of the best; where it finds too
        few, or few rows are allowed, that search is exact.
        """
        if queries.ndim not in (1, 2) or queries.shape[-1] != self._dimension or queries.dtype != np.float32:
            shapes = f"(Q, {self._dimension}) or ({self._dimension},)"
            raise ValueError(f"queries must be float32 {shapes}, got {queries.dtype} {queries.shape}")
        if k < 0:
            raise ValueError(f"k must be at least 0, got {k}")
        if allowed is not None and (allowed.shape != (len(self),) or allowed.dtype != bool):
            raise ValueError(f"allowed must be bool ({len(self)},), got {allowed.dtype} {allowed.shape}")
        rows, num_allowed = np.atleast_2d(queries), len(self) if allowed is None else int(allowed.sum())
        k = min(k, num_allowed)
        selector = None if allowed is None else _faiss().IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
        if self._on_gpu is not None and selector is None and 0 < k <= _MAX_GPU_RESULTS:
            # rounding there depends on a row's position, so equal rows may come in another order
            scores, ids = self._on_gpu.search(np.ascontiguousarray(rows), k)
            ids, scores = _in_order(ids, scores, k)
        elif self.kind is IndexKind.EXACT or not k or num_allowed < _MIN_ALLOWED_SHARE * len(self):
            ids, scores = self._exactly(rows, k, num_allowed, selector)
        else:
            width = max(self._config.hnsw_search_width, 2 * k)
            parameters = _faiss().SearchParametersHNSW(efSearch=width, sel=selector)
            scores, ids = self._index.search(np.ascontiguousarray(rows), k, params=parameters)
            ids, scores = _in_order(ids, scores, k)
            short = (ids < 0).any(axis=1)
            if short.any():
                ids[short], scores[short] = self._exactly(rows[short], k, num_allowed, selector)
        return (ids, scores) if queries.ndim == 2 else (ids[0], scores[0])

    def _exactly(self, rows, k, num_allowed, selector) -> tuple[np.ndarray, np.ndarray]:
        # the graph keeps its rows in a flat index of their own
        index = _faiss().downcast_index(self._index.storage) if self.kind is IndexKind.HNSW else self._index
        return _search_exactly(index, rows, k, num_allowed, _faiss().SearchParameters(sel=selector))


def _empty(dimension: int, kind: IndexKind, config: IndexConfig) -> "faiss.Index":
    if kind is IndexKind.HNSW:
        index = _faiss().IndexHNSWFlat(dimension, config.hnsw_neighbors, _faiss().METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = config.hnsw_build_width
        return index
    return _faiss().IndexFlatIP(dimension)


def _search_exactly(index, rows, k, num_rows, parameters) -> tuple[np.ndarray, np.ndarray]:
    """Sorted by score, then row. At the cut FAISS keeps the later of two equal rows, so it is asked for more than k
    rows until the last one is no longer equal to the k-th."""
    if not k or not len(rows):
        return np.empty((len(rows), 0), dtype=np.int64), np.empty((len(rows), 0), dtype=np.float32)
    queries, fetched = np.ascontiguousarray(rows), k
    while True:
        fetched = min(num_rows, 2 * fetched + _TIE_MARGIN)
        scores, ids = index.search(queries, fetched, params=parameters)
        if fetched == num_rows or (scores[:, k - 1] > scores[:, -1]).all():
            return _in_order(ids, scores, k)


def _in_order(ids: np.ndarray, scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    order = np.lexsort((ids, -scores))[:, :k]
    return np.take_along_axis(ids, order, axis=1), np.take_along_axis(scores, order, axis=1)
