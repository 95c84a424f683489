"""What the calls of a run cost, per role: calls, tokens, dollars, latency."""

import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from membuilder.chat import Role
from membuilder.endpoints import PriceConfig
from membuilder.errors import ChatErrorKind


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

    def add_answer(self, role: Role, seconds: float, tokens: Tokens | None, price: PriceConfig | None) -> None:
        with self._lock:
            usage = self._of(role)
            usage.num_calls += 1
            usage.latencies.append(seconds)
            if tokens is None:
                usage.num_without_tokens += 1
            else:
                usage.prompt_tokens += tokens.prompt
                usage.completion_tokens += tokens.completion
            if tokens is None or price is None:
                usage.num_without_price += 1
            else:
                dollars = tokens.prompt * price.input_per_million + tokens.completion * price.output_per_million
                usage.usd += dollars / 1e6

    def add_cached(self, role: Role) -> None:
        with self._lock:
            self._of(role).num_cached += 1

    def add_failure(self, role: Role, kind: ChatErrorKind) -> None:
        with self._lock:
            self._of(role).failures[kind] += 1

    def _of(self, role: Role) -> RoleUsage:
        return self._roles.setdefault(role, RoleUsage())

    def report(self) -> dict[str, dict[str, Any]]:
        """Role -> its totals, ready for JSON. A total that misses a part is None: the cost when any price is unknown,
        the tokens when any server kept silent about them."""
        with self._lock:
            return {role.value: _summary(usage) for role, usage in sorted(self._roles.items())}


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
