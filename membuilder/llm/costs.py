"""What the model calls of one command share: counts, prices, and answers kept on disk.

return counted(given, path, "membuilder.build", run)  # given: parsed flags, those of flags.py among them
"""

import argparse
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from membuilder.llm.endpoints import PriceConfig, ServerEndpoint
from membuilder.llm.response_cache import AnswerCache
from membuilder.llm.usage import Usage


@dataclass(frozen=True, kw_only=True, slots=True)
class Costs:
    """It says where the calls of a command are counted, what they cost, and where their answers are kept."""

    usage: Usage
    prices: Mapping[str, PriceConfig] = field(default_factory=dict)
    """By a model's name; what a model without one costs stays unknown."""
    answers: AnswerCache | None = None

    def price_of(self, endpoint: ServerEndpoint) -> PriceConfig | None:
        return endpoint.price or self.prices.get(endpoint.name)


@contextmanager
def open_costs(given: argparse.Namespace, usage: Usage) -> Iterator[Costs]:
    """Open what parsed flags ask for; `usage` outlives it, to be told after a failure too. Raises CacheError."""
    cache = nullcontext() if given.answer_cache is None else closing(AnswerCache(given.answer_cache))
    with cache as answers:
        yield Costs(usage=usage, prices=dict(given.price), answers=answers)


def counted(given: argparse.Namespace, path: Path, command: str, run: Callable[[Costs], int]) -> int:
    """Return the exit status of `run`; at its end, a failure too, tell what was used and add it to `path` as a line.

    A build that was stopped has several lines, and cost their sum. A run in which nobody answered adds none. Only one
    that ends with status 0 is called whole.
    """
    usage, is_whole = Usage(), False
    try:
        with open_costs(given, usage) as costs:
            status = run(costs)
        is_whole = status == 0
        return status
    finally:
        report = usage.report()
        if any(role["calls"] or role["cached"] for role in report.values()):
            ended = datetime.now(UTC).isoformat(timespec="seconds")
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as file:
                line = {"command": command, "ended": ended, "whole": is_whole, "usage": report}
                file.write(json.dumps(line) + "\n")
            print(usage_line(usage, path))


def usage_line(usage: Usage, path: Path) -> str:
    """Say what all roles used, such as "usage: 312 calls, 1.2 M prompt tokens, 0.45 USD; details in FILE"."""
    total = usage.total()
    parts = [f"{total['calls']} calls"]
    parts += [f"{total['cached']} answers from the cache"] if total["cached"] else []
    parts.append(f"{_short(total['prompt_tokens'])} prompt and {_short(total['completion_tokens'])} answered tokens")
    usd, unknown = usage.known_cost()
    costs = [f"{usd:.2f} USD"] if usd or not unknown else []
    costs += [f"an unknown cost of {', '.join(unknown)} (--price gives prices)"] if unknown else []
    parts.append(" and ".join(costs))
    parts += [f"{failed} failed attempts"] if (failed := sum(total["failed_attempts"].values())) else []
    return f"usage: {', '.join(parts)}; details in {path}"


def _short(count: int | None) -> str:
    if count is None:
        return "an unknown number of"
    return str(count) if count < 10_000 else f"{count / 1e3:.0f} k" if count < 1e6 else f"{count / 1e6:.1f} M"
