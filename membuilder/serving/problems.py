"""Errors as RFC 9457 problem details: fixed words and an id, by which the operator finds the rest in the log."""

import logging
from http import HTTPStatus
from typing import NamedTuple
from uuid import uuid4

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from membuilder.errors import DataError, MemBuilderError, StoreError
from membuilder.serving.errors import (
    BusyError,
    MemoryConflict,
    NoAnswererError,
    NotThereError,
    SessionConflict,
    UnavailableError,
)

MEDIA_TYPE = "application/problem+json"
RETRY_SECONDS = 5
_MOST_FIELDS = 20

_log = logging.getLogger(__name__)


class Told(NamedTuple):
    """How an error is told to callers."""

    status: HTTPStatus
    kind: str
    detail: str


_KINDS: dict[type[MemBuilderError], tuple[HTTPStatus, str, str]] = {
    NotThereError: (HTTPStatus.NOT_FOUND, "not-found", "There is nothing of this name here."),
    SessionConflict: (
        HTTPStatus.CONFLICT,
        "session-conflict",
        "A session of this id is there already, with other words or another date. Give this one an id of its own.",
    ),
    MemoryConflict: (
        HTTPStatus.CONFLICT,
        "memory-conflict",
        "The memory as it stands does not allow that: it is begun, written by other settings, or the entry is old.",
    ),
    NoAnswererError: (
        HTTPStatus.NOT_IMPLEMENTED,
        "no-answerer",
        "No model answers questions on this server. Search works; the operator can name one (--answer-model).",
    ),
    BusyError: (
        HTTPStatus.SERVICE_UNAVAILABLE,
        "busy",
        "Too much waits, or the server is ending. Send it again later.",
    ),
    UnavailableError: (
        HTTPStatus.SERVICE_UNAVAILABLE,
        "model-unavailable",
        "A model that this needs does not answer at the moment. Send it again later.",
    ),
    StoreError: (
        HTTPStatus.SERVICE_UNAVAILABLE,
        "store-unavailable",
        "The memory cannot be read or written at the moment. Send it again later.",
    ),
    DataError: (HTTPStatus.UNPROCESSABLE_ENTITY, "bad-memory", "The file is no exported memory, or is damaged."),
}


class Problem(HTTPException):
    """A request is refused in words of its own."""

    def __init__(self, status: HTTPStatus, kind: str, detail: str, headers: dict[str, str] | None = None):
        super().__init__(status, detail, headers)
        self.kind = kind


def problem(status: int, kind: str, detail: str, headers: dict[str, str] | None = None, **more: object) -> JSONResponse:
    """Return a reply that tells of a problem."""
    told = {"type": f"urn:membuilder:{kind}", "title": HTTPStatus(status).phrase, "status": status, "detail": detail}
    headers = dict(headers or {})
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        headers.setdefault("Retry-After", str(RETRY_SECONDS))
    return JSONResponse(told | more, status, headers, MEDIA_TYPE)


def told_as(error: MemBuilderError) -> Told | None:
    """Return the words for an error; None: it is a fault of the server."""
    kind = next((known for known in type(error).__mro__ if known in _KINDS), None)
    return None if kind is None else Told(*_KINDS[kind])


def add_problems(app: FastAPI) -> None:
    """Let an app tell every error as a problem."""

    @app.exception_handler(MemBuilderError)
    def ours(request: Request, error: MemBuilderError) -> JSONResponse:
        told = told_as(error)
        if told is None:
            return _fault(request, error)
        return problem(*told, id=_logged(request, error, told.status))

    @app.exception_handler(RequestValidationError)
    def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        # where and why, without what was sent
        fields = [{"at": [str(part) for part in each["loc"]], "problem": each["type"]} for each in error.errors()]
        detail = "The request is not as the API describes it; see /docs."
        return problem(HTTPStatus.UNPROCESSABLE_ENTITY, "invalid-request", detail, errors=fields[:_MOST_FIELDS])

    @app.exception_handler(HTTPException)
    def refused(request: Request, error: HTTPException) -> JSONResponse:
        kind = (
            error.kind if isinstance(error, Problem) else HTTPStatus(error.status_code).phrase.lower().replace(" ", "-")
        )
        detail = error.detail if isinstance(error, Problem) else HTTPStatus(error.status_code).description
        return problem(error.status_code, kind, detail, dict(error.headers or {}))

    @app.exception_handler(Exception)
    def _fault(request: Request, error: Exception) -> JSONResponse:
        detail = "A fault of the server; its operator finds it in the log by the id."
        return problem(HTTPStatus.INTERNAL_SERVER_ERROR, "fault", detail, id=_logged(request, error, 500))


def _logged(request: Request, error: Exception, status: int) -> str:
    """Log an error by the route, which names no user, and return its id."""
    name, route = uuid4().hex, request.scope.get("route")
    place = getattr(route, "path", "?")
    if status == HTTPStatus.INTERNAL_SERVER_ERROR:
        _log.error("problem %s at %s %s", name, request.method, place, exc_info=error)
    else:
        _log.info("problem %s at %s %s: %s", name, request.method, place, error)
    return name
