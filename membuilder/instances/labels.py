"""Reads texts with labels (NLU, BANKING77, CLINC150, TREC), which are split by label.

The sets are small and sorted by label, so they are read whole and put in an order of their own.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from membuilder.datasets.files import FILE, read_json
from membuilder.datasets.typed import Text, convert, located
from membuilder.errors import DataError
from membuilder.instances.draw import shuffled
from membuilder.instances.records import Example
from membuilder.instances.streams import csv_rows, text_lines

_Pairs = Iterator[tuple[str, str]]
_OUT_OF_SCOPE = "oos"
_NLU_TEXTS = ("answer_from_anno", "answer_normalised", "answer")


def reader(pairs: Callable[[Path], _Pairs]) -> Callable[[Sequence[Path], int], Iterator[Example]]:
    """Return what reads files whose (text, label) `pairs` yields; a text that comes again is dropped."""

    def read(files: Sequence[Path], seed: int) -> Iterator[Example]:
        label_of: dict[str, str] = {}
        repeated = []
        for text, label in (pair for path in files for pair in pairs(path)):
            text = " ".join(text.split())
            if text in label_of:
                documents = (label_of[text],)
                repeated.append(Example(documents=documents, text=text, label=label, dropped=("repeated_text",)))
            elif text:
                label_of[text] = label
        for text in shuffled(label_of, seed):
            label = label_of[text]
            dropped = ("out_of_scope",) if label == _OUT_OF_SCOPE else ()
            yield Example(documents=(label,), text=text, label=label, dropped=dropped)
        yield from repeated

    return read


def banking77(path: Path) -> _Pairs:
    for number, row in enumerate(csv_rows(path)):
        with located(path, f"row {number}"):
            yield convert(Text, row.get("text"), "text"), convert(Text, row.get("category"), "category")


def clinc150(path: Path) -> _Pairs:
    with located(path, FILE):
        parts = convert(dict[str, list], read_json(path))
        pairs = [pair for name, part in parts.items() for pair in convert(list[tuple[Text, Text]], part, name)]
    yield from pairs


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
