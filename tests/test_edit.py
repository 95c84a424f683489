"""A memory is edited: what is deleted is gone from the disk, the rest stands, and builds go on from there."""

import asyncio
import json
import random
import shutil
import sqlite3
import time
from contextlib import closing, nullcontext
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

from membuilder import build, edit, inspect
from membuilder.bank.erase import editing
from membuilder.bank.indexed_bank import open_memory
from membuilder.bank.lost_words import Lost
from membuilder.bank.store import Store, reading, writing
from membuilder.building import dialogues
from membuilder.building.builder import Builder, ask_model
from membuilder.building.retry import retry_failed
from membuilder.datasets.load import load
from membuilder.embedding.cache import packed
from membuilder.llm.response_cache import AnswerCache
from membuilder.memory import Memory
from membuilder.schemes.four_agents.prompts import PromptConfig
from membuilder.schemes.four_agents.scheme import FourAgents
from membuilder.trajectories.trajectory import read_trajectory
from membuilder.types import Agent, Dialogue
from tests import killed
from tests.fakes import HashEmbedder
from tests.fault_server import FaultServer, Request, answering, status
from tests.scripted import ScriptedModel, agent_of, store_first_turn, talk

CORE, EPISODIC, SEMANTIC, PROCEDURAL = Agent
SCHEME = FourAgents(PromptConfig())
SETTINGS = {"dialogue": "d", "speakers": ["Ann", "Ben"], "model": "scripted", "dimension": HashEmbedder().dimension}
CASES = Path(__file__).parents[2] / "shared/cases"
TALK = [
    ["Ann: I adopted a cat called Miso yesterday.", "Bob: I moved to Leeds last week for my new job as a nurse."],
    ["Ann: My sister Kate visited me in May 2023.", "Bob: I sold my red car on Monday."],
    ["Ann: I bought a piano last Tuesday.", "Bob: We booked a trip to Oslo in June."],
    ["Ann: I finished my first marathon on Sunday.", "Bob: My dog Rex is four years old."],
]
LATE = ["Ann: I forgot to say: my brother Tom moved to Rome in May."]
DAYS = [15, 16, 17, 18]


@pytest.fixture(autouse=True)
def small_embedder(monkeypatch, tmp_path):
    monkeypatch.setattr(dialogues, "embedder_of", lambda options, costs: nullcontext(HashEmbedder()))
    monkeypatch.setenv("MEMBUILDER_CACHE", str(tmp_path.parent / "cache"))


def write_talk(path: Path, sessions: list[list[str]], days: list, speakers: tuple = ("Ann", "Bob")) -> Path:
    """A file of the custom format without any ids; each turn is `speaker: text`."""
    told = [
        {
            "timestamp": f"2024-03-{day}T09:30",
            "turns": [dict(zip(("speaker", "text"), turn.split(": ", 1), strict=True)) for turn in turns],
        }
        for day, turns in zip(days, sessions, strict=True)
    ]
    path.write_text(json.dumps({"id": "talk", "speakers": list(speakers), "sessions": told, "questions": []}) + "\n")
    return path


def built(store: Path, talk_file: Path, *flags: str, model: str = "rules") -> Path:
    arguments = ["--dataset", "custom", "--dataset-path", str(talk_file), "--model", model, "--out", str(store)]
    assert build.main([*arguments, *flags]) == 0
    return store


def base(folder: Path) -> Path:
    """A memory of the four sessions, written by rules, in a folder of its own."""
    folder.mkdir(exist_ok=True)
    return built(folder / "memory.db", write_talk(folder.parent / "base.jsonl", TALK, DAYS))


def killed_in_use(path: Path, folder: Path) -> Path:
    """A copy of a store as a process leaves it that is killed: all of it stands in the log, too."""
    folder.mkdir()
    with writing(path, contents(path)[0]) as store:
        store.replace(store.memory())
        for end in ("", "-wal"):
            shutil.copy(f"{path}{end}", folder)
    assert (folder / f"{path.name}-wal").stat().st_size > 10_000
    return folder / path.name


def run(store: Path, *arguments: object) -> int:
    return edit.main([str(store), *map(str, arguments)])


def contents(path: Path, **same: object) -> tuple:
    """All that a store holds, but for the times at which it was asked; `same` stands in every answer."""
    with reading(path) as store:
        memory = store.memory()
    same = {"seconds": 0, "asked_at": None} | same
    timeless = [
        replace(stored, answers={role: replace(each, **same) for role, each in stored.answers.items()})
        for stored in memory.sessions
    ]
    return memory.settings, timeless, memory.entries, memory.vectors.tobytes()


def found_on_disk(folder: Path, *words: str) -> list[tuple[str, str]]:
    """(File, word) of each word, in any case, that stands anywhere in the bytes of the files of a folder."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [(path.name, word) for path in files for word in words if word.lower().encode() in path.read_bytes().lower()]


def is_whole(path: Path) -> bool:
    """The memory can be searched and shown, and its operations, applied once more, give its bank."""
    embedder = HashEmbedder()
    memory = open_memory(path, embedder)
    assert len(memory.retrieve(["Where did they move?"], 3)[0].entries) == min(3, len(memory.bank.entries))
    inspect.main([str(path)])
    inspect.main([str(path), "--session", "0"])
    with reading(path) as store:
        assert (store.vectors() == embedder.embed([entry.text for entry in store.bank().entries])).all()
        if store.settings().get("scheme") == "four_agents":
            assert read_trajectory(store).steps[-1].step.result.bank == store.bank()
    return True


# Deleting

BOTH, BOBS = ("Ann", "Bob"), ["Leeds", "nurse", "red car", "Oslo", "Rex", "Bob"]
DELETIONS = [
    (["delete-session", "S2"], ["Kate", "sister", "red car"], [TALK[0], TALK[2], TALK[3]], [15, 17, 18], BOTH),
    (["delete-speaker", "bob"], BOBS, [each[:1] for each in TALK], DAYS, ("Ann",)),
    (["delete-entry", "m2", "--with-turns"], ["Leeds", "nurse"], [TALK[0][:1], *TALK[1:]], DAYS, BOTH),
]


@pytest.mark.parametrize(("command", "words", "left", "days", "speakers"), DELETIONS, ids=lambda each: str(each)[:24])
def test_what_is_deleted_is_gone_from_every_file_and_a_build_goes_on(
    tmp_path, command, words, left, days, speakers, capsys
):
    folder = tmp_path / "memories"
    path = killed_in_use(base(tmp_path / "whole"), folder)
    for end in (".index", ".index.77.partial", ".retry", ".retry-wal", ".rebuild"):
        path.with_name(path.name + end).write_text(" ".join(words))
    assert {word for _, word in found_on_disk(folder, *words)} == set(words)
    assert run(path, *command) == 0
    assert found_on_disk(folder, *words) == []
    said = capsys.readouterr().out
    assert "removed" in said and "entries: m" in said
    assert is_whole(path)
    longer, grown = write_talk(tmp_path / "grown.jsonl", [*left, LATE], [*days, 19], speakers), tmp_path / "fresh.db"
    built(path, longer)
    # as if it had never been said; a raw answer goes where an operation of it went or was numbered anew
    assert contents(path, text="") == contents(built(grown, longer), text="")


def test_a_deletion_says_what_still_stands(tmp_path, capsys):
    path = base(tmp_path / "memories")
    path.with_suffix(".json").write_text("{}")
    assert run(path, "delete-entry", "m1") == 0
    said = capsys.readouterr().out
    assert "the turns it quotes still say it (S1:1); --with-turns" in said and "memory.json" in said
    assert "Miso" not in str([entry.text for entry in contents(path)[2]]) and is_whole(path)
    assert found_on_disk(tmp_path / "memories", "[2024-03-15] Ann: I adopted") == []
    assert found_on_disk(tmp_path / "memories", "Miso") != []


def build_into(path: Path, dialogue: Dialogue, model: ScriptedModel) -> None:
    builder = Builder(ask=ask_model(model, SCHEME), embedder=HashEmbedder(), scheme=SCHEME)
    with closing(builder), writing(path, SETTINGS) as store:
        asyncio.run(builder.build(dialogue, store))


def own_words(agent: Agent, prompt: str) -> str:
    """A model that writes in words of its own, rewrites its core each time and names an entry that is not there."""
    said = prompt.split("\n---\n")[0]
    if agent is CORE:
        facts = {"Miso": "Ann owns a cat.", "Leeds": "Ann owns a cat. The other one nurses in Leeds.", "Oslo": None}
        known = "Ann owns a cat. The other one nurses in Leeds. Ann likes fish."
        return json.dumps(
            {"operation": "REWRITE", "content": next((v for k, v in facts.items() if k in said), 0) or known}
        )
    if agent is SEMANTIC and "Miso" in said:
        return json.dumps({"operations": [{"action": "ADD", "memory": "Ann has a pet."}]})
    if agent is SEMANTIC and "Leeds" in said:
        return json.dumps({"operations": [{"action": "ADD", "memory": 'Works as a nurse \u00e0 "Leeds".'}]})
    if agent is SEMANTIC:
        merge = {"action": "MERGE", "old_memories": ["e1", "e2"], "new_memory": "One has a pet, the other is in Oslo."}
        return json.dumps({"operations": [merge, {"action": "ADD", "memory": "Ann likes fish."}]})
    if agent is EPISODIC and "Oslo" in said:
        return json.dumps(
            {"operations": [{"action": "UPDATE", "old_memory": "Works as a nurse in Leeds!", "quote": [1]}]}
        )
    return '{"operations": []}'


OWN_WORDS = talk(["I adopted a cat called Miso.", "Nice."], ["We spoke.", "I moved to Leeds as a nurse."],
                 ["I like fish. Ben is in Oslo.", "The food in Oslo is good."])  # fmt: skip


def test_what_a_model_wrote_in_its_own_words_goes_with_the_words_that_only_they_said(tmp_path):
    path = tmp_path / "memories/memory.db"
    build_into(path, OWN_WORDS, ScriptedModel(own_words))
    words = ["Leeds", "nurse", "Oslo", "Ben"]
    assert {word for _, word in found_on_disk(path.parent, *words)} == set(words)
    assert contents(path)[1][2].answers[EPISODIC].failure.kind == "unknown_target"
    assert run(path, "delete-speaker", "Ben") == 0
    assert found_on_disk(path.parent, *words) == []
    settings, sessions, entries, _ = contents(path)
    assert settings["speakers"] == ["Ann"]
    # Ann's third turn named Ben, so its session is gone with all that was written about it
    assert [(stored.session.id, stored.session.index) for stored in sessions] == [("D1", 0), ("D2", 1)]
    assert [turn.text for stored in sessions for turn in stored.session.turns] == [
        "I adopted a cat called Miso.",
        "We spoke.",
    ]
    assert [(entry.id, entry.text) for entry in entries] == [("m1", "Ann has a pet.")]
    assert [stored.core for stored in sessions] == ["Ann owns a cat."] * 2
    first, second = sessions
    assert first.answers[SEMANTIC].text is not None and len(first.answers[SEMANTIC].operations) == 1
    assert second.answers[SEMANTIC].text is None and second.answers[SEMANTIC].operations == ()
    assert is_whole(path)


def test_answers_that_were_shown_a_deleted_entry_name_what_they_meant(tmp_path):
    """The labels e1, e2 count the entries shown, and ids move up."""
    path = tmp_path / "memory.db"

    def script(agent: Agent, prompt: str) -> str:
        said = prompt.split("\n---\n")[0]
        if agent is CORE:
            return '{"operation": "SKIP"}'
        if agent is not SEMANTIC:
            return '{"operations": []}'
        if "one" in said:
            add = [{"action": "ADD", "memory": text} for text in ("zebra", "two two words", "three three words")]
            return json.dumps({"operations": add})
        label = next(line.split()[0] for line in prompt.splitlines() if line.startswith("e") and "three three" in line)
        return json.dumps({"operations": [{"action": "UPDATE", "old_memory": label, "new_memory": "last"}]})

    build_into(path, talk(["one"], ["two three words zebra"]), ScriptedModel(script))
    assert contents(path)[2][-1].supersedes == ("m3",)
    assert run(path, "delete-entry", "m1") == 0
    _, sessions, entries, _ = contents(path)
    assert [(each.id, each.text, each.supersedes) for each in entries] == [
        ("m1", "two two words", ()),
        ("m2", "three three words", ()),
        ("m3", "last", ("m2",)),
    ]
    answer = sessions[1].answers[SEMANTIC]
    assert set(answer.shown) == {"m1", "m2"} and answer.operations[0].targets == ("m2",)
    operations = sessions[0].answers[SEMANTIC].operations
    assert [each.text for each in operations] == ["two two words", "three three words"] and is_whole(path)
    build_into(path, talk(["one"], ["two three words zebra"], ["three words more"]), ScriptedModel(script))
    assert [entry.id for entry in contents(path)[2]] == ["m1", "m2", "m3", "m4"]


@pytest.mark.parametrize(
    ("name", "text", "is_named"),
    [
        ("Bob", "bob's car", True),
        ("Bob", "Bobby came", False),
        ("Ann", "Joanne", False),
        ("Mary Lee", "so MARY LEE said", True),
        ("小明", "我和小明去了", True),
        ("Bob", "我和Bob去了", True),
        ("علي", "قال علي", True),
        ("Zoë", "ZOË!", True),
    ],
)
def test_who_is_named(name, text, is_named):
    assert Lost(names=(name,)).names_one(text) is is_named


def test_caches_that_are_named_lose_what_was_deleted_and_nothing_else(tmp_path):
    path = base(tmp_path / "memories")
    answers, vectors = tmp_path / "answers", tmp_path / "vectors"
    texts = {"a": '{"memory": "a trip to O\\u0073lo"}', "b": "Ann has a piano.", "c": "a nurse " * 9000, "d": "true"}
    rows = {entry.id: packed(row) for entry, row in zip(contents(path)[2], reading_vectors(path), strict=True)}
    for folder, records in ((answers, {key: {"text": text} for key, text in texts.items()}), (vectors, rows)):
        with closing(AnswerCache(folder)) as cache:
            cache.put_all(records)
    caches = ["--answer-cache", answers, "--embedding-cache", vectors]
    gone = [entry.id for entry in contents(path)[2] if "Bob" in entry.text]
    assert gone and run(path, "delete-speaker", "Bob", *caches) == 0
    for folder, keys, lost in ((answers, texts, {"a", "c"}), (vectors, rows, set(gone))):
        with closing(AnswerCache(folder)) as cache:
            assert {key for key in keys if cache.get(key) is None} == lost
    assert not list(answers.rglob("*.val"))  # where long values lie
    with closing(AnswerCache(answers)) as cache:
        cache.put("e", {"text": "Kate is my sister."})
    assert run(path, "correct-turn", "S2:1", "My aunt May visited me in May 2023.", *caches) == 0
    with closing(AnswerCache(answers)) as cache:
        assert [cache.get(key) is None for key in "abcde"] == [True, False, True, False, True]
    assert run(path, "delete-session", "S1", "--answer-cache", tmp_path / "nowhere") == 2


def reading_vectors(path: Path):
    with reading(path) as store:
        return store.vectors()


def test_a_deletion_while_another_reads_says_so_and_the_next_one_erases(tmp_path, capsys, monkeypatch):
    path = base(tmp_path / "memories")
    with reading(path):
        monkeypatch.setattr(Store, "erase_deleted", patient(Store.erase_deleted))
        assert run(path, "delete-session", "S2") == 2
        assert "another process reads the store" in capsys.readouterr().err
    assert run(path, "delete-session", "S2") == 2
    assert "no session 'S2'; it has S1, S3, S4" in capsys.readouterr().err
    assert found_on_disk(tmp_path / "memories", "Kate") == []


def patient(erase_deleted):
    def erase(store: Store) -> None:
        store.connection.execute("PRAGMA busy_timeout = 10")
        erase_deleted(store)

    return erase


def delete(path: Path, told) -> None:
    told.send("begun")
    edit.main([str(path), "delete-session", "S2"])


@pytest.mark.slow
def test_a_deletion_killed_anywhere_is_done_or_not_and_its_next_run_erases(tmp_path):
    rng = random.Random(0)
    for number in range(4):
        folder = tmp_path / str(number)
        path = base(folder)
        before = contents(path)
        told, to_tell = killed.pipe()
        process = killed.start(delete, path, to_tell)
        assert told.recv() == "begun"
        time.sleep(rng.random() * 0.06)
        process.kill()
        process.join()
        assert contents(path) == before or len(contents(path)[1]) == 3
        assert run(path, "delete-session", "S2") in (0, 2)
        assert len(contents(path)[1]) == 3 and found_on_disk(folder, "Kate", "red car") == []


# Reading again


def corrected_talk(folder: Path) -> Path:
    sessions = [list(each) for each in TALK]
    sessions[1][1] = "Bob: I sold my blue car on Monday."
    return write_talk(folder / "corrected.jsonl", sessions, DAYS)


def test_a_corrected_turn_is_read_again_from_there_and_what_stood_before_stays(tmp_path, capsys):
    path = base(tmp_path / "memories")
    with reading(path) as store:
        before = store.memory()
    assert run(path, "correct-turn", "S2:2", "I sold my blue car on Monday.") == 0
    with reading(path) as store:
        after = store.memory()
    assert after.sessions[0] == before.sessions[0] and after.sessions[1] != before.sessions[1]
    assert after.settings == before.settings
    assert found_on_disk(tmp_path / "memories", "red car") == [] and is_whole(path)
    assert {each.name for each in path.parent.iterdir()} <= {
        "memory.db",
        *(f"memory.db{e}" for e in ("-shm", "-wal", ".lock")),
    }
    fresh = contents(built(tmp_path / "fresh.db", corrected_talk(tmp_path)))
    assert contents(path) == fresh
    built(path, corrected_talk(tmp_path))
    assert contents(path) == fresh
    path.with_name("memory.db.retry").write_text("red car")  # as if it had been killed at its very end
    assert run(path, "correct-turn", "S2:2", "I sold my blue car on Monday.") == 2
    assert "nothing to correct" in capsys.readouterr().err and found_on_disk(path.parent, "red car") == []
    with pytest.raises(AssertionError):
        built(path, tmp_path / "base.jsonl")
    says = "session S2 was read with another date or other turns than talk has there; build into a new file, or make"
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("is_whole_file", [False, True])
def test_a_late_session_takes_its_place_in_time(tmp_path, is_whole_file):
    path, sessions, days = base(tmp_path / "memories"), [TALK[0], LATE, *TALK[1:]], ["15", "15", *DAYS[1:]]
    whole = write_talk(tmp_path / "whole.jsonl", sessions, days)
    whole.write_text(whole.read_text().replace("15T09:30", "15T20:00").replace("15T20:00", "15T09:30", 1))
    alone = write_talk(tmp_path / "late.jsonl", [LATE], ["15"], ("Ann",))
    alone.write_text(alone.read_text().replace("T09:30", "T20:00"))
    assert run(path, "insert-session", whole if is_whole_file else alone) == 0
    assert is_whole(path)
    built(path, whole)  # which names the sessions as its file counts them
    assert contents(path) == contents(built(tmp_path / "fresh.db", whole))
    assert run(path, "insert-session", whole) == 2


def test_a_late_session_of_another_zone_speaker_or_dialogue_is_refused(tmp_path, capsys):
    path = base(tmp_path / "memories")
    before = contents(path)
    late = write_talk(tmp_path / "late.jsonl", [["Eve: Hello."]], ["15"], ("Eve",))
    zone = write_talk(tmp_path / "zone.jsonl", [["Ann: Hello there."]], ["15"], ("Ann",))
    zone.write_text(zone.read_text().replace("T09:30", "T09:30+02:00"))
    other = write_talk(tmp_path / "other.jsonl", [*TALK[:2], LATE], [15, 16, 17])
    for file, says in ((late, "'Eve' does not speak"), (zone, "give a zone as"), (other, "lacks session S3")):
        assert run(path, "insert-session", file) == 2
        assert says in capsys.readouterr().err
    assert contents(path) == before


def test_later_sessions_are_read_again_after_a_deletion_if_asked_for(tmp_path, capsys):
    path, left = base(tmp_path / "memories"), [TALK[0], TALK[2], TALK[3]]
    assert run(path, "delete-session", "S2", "--rebuild") == 0
    assert "reading again from session S3 on" in capsys.readouterr().out
    file = write_talk(tmp_path / "left.jsonl", left, [15, 17, 18])
    built(path, file)
    assert contents(path) == contents(built(tmp_path / "fresh.db", file))
    assert run(path, "delete-session", "S2", "--provider", "vllm") == 2
    assert "--provider has no effect on a deletion without --rebuild" in capsys.readouterr().err


def reply(request: Request) -> str:
    prompt = request.body["messages"][0]["content"]
    return (
        '{"ready": true}' if prompt.startswith("Answer with this JSON") else store_first_turn(agent_of(prompt), prompt)
    )


def asked(server: FaultServer) -> list[str]:
    return [text for each in server.requests if "You keep" in (text := each.body["messages"][0]["content"])]


def test_the_stores_own_model_reads_again_and_an_outage_keeps_the_old_memory(tmp_path, capsys):
    file = write_talk(tmp_path / "base.jsonl", TALK, DAYS)
    with FaultServer(answering(reply)) as server:
        flags = ["--provider", "vllm", "--base-url", server.base_url]
        path = built(tmp_path / "m.db", file, *flags, "model.temperature=0.3", model="m-1")
        assert len(asked(server)) == 16
    before, change = contents(path), ("correct-turn", "S2:1", "My aunt Kate visited me.")
    with FaultServer(*[answering(reply)] * 6, status(402)) as server:
        assert run(path, *change, "--provider", "vllm", "--base-url", server.base_url) == 2
    assert "stopped at session S3" in capsys.readouterr().err and contents(path) == before
    with FaultServer(answering(reply)) as server:
        assert run(path, *change, "--provider", "vllm", "--base-url", server.base_url) == 0
        assert len(asked(server)) == 8 and not any("aunt" in each.split("\n---\n")[0] for each in asked(server))
    assert contents(path)[2][1].text == "[2024-03-16] Ann: My aunt Kate visited me." and is_whole(path)
    assert contents(path)[0] == before[0]
    with FaultServer(answering(lambda request: "no")) as server:
        flags = ["--provider", "vllm", "--base-url", server.base_url]
        assert run(path, "rebuild", "S4", *flags) == 1
        assert "4 of 16 answers failed" in capsys.readouterr().err
        assert run(path, "rebuild", "S4", *flags, "--model", "m-2") == 2
        assert "model='m-1' (now 'm-2')" in capsys.readouterr().err
        assert run(path, "rebuild", "S4", *flags, "--set", "max_failed=0.25") == 0


LONG = [[f"Ann: I bought item number {n} on Monday.", f"Bob: Reply {n}."] for n in range(40)]
LONG_DAYS = [f"{day:02}" for day in range(1, 21) for _ in range(2)]


def slow_correction(path: Path, told) -> None:
    class Slow(HashEmbedder):
        def embed(self, texts):
            told.send(len(texts))
            time.sleep(0.004)
            return super().embed(texts)

    dialogues.embedder_of = lambda options, costs: nullcontext(Slow())
    edit.main([str(path), "correct-turn", "S3:1", "I bought a blue lamp on Monday."])


@pytest.mark.slow
def test_a_correction_killed_anywhere_loses_nothing(tmp_path):
    path, rng = tmp_path / "m.db", random.Random(1)
    built(path, write_talk(tmp_path / "long.jsonl", LONG, LONG_DAYS))
    before = contents(path)
    for _ in range(3):
        told, to_tell = killed.pipe()
        process = killed.start(slow_correction, path, to_tell)
        to_tell.close()
        for _ in range(rng.randint(3, 20)):
            told.recv()
        process.kill()
        process.join()
        assert contents(path) == before
    with reading(Path(f"{path}.rebuild")) as store:
        assert store.num_sessions() > 2
    assert run(path, "correct-turn", "S3:1", "I bought a blue lamp on Monday.") == 0
    LONG_CORRECTED = [*LONG[:2], ["Ann: I bought a blue lamp on Monday.", LONG[2][1]], *LONG[3:]]
    fresh = built(tmp_path / "fresh.db", write_talk(tmp_path / "corrected.jsonl", LONG_CORRECTED, LONG_DAYS))
    assert contents(path) == contents(fresh) and not list(tmp_path.glob("m.db.rebuild*"))


def test_a_memory_for_programs_goes_on_after_a_deletion(tmp_path):
    path = tmp_path / "ann.db"
    said = ["I adopted a cat called Miso.", "I moved to Leeds last week.", "I bought a piano on Monday."]
    messages = [[{"role": "user", "name": "Ann", "content": text}] for text in said]
    with Memory(path) as memory:
        for conversation in messages:
            memory.add(conversation)
    assert run(path, "delete-session", "S2") == 0
    with Memory(path) as memory:
        memory.add(messages[1])
        assert "Leeds" in memory.search("Who moved to Leeds?", 1).entries[0].text
    assert [stored.session.id for stored in contents(path)[1]] == ["S1", "S3", "S4"]


def test_a_retry_does_not_bring_back_what_was_deleted(tmp_path):
    def script(agent: Agent, prompt: str) -> str:
        if agent is PROCEDURAL:
            return "I would rather not."
        if agent is CORE:
            return '{"operation": "SKIP"}'
        add = [{"action": "ADD", "memory": f"{agent} fact {n}"} for n in (1, 2)]
        return json.dumps({"operations": add})

    path = tmp_path / "m.db"
    build_into(path, talk(["one"]), ScriptedModel(script))
    assert run(path, "delete-entry", "m2") == 0 and run(path, "delete-entry", "m3") == 0
    model = ScriptedModel(lambda agent, prompt: '{"operations": [{"action": "ADD", "memory": "how to"}]}')
    builder = Builder(ask=ask_model(model, SCHEME), embedder=HashEmbedder(), scheme=SCHEME)
    with closing(builder), writing(path, SETTINGS) as store:
        asyncio.run(retry_failed(talk(["one"]), store, builder, lambda path: None, lambda count: None))
    assert [agent for agent, _ in model.prompts] == [PROCEDURAL]
    assert [(each.id, each.text) for each in contents(path)[2]] == [
        ("m1", "episodic fact 1"),
        ("m2", "semantic fact 1"),
        ("m3", "how to"),
    ]


def test_a_session_read_in_windows_is_deleted_whole_and_no_other(tmp_path, capsys):
    with Memory(tmp_path / "m.db", max_turns=2) as memory:
        for day in (1, 2):
            said = [{"role": "user", "content": f"My lucky number {day}{n} is {n}."} for n in range(4)]
            memory.add(said, datetime(2024, 5, day))
    assert run(tmp_path / "m.db", "delete-session", "S") == 2
    assert "no session 'S'; it has S1.1, S1.2, S3.1, S3.2" in capsys.readouterr().err
    assert run(tmp_path / "m.db", "delete-session", "S1") == 0
    assert [stored.session.id for stored in contents(tmp_path / "m.db")[1]] == ["S3.1", "S3.2"]


# JSON Lines


def test_export_and_import_give_the_same_store(tmp_path, capsys):
    path, file = tmp_path / "memory.db", tmp_path / "memory.jsonl"
    build_into(path, OWN_WORDS, ScriptedModel(own_words))
    assert run(path, "export", file) == 0 and run(tmp_path / "copy.db", "import", file) == 0
    with reading(path) as one, reading(tmp_path / "copy.db") as other:
        assert one.settings() == other.settings() and one.sessions() == other.sessions() and one.bank() == other.bank()
        assert one.vectors().tobytes() == other.vectors().tobytes()
        for table in ("setting", "session", "turn", "answer", "entry", "embedding"):
            assert one._rows(f"SELECT * FROM {table}") == other._rows(f"SELECT * FROM {table}")
    assert {each.name for each in tmp_path.glob("copy*")} <= {"copy.db", "copy.db-shm", "copy.db-wal"}
    build_into(tmp_path / "copy.db", OWN_WORDS, ScriptedModel(own_words))
    assert run(tmp_path / "copy.db", "import", file) == 2
    assert "is there already" in capsys.readouterr().err


def changed(**changes):
    return lambda line: {key: changes.get(key, value) for key, value in line.items()} | changes


def inside(name: str, **changes):
    return lambda line: line | {name: line[name] | changes}


BAD_LINES = [
    (0, changed(format=2), "line 1: field 'format'"),
    (0, inside("settings", dimension=None), "line 1: field 'settings.dimension'"),
    (1, lambda line: None, "line 2: field 'JSON'"),
    (1, changed(record="note"), "line 2: field"),
    (1, changed(extra=1), "line 2: field"),
    (2, inside("session", index=5), "line 3: field 'session.index'"),
    (2, inside("session", timestamp="2001-01-01T00:00:00"), "line 3: field 'session.timestamp'"),
    (2, inside("session", id="D1"), "line 3: field 'session.id'"),
    (2, inside("session", turns="none"), "line 3: field 'session.turns'"),
    (1, lambda line: line | {"core": "half \ud83d"}, "line 2: field 'record': holds half"),
    (1, lambda line: line | {"answers": {"core": {"text": "", "seconds": float("nan")}}}, "line 2: field 'answers.sec"),
    (1, lambda line: line | {"answers": {"core": {"text": "", "shown": ["m7"]}}}, "line 8: field 'answers.shown'"),
    (4, inside("entry", session=9), "line 5: field 'entry.session'"),
    (4, inside("entry", source_turns=["D9:1"]), "line 5: field 'entry.source_turns'"),
    (4, inside("entry", supersedes=["m9"]), "line 5: field 'entry.supersedes'"),
    (4, inside("entry", text=5), "line 5: field 'entry.text'"),
    (4, changed(vector="AAAA"), "line 5: field 'vector'"),
    (4, changed(vector="?"), "line 5: field 'vector'"),
    (5, inside("entry", id="m1"), "line 6: field 'entry.id'"),
    (-1, changed(num_entries=7), "line 8: field 'num_sessions'"),
    (-1, None, "whole file: field 'lines': has no last line"),
]


@pytest.mark.parametrize(
    ("number", "change", "says"), BAD_LINES, ids=lambda each: each if isinstance(each, str) else ""
)
def test_a_bad_line_is_refused_by_its_number_and_nothing_is_imported(tmp_path, number, change, says, capsys):
    path, file, new = tmp_path / "memory.db", tmp_path / "memory.jsonl", tmp_path / "new.db"
    build_into(path, OWN_WORDS, ScriptedModel(own_words))
    assert run(path, "export", file) == 0
    lines = file.read_text(encoding="utf-8").splitlines()
    result = None if change is None else change(json.loads(lines[number]))
    lines[number] = "" if change is None else "{" if result is None else json.dumps(result)
    file.write_text("\n".join(lines), encoding="utf-8")
    assert run(new, "import", file) == 2
    said = capsys.readouterr().err
    assert f"{file}: {says}" in said and not list(tmp_path.glob("new*"))


# Mistakes


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["delete-entry", "m99"], "no entry 'm99'; it has m1, m2"),
        (["delete-session", "S9"], "no session 'S9'; it has S1, S2, S3, S4"),
        (["delete-speaker", "Eve"], "no speaker 'Eve'; it has Ann, Bob"),
        (["delete-speaker", "Bob", "--also", " "], "--also needs a name"),
        (["correct-turn", "S9:1", "x"], "turn S9:1: field 'id': no turn has this id"),
        (["correct-turn", "S1:1", " "], "turn S1:1: field 'text': is blank"),
        (["correct-turn", "S1:1", "half \ud83d"], "half a surrogate pair"),
        (["insert-session", "nowhere.jsonl"], "nowhere.jsonl: whole file"),
        (["rebuild", "S9"], "no session 'S9'"),
        (["rebuild", "S1", "--set", "max_turn=3"], "unknown key 'max_turn'"),
        (["rebuild", "S1", "--set", "max_turns=3"], "max_turns=60 (now 3)"),
        (["export", "/dev/null/x.jsonl"], "could not write '/dev/null/x.jsonl'"),
        (["import", "nowhere.jsonl"], "is there already"),
    ],
)
def test_a_mistake_is_one_clear_line_and_changes_nothing(tmp_path, arguments, says, capsys):
    path = base(tmp_path / "memories")
    before = contents(path)
    assert run(path, *arguments) == 2
    said = capsys.readouterr().err
    assert f"membuilder.edit: {path}"[:16] in said and says in said and "Traceback" not in said
    assert contents(path) == before


def test_a_store_that_is_not_there_is_not_made(tmp_path, capsys):
    for command in (["delete-entry", "m1"], ["correct-turn", "t", "x"], ["export", tmp_path / "x"]):
        assert run(tmp_path / "absent.db", *command) == 2
        assert "no such store" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.skipif(not CASES.is_dir(), reason="the issue's own files are not here")
def test_the_files_of_the_issue(tmp_path):
    file = tmp_path / "base.jsonl"
    whole = json.loads((CASES / "grown.jsonl").read_text())
    file.write_text(json.dumps(whole | {"sessions": whole["sessions"][:4]}))
    turn = load(CASES / "corrected_turn.jsonl")[0].sessions[1].turns[1]
    edits = {
        "corrected_turn": ["correct-turn", turn.id, turn.text],
        "deleted_session": ["delete-session", "S2"],
        "late_session": ["insert-session", CASES / "late_session.jsonl"],
        "grown": None,
    }
    for name, command in edits.items():
        path = built(tmp_path / f"{name}.db", file)
        assert command is None or run(path, *command) == 0
        edited = built(path, CASES / f"{name}.jsonl")
        assert contents(edited) == contents(built(tmp_path / f"{name}_fresh.db", CASES / f"{name}.jsonl"))


def test_what_a_version_without_overwriting_deleted_is_erased_too(tmp_path):
    path, word = tmp_path / "d.db", "Zanzibar"
    with writing(path, {"dialogue": "d", "dimension": 2}):
        pass
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("PRAGMA secure_delete = OFF")
        connection.execute("INSERT INTO setting VALUES ('note', ?)", [json.dumps(word * 50)])
        connection.commit()
        connection.execute("DELETE FROM setting WHERE name = 'note'")
    assert word.encode() in path.read_bytes()
    with editing(path):
        pass
    assert all(word.encode() not in each.read_bytes() for each in tmp_path.iterdir())
