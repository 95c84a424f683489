"""Reads raw files of any size, gzip or not, a record at a time; every fault is a DataError that names the record."""

import csv
import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from membuilder.datasets.files import FETCH_AGAIN, FILE
from membuilder.errors import DataError

_BLOCK = 1 << 16
_decode = json.JSONDecoder().raw_decode
csv.field_size_limit(1 << 24)


def files_of(source: Path, patterns: Sequence[str]) -> list[Path]:
    """Return the file that is named, or the files of a folder whose names fit, in order. Raises DataError for none."""
    if source.is_file():
        return [source]
    ends = [end for pattern in patterns for end in (pattern, f"{pattern}.gz")]
    found = sorted({path for end in ends for path in source.glob(end) if path.is_file()}, key=lambda path: path.name)
    if not found:
        raise DataError(source, FILE, "path", f"no file {' or '.join(ends)} is there; name a file or another folder")
    return found


def json_items(path: Path, key: str | None = None) -> Iterator[object]:
    """Yield each item of a JSON file that is a list, or an object with the list under `key`."""
    with _opened(path) as file, _readable(path):
        text = _Text(file)
        if key is not None:
            text.enter(key)
        yield from text.items()
        if key is None:
            text.end()


def json_pairs(path: Path) -> Iterator[tuple[str, object]]:
    """Yield each key of an object with its value."""
    with _opened(path) as file, _readable(path):
        text = _Text(file)
        for key in text.keys():
            yield key, text.value()
        text.end()


def json_lists(path: Path) -> Iterator[tuple[str, int, object]]:
    """Yield (key, number, item) of each item of the lists that an object holds."""
    with _opened(path) as file, _readable(path):
        text = _Text(file)
        for key in text.keys():
            for number, item in enumerate(text.items()):
                yield key, number, item
        text.end()


def json_lines(path: Path) -> Iterator[object]:
    """Yield the value of each line that is not blank."""
    with _opened(path) as file, _readable(path):
        for line in file:
            if line.strip():
                yield json.loads(line)


def text_lines(path: Path, encoding: str = "utf-8-sig") -> Iterator[str]:
    with _opened(path, encoding) as file, _readable(path):
        for line in file:
            yield line.rstrip("\r\n")


def csv_rows(path: Path, delimiter: str = ",") -> Iterator[dict[str, str]]:
    """Yield each row by the names of the columns in the first one."""
    with _opened(path) as file, _readable(path):
        for row in csv.DictReader(file, delimiter=delimiter, strict=True):
            if None in row or None in row.values():
                raise ValueError("a row has more or fewer fields than the first line names")
            yield row


@contextmanager
def _opened(path: Path, encoding: str = "utf-8-sig") -> Iterator[TextIO]:
    try:
        file = gzip.open(path, "rt", encoding=encoding, newline="") if path.suffix == ".gz" else None
        file = file or path.open(encoding=encoding, newline="")
    except OSError as error:
        raise DataError(path, FILE, "path", f"cannot be read: {error.strerror}; name a file") from error
    with file:
        yield file


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, RecursionError, csv.Error, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(path, FILE, "content", f"cannot be read to its end ({error}); {FETCH_AGAIN}") from error


class _Text:
    """JSON that is read as far as it is needed."""

    def __init__(self, file: TextIO):
        self._file, self._text, self._at = file, "", 0

    def enter(self, key: str) -> None:
        """Go to the value of a key of the object that comes next."""
        for found in self.keys():
            if found == key:
                return
            self.value()
        raise ValueError(f"no key {key!r}")

    def keys(self) -> Iterator[str]:
        """Yield each key of the object that comes next; its value must be read before the next one."""
        self.take("{")
        while self.peek() != "}":
            key = self.value()
            if not isinstance(key, str):
                raise ValueError(f"expected the name of a key, found {key!r:.80}")
            self.take(":")
            yield key
            if self.peek() != "}":
                self.take(",")
        self.take("}")

    def items(self) -> Iterator[object]:
        """Yield each item of the list that comes next."""
        self.take("[")
        while self.peek() != "]":
            yield self.value()
            if self.peek() != "]":
                self.take(",")
        self.take("]")

    def take(self, char: str) -> None:
        if (found := self.peek()) != char:
            raise ValueError(f"expected {char!r}, found {found or 'the end'!r}")
        self._at += 1

    def end(self) -> None:
        if found := self.peek():
            raise ValueError(f"expected the end, found {found!r}")

    def peek(self) -> str:
        """Return the next character that is no blank; nothing at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at].isspace():
                self._at += 1
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def value(self) -> object:
        self.peek()
        while True:
            try:
                value, end = _decode(self._text, self._at)
            except json.JSONDecodeError:
                if not self._more():
                    raise
                continue
            length = end - self._at
            if end < len(self._text) or not self._more():  # at the end of what is read a number may go on
                self._at += length
                return value

    def _more(self) -> bool:
        block = self._file.read(max(_BLOCK, len(self._text) - self._at))  # doubled: a long record is parsed few times
        self._text, self._at = self._text[self._at :] + block, 0
        return bool(block)
