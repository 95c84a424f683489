"""Decides which failures of an endpoint are tried again and how long to wait before that."""

import random
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from membuilder.errors import ChatError, ChatErrorKind
from membuilder.llm.endpoints import ServerEndpoint

TRANSIENT = frozenset(
    {
        ChatErrorKind.UNREACHABLE,
        ChatErrorKind.TIMEOUT,
        ChatErrorKind.EXHAUSTED,
        ChatErrorKind.BAD_RESPONSE,
        ChatErrorKind.NO_TEXT,
    }
)
BACKOFF_SECONDS = 0.5
"""Longest pause after the first failure; it doubles with each further one."""
SPREAD_SECONDS = 0.5
"""Calls told to wait for the same second do not come back in the same instant."""


def pause_seconds(error: ChatError, attempt: int, endpoint: ServerEndpoint) -> float | None:
    """Say how long to wait after the failed attempt of this number, from 1; None where another would not help."""
    asked = error.retry_after_seconds
    if error.kind not in TRANSIENT or (asked or 0) > endpoint.retry_after_limit_seconds:
        return None
    if asked is not None:
        return asked + random.uniform(0, SPREAD_SECONDS)
    return min(random.uniform(0, BACKOFF_SECONDS * 2 ** (attempt - 1)), endpoint.max_wait_seconds)


def retry_after(headers: Mapping[str, str], now: datetime | None = None) -> float | None:
    """Read the seconds a server asks to wait: `retry-after-ms`, or `retry-after` as seconds or a date; None: none."""
    milliseconds, text = headers.get("retry-after-ms", "").strip(), headers.get("retry-after", "")
    if milliseconds.isdigit():
        return int(milliseconds) / 1000
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(text) - (now or datetime.now(UTC))).total_seconds()
        except (ValueError, TypeError):  # no date, or one without its zone: as good as not sent
            return None
    return max(0.0, seconds) if seconds < float("inf") else None
