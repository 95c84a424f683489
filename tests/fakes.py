"""Stand-ins for heavy parts, for tests only."""

import re
from collections.abc import Iterator, Sequence
from zlib import crc32

import numpy as np

from rollout.types import Completion, Sampled


class HashEmbedder:
    """Bag of words: a text's vector counts its words, so texts without a common word score 0. Records every text it
    embeds once. Those of another `model` count the same words in other places.
    """

    num_cut = 0

    def __init__(self, dimension: int = 4096, model: str = ""):
        self.dimension, self.model = dimension, model
        self.embedded: list[str] = []

    def pieces(self, text: str) -> list[str]:
        return re.findall(r"(?:\S+\s*){1,8}", text) or [text]

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        self.embedded += [text for text in dict.fromkeys(texts) if text not in self.embedded]
        vectors = np.zeros((len(texts), self.dimension), dtype=np.float32)
        for row, text in enumerate(texts):
            for word in re.findall(r"\w+", text.casefold()):
                vectors[row, crc32(f"{self.model}{word}".encode()) % self.dimension] += 1
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)


def streamed(groups: Sequence[Sequence[Completion]]) -> Iterator[Sampled]:
    """The completions of each prompt as an engine gives them one by one, in their order."""
    for prompt, completions in enumerate(groups):
        for number, completion in enumerate(completions):
            yield Sampled(prompt, number, completion)
