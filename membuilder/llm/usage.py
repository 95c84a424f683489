"""What the calls of a run cost, per role: calls, tokens, dollars, latency.

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

import numpy as np
from jsonschema import Draft202012Validator

from membuilder.datasets.files import read_appended
from membuilder.errors import ChatErrorKind, DataError
from membuilder.llm.chat_model import Role
from membuilder.llm.endpoints import PriceConfig

_Event = dict[str, Any]
"""One call."""
_ADVICE = "remove the line, and the call it tells of is not counted"


@dataclass(frozen=True, kw_only=True, slots=True)
class Tokens:
    """What a server says one answer took."""

    prompt: int
    completion: int


@dataclass(kw_only=True)
class RoleUsage:
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
    """Counts of one run; safe to share between threads and event loops."""

    def __init__(self) -> None:
        self._roles: dict[Role, RoleUsage] = {}
        self._lock = threading.Lock()
        self._unkept: list[_Event] = []
        self._file: Path | None = None

    def add_answer(self, role: Role, seconds: float, tokens: Tokens | None, price: PriceConfig | None) -> None:
        dollars = None
        if tokens is not None and price is not None:
            dollars = (tokens.prompt * price.input_per_million + tokens.completion * price.output_per_million) / 1e6
        counts = None if tokens is None else [tokens.prompt, tokens.completion]
        self._add({"role": role.value, "seconds": seconds, "tokens": counts, "usd": dollars})

    def add_cached(self, role: Role) -> None:
        self._add({"role": role.value, "cached": True})

    def add_failure(self, role: Role, kind: ChatErrorKind) -> None:
        self._add({"role": role.value, "failure": kind.value})

    def keep(self, path: Path) -> None:
        """From here on every call is appended to this file. What stands in it counts as well. Raises DataError."""
        with self._lock:
            for event in _read_events(path):
                _count(event, self._roles)
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
            file.write("".join(json.dumps(event) + "\n" for event in events).encode())

    def report(self) -> dict[str, dict[str, Any]]:
        """Role -> its totals, ready for JSON. A total that misses a part is None: the cost when any price is unknown,
        the tokens when any server kept silent about them."""
        with self._lock:
            return {role.value: _summary(usage) for role, usage in sorted(self._roles.items())}


_EVENT: dict[str, Any] = {
    "type": "object",
    "required": ["role"],
    "properties": {
        "role": {"enum": [role.value for role in Role]},
        "seconds": {"type": "number"},
        "tokens": {"type": ["array", "null"], "items": {"type": "integer"}, "minItems": 2, "maxItems": 2},
        "usd": {"type": ["number", "null"]},
        "cached": {"const": True},
        "failure": {"enum": [kind.value for kind in ChatErrorKind]},
    },
    "oneOf": [{"required": ["seconds", "tokens", "usd"]}, {"required": ["cached"]}, {"required": ["failure"]}],
    "additionalProperties": False,
}


def _count(event: _Event, roles: dict[Role, RoleUsage]) -> None:
    usage = roles.setdefault(Role(event["role"]), RoleUsage())
    if "cached" in event:
        usage.num_cached += 1
        return
    if "failure" in event:
        usage.failures[ChatErrorKind(event["failure"])] += 1
        return
    usage.num_calls += 1
    usage.latencies.append(event["seconds"])
    if event["tokens"] is None:
        usage.num_without_tokens += 1
    else:
        usage.prompt_tokens += event["tokens"][0]
        usage.completion_tokens += event["tokens"][1]
    if event["usd"] is None:
        usage.num_without_price += 1
    else:
        usage.usd += event["usd"]


def _read_events(path: Path) -> list[_Event]:
    validator, events = Draft202012Validator(_EVENT), []
    for number, event in read_appended(path, _ADVICE):
        problem = next(iter(validator.iter_errors(event)), None)
        if problem is not None:
            raise DataError(path, f"line {number}", problem.json_path, f"{problem.message[:200]}; {_ADVICE}")
        events.append(event)
    return events


def _summary(usage: RoleUsage) -> dict[str, Any]:
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
