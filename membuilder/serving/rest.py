"""The memory server over HTTP. What it does is in `service.py`, what is sent and replied in `http_records.py`."""

import asyncio
import tempfile
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, FastAPI, Header, Query, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse
from fastapi.routing import APIRoute

from membuilder.bank.history import history
from membuilder.bank.html_page import Live, render_page
from membuilder.bank.json_lines import json_lines, read_json_lines
from membuilder.bank.ranking import ANSWERING, SearchMethod
from membuilder.serving.access import Keys
from membuilder.serving.browsers import OwnPagesOnly
from membuilder.serving.errors import BusyError, NotThereError
from membuilder.serving.http_records import (
    MAX_FOUND,
    MAX_QUERY,
    AnswerReply,
    Correction,
    EntryHistory,
    JobReply,
    MemoryReply,
    Name,
    NewSession,
    Question,
    SearchReply,
    Words,
)
from membuilder.serving.limits import BodyLimit, Rate, RequestLimits
from membuilder.serving.mcp_tools import mcp_routes
from membuilder.serving.metrics import Metrics, Timed
from membuilder.serving.problems import PROBLEMS, add_problems
from membuilder.serving.published import published_routes
from membuilder.serving.service import MemoryService

HTML = "text/html"


class JsonLines(StreamingResponse):
    media_type = "application/jsonl"


def make_app(service: MemoryService, keys: Keys, limits: RequestLimits) -> FastAPI:
    """Return the app of a service that is running."""
    app = FastAPI(
        title="MemBuilder memory server",
        version="1",
        description="Memories of users, built from sessions.",
        responses=PROBLEMS,
        docs_url=None,  # its page would run scripts of another host where memories are shown
        redoc_url=None,
        redirect_slashes=False,  # a redirect would repeat whatever the request calls this host
    )
    metrics, rate = Metrics(), Rate(limits.requests_per_minute)
    app.add_middleware(BodyLimit, limits=limits)
    app.add_middleware(OwnPagesOnly, has_keys=keys.are_needed)
    app.add_middleware(Timed, metrics=metrics)
    add_problems(app)

    def admit(request: Request) -> None:
        rate.count(keys.check(request.headers.get("authorization"), request.path_params.get("user")))
        if service.is_ending:
            raise BusyError("the server is ending")

    admitted = _admitting(admit)
    app.include_router(_of_user(service, metrics, admitted), prefix="/v1/users/{user}")
    app.include_router(published_routes(service, admitted))
    app.include_router(_of_server(service, metrics))
    app.include_router(mcp_routes(service, keys, admit, metrics.count_session))
    return app


def _admitting(admit: Callable[[Request], None]) -> type[APIRoute]:
    class Admitting(APIRoute):
        """A route that admits a request before anything of it is read; a dependency would come after its body."""

        def get_route_handler(self) -> Callable[[Request], Awaitable[Response]]:
            handle = super().get_route_handler()

            async def admitted(request: Request) -> Response:
                admit(request)
                return await handle(request)

            return admitted

    return Admitting


def _of_user(service: MemoryService, metrics: Metrics, route: type[APIRoute]) -> APIRouter:
    routes = APIRouter(route_class=route)
    _add_sessions(routes, service, metrics)
    _add_searches(routes, service)
    _add_memory(routes, service)
    _add_entries(routes, service)
    return routes


def _add_sessions(routes: APIRouter, service: MemoryService, metrics: Metrics) -> None:
    read = {HTTPStatus.OK: {"model": JobReply, "description": "It has been read, or never will be as it is"}}

    @routes.post("/sessions", status_code=HTTPStatus.ACCEPTED, response_model=JobReply, responses=read)
    async def remember(user: Name, given: NewSession, response: Response, wait: bool = False) -> JobReply:
        """Store a conversation, which is then read into the memory in the background, or before the reply (wait)."""
        job, is_new = await service.remember(user, given.session(), given.digest())
        metrics.count_session(is_new)
        if wait:
            job = await service.settled(job)
        if job.state != "queued":
            response.status_code = HTTPStatus.OK
        response.headers["Location"] = f"/v1/users/{user}/jobs/{job.id}"
        return JobReply.of(job)

    @routes.get("/jobs/{job}")
    async def job_of(user: Name, job: Name) -> JobReply:
        """Tell what became of a session."""
        return JobReply.of(await service.job(user, job))

    @routes.delete("/sessions/{session}", status_code=HTTPStatus.NO_CONTENT)
    async def forget_session(user: Name, session: Name) -> None:
        """Erase a session and all that came of it."""
        await service.forget_session(user, session)


def _add_searches(routes: APIRouter, service: MemoryService) -> None:
    @routes.get("/search")
    async def search(
        user: Name,
        query: Annotated[Words, Query(max_length=MAX_QUERY)],
        k: Annotated[int, Query(ge=1, le=MAX_FOUND)] = 10,
        method: SearchMethod = ANSWERING,
        current_only: bool = True,
    ) -> SearchReply:
        """Find the k entries that fit a text best, the best first; what was replaced only without current_only."""
        return SearchReply.of(await service.search(user, query, k, method, current_only))

    @routes.post("/answer")
    async def answer(user: Name, given: Question) -> AnswerReply:
        """Let the answering model answer from what is found."""
        return AnswerReply.of(await service.answer(user, given.question, given.k, given.asked_at))


def _add_memory(routes: APIRouter, service: MemoryService) -> None:
    @routes.get("/memory", response_model=MemoryReply, responses={HTTPStatus.OK: {"content": {HTML: {}}}})
    async def memory(user: Name, accept: Annotated[str, Header(include_in_schema=False)] = "") -> object:
        """Return the whole memory: as JSON, or in a browser as a page."""
        contents = await service.contents(user)
        if HTML in accept:
            live = Live(address=f"/v1/users/{user}", answers=service.answers)
            return HTMLResponse(render_page(contents.settings, contents.sessions, contents.bank, live))
        return MemoryReply.of(contents)

    @routes.get("/export", response_class=JsonLines)
    async def export(user: Name) -> JsonLines:
        """Return the whole memory as JSON Lines, vectors included, for `import` here or `membuilder.edit` elsewhere."""
        return JsonLines(json_lines(await service.exported(user)))

    @routes.post("/import", status_code=HTTPStatus.CREATED, response_class=Response)
    async def import_memory(user: Name, request: Request) -> Response:
        """Begin a memory with an exported one, sent as the body."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "memory.jsonl"
            with path.open("wb") as file:
                async for part in request.stream():
                    file.write(part)
            await service.import_memory(user, await asyncio.to_thread(read_json_lines, path))
        return Response(status_code=HTTPStatus.CREATED)

    @routes.delete("", status_code=HTTPStatus.NO_CONTENT)
    async def forget_user(user: Name) -> None:
        """Erase all that is there of a user."""
        await service.forget_user(user)


def _add_entries(routes: APIRouter, service: MemoryService) -> None:
    @routes.get("/entries/{entry}")
    async def entry_of(user: Name, entry: Name) -> EntryHistory:
        """Return an entry, what it replaced and what replaced it, and the turns it quotes."""
        contents = await service.contents(user)
        found = next((each for each in contents.bank.entries if each.id == entry), None)
        if found is None:
            raise NotThereError("entry", entry)
        return EntryHistory.of(contents, found, history(contents.bank, entry))

    @routes.patch("/entries/{entry}", status_code=HTTPStatus.NO_CONTENT)
    async def correct(user: Name, entry: Name, given: Correction) -> None:
        """Let an entry say something else from now on; a new entry replaces it, and its history shows both."""
        await service.correct(user, entry, given.text)

    @routes.delete("/entries/{entry}", status_code=HTTPStatus.NO_CONTENT)
    async def forget_entry(user: Name, entry: Name, with_turns: bool = False) -> None:
        """Erase an entry; with its turns also what it quotes and all that came of that."""
        await service.forget_entry(user, entry, with_turns)


def _of_server(service: MemoryService, metrics: Metrics) -> APIRouter:
    routes = APIRouter()

    @routes.get("/health")
    async def health() -> dict[str, str]:
        """Tell that the server runs."""
        return {"status": "ok"}

    not_ready = {"description": "What is needed does not answer", "content": {"application/json": {}}}

    @routes.get("/ready", responses={HTTPStatus.SERVICE_UNAVAILABLE: not_ready})
    async def ready() -> JSONResponse:
        """Tell whether all that the server needs answers, else what does not."""
        problems = await service.problems()
        status = HTTPStatus.SERVICE_UNAVAILABLE if problems else HTTPStatus.OK
        waiting = None if "database" in problems else await service.num_waiting()
        return JSONResponse({"ready": not problems, "problems": problems, "sessions_waiting": waiting}, status)

    @routes.get("/metrics", include_in_schema=False)
    async def numbers() -> Response:
        return metrics.text(await service.num_waiting())

    return routes
