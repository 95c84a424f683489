"""Two servers on one database while users write to both, and one or the other is killed again and again."""

import os
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.killed import start
from tests.patience import HANGS
from tests.postgres import postgres  # noqa: F401 (a fixture)
from tests.served import serve

USERS, SESSIONS, KILLS = ("ann", "ben", "cas", "dot"), 8, 6


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


class Servers:
    def __init__(self, url: str):
        self._url, self.ports, self._client = url, [free_port(), free_port()], httpx.Client(timeout=HANGS)
        self._processes = [start(serve, url, port) for port in self.ports]

    def kill(self, number: int) -> None:
        process = self._processes[number]
        os.kill(process.pid, signal.SIGKILL)
        process.join(HANGS)
        self._processes[number] = start(serve, self._url, self.ports[number])

    def wait(self, number: int) -> None:
        until = time.monotonic() + HANGS
        while self.ask(number, "GET", "/health") is None:
            assert time.monotonic() < until and self._processes[number].is_alive()
            time.sleep(0.1)

    def ask(self, number: int, method: str, path: str, **about: object) -> httpx.Response | None:
        """None where no server answers."""
        try:
            return self._client.request(method, f"http://127.0.0.1:{self.ports[number]}{path}", **about)
        except httpx.TransportError:
            return None

    def close(self) -> None:
        self._client.close()
        for process in self._processes:
            os.kill(process.pid, signal.SIGKILL)
            process.join(HANGS)


def write(servers: Servers, user: str, acknowledged: list[str]) -> None:
    """Send sessions to the servers in turn, each until it is acknowledged, as a client does."""
    for number in range(SESSIONS):
        said = {"role": "user", "name": user, "content": f"I adopted a cat called Miso{number}."}
        session = {"session_id": f"s{number}", "messages": [said], "timestamp": f"2024-01-{number + 1:02}T10:00:00Z"}
        until, turn = time.monotonic() + HANGS, number
        while True:
            reply = servers.ask(turn % 2, "POST", f"/v1/users/{user}/sessions", json=session)
            if reply is not None and reply.status_code in (200, 202):
                break
            assert (reply is None or reply.status_code == 503) and time.monotonic() < until
            turn += 1
            time.sleep(0.05)
        acknowledged.append(f"{user}/s{number}")


@pytest.mark.slow
def test_what_was_acknowledged_is_there_once_however_often_servers_are_killed(postgres):  # noqa: F811
    servers, acknowledged = Servers(postgres.migrated_database()), []
    try:
        servers.wait(0)
        servers.wait(1)
        with ThreadPoolExecutor(len(USERS)) as threads:
            writing = [threads.submit(write, servers, user, acknowledged) for user in USERS]
            for kill in range(KILLS):
                enough = (kill + 1) * len(USERS) * SESSIONS // (KILLS + 2)
                while len(acknowledged) < enough and not all(each.done() for each in writing):
                    time.sleep(0.02)
                servers.kill(kill % 2)
                servers.wait(kill % 2)
            for each in writing:
                each.result()
        until = time.monotonic() + HANGS
        while servers.ask(0, "GET", "/ready").json() != {"ready": True, "problems": [], "sessions_waiting": 0}:
            assert time.monotonic() < until
            time.sleep(0.1)
        wanted = [f"s{number}" for number in range(SESSIONS)]
        for user in USERS:
            for number in (0, 1):
                memory = servers.ask(number, "GET", f"/v1/users/{user}/memory").json()
                assert [each["id"] for each in memory["sessions"]] == wanted, user
                quoted = sorted(turn for entry in memory["entries"] for turn in entry["source_turns"])
                assert quoted == sorted(f"{name}:1" for name in wanted), user
        assert sorted(acknowledged) == sorted(f"{user}/{name}" for user in USERS for name in wanted)
    finally:
        servers.close()
