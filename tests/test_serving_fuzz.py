"""The memory server under requests that nobody should send: Schemathesis against its own schema, and 10,000 of ours.

None of these is answered by a fault, changes what others have, or stays in the process for good.
"""

import json
import random
import re
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.config import SchemathesisConfig
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.patience import HANGS
from tests.serving_processes import Reply, Serving, read_reply

pytestmark = pytest.mark.slow
SEED, EXAMPLES, REQUESTS, WARM_UP, MB = 11, 25, 10_000, 3_000, 1 << 20
NO_HTTP = b"Invalid HTTP request received."
"""What uvicorn itself says of an address that is too long, before there is a request."""
LAMP = "I bought a lamp last Tuesday."


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    with Serving(folder / "root", folder / "log") as running:
        running.remember("keeper", "s1", LAMP)
        running.kept = running.call("GET", "/v1/users/keeper/export").body
        yield running
        assert "Traceback" not in running.printed, running.printed[-5000:]


def keeps_all(server: Serving) -> bool:
    """What one user has is as it was, whatever was sent for others."""
    return server.call("GET", "/v1/users/keeper/export").body == server.kept


CHECKS = [status_code_conformance, content_type_conformance, response_schema_conformance]


def test_schemathesis_finds_the_server_to_be_what_its_schema_says(server):
    document = server.call("GET", "/openapi.json").json()
    schema = schemathesis.openapi.from_dict(document, config=SchemathesisConfig.from_dict({}))
    codes = set()
    how = settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.generate],
    )

    def check(case) -> None:
        if (case.path_parameters or {}).get("user") != "keeper":
            response = case.call(base_url=f"http://127.0.0.1:{server.port}", timeout=HANGS)
            codes.add(response.status_code)
            if response.content != NO_HTTP:
                case.validate_response(response, checks=CHECKS)

    for operation in schema.get_all_operations():
        for mode in schemathesis.GenerationMode:
            with suppress(Unsatisfiable):  # what takes nothing cannot be given anything wrong
                how(given(operation.ok().as_strategy(generation_mode=mode))(check))()
    assert {404, 422} <= codes and codes <= {200, 201, 202, 204, 400, 401, 404, 405, 409, 413, 422, 501, 503}
    assert keeps_all(server) and server.call("GET", "/ready").status == 200


# Our own fuzzer. Each kind of request gives what is sent, in parts.


class Fuzzer:
    def __init__(self, server: Serving):
        self.server, self.draw = server, random.Random(SEED)

    def user(self) -> str:
        return f"u{self.draw.randrange(8)}"

    def junk(self, depth: int = 0) -> object:
        kind = self.draw.randrange(12 if depth < 3 else 9)
        if kind < 9:
            return (
                None, True, -1, 10**400, 1e308, "", "\x00\x1b[2J", "\ud800", "9999-12-31T23:59:59-14:00",
            )[kind]  # fmt: skip
        if kind == 9:
            return [self.junk(depth + 1) for _ in range(self.draw.randrange(4))]
        if kind == 10:
            return {self.draw.choice(["a", "role", "content", "session_id", "\ud800"]): self.junk(depth + 1)}
        return "é𝄞漢" * self.draw.randrange(2000)

    def head(self, method: str, target: str, length: int | None, *lines: str) -> bytes:
        host = f"host: 127.0.0.1:{self.server.port}"
        said = [] if length is None else [f"content-length: {length}"]
        return "\r\n".join([f"{method} {target} HTTP/1.1", host, *said, "connection: close", *lines, "", ""]).encode()

    def request(self, method: str, target: str, body: bytes = b"", kind: str = "application/json") -> list[bytes]:
        return [self.head(method, target, len(body), f"content-type: {kind}"), body]

    def body_of(self, user: str) -> dict:
        session = f"s{self.draw.randrange(40)}"
        turn = {"role": "user", "content": f"I bought a chair of {user} last Friday."}
        return {"session_id": session, "timestamp": "2024-03-01T10:00:00Z", "messages": [turn]}

    def valid(self) -> list[bytes]:
        user = self.user()
        entry, job = f"{self.draw.getrandbits(64):016x}", f"{self.draw.getrandbits(128):032x}"
        base, word = (
            f"/v1/users/{user}",
            self.draw.choice(["chair", "lamp", "Friday", "x" * self.draw.randrange(1, 3000)]),
        )
        return self.draw.choice(
            [
                lambda: self.request("POST", f"{base}/sessions", json.dumps(self.body_of(user)).encode()),
                lambda: self.request("GET", f"{base}/search?query={word}&k=3&method=bm25"),
                lambda: self.request("GET", f"{base}/search?query={word}"),
                lambda: self.request("GET", f"{base}/memory"),
                lambda: self.request("GET", f"{base}/export"),
                lambda: self.request("GET", f"{base}/entries/{entry}"),
                lambda: self.request("GET", f"{base}/jobs/{job}"),
                lambda: self.request("PATCH", f"{base}/entries/{entry}", b'{"text": "x"}'),
                lambda: self.request("DELETE", f"{base}/entries/{entry}"),
                lambda: self.request("DELETE", f"{base}/sessions/s{self.draw.randrange(40)}"),
                lambda: self.request("DELETE", f"/v1/users/{job}"),
                lambda: self.request("GET", f"/v1/users/{job}/memory"),
                lambda: self.request("DELETE", base),
            ]
        )()

    def wrong_types(self) -> list[bytes]:
        user = self.user()
        body = self.body_of(user)
        place = self.draw.choice([body, body["messages"][0]])
        place[self.draw.choice([*place, "extra"])] = self.junk()
        body = body if self.draw.random() < 0.9 else self.junk()
        way = self.draw.choice(["POST sessions", "POST answer", "PATCH entries/x", "POST import"])
        method, path = way.split()
        return self.request(method, f"/v1/users/{user}/{path}", json.dumps(body).encode())

    def wrong_words(self) -> list[bytes]:
        value = self.draw.choice(
            ["", "%00", "%ff", "-1", "1e9", "9" * 5000, "a" * 8000, "%f0%9d%84%9e", "nan", "true&k=2"]
        )
        name = self.draw.choice(["k", "query", "method", "current_only", "wait", "with_turns", "x"])
        path = self.draw.choice(["search", "memory", "export", "sessions/x", "entries/x", value])
        method = self.draw.choice(["GET", "GET", "DELETE", "PUT", "HEAD", "OPTIONS", "TRACE", "POST"])
        return self.request(method, f"/v1/users/{self.user()}/{path}?query=x&{name}={value}")

    def deep(self) -> list[bytes]:
        depth = self.draw.choice([100, 5_000, 100_000])
        nested = self.draw.choice([b"[" * depth, b"[" * depth + b"]" * depth, b'{"a":' * depth + b"1" + b"}" * depth])
        body = self.draw.choice([nested, b'{"messages": %s}' % nested, b'{"timestamp": %s, "messages": []}' % nested])
        return self.request(
            "POST", f"/v1/users/{self.user()}/{self.draw.choice(['sessions', 'answer', 'import'])}", body
        )

    def huge(self) -> list[bytes]:
        user, text = self.user(), "w" * self.draw.choice([32_000, 32_001, 1_900_000, 2_100_000])
        if self.draw.random() < 0.7:
            query = "+".join(f"{self.draw.getrandbits(40):x}" for _ in range(2_500))
            return self.request("GET", f"/v1/users/{user}/search?query={query}")
        body = json.dumps({"messages": [{"role": "user", "content": text}]}).encode()
        return self.request("POST", f"/v1/users/{user}/sessions", body)

    def binary(self) -> list[bytes]:
        kind = self.draw.choice(["application/json", "multipart/form-data; boundary=x", "text/plain", "\xff", "a/b; c"])
        path = self.draw.choice(["sessions", "answer", "import"])
        return self.request(
            "POST", f"/v1/users/{self.user()}/{path}", self.draw.randbytes(self.draw.randrange(3000)), kind
        )

    def damaged_memory(self) -> list[bytes]:
        lines = self.server.kept.split(b"\n")
        for _ in range(self.draw.randrange(1, 3)):
            number = self.draw.randrange(len(lines))
            line = bytearray(lines[number])
            if line:
                line[self.draw.randrange(len(line))] = self.draw.randrange(256)
            lines[number] = bytes(line)
        return self.request("POST", f"/v1/users/import{self.draw.randrange(3)}/import", b"\n".join(lines))

    def bad_http(self) -> list[bytes]:
        path = f"/v1/users/{self.user()}/sessions"
        chunked = self.head("POST", path, None, "transfer-encoding: chunked", "content-type: application/json")
        return [
            self.draw.choice(
                [
                    self.draw.randbytes(self.draw.randrange(1, 400)),
                    b"GET /\r\n\r\n",
                    b"GET / HTTP/9.9\r\n\r\n",
                    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
                    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
                    self.head("GET", path, None, "x: " + "y" * 70_000),
                    self.head("GET", path, None, *(f"x{n}: y" for n in range(3000))),
                    self.head("GET", "/" + "p" * 70_000, None),
                    self.head("POST", path, 5, "transfer-encoding: chunked") + b"0\r\n\r\nGET / HTTP/1.1\r\n\r\n",
                    self.head("POST", path, 5, "content-length: 6") + b"{}",
                    chunked + b"zz\r\n{}\r\n0\r\n\r\n",
                    chunked + b"-2\r\n{}\r\n0\r\n\r\n",
                    chunked + b"fffffffffffffffff\r\n{}",
                    self.head("GET", path, None, "upgrade: websocket", "sec-websocket-key: x"),
                    self.head("GET", path, None, "expect: 100-continue", "bad header line"),
                    self.head("G\x00T", path, None),
                    b"POST " + path.encode() + b" HTTP/1.1\r\ncontent-length: 3\r\n\r\n{}x",
                ]
            )
        ]

    def cut(self) -> list[bytes]:
        whole = b"".join(self.draw.choice([self.valid, self.wrong_types, self.damaged_memory])())
        return [whole[: self.draw.randrange(1, len(whole))]]

    def one(self) -> tuple[str, list[bytes]]:
        kinds: dict[Callable[[], list[bytes]], int] = {
            self.valid: 30, self.wrong_types: 20, self.wrong_words: 15, self.deep: 3, self.huge: 2, self.binary: 8,
            self.damaged_memory: 5, self.bad_http: 10, self.cut: 7,
        }  # fmt: skip
        (kind,) = self.draw.choices([*kinds], [*kinds.values()])
        return kind.__name__, kind()


def send(server: Serving, parts: list[bytes], is_cut: bool) -> Reply:
    """Send it, then no more: what is cut is half-closed."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=HANGS) as connection:
        received = b""
        with suppress(ConnectionError):
            for part in parts:
                connection.sendall(part)
            if is_cut:
                connection.shutdown(socket.SHUT_WR)
            while more := connection.recv(1 << 16):
                received += more
    return read_reply(received)


def resident(server: Serving) -> int:
    status = Path(f"/proc/{server.pid}/status").read_text(encoding="utf-8")
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) * 1024


def test_ten_thousand_bad_requests_cost_nothing_that_stays(server):
    fuzzer, codes, before, told = Fuzzer(server), set(), 0, []
    for number in range(REQUESTS):
        kind, parts = fuzzer.one()
        reply = send(server, parts, kind in ("cut", "bad_http"))
        assert reply.status < 500 or reply.status in (501, 503), (kind, parts, reply.raw)
        assert reply.status or kind in ("cut", "bad_http", "huge"), (kind, parts)
        codes.add(reply.status)
        owner = re.search(rb"/v1/users/(u\d)/", parts[0])
        others = set(re.findall(rb"chair of (u\d)", reply.body)) - {owner and owner[1]}
        assert not others and LAMP.encode() not in reply.body, (kind, parts, reply.raw)
        if number % 500 == 0:
            told.append(f"s{number}")
            assert (
                server.remember("witness", told[-1], f"I bought table {number} last Friday.").json()["state"] == "done"
            )
        if number == WARM_UP:
            before = settled_resident(server)
    after = settled_resident(server)
    assert keeps_all(server) and server.call("GET", "/ready").status == 200
    sessions = server.call("GET", "/v1/users/witness/memory").json()["sessions"]
    assert sorted(each["id"] for each in sessions) == sorted(told)
    assert not (missing := {200, 204, 400, 404, 405, 409, 413, 422} - codes), missing  # it reached all of these
    assert after - before < 50 * MB, f"{before / MB:.0f} MB after the warm-up, {after / MB:.0f} MB at the end"


def settled_resident(server: Serving) -> int:
    """Bytes in memory once all that waited is read and all users of the fuzzer are gone."""
    until = time.monotonic() + HANGS
    while server.call("GET", "/ready").json()["sessions_waiting"]:
        assert time.monotonic() < until
        time.sleep(0.05)
    for user in (*(f"u{number}" for number in range(8)), *(f"import{number}" for number in range(3))):
        server.call("DELETE", f"/v1/users/{user}")
    return resident(server)
