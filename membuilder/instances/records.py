"""What raw files come to before it is packed, and what packing makes of it.

Passage(key="Oz/0", title="Title: Oz", sentences=("Oz is a land. ", "Ada rules it."))
Asked(question="Who rules Oz?", answer="Ada", evidence=(("Oz/0", 1),))
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Tokens = Callable[[str], int]
"""It counts the tokens of a text."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Passage:
    """A text to read, which is cut at the end of a sentence if anywhere."""

    key: str
    sentences: tuple[str, ...]
    """Joined they are the text."""
    title: str = ""
    """A line that stands before it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    question: str
    answer: str
    evidence: tuple[tuple[str, int], ...] = ()
    """Each the key of a passage and the number of a sentence in it, from 0."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Unit:
    """What stays together: passages, and the questions that need no other."""

    documents: tuple[str, ...]
    """What it is from; no document is on both sides of a split."""
    passages: tuple[Passage, ...] = ()
    questions: tuple[Asked, ...] = ()
    dropped: tuple[str, ...] = ()
    """Why questions of the raw record are not among these."""

    @property
    def is_empty(self) -> bool:
        return not self.passages


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """A text with its label."""

    documents: tuple[str, ...]
    """As a unit's: its label, where labels are what is split."""
    text: str
    label: str
    dropped: tuple[str, ...] = ()
    """Why it may not be used."""

    @property
    def is_empty(self) -> bool:
        return bool(self.dropped)


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """How an instance is laid out."""

    chunk_tokens: tuple[int, int]
    """A chunk's size is drawn between these, frame and all; none is larger."""
    chunks: int = 10
    """At most."""
    questions: tuple[int, int] = (1, 100)
    """At least, else the instance is dropped; at most, else some are drawn."""
    sentence_lines: bool = False
    """Whether every sentence of a passage has a line of its own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Instance:
    chunks: tuple[str, ...]
    questions: tuple[Mapping[str, Any], ...]
    """As the file has them: `question`, `answer`, `evidence` and so on."""
    samples: tuple[str, ...] = ()
    """Published ids of what it is made of, by which a test split is known."""
    data_source: str = ""
    """Where it is another than the dataset's."""
    summary: str = ""
    """What the keywords of its one answer are from, unless the raw file gives them."""


@dataclass(kw_only=True, slots=True)
class Progress:
    """How far a source was read. A build that was killed goes on from the last one that it wrote down."""

    units: int = 0
    """Read from the source; the next instance begins behind them."""
    instances: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    """Questions and the like that were left out, by reason."""


Step = Callable[[Instance, Counter[str]], Instance]
"""It changes an instance, and counts what it drops by reason."""


def unchanged(instance: Instance, dropped: Counter[str]) -> Instance:
    return instance
