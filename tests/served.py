"""A memory server for tests: its app in this process, over the same code paths as HTTP but without a socket.

with served(tmp_path) as server:
    server.tell("ann", "s1", "I adopted a cat called Miso.")
    server.get("/v1/users/ann/search", query="cat").json()
"""

import asyncio
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import httpx
import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from fastapi import FastAPI

from membuilder.building.config import BuildConfig, Keys
from membuilder.llm.endpoints import ModelEndpoint
from membuilder.serving import run
from membuilder.serving.access import Keys as AccessKeys
from membuilder.serving.limits import RequestLimits
from membuilder.serving.rest import make_app
from membuilder.serving.run import ServerOptions, open_service, run_server
from membuilder.serving.service import MemoryService
from tests.fakes import HashEmbedder
from tests.patience import HANGS

RULES = ModelEndpoint(name="rules", temperature=None)


class ForgettingEmbedder(HashEmbedder):
    def clear(self) -> None:
        self.embedded.clear()


class Served:
    def __init__(self, portal: BlockingPortal, service: MemoryService, app: FastAPI, given: ServerOptions):
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        self._client = httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1")
        self._portal, self.service, self._app, self._options = portal, service, app, given

    @contextmanager
    def listening(self) -> Iterator[str]:
        """Answer on a port of this machine, whose address it gives."""
        server = run._Server(run._uvicorn(self._app, self._options))
        with socket.create_server(("127.0.0.1", 0)) as listener:
            done = self._portal.start_task_soon(server.serve, [listener])
            until = time.monotonic() + HANGS
            while not server.started:
                assert time.monotonic() < until and not done.done(), "the server did not start"
                time.sleep(0.01)
            try:
                yield f"http://127.0.0.1:{listener.getsockname()[1]}"
            finally:
                server.should_exit = True
                done.result(HANGS)

    def request(self, method: str, url: str, **about: object) -> httpx.Response:
        return self._portal.call(partial(self._client.request, method, url, **about))

    def get(self, url: str, **params: object) -> httpx.Response:
        return self.request("GET", url, params=params)

    def delete(self, url: str, **params: object) -> httpx.Response:
        return self.request("DELETE", url, params=params)

    def post(self, url: str, body: object = None, **params: object) -> httpx.Response:
        return self.request("POST", url, json=body, params=params)

    def patch(self, url: str, body: object) -> httpx.Response:
        return self.request("PATCH", url, json=body)

    def tell(self, user: str, session: str | None, *said: str, when: str | None = None, wait: bool = True):
        body = {"messages": [{"role": "user", "name": "Ann", "content": text} for text in said]}
        body |= {"session_id": session} if session else {}
        body |= {"timestamp": when} if when else {}
        return self.post(f"/v1/users/{user}/sessions", body, wait=wait)

    def texts(self, user: str) -> list[str]:
        """What the current entries of a memory say."""
        memory = self.get(f"/v1/users/{user}/memory").json()
        return [entry["text"] for entry in memory["entries"] if entry["id"] in memory["current"]]

    def found(self, user: str, query: str, **params: object) -> list[str]:
        found = self.get(f"/v1/users/{user}/search", query=query, **params).json()["found"]
        return [each["entry"]["text"] for each in found]

    def id_of(self, user: str, words: str) -> str:
        memory = self.get(f"/v1/users/{user}/memory").json()
        return next(entry["id"] for entry in reversed(memory["entries"]) if words in entry["text"])


def options(store: Path | str, model: ModelEndpoint = RULES, **more: object) -> ServerOptions:
    """Describe a server on a folder, or on a database where `store` is an address."""
    more |= {"root": store} if isinstance(store, Path) else {"store": store}
    config = BuildConfig(out="out", model=model, **more.pop("settings", {}))
    return ServerOptions(config=config, keys=Keys(chat="sk-test"), **more)


@contextmanager
def served(
    store: Path | str,
    model: ModelEndpoint = RULES,
    *,
    api_keys: Path | None = None,
    requests: RequestLimits | None = None,
    real_embedder: bool = False,
    **more: object,
) -> Iterator[Served]:
    with pytest.MonkeyPatch.context() as patch, start_blocking_portal() as portal:
        if not real_embedder:
            patch.setattr(run, "Embedder", lambda model: ForgettingEmbedder())
        given = options(store, model, **more)
        with portal.wrap_async_context_manager(open_service(given)) as service:
            app = make_app(service, AccessKeys(api_keys), requests or RequestLimits())
            yield Served(portal, service, app, given)


def serve(store: Path | str, port: int) -> None:
    """Run a whole server in this process until it is told to end, or killed."""
    run.Embedder = lambda model: ForgettingEmbedder()
    asyncio.run(run_server(options(store, port=port)))
