"""Keeps the instances that are built, a line each, so that a build that was killed goes on where it was.

The first line holds the settings; every other one an instance, with how far its source was read.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO, TypeVar

import msgspec

from membuilder.errors import ConfigError, DataError
from membuilder.instances.records import Instance, Progress
from membuilder.text import in_short

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """What is written of one instance, or, without one, of the end of a side."""

    side: str
    units: int
    instances: int
    dropped: dict[str, int]
    instance: Instance | None = None


class Journal:
    """It appends to a journal and knows how far each side of the split has come."""

    def __init__(self, file: TextIO, last: Mapping[str, Line]):
        self._file, self._last = file, dict(last)

    def progress(self, side: str) -> Progress | None:
        """Return how far a side was read; None if it is whole."""
        if (last := self._last.get(side)) is None:
            return Progress()
        if last.instance is None:
            return None
        return Progress(units=last.units, instances=last.instances, dropped=Counter(last.dropped))

    def write(self, side: str, progress: Progress, instance: Instance | None) -> None:
        dropped = {reason: count for reason, count in sorted(progress.dropped.items()) if count}
        so_far = {"units": progress.units, "instances": progress.instances, "dropped": dropped}
        line = Line(side=side, instance=instance, **so_far)
        self._file.write(json.dumps(msgspec.to_builtins(line)) + "\n")
        self._file.flush()


@contextmanager
def journal(path: Path, settings: Mapping[str, Any]) -> Iterator[Journal]:
    """Open a journal, or begin one. Raises ConfigError for one of other settings, DataError for a damaged one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    last = _last_lines(path, settings) if path.exists() else {}
    with path.open("a", encoding="utf-8") as file:
        if file.tell() == 0:
            file.write(json.dumps(settings) + "\n")
        yield Journal(file, last)


def instances_of(path: Path, side: str) -> Iterator[Instance]:
    """Yield the instances of one side."""
    with path.open("rb") as file:
        next(file)
        for number, raw in enumerate(file, start=2):
            line = _line(raw, path, number)
            if line.side == side and line.instance is not None:
                yield line.instance


def dropped_of(path: Path) -> dict[str, dict[str, int]]:
    """Return what each side dropped, by reason."""
    with path.open("rb") as file:
        next(file)
        lines = (_line(raw, path, number) for number, raw in enumerate(file, start=2))
        return {line.side: line.dropped for line in lines if line.instance is None}


def _last_lines(path: Path, settings: Mapping[str, Any]) -> dict[str, Line]:
    """Return the last line of each side, and cut off what a kill left of one more."""
    whole, last = 0, {}
    with path.open("r+b") as file:
        for number, raw in enumerate(file, start=1):
            if not raw.endswith(b"\n"):
                break
            whole += len(raw)
            if number == 1:
                _check_settings(path, _decoded(raw, path, number, dict), settings)
            else:
                line = _line(raw, path, number)
                last[line.side] = line
        file.truncate(whole)
    return last


def _check_settings(path: Path, found: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    if found != settings:
        changed = ", ".join(name for name in settings if found.get(name) != settings[name])
        raise ConfigError(f"{path.parent}: was begun with another {changed}; choose another --out or remove the folder")


def _line(raw: bytes, path: Path, number: int) -> Line:
    return _decoded(raw, path, number, Line)


def _decoded(raw: bytes, path: Path, number: int, kind: type[T]) -> T:
    try:
        return msgspec.convert(json.loads(raw), kind)  # not msgspec's own decoder, which refuses half a surrogate pair
    except ValueError as error:
        problem = f"is damaged ({in_short(error)}); remove the file and build again"
        raise DataError(path, f"line {number}", "JSON", problem) from error
