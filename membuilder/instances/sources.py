"""Names the datasets that can be built: which raw files each has, how they are read, and how they are packed."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from membuilder.instances import (
    books,
    hotpotqa,
    labelling,
    labels,
    longmemeval,
    memoryagentbench,
    perltqa,
    reading,
    roles,
    squad,
)
from membuilder.instances.one_each import pack_each
from membuilder.instances.records import Instance, Shape


class Unit(Protocol):
    """What is read of a source and never divided."""

    documents: tuple[str, ...]
    dropped: tuple[str, ...]
    """Why it, or a part of it, is not used."""
    is_empty: bool
    """Whether nothing of it can be used."""


class ModelTask(StrEnum):
    KEYWORDS = "keywords"
    """It finds those of a summary."""
    CLOSED_BOOK = "closed_book"
    """It answers without the text; what it can answer so is dropped."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    data_source: str
    """What rows and scorers call it."""
    files: tuple[str, ...]
    """Names of its raw files, as patterns; each may be gzipped."""
    read: Callable[[Sequence[Path], int, bool], Iterator[Unit]]
    """From files, seed and whether samples of a published test split may be taken."""
    pack: Callable[..., Iterator[Instance]]
    shape: Shape
    by_label: bool = False
    """Whether documents are labels, of which there are few."""
    only_test: bool = False
    """Whether nobody may train on it."""
    is_sized: bool = False
    """Whether it may be asked for instances of fewer chunks, and of other numbers of questions."""
    model: ModelTask | None = None
    """What a model may do for its instances."""


def _labels(data_source: str, files: tuple[str, ...], pairs: Callable[[Path], Any]) -> Source:
    read = labels.reader(pairs)
    return Source(
        data_source=data_source,
        files=files,
        read=lambda found, seed, allow_leak: read(found, seed),
        pack=labelling.pack,
        shape=Shape(chunk_tokens=(400, 700), questions=(20, 100)),
        by_label=True,
        is_sized=True,
    )


def _roles(data_source: str, files: tuple[str, ...], read: Callable[[Sequence[Path]], Iterator[Unit]]) -> Source:
    return Source(
        data_source=data_source,
        files=files,
        read=lambda found, seed, allow_leak: read(found),
        pack=partial(labelling.pack, words=("Sample", "Labels")),
        shape=Shape(chunk_tokens=(1024, 2048), questions=(20, 100)),
        is_sized=True,
    )


def _reading(
    data_source: str,
    files: tuple[str, ...],
    read: Callable[[Sequence[Path]], Iterator[Unit]],
    fewest_questions: int,
) -> Source:
    return Source(
        data_source=data_source,
        files=files,
        read=lambda found, seed, allow_leak: read(found),
        pack=reading.pack,
        shape=Shape(chunk_tokens=(100, 2048), questions=(fewest_questions, 100)),
        is_sized=True,
        model=ModelTask.CLOSED_BOOK,
    )


def _part(name: str) -> Source:
    return Source(
        data_source=name.lower(),
        files=(f"{name}*.parquet",),
        read=lambda found, seed, allow_leak: memoryagentbench.read(found),
        pack=partial(pack_each, memoryagentbench.make),
        shape=Shape(chunk_tokens=(2048, 2048)),
        only_test=True,
        model=ModelTask.KEYWORDS if name == memoryagentbench.WITH_SUMMARIES else None,
    )


SOURCES = {
    "squad": _reading("squad", squad.FILES, squad.read, fewest_questions=30),
    "hotpotqa": _reading("hotpotqa", hotpotqa.FILES, hotpotqa.read, fewest_questions=10),
    "banking77": _labels("icl_banking77", ("train*.csv", "test*.csv"), labels.banking77),
    "clinc150": _labels("icl_clinic150", ("data_full*.json",), labels.clinc150),
    "nlu": _labels("icl_nlu", ("*.csv",), labels.nlu),
    "trec_coarse": _labels("icl_trec_coarse", ("*.label",), labels.trec_coarse),
    "trec_fine": _labels("icl_trec_fine", ("*.label",), labels.trec_fine),
    "csabstruct": _roles("csabstruct", roles.CSABSTRUCT_FILES, roles.csabstruct),
    "pubmed-rct": _roles("pubmed-rct", roles.PUBMED_FILES, roles.pubmed_rct),
    "books": Source(
        data_source="booksum",
        files=books.FILES,
        read=lambda found, seed, allow_leak: books.read(found),
        pack=partial(pack_each, books.make),
        shape=Shape(chunk_tokens=(2048, 2048)),
        model=ModelTask.KEYWORDS,
    ),
    "perltqa": Source(
        data_source="perltqa",
        files=perltqa.FILES,
        read=lambda found, seed, allow_leak: perltqa.read(found),
        pack=partial(pack_each, perltqa.make),
        shape=Shape(chunk_tokens=(1024, 1024), chunks=60, questions=(20, 100)),
        is_sized=True,
    ),
    "longmemeval": Source(
        data_source="lme_train",
        files=longmemeval.FILES,
        read=lambda found, seed, allow_leak: longmemeval.read(found, allow_leak),
        pack=longmemeval.pack,
        shape=Shape(chunk_tokens=(2048, 2048)),
    ),
    **{name.lower(): _part(name) for name in memoryagentbench.PARTS},
}
