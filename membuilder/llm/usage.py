"""Counts what the calls of a run cost, per role: calls, tokens, dollars, latency.

    usage = Usage()
    usage.keep(folder / "usage.jsonl")  # also what earlier processes of this run used, killed ones too

The file has one line per call, written before anything is made of its answer.
"""

import threading
from collections import Counter, deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from membuilder.datasets.files import read_appended
from membuilder.datasets.typed import typed
from membuilder.errors import ChatErrorKind
from membuilder.llm.chat_model import Role
from membuilder.llm.endpoints import PriceConfig

_ADVICE = "remove the line, and the call it tells of is not counted"


class Tokens(NamedTuple):
    """It counts what a server says one answer took."""

    prompt: int
    completion: int


class _Event(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """It tells of one call: an answer with its seconds, an answer from the cache, or a failure."""

    role: Role
    model: str | None = None
    """The model that was asked; None in files of before it was noted."""
    seconds: float | None = None
    """From sending the request to the last byte of its answer; waiting for a free place does not count."""
    tokens: Tokens | None = None
    """What the answer took; None where the server does not say."""
    usd: float | None = None
    cached: bool = False
    failure: ChatErrorKind | None = None

    def __post_init__(self) -> None:
        if (self.seconds is not None) + self.cached + (self.failure is not None) != 1:
            raise ValueError("needs one of seconds, cached and failure")


class Usage:
    """It counts the calls of one run. Threads and event loops may share it."""

    def __init__(self, most: int | None = None) -> None:
        """Count all calls, or where a program runs on and on only the last ones, at `most` so many."""
        self._events: deque[_Event] = deque(maxlen=most)
        self._lock = threading.Lock()
        self._file: Path | None = None

    def add_answer(
        self, role: Role, seconds: float, tokens: Tokens | None, price: PriceConfig | None, model: str | None = None
    ) -> None:
        """Count an answer that came over the network, also a useless one whose tokens the server names."""
        dollars = None
        if tokens is not None and price is not None:
            dollars = (tokens.prompt * price.input_per_million + tokens.completion * price.output_per_million) / 1e6
        self._add(_Event(role=role, model=model, seconds=seconds, tokens=tokens, usd=dollars))

    def add_cached(self, role: Role) -> None:
        self._add(_Event(role=role, cached=True))

    def add_failure(self, role: Role, kind: ChatErrorKind) -> None:
        """Count a failed attempt, also one that a later attempt makes good."""
        self._add(_Event(role=role, failure=kind))

    def keep(self, path: Path) -> None:
        """Append every call to this file from here on; what stands in it already counts as well. Raises DataError."""
        with self._lock:
            lines = read_appended(path, _ADVICE)
            stored = [typed(_Event, line, path, f"line {number}", advice=_ADVICE) for number, line in lines]
            self._file = path
            self._append(self._events)
            self._events += stored

    def _add(self, event: _Event) -> None:
        with self._lock:
            self._events.append(event)
            if self._file is not None:
                self._append([event])

    def _append(self, events: Sequence[_Event]) -> None:
        with self._file.open("ab") as file:
            file.write(b"".join(msgspec.json.encode(event) + b"\n" for event in events))

    def report(self) -> dict[str, dict[str, Any]]:
        """Return role -> its totals, ready for JSON. A total that misses a part is None: the cost when any price is
        unknown, the tokens when any server kept silent about them."""
        with self._lock:
            events = list(self._events)
        roles = sorted({event.role for event in events})
        return {role.value: _summary([event for event in events if event.role == role]) for role in roles}

    def total(self) -> dict[str, Any]:
        """Return the totals of all roles together."""
        with self._lock:
            return _summary(self._events)

    def known_cost(self) -> tuple[float, list[str]]:
        """Return the dollars of the answers whose cost is known, and the models that gave others."""
        with self._lock:
            answers = [event for event in self._events if event.seconds is not None]
        unknown = {event.model or "an unnamed model" for event in answers if event.usd is None}
        return sum(event.usd or 0.0 for event in answers), sorted(unknown)


def _summary(events: Sequence[_Event]) -> dict[str, Any]:
    import numpy as np  # `--help` need not wait for it

    answers = [event for event in events if event.seconds is not None]
    silent, unpriced = sum(each.tokens is None for each in answers), any(each.usd is None for each in answers)
    latencies = [each.seconds for each in answers]
    p50, p95 = np.percentile(latencies, [50, 95]).tolist() if latencies else (None, None)
    failures = Counter(event.failure for event in events if event.failure is not None)
    return {
        "calls": len(answers),
        "cached": sum(event.cached for event in events),
        "prompt_tokens": None if silent else sum(each.tokens.prompt for each in answers),
        "completion_tokens": None if silent else sum(each.tokens.completion for each in answers),
        "calls_without_tokens": silent,
        "usd": None if unpriced else sum((each.usd for each in answers), 0.0),
        "latency_p50_seconds": p50,
        "latency_p95_seconds": p95,
        "failed_attempts": {kind.value: count for kind, count in sorted(failures.items())},
    }
