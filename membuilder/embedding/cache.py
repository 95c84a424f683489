"""Embeddings on disk, so that a text is encoded once per model and never again, whichever run asks.

The key is a hash of the model's fingerprint and the text, so a changed model or text never finds an old vector. Each
batch is kept as soon as it is encoded, so a killed run loses at most one. Several processes may share the folder. It
takes about 1.7 kB for a vector of 384 numbers and is never cut down: delete it to make room.
"""

import base64
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from membuilder.embedding.local import in_rows
from membuilder.embedding.pieces import PieceEmbedder
from membuilder.errors import CacheError
from membuilder.llm.response_cache import AnswerCache
from membuilder.progress import progress

BATCH = 2048
"""Texts encoded before they are kept."""


class CachedEmbedder:
    """A TextEmbedder in front of another one, which is made only if some text is not on disk yet.

    `fingerprint` names the model's weights and arithmetic (`fingerprint_of`). `cut` holds the texts that the other one
    cut at its limit, and gets those that it cut in earlier runs. Raises CacheError for a folder at `path` that is
    damaged or no cache.
    """

    def __init__(
        self,
        make: Callable[[], PieceEmbedder],
        path: str | Path,
        fingerprint: str,
        dimension: int,
        cut: set[str] | None = None,
    ):
        self._cut = set() if cut is None else cut
        self._make, self._embedder = make, None
        self._fingerprint, self._dimension = fingerprint.encode(), dimension
        self._vectors: dict[str, np.ndarray] = {}
        self._cache = AnswerCache(path)
        self.num_encoded = 0

    @property
    def dimension(self) -> int:
        return self._dimension

    def close(self) -> None:
        self._cache.close()

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Return float32 unit vectors, one row per text, in the order given. # (N, D)"""
        absent = [text for text in dict.fromkeys(texts) if text not in self._vectors and not self._recall(text)]
        # Like lengths together: a batch of the embedder then holds texts of one token length.
        absent.sort(key=len)
        with progress(total=len(absent), label="embed", unit="text", enabled=len(absent) > BATCH) as bar:
            for start in range(0, len(absent), BATCH):
                batch = absent[start : start + BATCH]
                self._encode(batch)
                bar.update(len(batch))
        return in_rows(self._vectors, texts, self._dimension)

    def _recall(self, text: str) -> bool:
        """Take the text's vector from the cache, and return whether it was there."""
        stored = self._cache.get(self._key(text))
        if stored is not None:
            self._vectors[text] = unpacked(stored, self._dimension, "remove the folder of cached embeddings")
            if stored.get("cut"):  # vectors kept by versions that did not count do not tell
                self._cut.add(text)
        return stored is not None

    def pieces(self, text: str) -> list[str]:
        """Cut a text as the embedder behind the cache does."""
        return self._behind().pieces(text)

    def _behind(self) -> PieceEmbedder:
        if self._embedder is None:
            self._embedder = self._make()
        return self._embedder

    def _encode(self, texts: Sequence[str]) -> None:
        encoded = dict(zip(texts, self._behind().embed(texts), strict=True))
        records = {
            text: packed(vector) | ({"cut": True} if text in self._cut else {}) for text, vector in encoded.items()
        }
        self._cache.put_all({self._key(text): record for text, record in records.items()})
        self._vectors |= encoded
        self.num_encoded += len(texts)

    def _key(self, text: str) -> str:
        # surrogatepass: a lone surrogate is legal in a JSON string, though not in UTF-8.
        return hashlib.sha256(self._fingerprint + b"\0" + text.encode("utf-8", "surrogatepass")).hexdigest()


def packed(vector: np.ndarray) -> dict[str, str]:
    """Return the record in which the cache keeps a vector."""
    return {"float32": base64.b64encode(vector.astype("<f4").tobytes()).decode()}


def unpacked(stored: dict[str, Any], dimension: int, remedy: str) -> np.ndarray:
    """Return the vector that `packed` was given, bit for bit.

    Raises CacheError, with `remedy`, for a record that holds no vector or one of another dimension.
    """
    try:
        vector = np.frombuffer(base64.b64decode(stored["float32"], validate=True), dtype="<f4")
    except (KeyError, TypeError, ValueError) as error:
        raise CacheError(f"a cached record holds no vector ({error!r}); {remedy}") from error
    if len(vector) != dimension:
        raise CacheError(f"a cached vector has {len(vector)} numbers where {dimension} were expected; {remedy}")
    return vector


def fingerprint_of(folder: str | Path) -> str:
    """Hash every file of a model folder, by name and content."""
    digest = hashlib.sha256()
    for path in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{path.relative_to(folder).as_posix()} {content}\n".encode())
    return digest.hexdigest()
