"""Makes an instance of each chapter of a book (BookSum's fields): summarise what was read, scored by keywords.

Where the file gives no keywords they are the names and the rare words of the summary that stand in the chapter.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from msgspec import Struct

from membuilder.datasets.memalpha import FIRST_DAY
from membuilder.datasets.typed import Text, convert, located
from membuilder.instances.draw import Draw
from membuilder.instances.frame import FRAME_TOKENS
from membuilder.instances.keywords import keywords
from membuilder.instances.records import Instance, Progress, Shape, Tokens
from membuilder.instances.sentences import sentences
from membuilder.instances.streams import json_lines

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
    dropped: tuple[str, ...] = ()

    @property
    def is_empty(self) -> bool:
        return bool(self.dropped)


def read(files: Sequence[Path]) -> Iterator[Chapter]:
    for path in files:
        for number, raw in enumerate(json_lines(path)):
            with located(path, f"record {number}"):
                record = convert(_Record, raw)
            found = record.keywords or keywords(" ".join(each.text for each in record.summary), record.text)
            dropped = () if found else ("no_keywords",)
            yield Chapter(documents=(record.book_title,), text=record.text, keywords=tuple(found), dropped=dropped)


def pack(
    chapters: Iterator[tuple[int, Chapter]], shape: Shape, tokens: Tokens, names: Sequence[object], progress: Progress
) -> Iterator[Instance]:
    """Yield an instance for each chapter that makes 5 to 20 chunks; see `reading.pack`."""
    for number, chapter in chapters:
        draw = Draw(*names, progress.instances)
        chunks = _chunks(chapter.text, shape.chunk_tokens[1] - FRAME_TOKENS, tokens)
        progress.units, progress.instances = number + 1, progress.instances + 1
        if chunks is None:
            progress.dropped["sentence_longer_than_a_chunk"] += 1
        elif not CHUNKS[0] <= len(chunks) <= CHUNKS[1]:
            progress.dropped["too_few_chunks" if len(chunks) < CHUNKS[0] else "too_many_chunks"] += 1
        else:
            yield _instance(chunks, chapter, draw)


def _chunks(text: str, limit: int, tokens: Tokens) -> list[str] | None:
    """Cut a text at ends of sentences; None if a sentence is too long. A short text makes smaller chunks, but five."""
    parts = sentences(text)
    sizes = [tokens(part) for part in parts]
    if max(sizes) > limit:
        return None
    size = max(max(sizes), min(limit, -(-sum(sizes) // CHUNKS[0])))
    chunks, filled = [""], 0
    for part, tokens_of_part in zip(parts, sizes, strict=True):
        if filled + tokens_of_part > size and chunks[-1]:
            chunks.append("")
            filled = 0
        chunks[-1] += part
        filled += tokens_of_part
    return [chunk.strip() for chunk in chunks]


def _instance(chunks: Sequence[str], chapter: Chapter, draw: Draw) -> Instance:
    day, days, framed = FIRST_DAY, [], []
    for chunk in chunks:
        days.append(f"{day:%Y-%m-%d}")
        head = f"[Read on {days[-1]}]"
        framed.append(f"{head}\n<User>{chunk}\n<System>Keep the details and a summary of all that was read so far.")
        day += timedelta(days=draw.between(1, 3))
    question = f"Summarise what was read from {days[0]} to {days[-1]}."
    return Instance(chunks=tuple(framed), questions=({"question": question, "answer": ", ".join(chapter.keywords)},))
