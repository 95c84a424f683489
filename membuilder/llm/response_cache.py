"""Answers and vectors are kept on disk under a hash of everything that shaped them. No other file imports diskcache."""

import hashlib
import json
import sqlite3
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diskcache

from membuilder.errors import CacheError

_UNUSABLE = (sqlite3.Error, diskcache.Timeout, OSError, ValueError, TypeError, zlib.error)
"""The last three: a file from another time or hand."""


class _JsonDisk(diskcache.JSONDisk):
    """It stores JSON values only, since diskcache alone would unpickle, and so run, what a row says is a pickle."""

    def fetch(self, mode: int, filename: str | None, value: Any, read: bool) -> Any:
        if mode == diskcache.core.MODE_PICKLE:
            raise ValueError("a pickled value, which this program never writes")
        return super().fetch(mode, filename, value, read)


def content_key(**parts: Any) -> str:
    """Name a request by the SHA-256 of its parts as JSON."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class AnswerCache:
    """It keeps JSON records in a folder that processes may share. Nothing is ever evicted: delete the folder instead.

    Raises CacheError for a folder that is damaged or not writable.
    """

    def __init__(self, folder: str | Path):
        self._folder = folder
        with self._usable():
            self._cache = diskcache.Cache(
                str(folder), disk=_JsonDisk, disk_compress_level=1, eviction_policy="none", cull_limit=0
            )

    def get(self, key: str) -> dict[str, Any] | None:
        with self._usable():
            return self._cache.get(key)

    def put(self, key: str, record: Mapping[str, Any]) -> None:
        self.put_all({key: record})

    def put_all(self, records: Mapping[str, Mapping[str, Any]]) -> None:
        """Keep all of the records or none, in one transaction: twice as fast as one by one."""
        with self._usable(), self._cache.transact():
            for key, record in records.items():
                self._cache.set(key, dict(record))

    def forget(self, is_lost: Callable[[dict[str, Any]], bool]) -> int:
        """Remove the records for which `is_lost` holds, from the disk itself too; return how many they were."""
        with self._usable():
            self._cache._sql("PRAGMA secure_delete = ON")
            lost = [key for key in self._cache if is_lost(self._cache[key])]
            for key in lost:
                self._cache.delete(key)
            self._cache._sql("VACUUM")
            self._cache._sql("PRAGMA wal_checkpoint(TRUNCATE)")
        return len(lost)

    def close(self) -> None:
        self._cache.close()

    @contextmanager
    def _usable(self) -> Iterator[None]:
        try:
            yield
        except _UNUSABLE as error:
            problem = f"the cache in {self._folder} cannot be used; delete it or name another: {error}"
            raise CacheError(problem) from error


class AskedAgain(AnswerCache):
    """It keeps answers in the cache it is made of and finds none there, so that all is asked anew."""

    def __init__(self, cache: AnswerCache):
        self._folder, self._cache = cache._folder, cache._cache

    def get(self, key: str) -> None:
        return None
