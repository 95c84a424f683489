"""What the model calls of one run share: counts, prices, answers kept on disk; and the flags of every command that asks.

usage = Usage()
with open_account(given, usage) as account:  # given: parsed flags, `add_flags` among them
    ...
write_usage(path, "membuilder.build", usage, is_whole=True)
"""

import argparse
import json
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from membuilder.llm.endpoints import PriceConfig
from membuilder.llm.response_cache import AnswerCache
from membuilder.llm.usage import Usage


@dataclass(frozen=True, kw_only=True, slots=True)
class Account:
    usage: Usage
    prices: Mapping[str, PriceConfig] = field(default_factory=dict)
    """By a model's name; what a model without one costs stays unknown."""
    answers: AnswerCache | None = None


def add_flags(parser: argparse.ArgumentParser) -> None:
    flags = parser.add_argument_group("cost")
    flags.add_argument(
        "--price",
        action="append",
        type=model_price,
        default=[],
        metavar="MODEL=IN,OUT",
        help="dollars per million prompt and answered tokens, repeatable; the cost of a model without one stays unknown",
    )
    flags.add_argument("--answer-cache", type=Path, metavar="FOLDER", help="answers kept here are not paid for twice")


def model_price(text: str) -> tuple[str, tuple[float, float]]:
    """`MODEL=IN,OUT`; ValueError for anything else, which argparse reports."""
    name, _, prices = text.rpartition("=")
    given, written = map(float, prices.split(","))
    if not name or min(given, written) < 0:
        raise ValueError(text)
    return name, (given, written)


def prices(given: argparse.Namespace) -> dict[str, PriceConfig]:
    """By a model's name."""
    return {
        name: PriceConfig(input_per_million=prompt, output_per_million=written)
        for name, (prompt, written) in given.price
    }


@contextmanager
def open_account(given: argparse.Namespace, usage: Usage) -> Iterator[Account]:
    """The account of parsed flags; `usage` outlives it, to be told also after a failure. Raises CacheError."""
    if given.answer_cache is None:
        yield Account(usage=usage, prices=prices(given))
        return
    with closing(AnswerCache(given.answer_cache)) as answers:
        yield Account(usage=usage, prices=prices(given), answers=answers)


def write_usage(path: Path, command: str, usage: Usage, is_whole: bool) -> None:
    """Prints what a run used and adds it to `path` as a line: a build that was stopped has several, and cost their sum.

    A run in which nobody answered adds none.
    """
    report = usage.report()
    print(json.dumps({"usage": report}))
    if any(role["calls"] or role["cached"] for role in report.values()):
        line = {
            "command": command,
            "ended": datetime.now(UTC).isoformat(timespec="seconds"),
            "whole": is_whole,
            "usage": report,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
