"""Reads texts with labels (NLU, BANKING77, CLINC150, TREC), which are split by label.

Their files are sorted by label, so what they hold is put in an order of its own, in a table on disk.
"""

import errno
import re
import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from membuilder.datasets.files import FILE
from membuilder.datasets.streams import csv_rows, json_lists, text_lines
from membuilder.datasets.typed import Text, convert, located
from membuilder.errors import DataError, WriteError
from membuilder.files import free_bytes
from membuilder.instances.draw import fingerprint
from membuilder.instances.records import Example

_Pairs = Iterator[tuple[str, str]]
_OUT_OF_SCOPE = "oos"
_TABLES = """
    pragma journal_mode = off;
    pragma cache_size = -65536;
    create table first (rank blob primary key, text blob, label blob) without rowid;
    create table again (rank blob, text blob, label blob);
"""
_REPEATED = "select a.text, a.label, f.label from again a join first f using (rank) order by a.rowid"
_NLU_TEXTS = ("answer_from_anno", "answer_normalised", "answer")


def reader(pairs: Callable[[Path], _Pairs]) -> Callable[[Sequence[Path], int], Iterator[Example]]:
    """Return what reads files whose (text, label) `pairs` yields; a text that comes again is dropped."""

    def read(files: Sequence[Path], seed: int) -> Iterator[Example]:
        with _table() as table:
            for text, label in (pair for path in files for pair in pairs(path)):
                if text := " ".join(text.split()):
                    row = fingerprint(seed, text), _encoded(text), _encoded(label)
                    if not table.execute("insert or ignore into first values (?, ?, ?)", row).rowcount:
                        table.execute("insert into again values (?, ?, ?)", row)
            for text, label in table.execute("select text, label from first order by rank"):
                text, label = _decoded(text), _decoded(label)
                dropped = ("out_of_scope",) if label == _OUT_OF_SCOPE else ()
                yield Example(documents=(label,), text=text, label=label, dropped=dropped)
            for text, label, first in table.execute(_REPEATED):
                texts = {"text": _decoded(text), "label": _decoded(label)}
                yield Example(documents=(_decoded(first),), dropped=("repeated_text",), **texts)

    return read


@contextmanager
def _table() -> Iterator[sqlite3.Connection]:
    """Open tables on disk that are gone when they are closed. Raises WriteError where the disk takes no more."""
    try:
        with closing(sqlite3.connect("")) as table:
            table.executescript(_TABLES)
            yield table
    except sqlite3.Error as error:
        folder = Path(tempfile.gettempdir())
        raise WriteError(folder / "labels", OSError(errno.ENOSPC, str(error)), free_bytes(folder)) from error


def banking77(path: Path) -> _Pairs:
    for number, row in enumerate(csv_rows(path)):
        with located(path, f"row {number}"):
            yield convert(Text, row.get("text"), "text"), convert(Text, row.get("category"), "category")


def clinc150(path: Path) -> _Pairs:
    for name, number, raw in json_lists(path):
        with located(path, FILE):
            yield convert(tuple[Text, Text], raw, f"{name}[{number}]")


def nlu(path: Path) -> _Pairs:
    for number, row in enumerate(csv_rows(path, delimiter=";")):
        with located(path, f"row {number}"):
            text = next((row[name] for name in _NLU_TEXTS if name in row), None)
            label = [convert(Text, row.get(name), name) for name in ("scenario", "intent")]
            yield convert(str, text, " or ".join(_NLU_TEXTS)), "_".join(label)


def trec_coarse(path: Path) -> _Pairs:
    for text, label in trec_fine(path):
        yield text, label.partition(":")[0]


def trec_fine(path: Path) -> _Pairs:
    """Read lines such as `LOC:city What is the capital of Oz ?`, in Latin-1."""
    for number, line in enumerate(text_lines(path, "latin-1"), start=1):
        if line.strip():
            if (found := re.match(r"([A-Z]+:\w+) (.*\S)", line)) is None:
                raise DataError(path, f"line {number}", "label", f"expected COARSE:fine and a text, found {line!r:.80}")
            yield found[2], found[1]


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _decoded(text: bytes) -> str:
    return text.decode("utf-8", "surrogatepass")
