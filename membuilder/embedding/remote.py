"""A `TextEmbedder` whose vectors come from an endpoint; `local.py` holds the default, which needs no server.

with closing(EndpointEmbedder(EmbeddingEndpoint(name="text-embedding-3-small"), usage)) as embedder:
    vectors = embedder.embed(["one text", "another"])  # (2, D)

A server has limits that only it knows. A batch that it refuses is halved, down to one text; what becomes of a text
that it refuses alone, the endpoint's `long_texts` says.
"""

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial

import numpy as np
from anyio.from_thread import start_blocking_portal

from membuilder.embedding.cache import packed, unpacked
from membuilder.embedding.identity import PROBE, SAME_COSINE, cosine_of
from membuilder.embedding.local import in_rows
from membuilder.errors import CacheError, ChatError, ChatErrorKind, ConfigError
from membuilder.llm.chat_model import Role
from membuilder.llm.concurrency import for_each
from membuilder.llm.connection import CHECK_ATTEMPTS, Connection
from membuilder.llm.endpoints import EmbeddingEndpoint, LongTexts, ModelAccess, embeddings_address
from membuilder.llm.response_cache import AnswerCache, content_key
from membuilder.llm.responses import read_embeddings
from membuilder.llm.usage import Usage
from membuilder.text import is_text

SETTING_HINT = "(keys of --embedding-endpoint)"
CHECK_TEXTS = (PROBE,)
REFUSALS = (ChatErrorKind.BAD_REQUEST, ChatErrorKind.UNFIT_PROMPT)
"""Failures that may concern one text, or how many there are; keys, accounts and broken servers are others."""
FEWEST_CHARS = 64
"""Half a text is no shorter: every embedding model reads as much, so its refusal is about something else."""

_log = logging.getLogger(__name__)
Piece = tuple[str, np.ndarray]
"""Some of a text as it was embedded, and its unit vector."""


class EndpointEmbedder:
    """Embeds each distinct text once per run, and once ever with a cache.

    `embed` blocks like every TextEmbedder; its requests run in an event loop of their own thread, so it also works
    when called from inside a running loop. Starting it asks for one vector: a refused key, an unknown model or a dead
    server raises ChatError there. Without an address of its own it asks `chat`'s server, if that has
    the same provider. The texts that were cut or split are added to `long`.
    """

    def __init__(
        self,
        endpoint: EmbeddingEndpoint,
        usage: Usage,
        *,
        api_key: str | None = None,
        cache: AnswerCache | None = None,
        chat: ModelAccess | None = None,
        long: set[str] | None = None,
    ):
        self._endpoint, self._usage, self._cache = endpoint, usage, cache
        self._long = set() if long is None else long
        address = embeddings_address(endpoint, api_key, chat=chat)
        self._connection = Connection(endpoint, address, Role.EMBEDDER, usage)
        self._vectors: dict[str, np.ndarray] = {}
        self._num_halved = 0
        with ExitStack() as stack:
            self._portal = stack.enter_context(start_blocking_portal())
            stack.callback(self._portal.call, self._connection.close)
            rows = [self._portal.call(self._check)]
            self._dimension = len(rows[0])
            (self.probe,) = self._unit(rows)
            self._check_cache()
            self._stack = stack.pop_all()

    def close(self) -> None:
        self._stack.close()
        if self._num_halved:
            advice = f"a smaller batch_size or max_text_chars {SETTING_HINT} spares such requests"
            _log.warning("batches that the embedding server refused: %d, sent in halves; %s", self._num_halved, advice)

    @property
    def dimension(self) -> int:
        return self._dimension

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Return float32 unit vectors, one row per text, in the order given. # (N, D)"""
        new = [text for text in dict.fromkeys(texts) if text not in self._vectors and not self._recall(text)]
        size = self._endpoint.batch_size
        batches = [new[start : start + size] for start in range(0, len(new), size)]
        if batches:
            # the first batch that fails ends the others
            self._portal.call(for_each, self._embed_batch, batches, self._endpoint.concurrency)
        return in_rows(self._vectors, texts, self._dimension)

    def clear(self) -> None:
        """Let go of all texts so far and of their vectors, for a program that runs on and on."""
        self._vectors.clear()
        self._long.clear()

    def pieces(self, text: str) -> list[str]:
        """Cut a text into pieces of `max_text_chars`. Raises ConfigError without one: no server tells what it reads."""
        limit = self._endpoint.max_text_chars
        if limit is None:
            raise ConfigError(f"index.pieces needs a local embedding model, or max_text_chars {SETTING_HINT}")
        pieces = (text[start : start + limit] for start in range(0, len(text), limit))
        return [piece for piece in pieces if piece.strip()] or [text]

    async def _check(self) -> list[float]:
        (vector,) = await self._connection.checked(self._request(CHECK_TEXTS, CHECK_ATTEMPTS))
        return vector

    async def _request(self, texts: Sequence[str], max_attempts: int) -> list[list[float]]:
        body = {"model": self._endpoint.name, "input": list(texts), "encoding_format": "float"}
        read = partial(read_embeddings, num_texts=len(texts))
        return await self._connection.post("/embeddings", body | self._endpoint.extra_body, read, max_attempts)

    async def _embed_batch(self, texts: Sequence[str]) -> None:
        parts, size = [(text, part) for text in texts for part in self._parts(text)], self._endpoint.batch_size
        pieces: dict[str, list[Piece]] = {text: [] for text in texts}
        for start in range(0, len(parts), size):
            some = parts[start : start + size]
            for (text, _), read in zip(some, await self._read([part for _, part in some]), strict=True):
                pieces[text] += read
        new = {text: self._joined(of_text) for text, of_text in pieces.items()}
        long = {text for text, of_text in pieces.items() if [piece for piece, _ in of_text] != [text]}
        self._vectors |= new
        self._long |= long
        if self._cache is not None:
            self._cache.put_all({self._key(text, text in long): packed(vector) for text, vector in new.items()})

    def _parts(self, text: str) -> list[str]:
        """Return what is sent of a text. Raises ChatError for one above `max_text_chars` that is to be refused."""
        limit, how = self._endpoint.max_text_chars, self._endpoint.long_texts
        if limit is None or len(text) <= limit:
            return [text]
        if how is LongTexts.REFUSE:
            problem = f"a text of {len(text)} characters is above max_text_chars={limit}"
            raise ChatError(ChatErrorKind.UNFIT_PROMPT, f"{problem}; {_advice(text)}")
        if how is LongTexts.CUT:
            return [text[:limit]]
        return self.pieces(text)

    async def _read(self, texts: Sequence[str]) -> list[list[Piece]]:
        """Embed each text, in pieces or without its end where the server refuses it. Raises ChatError."""
        try:
            vectors = self._unit(await self._request(texts, self._endpoint.max_attempts))
            return [[piece] for piece in zip(texts, vectors, strict=True)]
        except ChatError as error:
            if error.kind not in REFUSALS:
                raise
            refusal = error
        if len(texts) > 1:
            self._num_halved += 1
            middle = len(texts) // 2
            return await self._read(texts[:middle]) + await self._read(texts[middle:])
        (text,) = texts
        if not is_text(text):
            raise refusal  # of our own: it could not be sent
        half = (len(text) + 1) // 2
        if self._endpoint.long_texts is LongTexts.REFUSE or half < FEWEST_CHARS:
            raise await self._meant(refusal, text)
        read = await self._read([text[:half]])
        if self._endpoint.long_texts is LongTexts.SPLIT:
            read += await self._read([text[half:]])
        return [[piece for pieces in read for piece in pieces]]

    async def _meant(self, refusal: ChatError, text: str) -> ChatError:
        """Return the error that a refused text comes to: is it this text, or does the server refuse every one?"""
        try:
            await self._request(CHECK_TEXTS, CHECK_ATTEMPTS)
        except ChatError as error:
            if error.kind not in REFUSALS:
                return error
            return ChatError(ChatErrorKind.REFUSES_ALL, f"{refusal} It refuses the smallest text too: {error}")
        return ChatError(refusal.kind, f"{refusal} It refuses one text of {len(text)} characters; {_advice(text)}")

    def _unit(self, rows: Sequence[Sequence[float]] | np.ndarray) -> np.ndarray:
        """Return the vectors at unit length. Raises ChatError for some that are none. # (N, D)"""
        vectors = np.array(rows, dtype=np.float32)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        if vectors.shape[1] != self._dimension or not np.isfinite(lengths).all() or not lengths.all():
            message = (
                f"{self._connection.base_url}: vectors of {vectors.shape[1]} numbers, of length 0 or not finite, where"
                f" {self._dimension} were expected; the server is faulty or has changed its model"
            )
            raise ChatError(ChatErrorKind.BAD_RESPONSE, message)
        return vectors / lengths

    def _joined(self, pieces: Sequence[Piece]) -> np.ndarray:
        """Return one vector for a text: the mean of its pieces' weighted by their characters, at unit length. # (D,)

        The formula is that of OpenAI's cookbook, "Embedding texts that are longer than the model's maximum context
        length", with characters in the place of tokens, which cannot be counted here.
        """
        if len(pieces) == 1:
            return pieces[0][1]
        mean = np.average([vector for _, vector in pieces], axis=0, weights=[len(piece) for piece, _ in pieces])
        return self._unit(mean[None])[0]

    def _check_cache(self) -> None:
        """Raise CacheError where the cache holds the vectors that another model gave under this name."""
        if self._cache is None:
            return
        key = self._key(PROBE, False)
        stored = self._cache.get(key)
        if stored is None:
            self._cache.put_all({key: packed(self.probe)})
        elif (cosine := cosine_of(unpacked(stored, self._dimension, self._remedy), self.probe)) < SAME_COSINE:
            raise CacheError(f"a cached vector and today's have a cosine of {cosine:.3f}; {self._remedy}")

    @property
    def _remedy(self) -> str:
        return f"the model {self._endpoint.name} has changed behind its name: use a new cache folder"

    def _recall(self, text: str) -> bool:
        """Take the text's vector from the cache, and return whether it was there."""
        limit = self._endpoint.max_text_chars
        may_be_whole = limit is None or len(text) <= limit
        may_be_long = self._endpoint.long_texts is not LongTexts.REFUSE
        for is_long in (False,) * may_be_whole + (True,) * may_be_long:
            stored = None if self._cache is None else self._cache.get(self._key(text, is_long))
            if stored is not None:
                self._vectors[text] = unpacked(stored, self._dimension, self._remedy)
                self._long |= {text} if is_long else set()
                self._usage.add_cached(Role.EMBEDDER)
                return True
        return False

    def _key(self, text: str, is_long: bool) -> str:
        """Return the key of a vector in the cache; one of a cut or split text depends on how that was done."""
        endpoint = self._endpoint
        about = {"url": self._connection.base_url, "model": endpoint.name, "dimensions": None, "text": text}
        about |= {"extra_body": endpoint.extra_body} if endpoint.extra_body else {}
        how = {"long_texts": endpoint.long_texts, "max_text_chars": endpoint.max_text_chars} if is_long else {}
        return content_key(kind="embedding/1", **about, **how)


def _advice(text: str) -> str:
    advice = f"set long_texts=cut or long_texts=split, and max_text_chars to what the server reads {SETTING_HINT}"
    return f"{advice}. It begins {text[:60]!r}"
