"""Runs a memory server until it is told to end: opens what it needs, answers requests, finishes what is in flight."""

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, closing, contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from pydantic import TypeAdapter, ValidationError

from membuilder.building.builder import Builder, ask_expert, ask_model
from membuilder.building.config import RULES, BuildConfig, Keys
from membuilder.embedding.local import Embedder, TextEmbedder
from membuilder.embedding.naming import identity_of
from membuilder.embedding.options import EmbedderOptions, open_remote
from membuilder.errors import ChatError, ChatErrorKind, ConfigError, MemBuilderError
from membuilder.llm.chat_model import Role
from membuilder.llm.client import ChatClient
from membuilder.llm.costs import Costs
from membuilder.llm.endpoints import ModelAccess
from membuilder.llm.usage import Usage
from membuilder.schemes.load import scheme_of
from membuilder.serving.access import Keys as AccessKeys
from membuilder.serving.errors import ServingError
from membuilder.serving.http_records import Name
from membuilder.serving.limits import RequestLimits
from membuilder.serving.mcp_tools import stdio_server
from membuilder.serving.readers import FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS
from membuilder.serving.recent_embedder import Clearable
from membuilder.serving.rest import make_app
from membuilder.serving.service import Limits, MemoryService
from membuilder.serving.sqlite_vault import SqliteVault
from membuilder.serving.vault import Vault

AWAY = (ChatErrorKind.UNREACHABLE, ChatErrorKind.TIMEOUT, ChatErrorKind.EXHAUSTED)
"""What a server says, or does not, that is not there for now."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerOptions:
    """What a server is started with."""

    root: Path | None = None
    """Folder of the memories; None where `store` is given."""
    store: str | None = None
    """Address of a PostgreSQL database in its place."""
    config: BuildConfig
    keys: Keys
    answerer: ModelAccess | None = None
    host: str = "127.0.0.1"
    port: int = 8800
    api_keys: Path | None = None
    """The file that says which key is for which users; None: everybody on this machine may do everything."""
    grace_seconds: float = 30.0
    """How long the end waits for what is in flight."""
    limits: Limits = field(default_factory=Limits)
    request_limits: RequestLimits = field(default_factory=RequestLimits)


@asynccontextmanager
async def open_service(options: ServerOptions) -> AsyncIterator[MemoryService]:
    """Open the memories and models of a server. Raises MemBuilderError."""
    config, costs = options.config, Costs(usage=Usage(most=10_000))

    @asynccontextmanager
    async def open_builder(embedder: TextEmbedder) -> AsyncIterator[Builder]:
        scheme = scheme_of(config)
        async with AsyncExitStack() as stack:
            if config.model.name == RULES:
                ask = ask_expert(scheme)
            else:
                client = await stack.enter_async_context(ChatClient(config.chat(options.keys), Role.BUILDER, costs))
                ask = ask_model(client, scheme, config.on_bad_operation)
            builder = Builder(ask=ask, embedder=embedder, scheme=scheme)
            stack.callback(builder.close)
            yield builder

    async with AsyncExitStack() as stack:
        vault = _vault(options)
        stack.callback(vault.close)
        of_embedder = config.embedder(options.keys)
        embedder = await _embedder(of_embedder, costs)
        if of_embedder.provider is not None:
            stack.enter_context(closing(embedder))
        identity = identity_of(embedder, of_embedder)
        answerer = None
        if options.answerer is not None:
            answerer = await stack.enter_async_context(ChatClient(options.answerer, Role.ANSWERER, costs))
        service = MemoryService(vault, config, open_builder, embedder, identity, answerer, options.limits)
        yield await stack.enter_async_context(service)


def _vault(options: ServerOptions) -> Vault:
    if options.store is None:
        return SqliteVault(options.root)
    from membuilder.serving.postgres_vault import PostgresVault  # who keeps files needs no psycopg

    return PostgresVault(options.store, options.limits.parallel)


async def run_server(options: ServerOptions) -> None:
    """Answer requests until SIGTERM or SIGINT; a second one cuts short what is in flight. SIGHUP reads the keys again.

    Raises MemBuilderError.
    """
    keys = AccessKeys(options.api_keys)
    async with open_service(options) as service, AsyncExitStack() as stack:
        server = _Server(_uvicorn(make_app(service, keys, options.request_limits), options))
        listening = stack.enter_context(_listening(options.host, options.port))
        loop, ended, hurried = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()

        def end() -> None:
            (hurried if ended.is_set() else ended).set()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, end)
        loop.add_signal_handler(signal.SIGHUP, _read_again, keys)
        running = asyncio.create_task(server.serve([listening]))
        address = f"http://{options.host}:{options.port}"
        print(f"serving {options.root or 'a database'} at {address} (API: /openapi.json); Ctrl-C ends it", flush=True)
        ending, hurrying = (asyncio.create_task(each.wait()) for each in (ended, hurried))
        await asyncio.wait({running, ending}, return_when=asyncio.FIRST_COMPLETED)
        until = loop.time() + options.grace_seconds
        finishing = asyncio.create_task(service.close(options.grace_seconds))  # new requests are told to come again
        await asyncio.wait({finishing, hurrying}, return_when=asyncio.FIRST_COMPLETED)
        if not finishing.cancel():  # it had ended by itself
            finishing.result()
        server.config.timeout_graceful_shutdown = max(0.0, until - loop.time())
        server.should_exit = True
        await asyncio.wait({running, hurrying}, return_when=asyncio.FIRST_COMPLETED)
        for request in [] if running.done() else server.server_state.tasks:
            request.cancel()
        await running
        for each in (ending, hurrying):
            each.cancel()


async def run_over_stdio(options: ServerOptions, user: str) -> None:
    """Offer one user's memory as tools, until standard input, SIGTERM or SIGINT ends it. Raises MemBuilderError."""
    try:
        TypeAdapter(Name).validate_python(user)
    except ValidationError:
        raise ConfigError(f"{user!r} is no name of a user: it may hold letters, digits and . _ @ : + -") from None
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    async with AsyncExitStack() as stack:
        with redirect_stdout(sys.stderr):  # only the protocol may stand there; from here on the SDK sees to it
            service = await stack.enter_async_context(open_service(options))
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, ended.set)
        running = asyncio.create_task(stdio_server(service, user).run_stdio_async())
        ending = asyncio.create_task(ended.wait())
        await asyncio.wait({running, ending}, return_when=asyncio.FIRST_COMPLETED)
        await service.close(options.grace_seconds)
    if not running.done():
        os._exit(0)  # all is closed, but a thread of the SDK waits for standard input and cannot be told to end
    ending.cancel()
    await running


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to `run_server`."""
        yield


def _uvicorn(app: FastAPI, options: ServerOptions) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        host=options.host,
        port=options.port,
        lifespan="on",
        log_config=None,
        access_log=False,  # a request's path names a user
        server_header=False,
        ws="none",
        timeout_keep_alive=30,
    )


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family, backlog=2048)
        # asyncio does it for sockets that name their protocol; without it each reply waits 40 ms for an acknowledgement
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listening
    except OSError as error:
        problem = f"{error.strerror}; name another (--host, --port), or end what listens there"
        raise ServingError(f"{host}, port {port}: {problem}") from error


def _read_again(keys: AccessKeys) -> None:
    try:
        keys.read()
    except MemBuilderError as error:
        _log.error("the keys stay as they were: %s", error)


async def _embedder(options: EmbedderOptions, costs: Costs) -> Clearable:
    """Open the embedder without a cache on disk, from which an erased text's vector could not be told.

    A server that is away is waited for: after a power cut it may come up later than this one.
    """
    if options.provider is None:
        return Embedder(options.model)
    pause = FIRST_PAUSE_SECONDS
    while True:
        try:
            return open_remote(options, costs)
        except ChatError as error:
            if error.kind not in AWAY:
                raise
            _log.warning("nothing can be served before the embedding model is there; asking again: %s", error)
        await asyncio.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
