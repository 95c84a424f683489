"""A `TextEmbedder` whose vectors come from an endpoint; `local.py` holds the default, which needs no server.

with closing(EndpointEmbedder(ModelEndpoint(name="text-embedding-3-small"), usage)) as embedder:
    vectors = embedder.embed(["one text", "another"])  # (2, D)
"""

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial

import numpy as np
from anyio.from_thread import start_blocking_portal

from membuilder.embedding.cache import packed, unpacked
from membuilder.embedding.local import in_rows
from membuilder.errors import ChatError, ChatErrorKind
from membuilder.llm.chat_model import Role
from membuilder.llm.client import CHECK_ATTEMPTS, Connection
from membuilder.llm.concurrency import for_each
from membuilder.llm.endpoints import ModelAccess, ModelEndpoint, embeddings_address
from membuilder.llm.response_cache import AnswerCache, content_key
from membuilder.llm.responses import read_embeddings
from membuilder.llm.usage import Usage

BATCH = 64
"""Texts in one request."""


class EndpointEmbedder:
    """Embeds each distinct text once per run, and once ever with a cache.

    `embed` blocks like every TextEmbedder; its requests run in an event loop of their own thread, so it also works
    when called from inside a running loop. Starting it asks for one vector: a refused key, an unknown model or a dead
    server raises ChatError there. Without an address of its own it asks `chat`'s server, if that has
    the same provider.
    """

    def __init__(
        self,
        endpoint: ModelEndpoint,
        usage: Usage,
        *,
        api_key: str | None = None,
        cache: AnswerCache | None = None,
        chat: ModelAccess | None = None,
    ):
        self._endpoint, self._usage, self._cache = endpoint, usage, cache
        address = embeddings_address(endpoint, api_key, chat=chat)
        self._connection = Connection(endpoint, address, Role.EMBEDDER, usage)
        self._vectors: dict[str, np.ndarray] = {}
        with ExitStack() as stack:
            self._portal = stack.enter_context(start_blocking_portal())
            stack.callback(self._portal.call, self._connection.close)
            self.probe = np.array(self._portal.call(self._check), dtype=np.float32)
            self._dimension = len(self.probe)
            self._stack = stack.pop_all()

    def close(self) -> None:
        self._stack.close()

    @property
    def dimension(self) -> int:
        return self._dimension

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Return float32 unit vectors, one row per text, in the order given. # (N, D)"""
        new = [text for text in dict.fromkeys(texts) if text not in self._vectors and not self._recall(text)]
        batches = [new[start : start + BATCH] for start in range(0, len(new), BATCH)]
        if batches:
            # the first batch that fails ends the others
            self._portal.call(for_each, self._embed_batch, batches, self._endpoint.concurrency)
        return in_rows(self._vectors, texts, self._dimension)

    async def _check(self) -> list[float]:
        (vector,) = await self._connection.checked(self._request(["ready?"], CHECK_ATTEMPTS))
        return vector

    async def _request(self, texts: Sequence[str], max_attempts: int) -> list[list[float]]:
        body = {"model": self._endpoint.name, "input": texts, "encoding_format": "float"}
        read = partial(read_embeddings, num_texts=len(texts))
        return await self._connection.post("/embeddings", body, read, max_attempts)

    async def _embed_batch(self, texts: Sequence[str]) -> None:
        rows = await self._request(texts, self._endpoint.max_attempts)
        vectors = np.array(rows, dtype=np.float32)  # (N, D)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        if vectors.shape[1] != self._dimension or not np.isfinite(lengths).all() or not lengths.all():
            message = (
                f"{self._connection.base_url}: vectors of {vectors.shape[1]} numbers, of length 0 or not finite, where"
                f" {self._dimension} were expected; the server is faulty or has changed its model"
            )
            raise ChatError(ChatErrorKind.BAD_RESPONSE, message)
        new = dict(zip(texts, vectors / lengths, strict=True))
        self._vectors |= new
        if self._cache is not None:
            self._cache.put_all({self._key(text): packed(vector) for text, vector in new.items()})

    def _recall(self, text: str) -> bool:
        """Take the text's vector from the cache, and return whether it was there."""
        stored = None if self._cache is None else self._cache.get(self._key(text))
        if stored is None:
            return False
        remedy = f"the model {self._endpoint.name} has changed behind its name: use a new cache folder"
        self._vectors[text] = unpacked(stored, self._dimension, remedy)
        self._usage.add_cached(Role.EMBEDDER)
        return True

    def _key(self, text: str) -> str:
        server = {"url": self._connection.base_url, "model": self._endpoint.name, "dimensions": None}
        return content_key(kind="embedding/1", **server, text=text)
