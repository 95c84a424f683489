"""The memory server: sessions in, memories searched, answered from, corrected, erased, moved; all over HTTP.

On both of its databases, but for what looks into files of SQLite.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from membuilder.bank.store import reading
from membuilder.errors import StoreError
from membuilder.llm.endpoints import ModelAccess, ModelEndpoint, Provider
from membuilder.serving.service import Limits
from tests.fault_server import FaultServer, Request, answer, status
from tests.patience import HANGS
from tests.postgres import postgres  # noqa: F401 (a fixture)
from tests.served import served

CAT, MOVE, PIANO = "I adopted a cat called Miso.", "I moved to Leeds last week.", "I bought a piano last Tuesday."


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.slow)])
def store(request, tmp_path) -> Path | str:
    return tmp_path / "root" if request.param == "sqlite" else request.getfixturevalue("postgres").migrated_database()


@pytest.fixture
def on_disk(request, store) -> Callable[[], bytes]:
    """Reads all that stands on the disk of a server."""
    if isinstance(store, Path):
        return lambda: b"".join(path.read_bytes() for path in store.rglob("*") if path.is_file())
    return lambda: request.getfixturevalue("postgres").bytes_on_disk(store)


@pytest.fixture
def server(store):
    with served(store) as running:
        yield running


sqlite_only = pytest.mark.parametrize("store", ["sqlite"], indirect=True)


def endpoint(server: FaultServer, **settings: object) -> ModelEndpoint:
    return ModelEndpoint(
        name="m-1", provider=Provider.VLLM, base_url=server.base_url, max_attempts=1, timeout_seconds=60, **settings
    )


# Sessions


def test_a_session_is_read_and_found(server):
    reply = server.tell("ann", "s1", CAT, "Nice weather.")
    assert (reply.status_code, reply.json()["state"]) == (200, "done")
    assert server.get(reply.headers["location"]).json() == reply.json()
    assert server.found("ann", "Which cat?", k=1)[0].endswith(f"Ann: {CAT}")


def test_without_waiting_the_reply_names_a_job_that_gets_done(server):
    reply = server.tell("ann", None, CAT, wait=False)
    assert reply.status_code in (200, 202)
    until = time.monotonic() + HANGS
    while server.get(reply.headers["location"]).json()["state"] != "done" and time.monotonic() < until:
        time.sleep(0.02)
    assert len(server.texts("ann")) == 1


def test_the_same_session_is_the_same_however_often_it_is_sent(server):
    first, again = server.tell("ann", "s1", CAT), server.tell("ann", "s1", CAT)
    assert first.json() == again.json() and len(server.texts("ann")) == 1
    other = server.tell("ann", "s1", MOVE)
    assert other.status_code == 409 and other.json()["type"] == "urn:membuilder:session-conflict"
    assert server.tell("ben", "s1", MOVE).json()["state"] == "done"  # another user's


def test_a_late_session_takes_its_place_in_time(server):
    server.tell("ann", "s1", CAT, when="2024-03-01T10:00:00Z")
    server.tell("ann", "s3", PIANO, when="2024-05-01T10:00:00Z")
    assert server.tell("ann", "s2", MOVE, when="2024-04-01T12:00:00+02:00").json()["state"] == "done"
    memory = server.get("/v1/users/ann/memory").json()
    assert [session["id"] for session in memory["sessions"]] == ["s1", "s2", "s3"]
    assert memory["sessions"][1]["timestamp"] == "2024-04-01T10:00:00Z"
    dates = [entry["text"][:12] for entry in memory["entries"]]
    assert dates == ["[2024-03-01]", "[2024-04-01]", "[2024-05-01]"]


def test_a_long_session_is_read_in_windows_and_erased_as_one(store):
    with served(store, settings={"max_turns": 2}) as server:
        server.tell("ann", "long", CAT, MOVE, PIANO, "I finished my first marathon on Sunday.")
        memory = server.get("/v1/users/ann/memory").json()
        assert [session["id"] for session in memory["sessions"]] == ["long.1", "long.2"]
        assert server.delete("/v1/users/ann/sessions/long").status_code == 204
        assert server.texts("ann") == []


@pytest.mark.parametrize(
    "body",
    [
        {"messages": []},
        {"messages": [{"role": "system", "content": "x"}]},
        {"messages": [{"role": "user", "content": " "}]},
        {"messages": [{"role": "user", "content": "x" * 40_000}]},
        {"messages": [{"role": "user", "content": "x"}], "session_id": "../etc"},
        {"messages": [{"role": "user", "content": "x"}], "session_id": "a/b"},
        {"messages": [{"role": "user", "content": "x"}], "timestamp": "yesterday"},
        {"messages": [{"role": "user", "content": "x"}], "user": "ben"},
        {"messages": [{"role": "user", "content": "x"}] * 1001},
        [],
    ],
)
def test_what_is_no_session_is_refused_without_a_word_of_it(server, body):
    reply = server.post("/v1/users/ann/sessions", body)
    assert reply.status_code == 422 and reply.headers["content-type"] == "application/problem+json"
    assert set(reply.json()) == {"type", "title", "status", "detail", "id", "errors"}
    assert server.get("/v1/users/ann/memory").status_code == 404


def test_half_a_character_is_refused(server):
    body = b'{"messages": [{"role": "user", "content": "\\ud83d"}]}'
    reply = server.request("POST", "/v1/users/ann/sessions", content=body, headers={"content-type": "application/json"})
    assert reply.status_code == 422


# Searching and answering


def test_an_answer_comes_with_what_it_stands_on(store):
    with FaultServer(answer("Miso.")) as model:
        with served(store, answerer=access(model)) as server:
            server.tell("ann", "s1", CAT, MOVE)
            reply = server.post("/v1/users/ann/answer", {"question": "What is the cat called?", "k": 1}).json()
            assert reply["answer"] == "Miso." and [CAT in entry["text"] for entry in reply["entries"]] == [True]
            asked = model.requests[-1].body["messages"][0]["content"]
            assert CAT in asked and MOVE not in asked


def access(model: FaultServer) -> ModelAccess:
    return ModelAccess(endpoint=endpoint(model), api_key="sk-answerer")


def test_without_an_answering_model_nobody_answers(server):
    server.tell("ann", "s1", CAT)
    reply = server.post("/v1/users/ann/answer", {"question": "What is the cat called?"})
    assert (reply.status_code, reply.json()["type"]) == (501, "urn:membuilder:no-answerer")


def test_an_answering_model_that_is_away_is_told(store):
    with FaultServer(status(500)) as model, served(store, answerer=access(model)) as server:
        server.tell("ann", "s1", CAT)
        reply = server.post("/v1/users/ann/answer", {"question": "What is the cat called?"})
    assert (reply.status_code, reply.json()["type"]) == (503, "urn:membuilder:model-unavailable")
    assert int(reply.headers["retry-after"]) > 0


@pytest.mark.parametrize("method", ["dense", "bm25", "hybrid"])
def test_every_way_of_searching_finds(server, method):
    server.tell("ann", "s1", CAT, MOVE, PIANO)
    assert CAT in server.found("ann", "adopted a cat", k=1, method=method)[0]


# Entries


def test_a_corrected_entry_is_found_as_it_is_now_and_keeps_its_history(server):
    server.tell("ann", "s1", CAT, MOVE)
    old = server.id_of("ann", "Miso")
    assert server.patch(f"/v1/users/ann/entries/{old}", {"text": "Ann's cat is called Momo."}).status_code == 204
    assert server.found("ann", "cat Miso", k=1) == ["Ann's cat is called Momo."]
    assert CAT in server.found("ann", "cat Miso", k=1, current_only=False)[0]
    new = server.id_of("ann", "Momo")
    told = server.get(f"/v1/users/ann/entries/{new}").json()
    assert [each["id"] for each in told["history"]] == [old, new] and told["is_current"]
    before = server.get(f"/v1/users/ann/entries/{old}").json()
    assert not before["is_current"] and [turn["text"] for turn in before["turns"]] == [CAT]
    assert server.patch(f"/v1/users/ann/entries/{old}", {"text": "x"}).status_code == 404  # it is no longer current
    server.tell("ann", "s2", PIANO)
    assert len(server.texts("ann")) == 3


def test_an_entry_keeps_its_id_whatever_is_erased_beside_it(server):
    server.tell("ann", "s1", CAT)
    server.tell("ann", "s2", MOVE)
    cat, move = server.id_of("ann", "Miso"), server.id_of("ann", "Leeds")
    assert server.delete(f"/v1/users/ann/entries/{cat}").status_code == 204
    assert server.get(f"/v1/users/ann/entries/{cat}").status_code == 404
    assert MOVE in server.get(f"/v1/users/ann/entries/{move}").json()["entry"]["text"]
    assert server.delete(f"/v1/users/ann/entries/{cat}").status_code == 404


def test_an_erased_entry_takes_what_it_replaced_and_its_correction_along(server, on_disk):
    server.tell("ann", "s1", CAT, MOVE)
    old = server.id_of("ann", "Miso")
    server.patch(f"/v1/users/ann/entries/{old}", {"text": "Ann's cat is called Momo."})
    new = server.id_of("ann", "Momo")
    assert server.delete(f"/v1/users/ann/entries/{new}", with_turns=True).status_code == 204
    assert [MOVE in text for text in server.texts("ann")] == [True]
    assert b"Momo" not in on_disk() and b"Miso" not in on_disk()


# Erasing


def test_an_erased_session_is_gone_with_all_that_came_of_it(server, on_disk):
    server.tell("ann", "s1", CAT)
    server.tell("ann", "s2", MOVE)
    server.patch(f"/v1/users/ann/entries/{server.id_of('ann', 'Miso')}", {"text": "Ann's cat is called Momo."})
    assert server.delete("/v1/users/ann/sessions/s1").status_code == 204
    assert [MOVE in text for text in server.texts("ann")] == [True]
    for word in (b"Miso", b"Momo"):
        assert word not in on_disk()
    assert server.delete("/v1/users/ann/sessions/s1").status_code == 404
    assert server.tell("ann", "s1", CAT).json()["state"] == "done"  # as if it had never been there


def test_an_erased_user_is_gone_from_every_file_and_from_memory(server, on_disk):
    server.tell("ann.lovelace", "secret-session", CAT)
    server.tell("ben", "s1", MOVE)
    assert server.found("ann.lovelace", "Miso", k=1) and b"Miso" in on_disk()
    assert server.delete("/v1/users/ann.lovelace").status_code == 204
    for word in (b"Miso", b"adopted", b"secret-session", b"ann.lovelace"):
        assert word not in on_disk()
    assert server.get("/v1/users/ann.lovelace/search", query="Miso").status_code == 404
    assert server.delete("/v1/users/ann.lovelace").status_code == 404
    assert not server.service._recent._vectors  # nor does this process remember what was asked
    assert len(server.texts("ben")) == 1


def test_an_erasure_that_was_cut_short_is_finished_at_the_next_start(store, on_disk, monkeypatch):
    def fail(*_: object) -> None:
        raise StoreError("disk", "full")

    vault, step = ("sqlite", "erase_traces") if isinstance(store, Path) else ("postgres", "_await_older_snapshots")
    with served(store) as server:
        server.tell("ann", "s1", CAT)
        server.tell("ann", "s2", MOVE)
        with monkeypatch.context() as broken:
            broken.setattr(f"membuilder.serving.{vault}_vault.{step}", fail)
            assert server.delete("/v1/users/ann/sessions/s1").status_code == 503
        assert [MOVE in text for text in server.texts("ann")] == [True]
        assert server.service._vault.unfinished_erasures() == ["ann"] and b"Miso" in on_disk()
    with served(store) as server:
        assert not server.service._vault.unfinished_erasures() and b"Miso" not in on_disk()
        assert [MOVE in text for text in server.texts("ann")] == [True]


# Moving


def test_a_memory_is_exported_and_imported_whole(server):
    server.tell("ann", "s1", CAT, MOVE)
    exported = server.get("/v1/users/ann/export")
    assert exported.headers["content-type"].startswith("application/jsonl")
    assert server.request("POST", "/v1/users/ben/import", content=exported.content).status_code == 201
    assert server.get("/v1/users/ben/memory").json() == server.get("/v1/users/ann/memory").json()
    assert server.tell("ben", "s2", PIANO).json()["state"] == "done"
    again = server.request("POST", "/v1/users/ben/import", content=exported.content)
    assert (again.status_code, again.json()["type"]) == (409, "urn:membuilder:memory-conflict")


def test_an_import_that_is_none_or_of_another_kind_is_refused(server):
    server.tell("ann", "s1", CAT)
    lines = server.get("/v1/users/ann/export").text.splitlines()
    head = json.loads(lines[0])
    head["settings"]["scheme"] = "memalpha"
    other = "\n".join([json.dumps(head), *lines[1:]])
    for content, code in (("", 422), ("{}", 422), ("\n".join(lines[:-1]), 422), (other, 409)):
        assert server.request("POST", "/v1/users/ben/import", content=content.encode()).status_code == code
    assert server.get("/v1/users/ben/memory").status_code == 404


@sqlite_only
def test_a_store_is_one_that_the_other_commands_read(server, tmp_path):
    server.tell("ann", "s1", CAT)
    (path,) = (tmp_path / "root/users").rglob("*.db")
    with reading(path) as store:
        assert store.settings()["dialogue"] == "ann" and len(store.bank().entries) == 1


# What is away


def test_a_session_waits_for_a_model_that_is_away_and_is_read_once_it_is_back(store, monkeypatch):
    monkeypatch.setattr("membuilder.serving.readers.FIRST_PAUSE_SECONDS", 0.1)
    state = {"away": True}

    async def respond(request: Request, writer) -> None:
        behaviour = status(500) if state["away"] else answer('{"operations": [{"action": "ADD", "memory": "A cat."}]}')
        await behaviour(request, writer)

    with FaultServer(respond) as model, served(store, endpoint(model)) as server:
        first = server.tell("ann", "s1", CAT)
        assert first.status_code == 202 and "cannot be had" in first.json()["detail"]
        ready = server.get("/ready")
        assert ready.status_code == 503 and ready.json() == {
            "ready": False, "problems": ["builder"], "sessions_waiting": 1
        }  # fmt: skip
        state["away"] = False
        until = time.monotonic() + HANGS
        while server.get("/ready").status_code != 200 and time.monotonic() < until:
            time.sleep(0.05)
        assert "A cat." in server.texts("ann")


def test_what_waited_when_a_server_ended_is_read_by_the_next(store):
    with FaultServer(status(500)) as model, served(store, endpoint(model)) as server:
        assert server.tell("ann", "s1", CAT).json()["state"] == "queued"
    with FaultServer(answer('{"operations": []}')) as model, served(store, endpoint(model)) as server:
        until = time.monotonic() + HANGS
        while server.get("/ready").json()["sessions_waiting"] and time.monotonic() < until:
            time.sleep(0.05)
        assert [session["id"] for session in server.get("/v1/users/ann/memory").json()["sessions"]] == ["s1"]


@sqlite_only
def test_a_disk_that_is_full_is_told_and_nothing_half_done_is_kept(server, monkeypatch):
    server.tell("ann", "s1", CAT)
    server.service._vault._jobs.execute("PRAGMA max_page_count = 1")
    reply = server.tell("ann", "s2", "x" * 20_000)
    assert (reply.status_code, reply.json()["type"]) == (503, "urn:membuilder:store-unavailable")
    server.service._vault._jobs.execute("PRAGMA max_page_count = 100000")
    assert server.tell("ann", "s2", MOVE).json()["state"] == "done"


def test_above_the_limit_of_waiting_sessions_none_is_taken(store):
    with FaultServer(status(500)) as model, served(store, endpoint(model), limits=Limits(waiting=2)) as server:
        codes = [server.tell("ann", f"s{number}", CAT, wait=False).status_code for number in range(4)]
        assert codes == [202, 202, 503, 503]
