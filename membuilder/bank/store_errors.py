"""What SQLite and what it holds may do wrong, as StoreErrors."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from membuilder.errors import StoreError


@contextmanager
def as_written(path: Path) -> Iterator[None]:
    """Read inside what SQLite gave. Raises StoreError for rows that no build writes."""
    try:
        yield
    except (ValueError, TypeError, LookupError, msgspec.MsgspecError) as error:
        problem = f"holds rows that no build writes ({error}): it was changed from outside; build anew"
        raise StoreError(path, problem) from error


@contextmanager
def typed(path: Path) -> Iterator[None]:
    """Raise SQLite's errors as StoreError, told apart by SQLite's own codes."""
    try:
        yield
    except sqlite3.Error as error:
        name = vars(error).get("sqlite_errorname", "")  # absent where Python itself refuses
        if name == "SQLITE_FULL":
            problem = "no room left on the disk; everything stored before stays. Make room and run the command again"
            raise StoreError(path, problem) from error
        if name == "SQLITE_NOTADB":
            raise StoreError(
                path, "not a SQLite file, so not a memory store; name the file that a build wrote"
            ) from error
        if name == "SQLITE_CORRUPT":
            raise StoreError(path, f"is damaged ({error}); take a copy of it, or build into a new file") from error
        raise StoreError(path, f"{error} ({name or type(error).__name__})") from error
