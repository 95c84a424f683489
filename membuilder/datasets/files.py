"""Reads whole JSON and JSON Lines files, gzip or not, and refuses what it cannot read with path and place."""

import gzip
import json
import zlib
from pathlib import Path

from membuilder.errors import DataError

FILE = "whole file"
FETCH_AGAIN = "correct it, or fetch the file again"


def read_json(path: Path, advice: str = FETCH_AGAIN) -> object:
    """Return the JSON document that a file holds; `advice` tells the user what to do about a damaged file."""
    return _parse(_text(path), path, FILE, advice)


def read_lines(path: Path) -> list[tuple[int, object]]:
    """Return (line number from 1, value) of each line of a JSON Lines file; blank lines are skipped."""
    lines = enumerate(_text(path).split("\n"), start=1)  # not splitlines: JSON strings may hold U+2028
    return [(number, _parse(line, path, f"line {number}", FETCH_AGAIN)) for number, line in lines if line.strip()]


def read_appended(path: Path, advice: str) -> list[tuple[int, object]]:
    """Return (line number from 1, value) of each line of a file that we append to; nothing if there is no file yet.

    A kill may have cut the last line short: the file then loses that line. Raises DataError, with `advice`, if another
    line is damaged.
    """
    if not path.exists():
        return []
    content = _bytes(path)
    end = content.rfind(b"\n") + 1
    if end < len(content):
        with path.open("r+b") as file:
            file.truncate(end)
    lines = enumerate(content[:end].splitlines(), start=1)
    return [(number, _parse(line, path, f"line {number}", advice)) for number, line in lines]


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        problem = "no such file; check the path (the benchmarks are not shipped with this repository)"
        raise DataError(path, FILE, "path", problem) from None
    except OSError as error:
        raise DataError(path, FILE, "path", f"cannot be read: {error.strerror}; name a file") from error


def _text(path: Path) -> str:
    content = _bytes(path)
    try:
        return (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8-sig")
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        problem = f"not a whole gzip file ({error}); fetch it again, or drop .gz from its name if it is plain JSON"
        raise DataError(path, FILE, "gzip", problem) from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        problem = (
            f"not UTF-8 at byte {error.start} (line {line}); save it as UTF-8, or name it .json.gz if it is compressed"
        )
        raise DataError(path, FILE, "encoding", problem) from error


def _parse(text: str | bytes, path: Path, where: str, advice: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # huge ints and deep nesting raise these too
        problem = str(error)
        if isinstance(error, json.JSONDecodeError):
            place = f"line {error.lineno}, column {error.colno}" if where == FILE else f"column {error.colno}"
            problem = f"{error.msg}: {place}"
        raise DataError(path, where, "JSON", f"not one JSON document ({problem}); {advice}") from error
