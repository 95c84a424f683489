"""What waits in a memory server does not wait for ever, is told, and leaves nothing behind."""

import asyncio
import threading
import time

from membuilder.errors import ChatErrorKind, StoreError
from membuilder.llm.chat_model import Role
from membuilder.llm.usage import Usage
from membuilder.serving.memory_writer import MemoryWriter
from membuilder.serving.recent_embedder import RecentEmbedder
from membuilder.serving.sqlite_vault import SqliteVault
from tests.fault_server import FaultServer, status
from tests.patience import HANGS, SOON
from tests.served import ForgettingEmbedder, Served, served
from tests.test_serving import CAT, MOVE, endpoint


def eventually(holds) -> None:
    until = time.monotonic() + HANGS
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.02)


def ready(server: Served) -> dict:
    return server.get("/ready").json()


def test_who_waits_behind_a_session_that_cannot_be_read_is_told_so(tmp_path):
    with FaultServer(status(500)) as model, served(tmp_path, endpoint(model)) as server:
        assert server.tell("ann", "s1", CAT).json()["state"] == "queued"
        began = time.monotonic()
        reply = server.tell("ann", "s2", MOVE)  # its turn comes once s1 is read
        assert (reply.status_code, reply.json()["state"], reply.json()["attempts"]) == (202, "queued", 0)
        assert time.monotonic() - began < SOON
        assert ready(server) == {"ready": False, "problems": ["builder"], "sessions_waiting": 2}
        assert server.delete("/v1/users/ann").status_code == 204  # with her goes what was wrong
        eventually(lambda: ready(server) == {"ready": True, "problems": [], "sessions_waiting": 0})
        assert not server.service._readers._attempts and not server.service._readers._tasks


def test_who_waits_for_a_session_that_is_erased_is_told_so(tmp_path):
    with FaultServer(status(500)) as model, served(tmp_path, endpoint(model)) as server:
        server.tell("ann", "s1", CAT)
        codes = []
        waiting = threading.Thread(target=lambda: codes.append(server.tell("ann", "s2", MOVE).status_code))
        waiting.start()
        eventually(lambda: ready(server)["sessions_waiting"] == 2)
        assert server.delete("/v1/users/ann").status_code == 204
        waiting.join(HANGS)
        assert codes in ([202], [404])  # told of the attempt at s1, or that there is no such job


def test_a_database_that_is_away_for_a_moment_ends_no_reading(tmp_path, monkeypatch):
    with served(tmp_path) as server:
        vault, failures = server.service._vault, [StoreError("jobs", "away"), OSError(28, "No space left on device")]
        waiting = vault.next_waiting

        def unsteady(user=None):
            if failures:
                raise failures.pop(0)
            return waiting(user)

        monkeypatch.setattr(vault, "next_waiting", unsteady)
        server.tell("ann", "s1", CAT, wait=False)
        eventually(lambda: not failures and ready(server)["ready"] and not ready(server)["sessions_waiting"])
        assert len(server.texts("ann")) == 1


def test_of_each_user_one_change_is_made_at_a_time(tmp_path):
    writer, inside, most = MemoryWriter(SqliteVault(tmp_path), None, None, {}, None), 0, 0

    async def change() -> None:
        nonlocal inside, most
        async with writer._change("ann"):
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0.01)
            inside -= 1

    async def main() -> None:
        first = [asyncio.create_task(change()) for _ in range(3)]
        for _ in range(10):  # one comes whenever another ends
            await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
            first = [each for each in first if not each.done()] + [asyncio.create_task(change())]
        await asyncio.gather(*first)

    asyncio.run(main())
    assert most == 1 and not writer._changing


def test_nothing_stays_of_what_was_refused(tmp_path):
    with served(tmp_path) as server:
        for number in range(30):
            assert server.delete(f"/v1/users/u{number}").status_code == 404
            assert server.get(f"/v1/users/u{number}/search", query="x").status_code == 404
            assert server.request("BREW", f"/{number}").status_code == 404
        service = server.service
        assert not service._writer._changing and not service._memories._opening and not service._readers._woken
        shown = server.get("/metrics").text
        assert "BREW" not in shown and shown.count("membuilder_request_seconds_count") < 10


def test_what_is_remembered_of_requests_has_a_limit():
    embedder = RecentEmbedder(ForgettingEmbedder(16), size=3)
    texts = [f"{number} " + "long " * 1000 for number in range(5)]
    for text in texts:
        embedder.embed([text])
    assert [embedder.knows(text) for text in texts] == [False, False, True, True, True]
    assert all(len(name) == 16 and row.base is None for name, row in embedder._vectors.items())
    usage = Usage(most=3)
    for _ in range(5):
        usage.add_failure(Role.BUILDER, ChatErrorKind.TIMEOUT)
    assert usage.total()["failed_attempts"] == {"timeout": 3}


def test_texts_are_embedded_in_one_thread_whoever_asks():
    threads = set()

    class Watched(ForgettingEmbedder):
        def embed(self, texts):
            threads.add(threading.current_thread())
            return super().embed(texts)

    embedder = RecentEmbedder(Watched(16))
    asking = [threading.Thread(target=embedder.embed, args=([str(number)],)) for number in range(4)]
    for each in asking:
        each.start()
    for each in asking:
        each.join()
    assert len(threads) == 1 and not threads & {*asking, threading.main_thread()}


def test_a_time_that_no_calendar_has_in_utc_is_refused(tmp_path):
    with served(tmp_path) as server:
        for when in ("0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", 1e300, -1e15):
            assert server.tell("ann", "s1", CAT, when=when).status_code == 422
        assert server.tell("ann", "s1", CAT, when="0001-01-01T00:00:00Z").json()["state"] == "done"
        assert server.tell("ann", "s2", MOVE, when="9999-12-31T23:59:59Z").json()["state"] == "done"
        assert server.request("GET", "/v1/users/ann/memory", headers={"accept": "text/html"}).status_code == 200


def test_what_is_damaged_in_an_exported_memory_is_told_as_damage(tmp_path):
    """What a fuzzer found: a place that msgspec names no key of, and an embedder that is none."""
    with served(tmp_path) as server:
        server.tell("ann", "s1", CAT)
        exported = server.get("/v1/users/ann/export").text
        for said, damaged in (
            ('"asked_at": "', '"asked_at": "x'),
            ('"embedding_probe": "', '"embedding_probe": "x'),
            ('"embedding_probe": "', '"embedding_probe": 7, "x": "'),
            ('"embedding_provider": null', '"embedding_provider": 7'),
        ):
            assert said in exported
            content = exported.replace(said, damaged, 1).encode()
            reply = server.request("POST", "/v1/users/ben/import", content=content)
            assert (reply.status_code, reply.json()["type"]) == (422, "urn:membuilder:bad-memory"), damaged
