"""Counts what the calls of a run cost, per role: calls, tokens, dollars, latency.

    usage = Usage()
    usage.keep(folder / "usage.jsonl")  # also what earlier processes of this run used, killed ones too

The file has one line per call, written before anything is made of its answer.
"""

import json
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from membuilder.datasets.fields import as_record
from membuilder.datasets.files import read_appended
from membuilder.errors import ChatErrorKind
from membuilder.llm.chat_model import Role
from membuilder.llm.endpoints import PriceConfig

_ADVICE = "remove the line, and the call it tells of is not counted"


@dataclass(frozen=True, kw_only=True, slots=True)
class Tokens:
    """What a server says one answer took."""

    prompt: int
    completion: int


class _Event(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """One call: an answer with its seconds, an answer from the cache, or a failure."""

    role: Role
    seconds: float | None = None
    tokens: tuple[int, int] | None = None
    """Tokens of the prompt and of the answer; None where the server does not say."""
    usd: float | None = None
    cached: bool = False
    failure: ChatErrorKind | None = None

    def __post_init__(self) -> None:
        if (self.seconds is not None) + self.cached + (self.failure is not None) != 1:
            raise ValueError("needs one of seconds, cached and failure")

    def line(self) -> str:
        if self.seconds is not None:
            told = {"seconds": self.seconds, "tokens": self.tokens, "usd": self.usd}
        else:
            told = {"cached": True} if self.cached else {"failure": self.failure}
        return json.dumps({"role": self.role, **told}) + "\n"


@dataclass(kw_only=True)
class RoleUsage:
    """What the calls of one role came to."""

    num_calls: int = 0
    """Answers that came over the network, and useless ones whose tokens the server names: they are paid for too."""
    num_cached: int = 0
    """Answers taken from the cache: neither tokens nor dollars nor latency."""
    num_without_tokens: int = 0
    """Answers whose server did not say how many tokens they took."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    usd: float = 0.0
    num_without_price: int = 0
    failures: Counter[ChatErrorKind] = field(default_factory=Counter)
    """Failed attempts by kind, also those a later attempt made good."""
    latencies: list[float] = field(default_factory=list)
    """Seconds from sending a request to the last byte of its answer; waiting for a free place does not count."""


class Usage:
    """The counts of one run. Threads and event loops may share it."""

    def __init__(self) -> None:
        self._roles: dict[Role, RoleUsage] = {}
        self._lock = threading.Lock()
        self._unkept: list[_Event] = []
        self._file: Path | None = None

    def add_answer(self, role: Role, seconds: float, tokens: Tokens | None, price: PriceConfig | None) -> None:
        dollars = None
        if tokens is not None and price is not None:
            dollars = (tokens.prompt * price.input_per_million + tokens.completion * price.output_per_million) / 1e6
        counts = None if tokens is None else (tokens.prompt, tokens.completion)
        self._add(_Event(role=role, seconds=seconds, tokens=counts, usd=dollars))

    def add_cached(self, role: Role) -> None:
        self._add(_Event(role=role, cached=True))

    def add_failure(self, role: Role, kind: ChatErrorKind) -> None:
        self._add(_Event(role=role, failure=kind))

    def keep(self, path: Path) -> None:
        """Append every call to this file from here on; what stands in it already counts as well. Raises DataError."""
        with self._lock:
            for number, line in read_appended(path, _ADVICE):
                _count(as_record(line, _Event, path, f"line {number}", _ADVICE), self._roles)
            self._file = path
            self._append(self._unkept)

    def _add(self, event: _Event) -> None:
        with self._lock:
            _count(event, self._roles)
            if self._file is None:
                self._unkept.append(event)
            else:
                self._append([event])

    def _append(self, events: Sequence[_Event]) -> None:
        with self._file.open("ab") as file:
            file.write("".join(event.line() for event in events).encode())

    def report(self) -> dict[str, dict[str, Any]]:
        """Role -> its totals, ready for JSON. A total that misses a part is None: the cost when any price is unknown,
        the tokens when any server kept silent about them."""
        with self._lock:
            return {role.value: _summary(usage) for role, usage in sorted(self._roles.items())}


def _count(event: _Event, roles: dict[Role, RoleUsage]) -> None:
    usage = roles.setdefault(event.role, RoleUsage())
    if event.cached:
        usage.num_cached += 1
        return
    if event.failure is not None:
        usage.failures[event.failure] += 1
        return
    usage.num_calls += 1
    usage.latencies.append(event.seconds)
    if event.tokens is None:
        usage.num_without_tokens += 1
    else:
        usage.prompt_tokens += event.tokens[0]
        usage.completion_tokens += event.tokens[1]
    if event.usd is None:
        usage.num_without_price += 1
    else:
        usage.usd += event.usd


def _summary(usage: RoleUsage) -> dict[str, Any]:
    import numpy as np  # `--help` need not wait for it

    counted = usage.num_without_tokens == 0
    p50, p95 = np.percentile(usage.latencies, [50, 95]).tolist() if usage.latencies else (None, None)
    return {
        "calls": usage.num_calls,
        "cached": usage.num_cached,
        "prompt_tokens": usage.prompt_tokens if counted else None,
        "completion_tokens": usage.completion_tokens if counted else None,
        "calls_without_tokens": usage.num_without_tokens,
        "usd": usage.usd if usage.num_without_price == 0 else None,
        "latency_p50_seconds": p50,
        "latency_p95_seconds": p95,
        "failed_attempts": {kind.value: count for kind, count in sorted(usage.failures.items())},
    }
