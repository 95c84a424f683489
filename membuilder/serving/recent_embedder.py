"""An embedder that remembers the vectors of the texts embedded last, for a program that runs for months."""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np

from membuilder.embedding.local import TextEmbedder, in_rows


def digest(text: str) -> bytes:
    """Return what stands for a text where only equality counts."""
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest()


class Clearable(TextEmbedder, Protocol):
    """An embedder that can let go of what it was given."""

    def clear(self) -> None: ...


class RecentEmbedder:
    """A `TextEmbedder` for several threads. The embedder behind it computes in a thread of its own.

    PyTorch keeps a pool of CPU threads for each thread that it computes in, so it is always the same one. No text is
    kept: a vector stands under the hash of its text, so that what it takes depends on no length.
    """

    def __init__(self, embedder: Clearable, size: int = 20_000):
        self._embedder, self._size = embedder, size
        self._vectors: OrderedDict[bytes, np.ndarray] = OrderedDict()
        self._known = threading.Lock()
        self._thread = ThreadPoolExecutor(1, "embed")

    @property
    def dimension(self) -> int:
        return self._embedder.dimension

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Return float32 unit vectors, one row per text, in the order given. # (N, D)"""
        found = self._recalled(texts)
        if absent := [text for text in dict.fromkeys(texts) if text not in found]:
            found |= self._thread.submit(self._computed, absent).result()
            self._keep({text: found[text] for text in absent})
        return in_rows(found, texts, self.dimension)

    def _computed(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        found = dict(zip(texts, self._embedder.embed(texts), strict=True))
        self._embedder.clear()
        return found

    def knows(self, text: str) -> bool:
        """Return whether a text costs nothing."""
        return digest(text) in self._vectors

    def clear(self) -> None:
        with self._known:
            self._vectors.clear()

    def _recalled(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        with self._known:
            named = {text: digest(text) for text in texts}
            found = {text: self._vectors[name] for text, name in named.items() if name in self._vectors}
            for text in found:
                self._vectors.move_to_end(named[text])
        return found

    def _keep(self, vectors: dict[str, np.ndarray]) -> None:
        with self._known:
            # a row alone: as a view it would hold on to all rows that were embedded with it
            self._vectors.update({digest(text): row.copy() for text, row in vectors.items()})
            while len(self._vectors) > self._size:
                self._vectors.popitem(last=False)
