"""An approximate index beside its store, because linking 100,000 rows takes minutes and reading them back none.

The file is one line of JSON, then the index as FAISS writes it. The line holds checksums of the index and of the
vectors it was made of: a file that is damaged or of another bank is never used. One that lacks only the newest rows is
extended, anything else is built anew.
"""

import hashlib
import json
import logging
from pathlib import Path

import numpy as np

from membuilder.bank.index import IndexConfig, IndexKind, VectorIndex
from membuilder.errors import WriteError
from membuilder.files import atomic

FORMAT = 1
MAX_HEADER_BYTES = 4096
_log = logging.getLogger(__name__)


def index_path(store_path: str | Path) -> Path:
    return Path(f"{store_path}.index")


def open_index(path: Path, vectors: np.ndarray, config: IndexConfig) -> VectorIndex:
    """Index all rows of `vectors` (N, D), from the file where that fits them; the file is brought up to date.

    An exact index needs no file. Where the file cannot be written that is logged, and the next opening builds anew.
    """
    num_rows, dimension = vectors.shape
    kind = config.kind_for(num_rows)
    if kind is IndexKind.EXACT:
        index = VectorIndex(dimension, kind, config)
        index.add(vectors)
        return index
    index = _read(path, vectors, kind, config)
    if index is None:
        index = VectorIndex(dimension, kind, config)
    if len(index) < num_rows:
        _log.info("%s: adding %d of %d entries", path, num_rows - len(index), num_rows)
        index.add(vectors[len(index) :])
        _write(path, index, vectors, config)
    return index


def _read(path: Path, vectors: np.ndarray, kind: IndexKind, config: IndexConfig) -> VectorIndex | None:
    """Return the stored index of the first rows of `vectors`; None where there is none to trust."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        line = file.readline(MAX_HEADER_BYTES)
        body = np.fromfile(file, dtype=np.uint8)
    try:
        header = json.loads(line)
    except ValueError:  # any damage to the line
        header = None
    num_rows = header["num_rows"] if isinstance(header, dict) and isinstance(header.get("num_rows"), int) else 0
    if header != _header(kind, vectors[:num_rows], hashlib.sha256(body).hexdigest(), config):
        _log.warning("%s: not the index of this bank, or damaged; building it anew", path)
        return None
    return VectorIndex.from_bytes(body, vectors.shape[1], kind, config)


def _write(path: Path, index: VectorIndex, vectors: np.ndarray, config: IndexConfig) -> None:
    body = index.to_bytes()
    header = _header(index.kind, vectors, hashlib.sha256(body).hexdigest(), config)
    try:
        with atomic(path, many_writers=True) as partial, partial.open("wb") as file:
            file.write(json.dumps(header).encode() + b"\n")
            file.write(body)
    except WriteError as error:
        _log.warning("the index is not stored, so the next opening takes as long: %s", error)


def _header(kind: IndexKind, vectors: np.ndarray, index_sha256: str, config: IndexConfig) -> dict:
    return {
        "format": FORMAT,
        "kind": kind.value,
        "settings": config.stored_settings(),
        "num_rows": len(vectors),
        "dimension": vectors.shape[1],
        "vectors_sha256": hashlib.sha256(np.ascontiguousarray(vectors)).hexdigest(),
        "index_sha256": index_sha256,
    }
