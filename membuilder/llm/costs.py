"""What the model calls of one command share: counts, prices, and answers kept on disk.

usage = Usage()
with open_costs(given, usage) as costs:  # given: parsed flags, those of flags.py among them
    ...
write_usage(path, "membuilder.build", usage, is_whole=True)
"""

import argparse
import json
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from membuilder.llm.endpoints import ModelEndpoint, PriceConfig
from membuilder.llm.response_cache import AnswerCache
from membuilder.llm.usage import Usage


@dataclass(frozen=True, kw_only=True, slots=True)
class Costs:
    """Where the calls of a command are counted, what they cost, and where their answers are kept."""

    usage: Usage
    prices: Mapping[str, PriceConfig] = field(default_factory=dict)
    """By a model's name; what a model without one costs stays unknown."""
    answers: AnswerCache | None = None

    def price_of(self, endpoint: ModelEndpoint) -> PriceConfig | None:
        return endpoint.price or self.prices.get(endpoint.name)

    def without_cache(self) -> "Costs":
        return replace(self, answers=None)


@contextmanager
def open_costs(given: argparse.Namespace, usage: Usage) -> Iterator[Costs]:
    """Open what parsed flags ask for; `usage` outlives it, to be told after a failure too. Raises CacheError."""
    prices = dict(given.price)
    if given.answer_cache is None:
        yield Costs(usage=usage, prices=prices)
        return
    with closing(AnswerCache(given.answer_cache)) as answers:
        yield Costs(usage=usage, prices=prices, answers=answers)


def write_usage(path: Path, command: str, usage: Usage, is_whole: bool) -> None:
    """Print what a run used and add it to `path` as a line: a build that was stopped has several, and cost their sum.

    A run in which nobody answered prints and adds nothing.
    """
    report = usage.report()
    if not any(role["calls"] or role["cached"] for role in report.values()):
        return
    line = {
        "command": command,
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        "whole": is_whole,
        "usage": report,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    print(usage_line(report, path))


def usage_line(report: Mapping[str, Mapping[str, Any]], path: Path) -> str:
    """What all roles used together, such as "usage: 312 calls, 1.2 M prompt tokens, 0.45 USD; details in FILE"."""
    roles = list(report.values())

    def total(key: str) -> float | None:
        values = [role[key] for role in roles]
        return None if None in values else sum(values)

    prompt, completion, usd = total("prompt_tokens"), total("completion_tokens"), total("usd")
    parts = [f"{total('calls')} calls"]
    parts += [f"{cached} answers from the cache"] if (cached := total("cached")) else []
    parts.append(f"{_short(prompt)} prompt and {_short(completion)} answered tokens")
    parts.append("cost unknown (--price gives prices)" if usd is None else f"{usd:.2f} USD")
    failed = sum(sum(role["failed_attempts"].values()) for role in roles)
    parts += [f"{failed} failed attempts"] if failed else []
    return f"usage: {', '.join(parts)}; details in {path}"


def _short(count: float | None) -> str:
    if count is None:
        return "an unknown number of"
    return str(count) if count < 10_000 else f"{count / 1e3:.0f} k" if count < 1e6 else f"{count / 1e6:.1f} M"
