"""What a vault in PostgreSQL adds to what `test_serving.py` asks of both: many servers, a database that is away."""

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import psycopg
import pytest
from anyio.from_thread import start_blocking_portal

from membuilder import serve as command
from membuilder.errors import ConfigError, StoreError
from membuilder.serving import postgres_vault
from membuilder.serving.errors import InUseError
from membuilder.serving.postgres_tables import migrate, name_of, parameters_of
from membuilder.serving.postgres_vault import PostgresVault
from membuilder.serving.vault import JobState
from membuilder.types import Session, Turn
from tests.patience import HANGS
from tests.postgres import postgres  # noqa: F401 (a fixture)
from tests.served import Served, served

CAT, MOVE, PIANO = "I adopted a cat called Miso.", "I moved to Leeds last week.", "I bought a piano last Tuesday."


@pytest.fixture
def store(postgres) -> str:  # noqa: F811
    return postgres.migrated_database()


@pytest.fixture
def vault(store) -> Iterator[PostgresVault]:
    """What another process would have."""
    opened = PostgresVault(store, 4)
    yield opened
    opened.close()


@pytest.fixture
def quick_looks(monkeypatch) -> None:
    monkeypatch.setattr("membuilder.serving.readers.LOOK_SECONDS", 0.1)
    monkeypatch.setattr("membuilder.serving.readers.FIRST_PAUSE_SECONDS", 0.1)


def session(name: str, *said: str) -> Session:
    turns = (Turn(id=f"{name}:{n}", speaker="Ann", role="user", text=text) for n, text in enumerate(said, start=1))
    return Session(id=name, index=0, timestamp=datetime.now(UTC), turns=tuple(turns))


@contextmanager
def changed_elsewhere(vault: PostgresVault, user: str) -> Iterator[None]:
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(vault.changing(user, True)):
        yield


def wait_until(holds) -> None:
    until = time.monotonic() + HANGS
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.05)


def session_ids(server: Served, user: str) -> list[str]:
    return [each["id"] for each in server.get(f"/v1/users/{user}/memory").json()["sessions"]]


# Several servers


def test_what_one_server_changes_another_finds(store):
    with served(store) as one, served(store) as other:
        one.tell("ann", "s1", CAT, MOVE)
        assert CAT in other.found("ann", "adopted a cat", k=1)[0]
        assert other.tell("ann", "s1", CAT, MOVE).json()["state"] == "done" and len(one.texts("ann")) == 2
        assert other.tell("ann", "s1", PIANO).status_code == 409
        other.patch(f"/v1/users/ann/entries/{other.id_of('ann', 'Miso')}", {"text": "Ann's cat is called Momo."})
        assert one.found("ann", "cat", k=1, current_only=True) == ["Ann's cat is called Momo."]
        assert one.delete("/v1/users/ann").status_code == 204
        assert other.get("/v1/users/ann/search", query="cat").status_code == 404
        other.tell("ann", "s1", PIANO)
        assert len(one.texts("ann")) == 1


def test_a_session_that_a_dead_server_took_is_read_by_a_live_one(store, vault, quick_looks):
    with served(store) as server:
        job, _ = vault.accept("ann", session("s1", CAT), "digest")
        wait_until(lambda: vault.job("ann", job.id).state is JobState.DONE)
        assert session_ids(server, "ann") == ["s1"] and vault.job("ann", job.id).session is None


def test_what_another_server_reads_is_not_read_beside_it_nor_twice(store, vault, quick_looks):
    with served(store) as server:
        with changed_elsewhere(vault, "ann"):
            reply = server.tell("ann", "s1", CAT, wait=False)
            time.sleep(1)
            job = server.get(reply.headers["location"]).json()
            assert (job["state"], job["attempts"]) == ("queued", 0)
            assert server.get("/ready").status_code == 200
        assert server.tell("ann", "s1", CAT).json()["state"] == "done"
        assert session_ids(server, "ann") == ["s1"] and len(server.texts("ann")) == 1


def test_who_waits_to_change_a_memory_comes_before_who_reads_on(vault, store):
    async def tried() -> list[str]:
        done, others = [], [PostgresVault(store, 4) for _ in range(2)]

        async def erase() -> None:
            async with others[0].changing("ann", True):
                done.append("erased")

        async with vault.changing("ann", False):
            erasing = asyncio.create_task(erase())
            await asyncio.sleep(0.3)
            with pytest.raises(InUseError):
                async with others[1].changing("ann", False):
                    done.append("both")
            async with others[1].changing("ben", False):
                done.append("ben")
        with pytest.raises(InUseError):
            async with others[1].changing("ann", False):
                done.append("read on")
        await erasing
        async with others[1].changing("ann", False):
            done.append("read")
        for each in others:
            each.close()
        return done

    assert asyncio.run(tried()) == ["ben", "erased", "read"]


def test_who_lost_its_connection_writes_no_more(vault, store, postgres):  # noqa: F811
    settings = {"dialogue": "ann", "speakers": [], "dimension": 2}

    async def written() -> None:
        async with vault.changing("ann", False):
            with vault.writing("ann", settings) as memory:
                end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
                postgres.execute(f"{end} AND datname = current_database()", store)
                memory.replace(memory.memory())

    with pytest.raises(StoreError):
        asyncio.run(written())

    async def free() -> None:
        async with vault.changing("ann", False):
            pass

    asyncio.run(free())


# A database that is away


def test_a_database_that_is_away_is_told_and_all_goes_on_once_it_is_back(store, postgres, quick_looks):  # noqa: F811
    with served(store) as server:
        server.tell("ann", "s1", CAT)
        postgres.stop()
        try:
            assert server.get("/health").status_code == 200
            for reply in (server.tell("ann", "s2", MOVE), server.get("/v1/users/ann/search", query="cat")):
                assert (reply.status_code, reply.json()["type"]) == (503, "urn:membuilder:store-unavailable")
            ready = server.get("/ready")
            assert (ready.status_code, ready.json()["problems"]) == (503, ["database"])
        finally:
            postgres.start()
        wait_until(lambda: server.get("/ready").status_code == 200)
        assert server.tell("ann", "s2", MOVE).json()["state"] == "done"
        assert session_ids(server, "ann") == ["s1", "s2"]


def test_a_database_that_is_not_there_ends_the_start_without_the_password():
    with pytest.raises(StoreError) as told:
        PostgresVault("postgresql://ann:secret-word@127.0.0.1:1/memories", 4)
    assert "secret-word" not in str(told.value) and "postgresql://127.0.0.1:1/memories" in str(told.value)
    with pytest.raises(ConfigError) as told:
        parameters_of("postgresql//ann:secret-word@host")
    assert "secret-word" not in str(told.value)


@pytest.mark.parametrize("places", [(), ("--root", "folder", "--store", "postgresql://host/memories")])
def test_memories_are_in_one_place(places, capsys):
    assert command.main([*places]) == 2
    assert "a folder (--root), or a database instead (--store)" in capsys.readouterr().err


# Erasing


def test_what_an_older_transaction_still_sees_is_told_and_erased_after_it(store, postgres, monkeypatch):  # noqa: F811
    monkeypatch.setattr(postgres_vault, "_SNAPSHOT_SECONDS", 0.3)
    with served(store) as server, psycopg.connect(store) as reader:
        server.tell("ann", "s1", CAT)
        reader.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        reader.execute("SELECT 1")
        assert server.delete("/v1/users/ann/sessions/s1").json()["type"] == "urn:membuilder:store-unavailable"
        assert server.texts("ann") == [] and b"Miso" in postgres.bytes_on_disk(store)
        reader.rollback()
        assert server.delete("/v1/users/ann/sessions/s1").status_code == 404
        assert b"Miso" not in postgres.bytes_on_disk(store)


def test_no_statistics_hold_what_was_said(store, postgres):  # noqa: F811
    with served(store) as server:
        for number in range(5):
            server.tell("ann", f"s{number}", CAT)
        postgres.execute("ANALYZE", store)
        seen = "SELECT string_agg(coalesce(most_common_vals::text, '') || histogram_bounds::text, ' ') FROM pg_stats"
        ((words,),) = postgres.execute(f"{seen} WHERE schemaname = 'membuilder'", store)
        assert "Miso" not in (words or "") and "ann" not in (words or "")


# Tables


def test_a_memory_comes_back_as_it_was_stored(tmp_path, store, vault):
    with served(tmp_path) as server:
        server.tell("ann", "s1", CAT, MOVE, when="2024-03-01T10:00:00Z")
        server.patch(f"/v1/users/ann/entries/{server.id_of('ann', 'Miso')}", {"text": "Ann's cat is called Momo."})
        with server.service._vault.reading("ann") as source:
            memory = source.memory()
    odd = "NUL \0, escape \x1a, both \x1a0\x1a1\0, quotes '\", \N{SNOWMAN} \N{CAT FACE}"
    first = memory.sessions[0]
    turns = (replace(first.session.turns[0], text=odd, caption=odd), *first.session.turns[1:])
    sessions = (replace(first, session=replace(first.session, turns=turns), core=odd), *memory.sessions[1:])
    entries = (replace(memory.entries[0], text=odd), *memory.entries[1:])
    vectors = np.random.default_rng(0).normal(size=memory.vectors.shape).astype(np.float32)
    deleted = {memory.entries[1].id: 1, memory.entries[0].id: 1}
    memory = replace(memory, sessions=sessions, entries=entries, vectors=vectors, deleted=deleted)

    async def stored() -> None:
        async with vault.changing("ann", False):
            with vault.writing("ann", memory.settings) as target:
                target.replace(memory)

    asyncio.run(stored())
    with vault.reading("ann") as target:
        back = target.memory()
    assert (back.settings, back.sessions, back.entries) == (memory.settings, memory.sessions, memory.entries)
    assert back.vectors.dtype == np.float32 and np.array_equal(back.vectors, vectors)
    assert list(back.deleted.items()) == list(deleted.items())
    assert [list(each.answers) for each in back.sessions] == [list(each.answers) for each in memory.sessions]


def test_tables_of_a_later_version_are_left_alone(store, postgres):  # noqa: F811
    postgres.execute("UPDATE membuilder.alembic_version SET version_num = '9999'", store)
    with pytest.raises(StoreError, match="of a later version"):
        PostgresVault(store, 4)


@pytest.mark.slow
def test_servers_that_start_at_once_make_the_tables_once(postgres):  # noqa: F811
    url = postgres.new_database()
    with ThreadPoolExecutor(3) as threads:
        list(threads.map(lambda _: migrate(parameters_of(url)), range(3)))
    assert postgres.execute("SELECT count(*) FROM membuilder.alembic_version", url) == [(1,)]
    assert name_of(parameters_of(url)).endswith(url.split("/")[3].split("?")[0])
