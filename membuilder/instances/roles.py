"""Reads abstracts whose sentences have roles (CSAbstruct's JSON Lines, PubMed-RCT's text), split by abstract."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from msgspec import Struct

from membuilder.datasets.streams import json_lines, text_lines
from membuilder.datasets.typed import FieldError, Text, convert, located
from membuilder.errors import DataError
from membuilder.instances.records import Example

CSABSTRUCT_FILES = ("*.jsonl",)
PUBMED_FILES = ("*.txt",)


class _Abstract(Struct):
    sentences: list[str]
    labels: list[Text]


def csabstruct(files: Sequence[Path]) -> Iterator[Example]:
    """Yield each sentence with its role; an abstract is known by its first sentence, for its id is 0 in every line."""
    for path in files:
        for number, raw in enumerate(json_lines(path)):
            with located(path, f"record {number}"):
                abstract = convert(_Abstract, raw)
                if len(abstract.sentences) != len(abstract.labels):
                    raise FieldError("labels", f"{len(abstract.labels)} for {len(abstract.sentences)} sentences")
            yield from _examples(list(zip(abstract.sentences, abstract.labels, strict=True)))


def pubmed_rct(files: Sequence[Path]) -> Iterator[Example]:
    """Read `###PMID`, then `LABEL<TAB>sentence` lines up to a blank line."""
    for path in files:
        abstract: list[tuple[str, str]] = []
        for number, line in enumerate(text_lines(path), start=1):
            label, tab, text = line.partition("\t")
            if tab and label.isupper() and text.strip():
                abstract.append((text, label.lower()))
            elif line.strip() and not line.startswith("###"):
                raise DataError(path, f"line {number}", "label", f"expected LABEL, a tab and text, found {line!r:.80}")
            elif not line.strip():
                yield from _examples(abstract)
                abstract = []
        yield from _examples(abstract)


def _examples(abstract: Sequence[tuple[str, str]]) -> Iterator[Example]:
    for text, label in abstract:
        text = " ".join(text.split())
        if text:
            yield Example(documents=(" ".join(abstract[0][0].split()),), text=text, label=label)
