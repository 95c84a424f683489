"""Finds what two files share: questions, contexts and labelled examples, word for word or nearly.

What is compared are lines, without marks such as `<User>` and names such as `Sentence:`. A line is near to the
other file where more than half of its runs of eight words stand there. Left out are lines of fewer than three words (of
contexts: 15, for shorter ones are said in any talk), lines that stand in many chunks or questions of their own file,
such as what frames a chunk, and the questions for a summary, which are alike for every book.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from membuilder.datasets import longmemeval, memalpha
from membuilder.datasets.load import load
from membuilder.datasets.parsing import refuse_half_characters
from membuilder.datasets.streams import json_items
from membuilder.instances.frame import OWN_LINES
from membuilder.instances.line_index import LineIndex, LineWriter, line_key
from membuilder.types import Dialogue

NEAR = 0.5
"""Share of a line's runs above which it is near."""
FREQUENT = 3
"""A line that stands in more chunks or questions is part of their frame."""
QUESTION, CONTEXT, EXAMPLE = KINDS = ("question", "context", "example")
_LEAST_WORDS = {QUESTION: 3, CONTEXT: 15, EXAMPLE: 3}
_SUMMARIES = ("booksum", "infbench_sum")
_MARK = re.compile(r"^<[^<>]{1,60}>")
_NAMED = re.compile(r"^(?:Sentence|Sample):")
_HEAD = re.compile(r"^\[[^\]]*\d{4}[-/]\d\d[-/]\d\d[^\]]*\]$")
_WORD = re.compile(r"\w+")


@dataclass(frozen=True, kw_only=True, slots=True)
class Shared:
    """Lines of one kind that the other file has too."""

    kind: str
    lines: int
    """Of this kind, in the file that is checked."""
    exact: int
    near: int
    example: str
    """The first of them; nothing where there is none."""
    keys: frozenset[int]
    """What they are known by."""

    @property
    def count(self) -> int:
        return self.exact + self.near


def dialogues_of(path: Path) -> Iterator[Dialogue]:
    """Yield the dialogues of a file of any format, one at a time where it is one that may be large."""
    if path.suffix == ".parquet":
        return memalpha.stream(path)
    if path.name.endswith((".json", ".json.gz")) and _is_longmemeval(path):
        return _longmemeval(path)
    return iter(load(path))


def _is_longmemeval(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        is_list = path.suffix == ".gz" or file.read(64).lstrip(b"\xef\xbb\xbf \r\n\t").startswith(b"[")
    first = next(json_items(path), None) if is_list else None
    return isinstance(first, dict) and "question_id" in first


def _longmemeval(path: Path) -> Iterator[Dialogue]:
    for number, raw in enumerate(json_items(path)):
        dialogue = longmemeval.parse_one(raw, number, path)
        refuse_half_characters([dialogue], path)
        yield dialogue


def compared(dialogues: Iterable[Dialogue]) -> LineIndex:
    """Return the lines of dialogues that are compared, each once for each kind that it is of."""
    lines = LineWriter()
    for kind, text in _texts(dialogues):
        words = _words(text)
        if len(words) >= _LEAST_WORDS[kind]:
            lines.add(KINDS.index(kind), text, words)
    return lines.index(FREQUENT)


def shared(checked: LineIndex, other: LineIndex) -> list[Shared]:
    """Return for each kind which of the lines that are checked stand in the other file, whatever they are there."""
    exact, share = checked.known_in(other)
    return [_shared(kind, checked, exact, ~exact & (share > NEAR)) for kind in KINDS]


def _shared(kind: str, checked: LineIndex, exact: np.ndarray, near: np.ndarray) -> Shared:
    of_kind = checked.counted & (checked.kinds == KINDS.index(kind))
    found = [*np.flatnonzero(of_kind & exact), *np.flatnonzero(of_kind & near)]
    return Shared(
        kind=kind,
        lines=int(of_kind.sum()),
        exact=int((of_kind & exact).sum()),
        near=int((of_kind & near).sum()),
        example=checked.text(int(found[0])) if found else "",
        keys=frozenset(map(int, checked.keys[found])) if found else frozenset(),
    )


def is_asked(question: str, keys: frozenset[int]) -> bool:
    """Tell whether a line of a question is known by one of these keys."""
    return any(line_key(_words(text)) in keys for _, text in _asked(question))


def refusal(places: Sequence[tuple[object, Sequence[Shared]]]) -> str:
    """Say what is shared with each file, with an example."""
    told = []
    for place, found in places:
        counts = ", ".join(f"{each.count} {each.kind}s" for each in found if each.count)
        first = next(each.example for each in found if each.count)
        told.append(f"shares {counts} with {place}, such as {first!r:.120}")
    return "; and ".join(told)


def _texts(dialogues: Iterable[Dialogue]) -> Iterator[tuple[str, str]]:
    for dialogue in dialogues:
        for session in dialogue.sessions:
            for line in "\n".join(turn.content for turn in session.turns).split("\n"):
                yield from _told(line, CONTEXT)
        for question in dialogue.questions:
            if not question.category.startswith(_SUMMARIES):
                yield from _asked(question.text)


def _asked(question: str) -> Iterator[tuple[str, str]]:
    """Yield (kind, text) of what is compared of a question: its lines without the name at their beginning."""
    for line in question.split("\n"):
        yield from _told(line, QUESTION)


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _told(line: str, kind: str) -> Iterator[tuple[str, str]]:
    text = _MARK.sub("", line).strip()
    if not _HEAD.match(text) and text not in OWN_LINES:
        bare = _NAMED.sub("", text).strip()
        yield (EXAMPLE if bare != text and kind == CONTEXT else kind), bare
