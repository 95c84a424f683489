"""What the operator watches, as Prometheus reads it. No label tells of a user, a session or a text."""

import time

from fastapi import Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """The numbers of one app."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._seconds = Histogram(
            "membuilder_request_seconds",
            "Time from the head of a request to the last byte of its reply",
            ("method", "route", "status"),
            registry=self._registry,
            buckets=_SECONDS,
        )
        self._sessions = Counter(
            "membuilder_sessions", "Sessions taken, by whether they were new", ("new",), registry=self._registry
        )
        self._waiting = Gauge("membuilder_sessions_waiting", "Sessions not read yet", registry=self._registry)

    def count_session(self, is_new: bool) -> None:
        self._sessions.labels(str(is_new).lower()).inc()

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        self._seconds.labels(method, route, str(status)).observe(seconds)

    def text(self, num_waiting: int) -> Response:
        """Return the numbers as Prometheus reads them."""
        self._waiting.set(num_waiting)
        return Response(generate_latest(self._registry), media_type=CONTENT_TYPE_LATEST)


class Timed:
    """An app around another that times its requests."""

    def __init__(self, app: ASGIApp, metrics: Metrics):
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        began, status = time.perf_counter(), 500

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            route = getattr(scope.get("route"), "path", None)
            # what no route takes may have any method, and each new label would stay for ever
            method, route = ("any", "none") if route is None else (scope["method"], route)
            self._metrics.observe(method, route, status, time.perf_counter() - began)
