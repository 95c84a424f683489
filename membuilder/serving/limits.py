"""What a request may cost before anything reads it: bytes of its body, and requests a minute."""

import re
import time
from dataclasses import dataclass
from http import HTTPStatus

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from membuilder.serving.problems import Problem, problem


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestLimits:
    body_bytes: int = 2_000_000
    import_bytes: int = 200_000_000
    """Of an exported memory."""
    requests_per_minute: int = 60_000
    """Of one key; on loopback of all."""


_IMPORT = re.compile(r"/v1/users/[^/]+/import")


class BodyLimit:
    """An app in front of another that refuses bodies that are too long, said or unsaid, without reading them whole."""

    def __init__(self, app: ASGIApp, limits: RequestLimits):
        self._app, self._limits = app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        is_import = _IMPORT.fullmatch(scope["path"]) is not None
        limit = self._limits.import_bytes if is_import else self._limits.body_bytes
        said = dict(scope["headers"]).get(b"content-length", b"0")
        too_long = not said.isdigit() or int(said) > limit
        num_bytes, is_answered = 0, False

        async def counted() -> Message:
            nonlocal num_bytes, too_long
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > limit:
                too_long = True
                raise _too_long(limit)
            return message

        async def noted(message: Message) -> None:
            nonlocal is_answered
            if is_answered or not too_long:  # else what the app makes of the error is not what is told
                is_answered = True
                await send(message)

        try:
            if not too_long:
                await self._app(scope, counted, noted)
        except (Problem, ExceptionGroup):  # a group where tasks of the app read it
            if is_answered or not too_long:
                raise
        if too_long and not is_answered:
            error = _too_long(limit)
            reply = problem(error.status_code, error.kind, str(error.detail), {"Connection": "close"})
            await reply(scope, receive, send)


class Rate:
    """So many requests of a caller in each minute of the clock."""

    def __init__(self, per_minute: int):
        self._per_minute, self._minute = per_minute, 0
        self._counts: dict[str, int] = {}

    def count(self, caller: str) -> None:
        """Count one request. Raises Problem above the limit."""
        minute = int(time.time() // 60)
        if minute != self._minute:
            self._minute = minute
            self._counts.clear()
        self._counts[caller] = self._counts.get(caller, 0) + 1
        if self._counts[caller] > self._per_minute:
            wait = {"Retry-After": str(60 - int(time.time() % 60))}
            detail = "Too many requests in this minute. Send it again in the next one."
            raise Problem(HTTPStatus.TOO_MANY_REQUESTS, "too-many-requests", detail, wait)


def _too_long(limit: int) -> Problem:
    detail = f"The body is longer than {limit} bytes. Send less at once."
    return Problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "body-too-long", detail)
