"""Memories that are open to be searched: the last used ones stay, each as long as its vault has nothing newer."""

import asyncio
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakValueDictionary

from membuilder.bank.index import IndexConfig, VectorIndex
from membuilder.bank.indexed_bank import IndexedBank
from membuilder.bank.ranking import SearchMethod
from membuilder.bank.retrieve import Retrieval
from membuilder.embedding.identity import other_embedder
from membuilder.embedding.local import TextEmbedder
from membuilder.errors import StoreError
from membuilder.serving.errors import NotThereError
from membuilder.serving.public_ids import with_public_ids
from membuilder.serving.recent_embedder import digest
from membuilder.serving.vault import Vault
from membuilder.types import Bank

_ANSWERS = 500
"""Searches of one memory whose results are kept: a question that is asked again costs nothing."""


@dataclass(kw_only=True, slots=True)
class OpenMemory:
    """A memory as it stood at one moment, under public ids."""

    stamp: object
    indexed: IndexedBank
    own_ids: Mapping[str, str]
    """Public id -> id in the store."""
    _found: OrderedDict[tuple, Retrieval] = field(default_factory=OrderedDict)

    @property
    def bank(self) -> Bank:
        return self.indexed.bank

    def found(self, query: str, k: int, method: SearchMethod, current_only: bool) -> Retrieval:
        """Find the k entries that fit a query best."""
        key = (digest(query), k, method, current_only)
        if key not in self._found:
            (self._found[key],) = self.indexed.retrieve([query], k, not current_only, method)
            if len(self._found) > _ANSWERS:
                self._found.popitem(last=False)
        self._found.move_to_end(key)
        return self._found[key]

    def has_found(self, query: str, k: int, method: SearchMethod, current_only: bool) -> bool:
        return (digest(query), k, method, current_only) in self._found


class OpenMemories:
    """It opens memories in threads, and closes those used longest ago once there are too many entries in all."""

    def __init__(self, vault: Vault, embedder: TextEmbedder, identity: Mapping[str, Any], max_entries: int):
        self._vault, self._embedder, self._identity = vault, embedder, identity
        self._max_entries = max_entries
        self._open: OrderedDict[str, OpenMemory] = OrderedDict()
        self._opening: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def get(self, user: str) -> OpenMemory:
        """Return a user's memory as it stands now. Raises NotThereError where there is none, and StoreError."""
        stamp = await self._vault.stamp(user)
        if stamp is None:
            self.close(user)
            raise NotThereError("memory of user", user)
        if (known := self._open.get(user)) is not None and known.stamp == stamp:
            self._open.move_to_end(user)
            return known
        async with self._opening.setdefault(user, asyncio.Lock()):
            known, stamp = self._open.get(user), await self._vault.stamp(user)
            if known is None or known.stamp != stamp:  # read before the memory: what is written meanwhile makes it old
                known = await asyncio.to_thread(self._opened, user, stamp)
                self._open[user] = known
            self._open.move_to_end(user)
        self._make_room(user)
        return known

    def close(self, user: str) -> None:
        self._open.pop(user, None)

    def _opened(self, user: str, stamp: object) -> OpenMemory:
        with self._vault.reading(user) as store:
            memory = store.memory()
        if problem := other_embedder(memory.settings, self._identity):
            raise StoreError(store.path, f"{problem}; start the server with the first")
        bank, public = with_public_ids(memory)
        config = IndexConfig(gpu=False)
        index = VectorIndex(memory.vectors.shape[1], config.kind_for(len(memory.vectors)), config)
        index.add(memory.vectors)
        indexed = IndexedBank(bank=bank, index=index, embedder=self._embedder)
        indexed.retrieve(["x"], 1, True, SearchMethod.BM25)  # indexes the words, which takes a second for a large one
        own_ids = {public_id: own for own, public_id in public.items()}
        return OpenMemory(stamp=stamp, indexed=indexed, own_ids=own_ids)

    def _make_room(self, but: str) -> None:
        """A small memory counts as 100 entries, so that there are not too many of them either."""
        sizes = {user: max(100, len(each.bank.entries)) for user, each in self._open.items()}
        total = sum(sizes.values())
        for user, size in sizes.items():
            if total <= self._max_entries or user == but:
                break
            del self._open[user]
            total -= size
