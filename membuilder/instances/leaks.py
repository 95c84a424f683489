"""Finds what two files share: questions, contexts and labelled examples, word for word or nearly.

What is compared are lines, without marks such as `<User>` and names such as `Sentence:`. A line is near to the
other file where more than half of its runs of eight words stand there. Left out are lines of fewer than three words (of
contexts: eight), lines that stand in many chunks or questions of their own file, such as what frames a chunk, and the
questions for a summary, which are alike for every book.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from membuilder.instances.frame import OWN_LINES
from membuilder.types import Dialogue

RUN = 8
NEAR = 0.5
"""Share of a line's runs above which it is near."""
FREQUENT = 3
"""A line that stands in more chunks or questions is part of their frame."""
QUESTION, CONTEXT, EXAMPLE = KINDS = ("question", "context", "example")
_LEAST_WORDS = {QUESTION: 3, CONTEXT: RUN, EXAMPLE: 3}
_SUMMARIES = ("booksum", "infbench_sum")
_MARK = re.compile(r"^<[^<>]{1,60}>")
_NAMED = re.compile(r"^(?:Sentence|Sample):")
_HEAD = re.compile(r"^\[[^\]]*\d{4}[-/]\d\d[-/]\d\d[^\]]*\]$")
_WORD = re.compile(r"\w+")
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


class Line(NamedTuple):
    kind: str
    text: str
    words: bytes
    """Eight bytes of hash for each word."""


@dataclass(frozen=True, kw_only=True)
class Compared:
    """The lines of a file that are compared, and every run of eight words in them."""

    lines: Sequence[Line]
    runs: np.ndarray
    """Hashes, in the order of the lines."""
    line_of: np.ndarray
    """Number of the line that each run stands in."""

    @cached_property
    def known_lines(self) -> frozenset[bytes]:
        return frozenset(line.words for line in self.lines)

    @cached_property
    def known_runs(self) -> np.ndarray:
        """Return the runs sorted; one may stand there twice."""
        return np.sort(self.runs)


@dataclass(frozen=True, kw_only=True, slots=True)
class Shared:
    """Lines of one kind that the other file has too."""

    kind: str
    lines: int
    """Of this kind, in the file that is checked."""
    exact: tuple[str, ...]
    near: tuple[str, ...]

    @property
    def count(self) -> int:
        return len(self.exact) + len(self.near)


def compared(dialogues: Iterable[Dialogue]) -> Compared:
    """Return the lines of dialogues that are compared, each once for each kind that it is of."""
    found: dict[tuple[str, bytes], Line] = {}
    times: dict[tuple[str, bytes], int] = {}
    hashes = _Hashes()
    for kind, text in _texts(dialogues):
        words = _WORD.findall(text.lower())
        if len(words) >= _LEAST_WORDS[kind]:
            key = (kind, b"".join(map(hashes.__getitem__, words)))
            found.setdefault(key, Line(kind, text, key[1]))
            times[key] = times.get(key, 0) + 1
    lines = [line for key, line in found.items() if times[key] <= FREQUENT]
    runs, line_of = _runs([line.words for line in lines])
    return Compared(lines=lines, runs=runs, line_of=line_of)


def shared(checked: Compared, other: Compared) -> list[Shared]:
    """Return for each kind which of the lines that are checked stand in the other file, whatever they are there."""
    lines = checked.lines
    exact = [line.words in other.known_lines for line in lines]
    near = _known_shares(checked, other.known_runs) > NEAR
    result = []
    for kind in KINDS:
        of_kind = [i for i, line in enumerate(lines) if line.kind == kind]
        result.append(
            Shared(
                kind=kind,
                lines=len(of_kind),
                exact=tuple(lines[i].text for i in of_kind if exact[i]),
                near=tuple(lines[i].text for i in of_kind if near[i] and not exact[i]),
            )
        )
    return result


def _texts(dialogues: Iterable[Dialogue]) -> Iterator[tuple[str, str]]:
    for dialogue in dialogues:
        for session in dialogue.sessions:
            for line in "\n".join(turn.content for turn in session.turns).split("\n"):
                yield from _told(line, CONTEXT)
        for question in dialogue.questions:
            if not question.category.startswith(_SUMMARIES):
                yield from asked(question.text)


def asked(question: str) -> Iterator[tuple[str, str]]:
    """Yield (kind, text) of what is compared of a question: its lines without the name at their beginning."""
    for line in question.split("\n"):
        yield from _told(line, QUESTION)


def refusal(place: object, found: Sequence[Shared]) -> str:
    """Say what is shared with a file, with an example."""
    counts = ", ".join(f"{each.count} {each.kind}s" for each in found if each.count)
    first = next(text for each in found for text in (*each.exact, *each.near))
    return f"shares {counts} with {place}, such as {first!r:.120}"


def _told(line: str, kind: str) -> Iterator[tuple[str, str]]:
    text = _MARK.sub("", line).strip()
    if not _HEAD.match(text) and text not in OWN_LINES:
        bare = _NAMED.sub("", text).strip()
        yield (EXAMPLE if bare != text and kind == CONTEXT else kind), bare


def _runs(lines: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    words = np.frombuffer(b"".join(lines), dtype=np.uint64)
    line_of = np.repeat(np.arange(len(lines), dtype=np.int32), [len(line) // words.itemsize for line in lines])
    num_runs = max(0, len(words) - RUN + 1)
    runs = np.zeros(num_runs, dtype=np.uint64)
    for offset in range(RUN):
        runs = runs * _MULTIPLIER + words[offset : offset + num_runs]  # modulo 2**64
    whole = line_of[:num_runs] == line_of[len(words) - num_runs :]  # no run goes from a line into the next
    return runs[whole], line_of[:num_runs][whole]


def _known_shares(checked: Compared, known: np.ndarray) -> np.ndarray:
    """Return for each line which share of its runs is known; 0 for a line too short to have one."""
    num_lines = len(checked.lines)
    order = np.argsort(checked.runs)  # neighbours are looked up one after another, which is several times as fast
    runs, line_of = checked.runs[order], checked.line_of[order]
    place = np.minimum(np.searchsorted(known, runs), max(0, len(known) - 1))
    found = known[place] == runs if len(known) else np.zeros(len(runs), dtype=bool)
    total = np.bincount(line_of, minlength=num_lines)
    return np.bincount(line_of, weights=found, minlength=num_lines) / np.maximum(total, 1)


class _Hashes(dict):
    """It holds the hash of every word that was asked for."""

    def __missing__(self, word: str) -> bytes:
        self[word] = found = hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        return found
