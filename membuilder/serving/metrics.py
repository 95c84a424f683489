"""What the operator watches, as Prometheus reads it. No label tells of a user, a session or a text."""

import time
from collections.abc import Awaitable, Callable

from fastapi import FastAPI, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """The numbers of one app."""

    def __init__(self, app: FastAPI):
        self._registry = CollectorRegistry()
        self._seconds = Histogram(
            "membuilder_request_seconds",
            "Time from the first byte of a request to the last of its reply",
            ("method", "route", "status"),
            registry=self._registry,
            buckets=_SECONDS,
        )
        self._sessions = Counter(
            "membuilder_sessions", "Sessions taken, by whether they were new", ("new",), registry=self._registry
        )
        self._waiting = Gauge("membuilder_sessions_waiting", "Sessions not read yet", registry=self._registry)
        app.middleware("http")(self._timed)

    def count_session(self, is_new: bool) -> None:
        self._sessions.labels(str(is_new).lower()).inc()

    def text(self, num_waiting: int) -> Response:
        """Return the numbers as Prometheus reads them."""
        self._waiting.set(num_waiting)
        return Response(generate_latest(self._registry), media_type=CONTENT_TYPE_LATEST)

    async def _timed(self, request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        began, status = time.perf_counter(), "500"
        try:
            response = await call_next(request)
            status = str(response.status_code)
            return response
        finally:
            route = getattr(request.scope.get("route"), "path", "none")
            self._seconds.labels(request.method, route, status).observe(time.perf_counter() - began)
