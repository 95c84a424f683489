"""Holds what is too much for memory by its keys, in a temporary file."""

import tempfile
from collections.abc import Hashable
from pathlib import Path

from membuilder.errors import WriteError
from membuilder.files import free_bytes


class OnDisk:
    """It keeps bytes by their keys; in memory are the keys alone."""

    def __init__(self):
        self._file = tempfile.TemporaryFile()
        self._places: dict[Hashable, tuple[int, int]] = {}

    def __contains__(self, key: Hashable) -> bool:
        return key in self._places

    def put(self, key: Hashable, value: bytes) -> None:
        """Keep a value. All of them come before the first `take`. Raises WriteError where the disk takes no more."""
        try:
            self._places[key] = self._file.tell(), self._file.write(value)
        except OSError as error:
            folder = Path(tempfile.gettempdir())
            raise WriteError(folder / "temporary", error, free_bytes(folder)) from error

    def take(self, key: Hashable) -> bytes:
        """Return a value for the only time."""
        start, length = self._places.pop(key)
        self._file.seek(start)
        return self._file.read(length)

    def keys(self) -> list[Hashable]:
        """Return the keys of what was not taken, in their order."""
        return list(self._places)
