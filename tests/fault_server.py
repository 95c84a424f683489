"""An OpenAI-compatible endpoint on loopback that fails on command. It speaks HTTP byte by byte, so any fault can be
sent.

    with FaultServer(status(429, headers={"retry-after": "1"}), answer("yes")) as server:
        ...  # the first request is refused, each one after it answered with "yes"

`python -m tests.fault_server SECONDS` serves a latency alone in a process of its own and prints its port, as `served`
wants it.
"""

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Self


@dataclass(frozen=True, kw_only=True)
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: dict[str, Any]


Behaviour = Callable[[Request, asyncio.StreamWriter], Awaitable[None]]


def completion(text: str | None, finish_reason: str = "stop", **message: Any) -> dict[str, Any]:
    """A chat completion of 7 prompt and 3 answered tokens."""
    choice = {"index": 0, "finish_reason": finish_reason, "message": {"role": "assistant", "content": text, **message}}
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    return {"id": "c", "object": "chat.completion", "created": 1, "model": "m-1", "choices": [choice], "usage": usage}


def head(status: int, length: int | None, content_type: str = "application/json", **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} Status", f"content-type: {content_type}"]
    lines += [f"content-length: {length}"] if length is not None else ["transfer-encoding: chunked"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def raw(body: bytes, status: int = 200, content_type: str = "application/json", **headers: str) -> Behaviour:
    async def send(_: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(head(status, len(body), content_type, **headers) + body)

    return send


def payload(value: Any) -> Behaviour:
    return raw(json.dumps(value).encode())


def answer(text: str | None, finish_reason: str = "stop", **message: Any) -> Behaviour:
    return payload(completion(text, finish_reason, **message))


def echo(request: Request) -> str:
    return request.body["messages"][-1]["content"]


def answering(reply: Callable[[Request], str], seconds: float = 0.0) -> Behaviour:
    """An answer made from the request, after a while."""

    async def send(request: Request, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(seconds)
        await answer(reply(request))(request, writer)

    return send


def status(code: int, message: str = "no", error_code: str | None = None, **headers: str) -> Behaviour:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return raw(json.dumps({"error": {"message": message, "code": error_code}}).encode(), code, **names)


def refusing_schemas(reply: str, *, only: str | None = None) -> Behaviour:
    """400 to any response_format, or to one whose schema holds the text `only`."""

    async def send(request: Request, writer: asyncio.StreamWriter) -> None:
        asked = json.dumps(request.body.get("response_format"))
        refused = asked != "null" and (only is None or only in asked)
        await (status(400, "response_format is not supported") if refused else answer(reply))(request, writer)

    return send


async def reset_mid_body(_: Request, writer: asyncio.StreamWriter) -> None:
    writer.write(head(200, 5000) + b'{"choices": [')
    await writer.drain()
    writer.transport.abort()


async def close_without_answer(_: Request, writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


async def hang(_: Request, writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(3600)


async def drip(_: Request, writer: asyncio.StreamWriter) -> None:
    """A byte every 20 ms: no single read is ever late."""
    body = json.dumps(completion("slow" * 1000)).encode()
    writer.write(head(200, len(body)))
    for byte in body:
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(0.02)


def announcing(length: int) -> Behaviour:
    """A body far longer than any answer, sent for as long as someone reads it."""

    async def send(_: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(head(200, length))
        while not writer.is_closing():
            writer.write(b" " * 65536)
            await writer.drain()

    return send


@dataclass
class FaultServer:
    script: list[Behaviour]
    """One behaviour per request; the last one stays."""
    requests: list[Request] = field(default_factory=list)
    peak_in_flight: int = 0
    in_flight: int = 0
    port: int = 0

    def __init__(self, *script: Behaviour):
        self.script = list(script)
        self.requests = []

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> Self:
        started = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=[self.serve(started.set)])
        self._thread.start()
        assert started.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        assert not self._thread.is_alive()
        self._loop.close()

    async def serve(self, started: Callable[[], None]) -> None:
        self._stop, self._tasks = asyncio.Event(), set()
        server = await asyncio.start_server(self._connection, "127.0.0.1", self.port, backlog=1024)
        self.port = server.sockets[0].getsockname()[1]
        started()
        await self._stop.wait()
        server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._tasks.add(asyncio.current_task())
        try:
            while not writer.is_closing():
                request = await self._read(reader)
                self.requests.append(request)
                behaviour = self.script.pop(0) if len(self.script) > 1 else self.script[0]
                self.in_flight += 1
                self.peak_in_flight = max(self.peak_in_flight, self.in_flight)
                try:
                    await behaviour(request, writer)
                finally:
                    self.in_flight -= 1
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # the client has left, or the test is over
        finally:
            self._tasks.discard(asyncio.current_task())
            writer.close()

    async def _read(self, reader: asyncio.StreamReader) -> Request:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        method, path, _ = lines[0].split(" ")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:] if line)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        return Request(method=method, path=path, headers=headers, body=json.loads(body or b"{}"))


@contextmanager
def served(*arguments: object) -> Iterator[str]:
    """Run `python -m ARGUMENTS`, a server that prints its port, in a process of its own; gives its base URL."""
    command = [sys.executable, "-m", *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
    finally:
        process.terminate()
        process.wait()


def stub_reply(request: Request) -> str:
    """A verdict where JSON is asked for."""
    return '{"correct": true, "reason": "It says so."}' if "response_format" in request.body else "a stub's answer"


if __name__ == "__main__":
    stub = FaultServer(answering(stub_reply, float(sys.argv[1])))
    asyncio.run(stub.serve(lambda: print(stub.port, flush=True)))
