"""A memory server for tests that listens on loopback, in a thread of this process.

with listening(tmp_path) as address:
    Client(address).remember("ann", [{"role": "user", "content": "I adopted a cat called Miso."}])
"""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import uvicorn
from anyio.from_thread import start_blocking_portal

from membuilder.llm.endpoints import ModelEndpoint
from membuilder.serving import run
from membuilder.serving.access import Keys, new_key
from membuilder.serving.limits import RequestLimits
from membuilder.serving.rest import make_app
from membuilder.serving.run import open_service
from tests.fakes import HashEmbedder
from tests.fault_server import Request, payload
from tests.served import RULES, ForgettingEmbedder, options


@contextmanager
def listening(
    root: Path, model: ModelEndpoint = RULES, *, requests: RequestLimits | None = None, **more: object
) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch, start_blocking_portal() as portal:
        patch.setattr(run, "Embedder", lambda model: ForgettingEmbedder())
        given = options(root, model, **more)
        with portal.wrap_async_context_manager(_running(given, requests or RequestLimits())) as address:
            yield address


async def embedding(request: Request, writer: asyncio.StreamWriter) -> None:
    """A server that embeds, for commands: loading MiniLM would take them seconds."""
    rows = HashEmbedder().embed(request.body["input"]).tolist()
    await payload({"data": [{"index": number, "embedding": row} for number, row in enumerate(rows)]})(request, writer)


def key_for(file: Path, *users: str) -> str:
    """A key for these users, added to a file of keys."""
    key, line = new_key(list(users))
    with file.open("a") as lines:
        lines.write(f"{line}\n")
    return key


@asynccontextmanager
async def _running(given: run.ServerOptions, requests: RequestLimits) -> AsyncIterator[str]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        async with open_service(given) as service:
            app = make_app(service, Keys(given.api_keys), requests)
            server = uvicorn.Server(run._uvicorn(app, given))
            running = asyncio.create_task(server._serve([listener]))  # `serve` takes the signals of the process
            while not server.started:
                assert not running.done(), "the server did not start"
                await asyncio.sleep(0.01)
            try:
                yield f"http://127.0.0.1:{listener.getsockname()[1]}"
            finally:
                server.should_exit = True
                await running
