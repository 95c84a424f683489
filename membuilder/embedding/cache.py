"""Embeddings on disk, so that a text is encoded once per model and never again, whichever run asks.

Content-addressed: the key is a hash of the model's fingerprint and the text, so a changed model or text never finds an
old vector. Vectors are committed a batch at a time, so a killed run keeps what it had.
"""

import hashlib
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from membuilder.embedding.local import TextEmbedder
from membuilder.errors import DataError
from membuilder.progress import progress

BATCH = 2048
"""Texts encoded between two commits; also within SQLite's limit of variables in a statement."""


class CachedEmbedder:
    """A TextEmbedder in front of another one, which is made only if some text is not on disk yet.

    `fingerprint` names the model's weights and arithmetic (`fingerprint_of`). Raises DataError for a file at `path`
    that is no such cache.
    """

    def __init__(self, make: Callable[[], TextEmbedder], path: str | Path, fingerprint: str, dimension: int):
        self._make, self._embedder = make, None
        self._fingerprint, self._dimension = fingerprint.encode(), dimension
        self._rows: dict[str, int] = {}
        self._vectors = np.empty((4096, dimension), dtype=np.float32)  # rows from len(_rows) on are unused
        self._database = _open(Path(path))
        self.num_encoded = 0

    @property
    def dimension(self) -> int:
        return self._dimension

    def close(self) -> None:
        self._database.close()

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Float32 unit vectors, one row per text, in the order given. # (N, D)"""
        new = [text for text in dict.fromkeys(texts) if text not in self._rows]
        absent = [text for batch in _batches(new) for text in self._read(batch)]
        # Like lengths together: a batch of the embedder then holds texts of one token length.
        absent.sort(key=len)
        with progress(total=len(absent), label="embed", unit="text", enabled=len(absent) > BATCH) as bar:
            for batch in _batches(absent):
                self._encode(batch)
                bar.update(len(batch))
        return self._vectors[[self._rows[text] for text in texts]]

    def _read(self, texts: Sequence[str]) -> list[str]:
        """Take what is on disk; the texts that are not come back."""
        keys = {self._key(text): text for text in texts}
        marks = ",".join("?" * len(keys))
        found = self._database.execute(f"SELECT key, vector FROM vectors WHERE key IN ({marks})", list(keys)).fetchall()
        for key, blob in found:
            self._keep(keys.pop(key), np.frombuffer(blob, dtype="<f4"))
        return list(keys.values())

    def _encode(self, texts: Sequence[str]) -> None:
        if self._embedder is None:
            self._embedder = self._make()
        vectors = self._embedder.embed(texts)
        with self._database:
            self._database.executemany(
                "INSERT OR REPLACE INTO vectors VALUES (?, ?)",
                [(self._key(text), row.astype("<f4").tobytes()) for text, row in zip(texts, vectors, strict=True)],
            )
        for text, row in zip(texts, vectors, strict=True):
            self._keep(text, row)
        self.num_encoded += len(texts)

    def _keep(self, text: str, vector: np.ndarray) -> None:
        row = len(self._rows)
        if row == len(self._vectors):
            self._vectors = np.concatenate([self._vectors, np.empty_like(self._vectors)])
        self._vectors[row] = vector
        self._rows[text] = row

    def _key(self, text: str) -> bytes:
        # surrogatepass: a lone surrogate is legal in a JSON string, though not in UTF-8.
        return hashlib.sha256(self._fingerprint + b"\0" + text.encode("utf-8", "surrogatepass")).digest()


def fingerprint_of(folder: str | Path) -> str:
    """Hash of every file of a model folder, by name and content."""
    digest = hashlib.sha256()
    for path in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{path.relative_to(folder).as_posix()} {content}\n".encode())
    return digest.hexdigest()


def _open(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True)
    # the builder embeds in a thread of its own; no two threads embed at once
    database = sqlite3.connect(path, timeout=60, check_same_thread=False)
    try:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute(
            "CREATE TABLE IF NOT EXISTS vectors (key BLOB PRIMARY KEY, vector BLOB NOT NULL) WITHOUT ROWID"
        )
    except sqlite3.DatabaseError as error:
        database.close()
        problem = f"is no embedding cache ({error}); remove it, or name another file by --embedding-cache"
        raise DataError(path, "whole file", "SQLite", problem) from error
    return database


def _batches(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(texts), BATCH):
        yield texts[start : start + BATCH]
