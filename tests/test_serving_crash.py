"""A memory server that is stopped, killed, started twice, or has no room: what it acknowledged is there, once."""

import random
import resource
import signal
import socket
import threading
import time
from contextlib import contextmanager, suppress

import pytest

from tests.fault_server import FaultServer, answer, answering, status
from tests.patience import HANGS, SOON
from tests.serving_processes import Serving
from tests.test_embedding_limits import limited

pytestmark = pytest.mark.slow
KILLS, USERS, SEED = 20, ("ann", "ben", "carol", "dan"), 7


def model_flags(server: FaultServer) -> list[str]:
    flags = {"--build-model": "m-1", "--build-provider": "vllm", "--build-base-url": server.base_url}
    settings = [part for each in ("max_attempts=1", "timeout_seconds=60") for part in ("--build-endpoint", each)]
    return [*(part for pair in flags.items() for part in pair), *settings]


@contextmanager
def writing(server: Serving, acknowledged: dict[str, list[str]], total: int):
    """Four users, each of whom sends a session until it is acknowledged, and then the next one."""
    stop = threading.Event()

    def write(user: str) -> None:
        number = 0
        while not stop.is_set() and number < total:
            with suppress(OSError, IndexError, ValueError):  # killed in the middle: nothing, or half a reply
                reply = server.remember(user, f"s{number}", said(user, number), wait=False)
                if reply.status in (200, 202) and reply.json()["session_id"] == f"s{number}":
                    acknowledged[user].append(f"s{number}")
                    number += 1
                    continue
            stop.wait(0.02)

    threads = [threading.Thread(target=write, args=[user]) for user in USERS]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(HANGS)


def said(user: str, number: int) -> str:
    return f"I bought lamp {number} for {user} last Tuesday."


def wait_until_read(server: Serving) -> None:
    until = time.monotonic() + HANGS
    while server.call("GET", "/ready").json()["sessions_waiting"]:
        assert time.monotonic() < until, server.printed
        time.sleep(0.05)


def test_killed_twenty_times_every_acknowledged_session_is_there_once(tmp_path):
    draw, acknowledged = random.Random(SEED), {user: [] for user in USERS}
    with Serving(tmp_path / "root", tmp_path / "log") as server:
        with writing(server, acknowledged, 10_000):
            for _ in range(KILLS):
                before = sum(map(len, acknowledged.values()))
                until = time.monotonic() + HANGS
                while sum(map(len, acknowledged.values())) <= before:  # each life takes something
                    assert time.monotonic() < until, server.printed
                    time.sleep(0.005)
                time.sleep(draw.uniform(0, 0.1))
                server.signal(signal.SIGKILL)
                server.ended()
                server.start()
        wait_until_read(server)
        for user in USERS:
            memory = server.call("GET", f"/v1/users/{user}/memory").json()
            told = [session["id"] for session in memory["sessions"]]
            assert len(told) == len(set(told)) and set(acknowledged[user]) <= set(told)
            assert len(told) - len(acknowledged[user]) in (0, 1)  # the one that was sent last may have been stored
            turns = [turn["text"] for session in memory["sessions"] for turn in session["turns"]]
            assert turns == [said(user, int(each[1:])) for each in told]
            assert len(memory["entries"]) == len(told)
            assert server.remember(user, "s0", said(user, 0)).json()["state"] == "done"  # the same session still
            assert len(server.call("GET", f"/v1/users/{user}/memory").json()["sessions"]) == len(told)
        assert server.call("GET", "/ready").status == 200
    assert "Traceback" not in server.printed


def test_told_to_end_it_finishes_what_it_reads_and_sends_others_away(tmp_path):
    """Its model takes a moment for each answer."""
    with FaultServer(answering(lambda _: '{"operations": []}', 0.3)) as model:
        flags = [*model_flags(model), "--grace", str(SOON)]
        with Serving(tmp_path / "root", tmp_path / "log", *flags) as server:
            replies = {}

            def tell(name: str) -> None:
                replies[name] = server.remember("ann", name, "I moved.")

            first = threading.Thread(target=tell, args=["s1"])
            first.start()
            while model.in_flight == 0:
                time.sleep(0.01)
            began = time.monotonic()
            server.signal(signal.SIGTERM)
            while (late := server.remember("ann", "s2", "I moved.", wait=False)).status == 202:
                time.sleep(0.01)
            assert (late.status, late.json()["type"]) == (503, "urn:membuilder:busy")
            assert int(late.headers["retry-after"]) > 0
            assert "ending" in server.call("GET", "/ready").json()["problems"]
            assert server.ended() == 0 and time.monotonic() - began < SOON
            first.join(HANGS)
            assert replies["s1"].json()["state"] == "done"
    assert "Traceback" not in server.printed and "I moved" not in server.printed


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_at_once_where_nothing_is_in_flight_though_a_model_is_away(tmp_path, number):
    with FaultServer(status(500)) as model:
        flags = [*model_flags(model), "--grace", "600"]
        with Serving(tmp_path / "root", tmp_path / "log", *flags) as server:
            assert server.remember("ann", "s1", "I moved.").json()["state"] == "queued"
            idle = socket.create_connection(("127.0.0.1", server.port))
            began = time.monotonic()
            server.signal(number)
            assert server.ended() == 0 and time.monotonic() - began < SOON
            idle.close()
    with FaultServer(answer('{"operations": []}')) as model:
        with Serving(tmp_path / "root", tmp_path / "log", *model_flags(model)) as server:
            wait_until_read(server)
            told = server.call("GET", "/v1/users/ann/memory").json()["sessions"]
            assert [each["id"] for each in told] == ["s1"]


def test_what_takes_longer_than_its_grace_is_cut_short_and_still_waits(tmp_path):
    with FaultServer(answering(lambda _: '{"operations": []}', 3600)) as model:
        with Serving(tmp_path / "root", tmp_path / "log", *model_flags(model), "--grace", "1") as server:
            server.remember("ann", "s1", "I moved.", wait=False)
            while model.in_flight == 0:
                time.sleep(0.01)
            began = time.monotonic()
            server.signal(signal.SIGTERM)
            assert server.ended() == 0 and time.monotonic() - began < SOON
    with Serving(tmp_path / "root", tmp_path / "log2", *model_flags(model), "--grace", "1") as server:
        assert server.call("GET", "/ready").json()["sessions_waiting"] == 1


def test_a_second_signal_cuts_short_what_is_in_flight(tmp_path):
    with FaultServer(answering(lambda _: '{"operations": []}', 3600)) as model:
        with Serving(tmp_path / "root", tmp_path / "log", *model_flags(model), "--grace", "3600") as server:
            server.remember("ann", "s1", "I moved.", wait=False)
            while model.in_flight == 0:
                time.sleep(0.01)
            server.signal(signal.SIGINT)
            while "ending" not in server.call("GET", "/ready").json()["problems"]:
                time.sleep(0.01)
            began = time.monotonic()
            server.signal(signal.SIGINT)
            assert server.ended() == 0 and time.monotonic() - began < SOON
            assert "Traceback" not in server.printed
    with Serving(tmp_path / "root", tmp_path / "log2", *model_flags(model), "--grace", "1") as server:
        assert server.call("GET", "/ready").json()["sessions_waiting"] == 1


def test_an_embedding_server_that_is_away_at_the_start_is_waited_for(tmp_path):
    with FaultServer(*[status(503)] * 3, limited()) as embedder:
        flags = ["--embedding-model", "e", "--embedding-provider", "vllm", "--embedding-base-url", embedder.base_url]
        flags += ["--embedding-endpoint", "max_attempts=1"]
        with Serving(tmp_path / "root", tmp_path / "log", *flags) as server:
            assert "asking again" in server.printed and "Traceback" not in server.printed
            assert server.remember("ann", "s1", "I bought a lamp last Tuesday.").json()["state"] == "done"
    with FaultServer(status(401)) as embedder:  # waiting would not help
        flags[flags.index("--embedding-base-url") + 1] = embedder.base_url
        refused = Serving(tmp_path / "root", tmp_path / "refused", *flags)
        refused.launch()
        assert refused.ended() == 2 and "asking again" not in refused.printed


def test_a_second_server_is_refused_with_the_reason(tmp_path):
    with Serving(tmp_path / "root", tmp_path / "log") as server:
        server.remember("ann", "s1", "I bought a lamp last Tuesday.")
        second = Serving(tmp_path / "root", tmp_path / "second")
        second.launch()
        assert second.ended() == 2
        assert "another server runs on this folder" in second.printed and "Traceback" not in second.printed
        same_port = Serving(tmp_path / "other", tmp_path / "third", "--port", str(server.port))
        same_port.launch()
        assert same_port.ended() == 2
        assert "Address already in use" in same_port.printed and "Traceback" not in same_port.printed
        assert server.call("GET", "/v1/users/ann/memory").status == 200


@contextmanager
def no_room(server: Serving):
    """No file of the server may grow, as on a disk that is full; root has no quota otherwise."""
    soft, hard = resource.prlimit(server.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (1, hard))
    try:
        yield
    finally:
        resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_without_room_is_told_and_loses_nothing(tmp_path):
    log = tmp_path / "log"
    with Serving(tmp_path / "root", log) as server:
        assert server.remember("ann", "s1", said("ann", 1)).status == 200
        exported = server.call("GET", "/v1/users/ann/export").body
        entry = server.call("GET", "/v1/users/ann/memory").json()["entries"][0]["id"]
        with no_room(server):
            replies = [
                server.remember("ann", "s2", said("ann", 2)),
                server.remember("ben", "s1", said("ben", 1)),
                server.call("PATCH", f"/v1/users/ann/entries/{entry}", {"text": "Ann has no lamp."}),
                server.call("POST", "/v1/users/carol/import", exported),
            ]
            for number, reply in enumerate(replies):
                assert reply.status == 503 and int(reply.headers["retry-after"]) > 0, (number, reply.raw)
                assert reply.json()["type"] == "urn:membuilder:store-unavailable"
            assert server.call("GET", "/health").status == 200
            # SQLite needs room for its index of the log even to read
            assert server.call("GET", "/v1/users/ann/search?query=lamp&method=bm25").status in (200, 503)
        found = server.call("GET", "/v1/users/ann/search?query=lamp&method=bm25").json()["found"]
        assert [said("ann", 1) in each["entry"]["text"] for each in found] == [True]
        for user, session, number in (("ann", "s2", 2), ("ben", "s1", 1)):
            assert server.remember(user, session, said(user, number)).json()["state"] == "done"
        assert server.call("POST", "/v1/users/carol/import", exported).status == 201
        assert [len(sessions_of(server, user)) for user in ("ann", "ben", "carol")] == [2, 1, 1]


def test_a_disk_that_fills_up_while_a_session_waits_lets_it_wait(tmp_path):
    """Accepted, then not readable into the memory for want of room: it is neither failed nor lost."""
    with FaultServer(answering(lambda _: '{"operations": []}', 0.5)) as model:
        with Serving(tmp_path / "root", tmp_path / "log", *model_flags(model)) as server:
            assert server.remember("ann", "s1", said("ann", 1)).status == 200
            job = server.remember("ann", "s2", said("ann", 2), wait=False)
            assert job.status == 202
            with no_room(server):
                until = time.monotonic() + HANGS
                while server.call("GET", "/ready").status == 200:
                    assert time.monotonic() < until
                    time.sleep(0.05)
                assert server.call("GET", job.headers["location"]).json()["state"] == "queued"
            wait_until_read(server)
            assert server.call("GET", job.headers["location"]).json()["state"] == "done"
            assert sessions_of(server, "ann") == ["s1", "s2"]


def sessions_of(server: Serving, user: str) -> list[str]:
    return [each["id"] for each in server.call("GET", f"/v1/users/{user}/memory").json()["sessions"]]
