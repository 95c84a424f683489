"""The durable store: what goes in comes out, a session at a time or not at all, one writer, and errors that say what to
do.
"""

import os
import signal
import sqlite3
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from membuilder.bank.index import IndexConfig
from membuilder.bank.indexed_bank import open_memory
from membuilder.bank.retrieve import retrieve
from membuilder.bank.store import Store, reading, writing
from membuilder.bank.store_rows import Answer, Reason
from membuilder.errors import StoreError
from membuilder.types import Agent, Bank, CoreQuote, Entry, Operation, OperationKind, Session, Turn
from tests.fakes import HashEmbedder
from tests.scripted import START

CORE, EPISODIC, SEMANTIC, PROCEDURAL = Agent
SETTINGS = {"dialogue": "d", "speakers": ["Ann", "Ben"], "model": "scripted", "dimension": 2, "prompts": {"k": [20]}}


def session(number: int, *texts: str) -> Session:
    turns = tuple(
        Turn(id=f"D{number}:{n}", speaker="Ann", role="user", text=text, caption="a cat" if n == 2 else None)
        for n, text in enumerate(texts, start=1)
    )
    return Session(id=f"D{number}", index=number, timestamp=START + timedelta(days=number), turns=turns)


def entry(number: int, agent: Agent, of: Session, text: str, supersedes: tuple[str, ...] = ()) -> Entry:
    return Entry(
        id=f"m{number}",
        agent=agent,
        text=text,
        session=of.index,
        timestamp=of.timestamp,
        source_turns=(f"{of.id}:1",) if agent is EPISODIC else (),
        supersedes=supersedes,
    )


FIRST, SECOND = session(0, "I adopted a cat.", "\U0001f408 Zoë\x00\nsays hi"), session(1, "Its name is Miso.")
BANK_1 = Bank(
    core="Ann: I adopted a cat.",
    core_quotes=(CoreQuote(turn_id="D0:1", text="Ann: I adopted a cat."),),
    entries=(entry(1, EPISODIC, FIRST, "a cat"), entry(2, SEMANTIC, FIRST, "cats \U0001f408")),
)
BANK_2 = replace(BANK_1, entries=(*BANK_1.entries, entry(3, EPISODIC, SECOND, "a cat called Miso", ("m1",))))
VECTORS = np.array([[1, 0], [0.1, -0.7], [1 / 3, 1e-38]], dtype=np.float32)
ANSWERS_1 = {
    CORE: Answer(
        text='{"operation": "APPEND", "quote": [1]}',
        operations=(Operation(kind=OperationKind.APPEND, quote=(1,)),),
        seconds=0.25,
        asked_at=datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC),
    ),
    EPISODIC: Answer(text=None, failure=Reason(kind="chat_truncated", detail="reached the token limit")),
    SEMANTIC: Answer(text="half a pair \ud83d", failure=Reason(kind="not_json", detail="at \ud83d")),
    PROCEDURAL: Answer(
        text="{}",
        operations=(
            Operation(kind=OperationKind.UPDATE, text="new", targets=("e1",)),
            Operation(kind=OperationKind.REPLACE, text="b", old_text="a"),
        ),
        shown=("m2", "m1"),
    ),
}


def filled(path: Path) -> Path:
    with writing(path, SETTINGS) as store:
        store.append(FIRST, ANSWERS_1, BANK_1, VECTORS[:2])
        store.append(SECOND, {}, BANK_2, VECTORS[2:])
    return path


def refused(path: Path, says: str, settings: dict = SETTINGS) -> None:
    """Both ways of opening end in this error, unless only writing can show it."""
    with pytest.raises(StoreError, match=says) as caught, writing(path, settings):
        pass
    assert caught.value.path == str(path)


def test_what_goes_in_comes_out(tmp_path):
    with reading(filled(tmp_path / "memory.db")) as store:
        assert store.settings() == SETTINGS
        assert store.bank() == BANK_2
        assert store.vectors().dtype == np.float32 and (store.vectors() == VECTORS).all()
        first, second = store.sessions()
    assert (first.session, second.session) == (FIRST, SECOND)
    assert (first.core, first.core_quotes) == (BANK_1.core, BANK_1.core_quotes)
    # half a surrogate pair is no text to a database: it is kept as its escape
    odd = Answer(text="half a pair \\ud83d", failure=Reason(kind="not_json", detail="at \\ud83d"))
    assert first.answers == ANSWERS_1 | {SEMANTIC: odd}
    assert second.answers == {}


def test_a_new_store_is_an_empty_bank(tmp_path):
    with writing(tmp_path / "deep" / "memory.db", SETTINGS) as store:
        assert (store.bank(), store.sessions(), store.vectors().shape) == (Bank(), (), (0, 2))


def test_the_log_is_written_ahead_and_flushed(tmp_path):
    with writing(tmp_path / "memory.db", SETTINGS) as store:
        assert store.connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert store.connection.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL


def test_a_session_is_stored_whole_or_not_at_all(tmp_path):
    path = filled(tmp_path / "memory.db")
    third = session(2, "new")
    twice = replace(BANK_2, entries=(*BANK_2.entries, replace(entry(4, SEMANTIC, third, "x"), id="m1")))
    with writing(path, SETTINGS) as store:
        with pytest.raises(StoreError, match="UNIQUE.*entry.id"):
            store.append(third, {}, twice, VECTORS[:1])
        assert (store.bank(), store.num_sessions()) == (BANK_2, 2)
        store.append(third, {}, BANK_2, VECTORS[:0])  # and the store goes on
        assert [turn.id for turn in store.sessions()[2].session.turns] == ["D2:1"]


def test_a_full_disk_is_an_error_of_its_own_and_loses_nothing(tmp_path):
    path = filled(tmp_path / "memory.db")
    third = session(2, "long " * 40_000)
    with writing(path, SETTINGS) as store:
        (pages,) = store.connection.execute("PRAGMA page_count").fetchone()
        store.connection.execute(f"PRAGMA max_page_count = {pages + 3}")
        with pytest.raises(StoreError, match="no room left.*Make room and run"):
            store.append(third, {}, BANK_2, VECTORS[:0])
        assert store.bank() == BANK_2
        store.connection.execute("PRAGMA max_page_count = 100000")
        store.append(third, {}, BANK_2, VECTORS[:0])
    with reading(path) as store:
        assert store.num_sessions() == 3


def test_files_that_are_no_store_of_this_version_are_refused_and_left_alone(tmp_path):
    text, other, newer = tmp_path / "notes.db", tmp_path / "other.db", filled(tmp_path / "newer.db")
    text.write_text("not a database, but longer than the header of one " * 10)
    for path, change in ((other, "CREATE TABLE t (x)"), (newer, "PRAGMA user_version = 7")):
        connection = sqlite3.connect(path)
        connection.execute(change)
        connection.close()
    for path, says in (
        (text, "not a SQLite file"),
        (other, "not a memory store"),
        (newer, "schema version 7, this program reads 2"),
    ):
        before = path.read_bytes()
        refused(path, says)
        with pytest.raises(StoreError, match=says), reading(path):
            pass
        assert path.read_bytes() == before
    with pytest.raises(StoreError, match="no such store"), reading(tmp_path / "absent.db"):
        pass
    assert not (tmp_path / "absent.db").exists()


def test_a_build_with_other_settings_is_refused_by_name(tmp_path):
    path = filled(tmp_path / "memory.db")
    refused(path, "model='scripted' .now 'rules'.", SETTINGS | {"model": "rules"})
    refused(path, "extra=None .now 1.", SETTINGS | {"extra": 1})


def test_embeddings_that_do_not_fit_the_entries_are_damage(tmp_path):
    path = filled(tmp_path / "memory.db")
    for damage in ("DELETE FROM embedding WHERE entry = 2", "UPDATE embedding SET vector = x'00' WHERE entry = 1"):
        with writing(path, SETTINGS) as store:
            store.connection.execute(damage)
            with pytest.raises(StoreError, match="3 entries, but.*build anew"):
                store.vectors()


def test_a_reader_sees_one_state_while_a_build_goes_on(tmp_path):
    path = tmp_path / "memory.db"
    with writing(path, SETTINGS) as writer:
        writer.append(FIRST, ANSWERS_1, BANK_1, VECTORS[:2])
        with reading(path) as reader:
            assert reader.bank() == BANK_1
            writer.append(SECOND, {}, BANK_2, VECTORS[2:])
            assert reader.bank() == BANK_1
        with reading(path) as reader:
            assert reader.bank() == BANK_2


HOLD = """
import sys, time
from membuilder.bank.store import writing
with writing(sys.argv[1], {"dimension": 2}):
    print("open", flush=True)
    time.sleep(600)
"""


def test_a_second_process_is_refused_until_the_first_is_gone(tmp_path):
    path = tmp_path / "memory.db"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "open\n"
        refused(path, f"process {holder.pid} is writing to it", {"dimension": 2})
        with reading(path) as store:
            assert store.num_sessions() == 0
    finally:
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
    with writing(path, {"dimension": 2}) as store:  # the system released the lock
        assert isinstance(store, Store)


def test_a_folder_that_cannot_be_made_is_an_error_of_the_store(tmp_path):
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file" / "memory.db", "cannot be written")


# Memory: a store opened to be asked


def test_an_opened_memory_finds_what_plain_retrieval_finds(tmp_path):
    texts = ["red bike", "a cat called Miso", "cat", "a cat called Miso", "bread and salt", "cat food"]
    agents = [EPISODIC, SEMANTIC, EPISODIC, EPISODIC, PROCEDURAL, SEMANTIC]
    entries = tuple(
        entry(n, agent, FIRST, text, ("m3",) if n == 6 else ())
        for n, (agent, text) in enumerate(zip(agents, texts, strict=True), start=1)
    )
    bank, embedder = Bank(core="c", entries=entries), HashEmbedder(64)
    with writing(tmp_path / "memory.db", SETTINGS | {"dimension": 64}) as store:
        store.append(FIRST, {}, bank, embedder.embed(texts))
    memory = open_memory(tmp_path / "memory.db", embedder, IndexConfig(gpu=False))
    assert memory.bank == bank
    for superseded in (True, False):
        for k in (0, 1, 3, 10):
            expected = retrieve(bank, ["cat Miso", "salt"], embedder, k, include_superseded=superseded)
            assert memory.retrieve(["cat Miso", "salt"], k, superseded) == expected
    with pytest.raises(StoreError, match="have 32 numbers instead of 64"):
        open_memory(tmp_path / "memory.db", HashEmbedder(32))


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE session SET timestamp = 'yesterday'",
        "UPDATE session SET core_quotes = '[1'",
        "UPDATE answer SET operations = '{}'",
        "UPDATE answer SET shown = 'e1'",
        "UPDATE entry SET source_turns = 'D1:1'",
        "UPDATE setting SET value = '{'",
        "DELETE FROM setting WHERE name = 'dimension'",
        "PRAGMA foreign_keys = OFF; UPDATE entry SET session = 99",
    ],
)
def test_a_store_that_was_changed_from_outside_is_refused(tmp_path, change):
    path = filled(tmp_path / "memory.db")
    with sqlite3.connect(path) as connection:
        connection.executescript(change)
    with pytest.raises(StoreError, match="no build writes .*build anew"), reading(path) as store:
        store.settings(), store.bank(), store.vectors()
