"""Decides which failures of an endpoint are tried again, how long to wait, and what each means to a user.

Nothing here knows a client library: a status and its headers go in, a ChatError comes out.
"""

import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import tenacity
from tenacity import RetryCallState

from membuilder.errors import ChatError, ChatErrorKind
from membuilder.llm.endpoints import SETTING_HINT, ModelEndpoint

TRANSIENT = frozenset(
    {
        ChatErrorKind.UNREACHABLE,
        ChatErrorKind.TIMEOUT,
        ChatErrorKind.EXHAUSTED,
        ChatErrorKind.BAD_RESPONSE,
        ChatErrorKind.NO_TEXT,
    }
)
TRANSIENT_STATUSES = frozenset({408, 409, 429})  # and every 5xx

_log = logging.getLogger(__name__)
_backoff = tenacity.wait_random_exponential(multiplier=0.5)
_spread = tenacity.wait_random(0, 0.5)  # calls told to wait for the same second do not come back in the same instant


def retrying(endpoint: ModelEndpoint, max_attempts: int) -> tenacity.AsyncRetrying:
    """The one retry policy: full jitter that doubles, or the pause the server asked for and a little more.

    What is still transient after the last attempt is raised as it came, with the number of attempts.
    """

    def again(error: BaseException) -> bool:
        if not isinstance(error, ChatError) or error.kind not in TRANSIENT:
            return False
        return (error.retry_after_seconds or 0) <= endpoint.retry_after_limit_seconds

    def wait(state: RetryCallState) -> float:
        asked = _error_of(state).retry_after_seconds
        return min(_backoff(state), endpoint.max_wait_seconds) if asked is None else asked + _spread(state)

    return tenacity.AsyncRetrying(
        retry=tenacity.retry_if_exception(again),
        stop=tenacity.stop_after_attempt(max_attempts),
        wait=wait,
        before_sleep=_log_retry,
        retry_error_callback=_give_up,
    )


def _error_of(state: RetryCallState) -> ChatError:
    error = state.outcome.exception() if state.outcome is not None else None
    assert isinstance(error, ChatError), "only chat errors are retried"
    return error


def _log_retry(state: RetryCallState) -> None:
    error, pause = _error_of(state), state.upcoming_sleep
    _log.info("attempt %d failed (%s), next in %.1f s: %s", state.attempt_number, error.kind, pause, error)


def _give_up(state: RetryCallState) -> None:
    error = _error_of(state)
    if state.attempt_number == 1:
        raise error
    raise ChatError(error.kind, f"{error} (given up after {state.attempt_number} attempts)", error.retry_after_seconds)


def retry_after(headers: Mapping[str, str], now: datetime | None = None) -> float | None:
    """Seconds a server asks to wait: `retry-after-ms`, or `retry-after` as seconds or an HTTP date.

    None if it does not.
    """
    text = headers.get("retry-after-ms")
    if text is not None and text.strip().isdigit():
        return int(text) / 1000
    text = headers.get("retry-after")
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        try:
            then = parsedate_to_datetime(text)
        except ValueError:  # neither form: as good as not sent
            return None
        then = then if then.tzinfo else then.replace(tzinfo=UTC)
        seconds = (then - (now or datetime.now(UTC))).total_seconds()
    return max(0.0, seconds) if seconds < float("inf") else None


def status_error(
    status: int, headers: Mapping[str, str], said: str, code: str | None, *, server: str, model: str, key_hint: str
) -> ChatError:
    """What an HTTP status other than success means; `said` is the server's own text without keys."""
    said = f" The server said: {said}" if said else ""
    if code == "insufficient_quota":  # a 429 that no waiting heals
        return ChatError(ChatErrorKind.NO_CREDIT, f"{server}: the account of this API key has no credit left.{said}")
    if status in TRANSIENT_STATUSES or status >= 500:
        message = f"{server}: HTTP {status}; lower concurrency {SETTING_HINT} or try later.{said}"
        return ChatError(ChatErrorKind.EXHAUSTED, message, retry_after(headers))
    if status in (401, 403):
        message = f"{server} refuses the API key (HTTP {status}); set {key_hint}.{said}"
        return ChatError(ChatErrorKind.REFUSED_KEY, message)
    if status == 404 or code == "model_not_found":
        message = (
            f"{server} serves no model {model!r} (HTTP {status}); check the model's name, and that the base URL is the"
            f" root of an OpenAI-compatible API, usually ending in /v1.{said}"
        )
        return ChatError(ChatErrorKind.UNKNOWN_MODEL, message)
    if 300 <= status < 400:
        target = headers.get("location", "elsewhere")
        message = f"{server} redirects to {target} (HTTP {status}); set the base URL to the final address."
        return ChatError(ChatErrorKind.UNREACHABLE, message)
    return ChatError(ChatErrorKind.BAD_REQUEST, f"{server} refuses the request for {model!r} (HTTP {status}).{said}")
