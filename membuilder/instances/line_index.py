"""Holds the lines of a file by the hashes of their words, on disk but for a few bytes a line, and looks them up.

Memory is the same for files of any size, but for about thirty bytes a line.
"""

import tempfile
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

RUN = 8
"""Words in a run."""
_BLOCK = 1 << 18
"""Runs that are read at once."""
_PART = 1 << 21
"""Runs that are looked up at once, sorted in memory."""
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def line_key(words: Sequence[str]) -> int:
    """Return what a line is known by: the same for the same words, in this process."""
    return hash(" ".join(words))


@dataclass(frozen=True, kw_only=True)
class LineIndex:
    """Lines in their order; L is their number."""

    keys: np.ndarray
    """Of the words of each line. # (L,)"""
    kinds: np.ndarray  # (L,)
    counted: np.ndarray
    """Whether a line is the first of its kind with its words, and they are not frequent. # (L,)"""
    ends_of_runs: np.ndarray
    """Runs up to the end of each line. # (L,)"""
    ends_of_texts: np.ndarray
    """Bytes up to the end of each line's text. # (L,)"""
    runs: BinaryIO
    texts: BinaryIO

    def text(self, line: int) -> str:
        start = int(self.ends_of_texts[line - 1]) if line else 0
        self.texts.seek(start)
        return self.texts.read(int(self.ends_of_texts[line]) - start).decode("utf-8", "surrogatepass")

    def known_in(self, other: "LineIndex") -> tuple[np.ndarray, np.ndarray]:
        """Return whether each line stands in another file, and which share of its runs does. # (L,), (L,)

        Lines that are not counted there are not looked at; a line without runs has the share 0.
        """
        exact = _among(self.keys, np.unique(other.keys[other.counted]))
        found = np.zeros(len(self.keys), dtype=np.int64)
        parts = -(-int(other.ends_of_runs[-1]) // _PART) if len(other.keys) else 0
        for part in range(parts):
            known = np.unique(np.concatenate([runs for runs, _ in other._blocks(part, parts, counted=True)]))
            for runs, line_of in self._blocks(part, parts):
                order = np.argsort(runs)  # neighbours are looked up one after another, which is several times as fast
                lines = line_of[order][_among(runs[order], known)]
                np.add.at(found, lines, 1)
        return exact, found / np.maximum(np.diff(self.ends_of_runs, prepend=0), 1)

    def _blocks(self, part: int, parts: int, counted: bool = False) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield (runs, number of the line of each) of one part of all runs; of `counted` lines alone if asked."""
        self.runs.seek(0)
        start = 0
        while block := self.runs.read(_BLOCK * 8):
            runs = np.frombuffer(block, dtype=np.uint64)
            line_of = np.searchsorted(self.ends_of_runs, np.arange(start, start + len(runs)), side="right")
            start += len(runs)
            wanted = runs % np.uint64(parts) == part
            if counted:
                wanted &= self.counted[line_of]
            yield runs[wanted], line_of[wanted]


class LineWriter:
    """It takes lines and makes an index of them."""

    def __init__(self):
        self._runs, self._texts = tempfile.TemporaryFile(), tempfile.TemporaryFile()
        self._keys, self._kinds = array("q"), array("B")
        self._run_ends, self._text_ends = array("q"), array("q")
        self._words, self._lengths = array("q"), array("q")

    def add(self, kind: int, text: str, words: Sequence[str]) -> None:
        encoded = text.encode("utf-8", "surrogatepass")
        self._texts.write(encoded)
        self._text_ends.append((self._text_ends[-1] if self._text_ends else 0) + len(encoded))
        self._run_ends.append((self._run_ends[-1] if self._run_ends else 0) + max(0, len(words) - RUN + 1))
        self._keys.append(line_key(words))
        self._kinds.append(kind)
        self._lengths.append(len(words))
        self._words.extend(map(hash, words))
        if len(self._words) >= _BLOCK:
            self._write_runs()

    def index(self, frequent: int) -> LineIndex:
        """Return the index; lines that were added more than `frequent` times are not counted in it."""
        self._write_runs()
        keys, kinds = np.array(self._keys, dtype=np.int64), np.array(self._kinds, dtype=np.uint8)
        mixed = keys.view(np.uint64) + kinds.astype(np.uint64) * _MULTIPLIER
        _, first, times = np.unique(mixed, return_index=True, return_counts=True)
        counted = np.zeros(len(keys), dtype=bool)
        counted[first[times <= frequent]] = True
        return LineIndex(
            keys=keys,
            kinds=kinds,
            counted=counted,
            ends_of_runs=np.array(self._run_ends, dtype=np.int64),
            ends_of_texts=np.array(self._text_ends, dtype=np.int64),
            runs=self._runs,
            texts=self._texts,
        )

    def _write_runs(self) -> None:
        words = np.array(self._words, dtype=np.int64).view(np.uint64)
        line_of = np.repeat(np.arange(len(self._lengths)), self._lengths)
        num_runs = max(0, len(words) - RUN + 1)
        runs = np.zeros(num_runs, dtype=np.uint64)
        for offset in range(RUN):
            runs = runs * _MULTIPLIER + words[offset : offset + num_runs]  # modulo 2**64
        whole = line_of[:num_runs] == line_of[len(words) - num_runs :]  # no run goes from a line into the next
        self._runs.write(runs[whole].tobytes())
        self._words, self._lengths = array("q"), array("q")


def _among(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Tell which values are among others, which are sorted."""
    if not len(known):
        return np.zeros(len(values), dtype=bool)
    return known[np.minimum(np.searchsorted(known, values), len(known) - 1)] == values
