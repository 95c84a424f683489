"""Answers and vectors are kept on disk under a hash of everything that shaped them. No other file imports diskcache."""

import hashlib
import json
import sqlite3
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diskcache

from membuilder.errors import CacheError

_UNUSABLE = (sqlite3.Error, diskcache.Timeout, OSError)


class _JsonDisk(diskcache.JSONDisk):
    """Stores JSON values only, since diskcache alone would unpickle, and so run, what a row says is a pickle."""

    def fetch(self, mode: int, filename: str | None, value: Any, read: bool) -> Any:
        if mode == diskcache.core.MODE_PICKLE:
            raise ValueError("a pickled value, which this program never writes")
        return super().fetch(mode, filename, value, read)


def content_key(**parts: Any) -> str:
    """One name for one request: the SHA-256 of its parts as JSON."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class AnswerCache:
    """A folder of JSON records that several processes may share. Nothing is ever evicted: delete the folder instead.

    Raises CacheError for a folder that is damaged or not writable.
    """

    def __init__(self, folder: str | Path):
        self._folder = Path(folder)
        try:
            self._cache = diskcache.Cache(
                str(folder), disk=_JsonDisk, disk_compress_level=1, eviction_policy="none", cull_limit=0
            )
        except _UNUSABLE as error:
            raise self._damaged(error) from error

    def get(self, key: str) -> dict[str, Any] | None:
        try:
            return self._cache.get(key)
        except (*_UNUSABLE, ValueError, TypeError, zlib.error) as error:  # a file from another time or hand
            raise self._damaged(error) from error

    def put(self, key: str, record: Mapping[str, Any]) -> None:
        self.put_all({key: record})

    def put_all(self, records: Mapping[str, Mapping[str, Any]]) -> None:
        """Keep all of the records or none, in one transaction: twice as fast as one by one."""
        try:
            with self._cache.transact():
                for key, record in records.items():
                    self._cache.set(key, dict(record))
        except _UNUSABLE as error:
            raise self._damaged(error) from error

    def close(self) -> None:
        self._cache.close()

    def _damaged(self, error: Exception) -> CacheError:
        return CacheError(f"the cache in {self._folder} cannot be used; delete it or name another: {error}")
