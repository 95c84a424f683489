"""Memories of the writer in stores: built by the command, shown, exported, edited and gone on with."""

import hashlib
import json
import sqlite3
from collections.abc import Sequence
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from membuilder import build, edit, inspect
from membuilder.bank.forget import forget
from membuilder.bank.html_page import render_page
from membuilder.bank.indexed_bank import open_memory
from membuilder.bank.json_lines import import_json_lines, write_json_lines
from membuilder.bank.store import Store, reading, writing
from membuilder.bank.store_rows import Answer, StoredMemory
from membuilder.building import dialogues
from membuilder.building.retry import digest_of
from membuilder.types import Bank, Operation, OperationKind
from tests.fakes import HashEmbedder
from tests.fault_server import Behaviour, FaultServer, Request, answer, answering, completion, payload
from tests.memalpha_chunks import bank_of, call, chunk, insert

TALK = (
    ["I adopted a cat called Miso.", "I live in Oslo."],
    ["Please forget my old phone.", "I moved to Rome last week."],
    ["Miso ran away on Sunday.", "Nothing else."],
)
ANSWERS = (
    insert("semantic", "Ann has a cat, Miso.")
    + call("memory_insert", memory_type="semantic", lines=[2])
    + call("memory_update", memory_type="core", new_content="Ann. She has a phone.")
    + insert("episodic", "2024-03-15: Ann adopted Miso."),
    call("memory_update", memory_type="semantic", memory_id="m2", lines=[2])
    + call("memory_delete", memory_type="core")
    + call("memory_delete", memory_type="semantic", memory_id="m9")
    + "<tool_call>{broken</tool_call>",
    call("memory_delete", memory_type="semantic", memory_id="Ann has a cat, Miso.")
    + call("memory_insert", memory_type="episodic", lines=[1])
    + insert("episodic", "2024-03-15: Ann adopted Miso."),
)


@pytest.fixture(autouse=True)
def small_embedder(monkeypatch, tmp_path):
    monkeypatch.setattr(dialogues, "embedder_of", lambda options, costs: nullcontext(HashEmbedder()))
    monkeypatch.setenv("MEMBUILDER_CACHE", str(tmp_path.parent / "cache"))


def talk_file(path: Path) -> Path:
    told = [
        {"timestamp": f"2024-03-{day}T09:30", "turns": [{"speaker": "Ann", "text": text} for text in turns]}
        for day, turns in enumerate(TALK, start=15)
    ]
    path.write_text(json.dumps({"id": "talk", "speakers": ["Ann"], "sessions": told, "questions": []}) + "\n")
    return path


def reply(request: Request) -> str:
    asked = "\n".join(each["content"] for each in request.body["messages"])
    return next((answer for lines, answer in zip(TALK, ANSWERS, strict=True) if lines[0] in asked), "yes")


def built(folder: Path, *flags: str, model: str = "m-1", serve: Sequence[Behaviour] = ()) -> Path:
    path = folder / "memory.db"
    given = ["--dataset", "custom", "--dataset-path", str(talk_file(folder / "talk.jsonl")), "--scheme", "memalpha"]
    given += ["--model", model, "--out", str(path), *flags]
    if model == "rules":
        assert build.main(given) == 0
        return path
    with FaultServer(*(serve or [answering(reply)])) as server:
        assert build.main([*given, "--provider", "vllm", "--base-url", server.base_url]) == 0
        assert server.requests[-1].body["tools"][0]["function"]["name"] == "memory_insert"
    return path


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    """The store of all three answers, which no test changes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dialogues, "embedder_of", lambda options, costs: nullcontext(HashEmbedder()))
        return built(tmp_path_factory.mktemp("built"))


def contents(path: Path) -> StoredMemory:
    with reading(path) as store:
        return store.memory()


def bank(path: Path) -> Bank:
    with reading(path) as store:
        return store.bank()


def same(one: StoredMemory, other: StoredMemory) -> bool:
    def plain(memory: StoredMemory) -> tuple:
        return memory.settings, memory.sessions, memory.entries, list(memory.deleted.items())

    return plain(one) == plain(other) and np.array_equal(one.vectors, other.vectors)


def version(path: Path) -> int:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute("PRAGMA user_version").fetchone()[0]


def test_a_model_behind_an_endpoint_writes_a_store(path):
    held = bank(path)
    assert [(entry.id, entry.agent, entry.text) for entry in held.current()] == [
        ("m3", "episodic", "2024-03-15: Ann adopted Miso."),
        ("m4", "semantic", "[2024-03-16] Ann: I moved to Rome last week."),
        ("m5", "episodic", "[2024-03-17] Ann: Miso ran away on Sunday."),
    ]
    assert held.core == "" and held.deleted == ("m2", "m1") and contents(path).deleted == {"m2": 1, "m1": 2}
    sessions = contents(path).sessions
    assert [each.core for each in sessions] == ["Ann. She has a phone.", "", ""]
    answers = [each.answers["writer"] for each in sessions]
    assert [len(each.operations) for each in answers] == [4, 2, 2]
    dropped = [[each.kind for each in answer.dropped] for answer in answers]
    assert dropped == [[], ["unknown_id", "not_json"], ["duplicate"]]
    assert all(answer.failure is None for answer in answers)
    assert answers[2].operations[0].targets == ("m1",)  # whatever the model called it
    assert version(path) == 3


def test_a_build_that_was_stopped_goes_on_to_the_same_memory(path, tmp_path):
    assert bank(built(tmp_path, "--sessions", "2")).deleted == ("m2",)
    assert bank(built(tmp_path)) == bank(path)


def test_what_failed_is_asked_again_and_later_calls_mean_the_entries_that_they_meant(path, tmp_path):
    def fails_first(request: Request) -> str:
        said = reply(request)
        return "<tool_call>{broken</tool_call>" if said == ANSWERS[0] else said

    built(tmp_path, "--max-failed", "1", serve=(answering(fails_first),))
    before = contents(tmp_path / "memory.db")
    failures = [each.answers["writer"].failure for each in before.sessions]
    assert [None if each is None else each.kind for each in failures] == ["not_json", "unknown_target", None]
    assert [entry.id for entry in before.entries] == ["m1", "m2"] and before.deleted == {}
    built(tmp_path, "--retry-failed")
    assert bank(tmp_path / "memory.db").entries[:4] == bank(path).entries[:4]
    assert bank(tmp_path / "memory.db").deleted == ("m2",)  # the third answer stands as it was: its call had failed


def test_calls_that_the_server_names_apart_are_the_same(tmp_path):
    given = {"memory_type": "semantic_memory", "content": "Ann has a cat."}
    named = [{"id": "1", "type": "function", "function": {"name": "memory_insert", "arguments": json.dumps(given)}}]
    said = payload(completion(None, "tool_calls", tool_calls=named))
    path = built(tmp_path, "--sessions", "1", serve=(answer("yes"), said))
    assert [entry.text for entry in bank(path).entries] == ["Ann has a cat."]


def test_the_offline_expert_writes_a_store(tmp_path, capsys):
    path = built(tmp_path, model="rules")
    assert {entry.agent for entry in bank(path).entries} <= {"semantic", "episodic"} and bank(path).entries
    said = capsys.readouterr().out
    assert f"{len(bank(path).current())} entries" in said and "failed answers: none" in said
    settings = contents(path).settings
    assert settings["scheme"] == "memalpha" and settings["memalpha"]["core_limit_tokens"] == 512
    assert "memalpha/full/system" in settings["templates_sha256"]
    (tmp_path / "other").mkdir()
    excluded = built(tmp_path / "other", "--exclude-memory", "episodic,core", model="rules")
    assert {entry.agent for entry in bank(excluded).entries} == {"semantic"}


def test_inspect_shows_what_was_deleted_and_what_replaced_it(path, capsys):
    inspect.main([str(path)])
    shown = capsys.readouterr().out
    assert "5 entries (3 semantic, 2 episodic), 1 of them superseded, 1 deleted" in shown and "Miso" in shown
    inspect.main([str(path), "--session", "2"])
    shown = capsys.readouterr().out
    assert "deleted:" in shown and "m1" in shown and "dropped, duplicate" in shown
    inspect.main([str(path), "--entry", "m4"])
    shown = capsys.readouterr().out
    assert "m2" in shown and "writer answered" in shown and "dropped, unknown_id" in shown
    memory = contents(path)
    page = render_page(memory.settings, memory.sessions, bank(path))
    assert '"deleted":["m2","m1"]' in page and '"parts":["semantic","episodic"]' in page


def test_what_was_deleted_is_not_found_in_an_opened_store(path):
    found = open_memory(path, HashEmbedder()).retrieve(["Who has a cat called Miso?"], k=10)[0]
    assert sorted(entry.id for entry in found.entries) == ["m3", "m4", "m5"]
    assert len(found.scores) == 3 and all(np.isfinite(found.scores))


def test_export_and_import_keep_what_was_deleted(path, tmp_path):
    write_json_lines(contents(path), tmp_path / "memory.jsonl")
    lines = (tmp_path / "memory.jsonl").read_text()
    assert '{"record": "deleted", "entry": "m2", "session": 1}' in lines
    import_json_lines(tmp_path / "memory.jsonl", tmp_path / "imported.db")
    assert same(contents(tmp_path / "imported.db"), contents(path)) and bank(tmp_path / "imported.db") == bank(path)
    for wrong in ('"entry": "m7", "session": 1', '"entry": "m2", "session": 9', '"entry": "m1", "session": 2'):
        (tmp_path / "bad.jsonl").write_text(lines.replace('"entry": "m2", "session": 1', wrong))
        assert edit.main([str(tmp_path / "bad.db"), "import", str(tmp_path / "bad.jsonl")]) == 2
        assert not (tmp_path / "bad.db").exists()


def test_an_edited_memory_keeps_its_deletions_under_new_names(path):
    memory = contents(path)
    without = forget(memory, entries={"m3"}).memory
    assert [entry.id for entry in without.entries] == ["m1", "m2", "m3", "m4"]
    assert without.deleted == {"m2": 1, "m1": 2} and without.entries[2].supersedes == ("m2",)
    deleting = without.sessions[2].answers["writer"]
    assert deleting.operations[0].targets == ("m1",)
    # what replaced m2 is gone, so that it is part of the memory again
    assert forget(memory, entries={"m4"}).memory.deleted == {"m1": 2}
    last = forget(memory, sessions={2}).memory
    assert last.deleted == {"m2": 1} and [entry.id for entry in last.entries] == ["m1", "m2", "m3", "m4"]
    first = forget(memory, entries={"m1"}).memory
    assert [each.part for each in first.sessions[2].answers["writer"].operations] == ["episodic"]
    assert first.sessions[2].answers["writer"].text is None and first.deleted == {"m1": 1}


def test_a_store_without_deletions_has_the_bytes_of_one_before_there_were_any(tmp_path):
    path = tmp_path / "memory.db"
    answers = {"semantic": Answer(text="{}", operations=(Operation(kind=OperationKind.ADD, text=', "part": null'),))}
    with writing(path, {"dimension": 2}) as store:
        store.append(chunk("a"), answers, bank_of(("semantic", "a")), np.zeros((1, 2), dtype=np.float32))
    assert version(path) == 2
    with closing(sqlite3.connect(path)) as connection:
        ((operations,),) = connection.execute("SELECT operations FROM answer").fetchall()
    written = '"kind":"ADD","text":", \\"part\\": null","quote":[],"targets":[],"old_text":null'
    assert operations == f"[{{{written}}}]"
    write_json_lines(contents(path), tmp_path / "memory.jsonl")
    lines = (tmp_path / "memory.jsonl").read_text()
    assert lines.count("part") == 1 and "deleted" not in lines
    assert contents(path).sessions[0].answers == answers
    with closing(sqlite3.connect(path)) as connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    assert tables == {"setting", "session", "turn", "answer", "entry", "embedding"}


def test_a_retry_that_was_begun_before_there_were_parts_goes_on():
    operation = Operation(kind=OperationKind.ADD, text="a", targets=("m1",))
    before = "Operation(kind=<OperationKind.ADD: 'ADD'>, text='a', quote=(), targets=('m1',), old_text=None)"
    assert (
        digest_of(operation) == hashlib.sha256(before.encode()).hexdigest() != digest_of(replace(operation, part="a"))
    )


def test_a_rebuilt_or_replaced_store_holds_the_deletions_of_the_other(path, tmp_path):
    memory = contents(path)
    with writing(tmp_path / "plain.db", memory.settings) as store:
        store.append(chunk("a"), {}, bank_of(("semantic", "a")), np.zeros((1, 4096), dtype=np.float32))
        store.take_over(path)
        assert store.deleted() == memory.deleted and same(store.memory(), memory)
        store.replace(replace(memory, deleted={}))
        assert store.deleted() == {} and len(store.bank().current()) == 4
        store.replace(memory)
        assert same(store.memory(), memory)


def test_entries_of_a_part_that_the_scheme_lacks_are_refused(tmp_path, capsys):
    path = built(tmp_path, "--sessions", "1")
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE entry SET agent = 'diary' WHERE id = 'm1'")
    given = ["--dataset", "custom", "--dataset-path", str(tmp_path / "talk.jsonl"), "--scheme", "memalpha"]
    with FaultServer(answering(reply)) as server:
        more = ["--provider", "vllm", "--base-url", server.base_url, "--model", "m-1", "--out", str(path)]
        assert build.main([*given, *more]) == 2
    assert "holds entries of 'diary', which is none of core, semantic, episodic" in capsys.readouterr().err


def test_a_store_killed_while_a_deletion_is_written_holds_none_of_its_session(tmp_path):
    path = tmp_path / "memory.db"
    first = bank_of(("semantic", "a"))
    with writing(path, {"dimension": 2}) as store:
        store.append(chunk("a"), {}, first, np.zeros((1, 2), dtype=np.float32))
        with pytest.raises(Exception, match="FOREIGN KEY"):
            store.append(chunk("b", number=1), {}, replace(first, deleted=("m9",)), np.zeros((0, 2), dtype=np.float32))
        assert store.num_sessions() == 1 and version(path) == 2 and isinstance(store, Store)
        store.append(chunk("b", number=1), {}, replace(first, deleted=("m1",)), np.zeros((0, 2), dtype=np.float32))
    assert bank(path).deleted == ("m1",) and version(path) == 3
