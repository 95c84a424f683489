"""Memory servers in processes of their own, on a real socket, to be talked to byte by byte, stopped and killed.

with Serving(tmp_path / "root", tmp_path / "log") as server:
    server.call("POST", "/v1/users/ann/sessions?wait=true", {"messages": [...]})
    server.kill()
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pytest

from membuilder.serving import run
from tests import killed
from tests.patience import HANGS
from tests.served import ForgettingEmbedder


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def serve(arguments: list[str], log: Path) -> None:
    """The command, with another embedder than MiniLM, and all that it prints in a file."""
    from membuilder.serve import main

    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "Embedder", lambda model: ForgettingEmbedder(256))
        sys.exit(main(arguments))


@dataclass(frozen=True)
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes
    raw: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Serving:
    """One folder and port, on which a server can be started again and again."""

    def __init__(self, root: Path, log: Path, *flags: str, is_command: bool = False, **environment: str):
        self.port, self._log, self._is_command = free_port(), log, is_command
        self._environment = environment
        self._arguments = ["--root", str(root), "--port", str(self.port), *map(str, flags)]

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def printed(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")

    @property
    def pid(self) -> int:
        return self._process.pid

    def launch(self) -> None:
        """Start it without waiting until it answers."""
        if not self._is_command:
            self._process = killed.start(serve, self._arguments, self._log)
            return
        with self._log.open("ab") as file:
            command = [sys.executable, "-m", "membuilder.serve", *self._arguments]
            self._process = subprocess.Popen(
                command, stdout=file, stderr=file, env=os.environ | self._environment, start_new_session=True
            )

    def start(self) -> None:
        self.launch()
        until = time.monotonic() + HANGS
        while not self.answers():
            assert self.status is None, self.printed
            assert time.monotonic() < until, "the server does not start"
            time.sleep(0.05)

    def answers(self) -> bool:
        with suppress(OSError):
            return self.call("GET", "/health").status == 200
        return False

    @property
    def status(self) -> int | None:
        """Its exit status; None while it runs."""
        return self._process.poll() if self._is_command else self._process.exitcode

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def ended(self, seconds: float = HANGS) -> int:
        """Wait for its end; gives its exit status."""
        if self._is_command:
            return self._process.wait(seconds)
        self._process.join(seconds)
        assert self._process.exitcode is not None, "it does not end"
        return self._process.exitcode

    def kill(self) -> None:
        if self.status is None:
            self._process.kill()
            self.ended()

    def call(self, method: str, target: str, body: object = None, **headers: str) -> Reply:
        """Send a request as it is written here, whatever a client library would make of it."""
        content = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        headers = {"host": f"127.0.0.1:{self.port}", "connection": "close"} | headers
        headers |= {"content-type": "application/json", "content-length": str(len(content))} if content else {}
        head = [f"{method} {target} HTTP/1.1", *(f"{name.replace('_', '-')}: {each}" for name, each in headers.items())]
        return self.send("\r\n".join([*head, "", ""]).encode() + content)

    def send(self, *parts: bytes) -> Reply:
        """Send bytes, and read until the server closes the connection."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=HANGS) as connection:
            with suppress(BrokenPipeError, ConnectionResetError):  # it may refuse before all is sent
                for part in parts:
                    connection.sendall(part)
            received = b""
            with suppress(ConnectionResetError):
                while more := connection.recv(1 << 16):
                    received += more
        return read_reply(received)

    def remember(self, user: str, session: str, *said: str, wait: bool = True, **headers: str) -> Reply:
        body = {"session_id": session, "messages": [{"role": "user", "content": text} for text in said]}
        return self.call("POST", f"/v1/users/{user}/sessions?wait={str(wait).lower()}", body, **headers)


def read_reply(received: bytes) -> Reply:
    head, _, body = received.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    if headers.get("transfer-encoding") == "chunked":
        body = _dechunked(body)
    return Reply(int(first.split(" ")[1]) if first else 0, headers, body, received)


def _dechunked(body: bytes) -> bytes:
    found = b""
    while body:
        size, _, rest = body.partition(b"\r\n")
        length = int(size, 16)
        found, body = found + rest[:length], rest[length + 2 :]
    return found
