"""Makes an instance of each chapter of a book (BookSum's fields): summarise what was read, scored by keywords.

Where the file gives no keywords they are the names and the rare words of the summary that stand in the chapter.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from msgspec import Struct

from membuilder.datasets.memalpha import FIRST_DAY
from membuilder.datasets.streams import json_lines
from membuilder.datasets.typed import Text, convert, located
from membuilder.instances.draw import Draw
from membuilder.instances.frame import FRAME_TOKENS
from membuilder.instances.keywords import keywords
from membuilder.instances.one_each import Names
from membuilder.instances.records import Instance, Shape, Tokens
from membuilder.instances.sentences import filled, sentences

FILES = ("*.jsonl",)
CHUNKS = (5, 20)


class _Summary(Struct):
    text: Text


class _Record(Struct):
    book_title: Text
    text: Text
    summary: list[_Summary] = []
    keywords: list[Text] = []


@dataclass(frozen=True, kw_only=True, slots=True)
class Chapter:
    documents: tuple[str, ...]
    """The book."""
    text: str
    keywords: tuple[str, ...]
    summary: str
    """What a model may find other keywords in; nothing where the file gives keywords."""
    dropped: tuple[str, ...] = ()

    @property
    def is_empty(self) -> bool:
        return bool(self.dropped)


def read(files: Sequence[Path]) -> Iterator[Chapter]:
    for path in files:
        for number, raw in enumerate(json_lines(path)):
            with located(path, f"record {number}"):
                record = convert(_Record, raw)
            summary = " ".join(each.text for each in record.summary)
            yield Chapter(
                documents=(record.book_title,),
                text=record.text,
                keywords=tuple(record.keywords or keywords(summary, record.text)),
                summary="" if record.keywords else summary,
                dropped=() if record.keywords or summary else ("no_keywords",),
            )


def make(chapter: Chapter, shape: Shape, tokens: Tokens, names: Names, dropped: Counter[str]) -> Instance | None:
    """Return the instance of a chapter that makes 5 to 20 chunks."""
    limit = shape.chunk_tokens[1] - FRAME_TOKENS
    chunks = filled(sentences(chapter.text), limit, tokens, at_least=CHUNKS[0])
    if chunks is None:
        dropped["sentence_longer_than_a_chunk"] += 1
        return None
    if not CHUNKS[0] <= len(chunks) <= CHUNKS[1]:
        dropped["too_few_chunks" if len(chunks) < CHUNKS[0] else "too_many_chunks"] += 1
        return None
    return read_in_days(chunks, chapter.keywords, Draw(*names), chapter.summary)


def read_in_days(chunks: Sequence[str], words: Sequence[str], draw: Draw, summary: str = "") -> Instance:
    """Return an instance whose chunks are read on days one after another, and whose question is for a summary."""
    day, days, framed = FIRST_DAY, [], []
    for chunk in chunks:
        days.append(f"{day:%Y-%m-%d}")
        head = f"[Read on {days[-1]}]"
        framed.append(f"{head}\n<User>{chunk}\n<System>Keep the details and a summary of all that was read so far.")
        day += timedelta(days=draw.between(1, 3))
    question = f"Summarise what was read from {days[0]} to {days[-1]}."
    asked = {"question": question, "answer": ", ".join(words)}
    return Instance(chunks=tuple(framed), questions=(asked,), summary=summary)
