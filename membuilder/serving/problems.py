"""Errors as RFC 9457 problem details: fixed words and an id, by which the operator finds the rest in the log."""

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, NamedTuple
from uuid import uuid4

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from membuilder.command import MACHINE_ERRORS
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
_FIELDS = {"type": "string", "title": "string", "status": "integer", "detail": "string", "id": "string"}
_PROBLEM = {
    "description": "A problem, as RFC 9457 tells it",
    "content": {
        MEDIA_TYPE: {
            "schema": {
                "type": "object",
                "required": list(_FIELDS),
                "properties": {name: {"type": kind} for name, kind in _FIELDS.items()},
            }
        }
    },
}
PROBLEMS: dict[int | str, dict[str, Any]] = {"4XX": _PROBLEM, "5XX": _PROBLEM}
"""What the schema of the API says of errors."""
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


def problem(
    status: int,
    kind: str,
    detail: str,
    headers: dict[str, str] | None = None,
    *,
    id: str | None = None,
    **more: object,
) -> JSONResponse:
    """Return a reply that tells of a problem, under the id by which it is in the log."""
    if id is None:
        id = uuid4().hex
        _log.info("problem %s: %s", id, kind)
    told = {"type": f"urn:membuilder:{kind}", "title": HTTPStatus(status).phrase, "status": status, "detail": detail}
    told["id"] = id
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
        fields = [{"at": _place(each), "problem": each["type"]} for each in error.errors()]
        detail = "The request is not as the API describes it; see /openapi.json."
        return problem(HTTPStatus.UNPROCESSABLE_ENTITY, "invalid-request", detail, errors=fields[:_MOST_FIELDS])

    @app.exception_handler(HTTPException)
    def refused(request: Request, error: HTTPException) -> JSONResponse:
        kind = (
            error.kind if isinstance(error, Problem) else HTTPStatus(error.status_code).phrase.lower().replace(" ", "-")
        )
        detail = error.detail if isinstance(error, Problem) else HTTPStatus(error.status_code).description
        return problem(error.status_code, kind, detail, dict(error.headers or {}))

    @app.exception_handler(ClientDisconnect)
    def left(request: Request, error: ClientDisconnect) -> JSONResponse:
        return problem(HTTPStatus.BAD_REQUEST, "cut-short", "The body ended before its end.")

    @app.exception_handler(OSError)
    def machine(request: Request, error: OSError) -> JSONResponse:
        if error.errno not in MACHINE_ERRORS:
            return _fault(request, error)
        status, name, detail = _KINDS[StoreError]
        return problem(status, name, detail, id=_logged(request, error, status))

    @app.exception_handler(Exception)
    def _fault(request: Request, error: Exception) -> JSONResponse:
        detail = "A fault of the server; its operator finds it in the log by the id."
        return problem(HTTPStatus.INTERNAL_SERVER_ERROR, "fault", detail, id=_logged(request, error, 500))


def _place(error: Mapping[str, Any]) -> list[str]:
    """Say where in a request an error lies. A field that is not known has a name of the sender's, which is left out."""
    place = [str(part) for part in error["loc"]]
    return place[:-1] if error["type"] == "extra_forbidden" else place


def _logged(request: Request, error: Exception, status: int) -> str:
    """Log an error by the route, which names no user, and return its id."""
    name, route = uuid4().hex, request.scope.get("route")
    place = getattr(route, "path", "?")
    if status == HTTPStatus.INTERNAL_SERVER_ERROR:
        _log.error("problem %s at %s %s", name, request.method, place, exc_info=error)
    else:
        level = logging.WARNING if status == HTTPStatus.SERVICE_UNAVAILABLE else logging.INFO
        _log.log(level, "problem %s at %s %s: %s", name, request.method, place, error)
    return name
