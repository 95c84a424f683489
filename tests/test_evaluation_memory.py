"""Banks as the evaluation searches them: by the index that is configured; and what is known of where their entries come
from.
"""

import json
from dataclasses import replace
from datetime import datetime

import pytest

from membuilder.bank.index import IndexConfig, IndexKind
from membuilder.bank.indexed_bank import memory_of
from membuilder.bank.retrieve import retrieve
from membuilder.datasets.windows import in_windows, sessions_of_windows
from membuilder.evaluation.banks import BankFolder
from membuilder.evaluation.metrics import RECALLS
from membuilder.evaluation.reading import Reading
from membuilder.evaluation.recall import Item, Ranking, evidence_recall
from membuilder.evaluation.records import read_records
from membuilder.evaluation.systems import from_memories
from membuilder.types import Agent, Bank, Dialogue, Entry, Question, Session, Turn
from tests.evaluating import DIALOGUE, caller, reply, result
from tests.fakes import HashEmbedder
from tests.fault_server import FaultServer, Request, answering
from tests.scripted import agent_of

WORDS = "boat tent cat rain lake train film brother kayak piano".split()


@pytest.fixture
def call(tmp_path, monkeypatch):
    return caller(tmp_path, monkeypatch)


def bank_of(texts: list[str]) -> Bank:
    return Bank(
        entries=tuple(
            Entry(
                id=f"m{number}",
                agent=Agent.SEMANTIC,
                text=text,
                session=0,
                timestamp=datetime(2024, 3, 15),
                source_turns=(),
            )
            for number, text in enumerate(texts, start=1)
        )
    )


# the index


@pytest.mark.parametrize("kind", [IndexKind.AUTO, IndexKind.EXACT])
def test_a_small_bank_is_searched_exactly_as_retrieve_does(kind):
    bank, embedder = bank_of([f"{one} {other}" for one in WORDS for other in WORDS]), HashEmbedder(64)
    memory = memory_of(bank, embedder, IndexConfig(kind=kind, gpu=False))
    assert memory.index.kind is IndexKind.EXACT
    assert memory.retrieve(WORDS, 7) == retrieve(bank, WORDS, embedder, 7)


def test_a_large_bank_has_an_approximate_index_kept_beside_it(tmp_path):
    bank, embedder = bank_of([f"{one} {other}" for one in WORDS for other in WORDS]), HashEmbedder(64)
    config, path = IndexConfig(approximate_from=50, gpu=False), tmp_path / "d1.json"
    memory = memory_of(bank, embedder, config, path)
    assert memory.index.kind is IndexKind.HNSW and [each.name for each in tmp_path.iterdir()] == ["d1.json.index"]
    assert memory_of(bank, embedder, config, path).retrieve(WORDS, 7) == memory.retrieve(WORDS, 7)
    best = memory.retrieve(["boat boat"], 1)[0].entries[0]
    assert best.text == "boat boat"


@pytest.mark.parametrize("system", ["agents", "rules"])
def test_the_flags_choose_the_index_and_a_small_bank_finds_the_same(call, tmp_path, system):
    with FaultServer(answering(reply)) as server:
        flags = ("--system", system, *(("--build-model", "m") if system == "agents" else ()))
        kept = ("--mode", "build", *flags)
        assert call(server, *kept) == 0
        assert call(server, "--mode", "answer") == 0
        db = ("--mode", "answer", "--db-path", str(tmp_path / "out" / "memories"))
        assert call(server, *db, "--index", "kind=hnsw", "--index", "gpu=false", out="hnsw") == 0
        assert call(server, *flags, "--index", "approximate_from=1", "--index", "gpu=false", out="direct") == 0
    index = tmp_path / "out" / "memories" / "d1.json.index"
    assert json.loads(index.read_bytes().split(b"\n", 1)[0])["kind"] == "hnsw"
    exact, hnsw, direct = (result(tmp_path / out) for out in ("out", "hnsw", "direct"))
    assert exact["systems"]["bank"] == hnsw["systems"]["bank"] == direct["systems"][system]
    assert hnsw["run"]["index"]["kind"] == "hnsw" and exact["run"]["index"]["kind"] == "auto"


# provenance


def dialogue() -> Dialogue:
    sessions = tuple(
        Session(
            id=f"S{index + 1}",
            index=index,
            timestamp=datetime(2024, 3, 15 + index),
            turns=tuple(
                Turn(id=f"S{index + 1}:{number}", speaker="Ann", role="user", text=f"{word} {number}")
                for number in range(1, 6)
            ),
        )
        for index, word in enumerate(("boat", "tent"))
    )
    question = Question(id="q", text="tent?", answer="5", category="single-hop", evidence=("S2:5",))
    return Dialogue(id="d1", speakers=("Ann",), sessions=sessions, questions=(question,))


def recalls(*items: Item, always: Item | None = None, k: int = 5):
    whole = dialogue()
    (question,), ranking = whole.questions, Ranking(items=items, always=always)
    by = [evidence_recall(question, ranking, k, sessions) for sessions in (None, whole.session_of_turn())]
    return [None if each is None else each.all for each in by]


def test_recall_by_turns_does_not_apply_to_a_models_own_words_and_that_by_sessions_does():
    free = Item(text="Ann has a tent.", source_turns=(), session=1)
    assert recalls(free) == [None, 1.0]
    assert recalls(replace(free, session=0)) == [None, 0.0]
    assert recalls(replace(free, session=None)) == [None, None]
    assert recalls(Item(text="a", source_turns=(), session=0), free, k=1) == [None, 0.0]  # the second is past the cut
    assert recalls(always=Item(text="core", source_turns=())) == [None, None]


def test_something_that_quotes_makes_recall_apply_and_finding_nothing_is_0():
    free = Item(text="Ann has a tent.", source_turns=(), session=1)
    quoting = Item(text="boat 1", source_turns=("S1:1",), session=0)
    assert recalls(quoting, free) == [0.0, 1.0]
    assert recalls(free, always=Item(text="tent 5", source_turns=("S2:5",))) == [1.0, 1.0]
    assert recalls() == [0.0, 0.0]


def test_an_entry_written_in_a_window_counts_for_the_whole_session():
    whole = dialogue()
    windows = in_windows(whole, 2)
    assert len(windows.sessions) == 6 and sessions_of_windows(whole, 2) == [0, 0, 0, 1, 1, 1]
    assert sessions_of_windows(whole, None) == [0, 1] == sessions_of_windows(whole, 5)
    bank = Bank(entries=(replace(bank_of(["tent five"]).entries[0], session=4),))
    (ranking,) = from_memories(lambda _: memory_of(bank, HashEmbedder()), Reading(max_turns=2))(whole, 5)
    assert ranking.items[0].session == 1


@pytest.mark.parametrize("include", [True, False])
def test_superseded_entries_are_found_where_the_builders_prompts_include_them(tmp_path, include):
    prompts = {"include_superseded": include}
    folder = BankFolder(tmp_path / "banks", {"builder": "agents", "prompts": prompts})
    bank = bank_of(["a boat", "a red boat"])
    folder.save(dialogue(), replace(bank, entries=(bank.entries[0], replace(bank.entries[1], supersedes=("m1",)))))
    found = from_memories(
        lambda each: memory_of(folder.load(each), HashEmbedder(64), IndexConfig(gpu=False)),
        BankFolder(tmp_path / "banks").reading,
    )
    assert {item.entry_id for ranking in found(dialogue(), 5) for item in ranking.items} == {"m2"} | (
        {"m1"} if include else set()
    )


def in_own_words(request: Request) -> str:
    """Entries about the first session only, and none of them a quote."""
    prompt = request.body["messages"][-1]["content"]
    if "You keep the" not in prompt:
        return reply(request)
    if agent_of(prompt) is not Agent.SEMANTIC or "My cat is called" not in prompt:
        return '{"operation": "SKIP"}' if agent_of(prompt) is Agent.CORE else '{"operations": []}'
    return '{"operations": [{"action": "ADD", "memory": "Ann owns a cat, Miso."}]}'


def test_a_memory_without_quotes_has_no_recall_by_turns_and_the_files_say_so(call, tmp_path):
    questions = [*DIALOGUE["questions"], {**DIALOGUE["questions"][0], "question": "Where to?", "evidence": ["S2:1"]}]
    (tmp_path / "mine.jsonl").write_text(json.dumps(DIALOGUE | {"questions": questions}) + "\n", encoding="utf-8")
    with FaultServer(answering(in_own_words)) as server:
        assert call(server, "--system", "agents", "--build-model", "m") == 0
    system = result(tmp_path / "out")["systems"]["agents"]
    assert system["evidence_recall"] == {"5": None, "10": None, "20": None}
    assert system["evidence_recall_session"]["10"] == pytest.approx(2 / 3, abs=1e-6)
    assert (system["questions_with_evidence"], system["questions_without_turns"]) == (3, 3)
    (first, *_) = read_records(tmp_path / "out" / "answers.jsonl")
    assert {first.scores[name] for name in RECALLS if not name.startswith("session")} == {None}
    table = (tmp_path / "out" / "table.md").read_text()
    assert "agents: for 3 of 3 questions with evidence nothing but a model's own words was found" in table
    assert "recall by sessions is 0.667 @5, 0.667 @10, 0.667 @20." in table
