"""The memory for programs, with real embeddings; its model is a server of canned answers, or the rules."""

import json
import re
from datetime import datetime
from pathlib import Path

import pytest

from membuilder.bank.store import reading
from membuilder.errors import BuildStopped, ChatError, ConfigError, DataError, StoreError
from membuilder.llm.endpoints import ModelEndpoint, Provider
from membuilder.memory import Memory
from tests.fault_server import FaultServer, Request, answering, status

DOCS = Path(__file__).parent.parent / "docs/building.md"
CAT = [
    {"role": "user", "name": "Ann", "content": "I adopted a cat called Miso from the shelter in Oslo."},
    {"role": "assistant", "content": "How lovely!"},
]
JOB = [{"role": "user", "name": "Ann", "content": "I start my new job at the harbour library on Monday."}]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MEMBUILDER_CACHE", str(tmp_path / "cache"))


def says(request: Request) -> str:
    """Every agent quotes the first turn; an answer repeats the first memory it was shown."""
    prompt = request.body["messages"][0]["content"]
    if "response_format" in request.body:
        core = "You keep the core memory" in prompt
        return json.dumps({"operation": "SKIP"} if core else {"operations": [{"action": "ADD", "quote": [1]}]})
    return next((line.removeprefix("- ") for line in prompt.splitlines() if line.startswith("- ")), "ready")


def endpoint(server: FaultServer) -> ModelEndpoint:
    return ModelEndpoint(name="m", provider=Provider.VLLM, base_url=server.base_url, max_attempts=1)


def test_the_block_of_the_documents_runs_as_written(tmp_path, monkeypatch):
    section = DOCS.read_text(encoding="utf-8").split("## From Python")[1].split("\n## ")[0]
    (block,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    with FaultServer(answering(says)) as server:
        given = {}
        exec(block.replace("http://localhost:8000/v1", server.base_url), given)
    assert "Miso" in given["found"].entries[0].text and "Miso" in given["said"]


def test_what_was_added_is_found_and_the_file_goes_on(tmp_path):
    """By rules, which need no server: in one life of the program, and in the next."""
    path = tmp_path / "ann.db"
    with Memory(path) as memory:
        written = memory.add(CAT, datetime(2024, 5, 1))
        assert written and all("Miso" in entry.text and "2024-05-01" in entry.text for entry in written)
    with Memory(path) as memory:
        memory.add(JOB, datetime(2024, 5, 8))
        assert "library" in memory.search("Where does Ann work?", k=1).entries[0].text
        assert "Miso" in memory.search("Which pet does Ann have?", k=1).entries[0].text
        with pytest.raises(ConfigError, match="rules do not answer"):
            memory.answer("Where does Ann work?")
    with reading(path) as store:
        assert [stored.session.id for stored in store.sessions()] == ["S1", "S2"]
        assert [turn.speaker for turn in store.sessions()[0].session.turns] == ["Ann", "assistant"]


def test_a_model_writes_and_answers(tmp_path):
    with FaultServer(answering(says)) as server, Memory(tmp_path / "m.db", endpoint(server)) as memory:
        assert len(memory.add(CAT)) == 3
        assert "Miso" in memory.answer("What is the cat called?")
        prompt = server.requests[-1].body["messages"][0]["content"]
        assert f"Today is {datetime.now():%A, %Y}" in prompt and "What is the cat called?" in prompt
        assert memory.usage.report()["builder"]["calls"] == 1 + 4 + 1


def test_a_conversation_longer_than_max_turns_is_read_in_pieces(tmp_path):
    messages = [{"role": "user", "content": f"My lucky number {n} is {n}."} for n in range(7)]
    with Memory(tmp_path / "m.db", max_turns=3) as memory:
        memory.add(messages)
        memory.add(JOB)
    with reading(tmp_path / "m.db") as store:
        assert [stored.session.id for stored in store.sessions()] == ["S1.1", "S1.2", "S1.3", "S4"]


def test_a_server_that_fails_stores_nothing_of_the_conversation(tmp_path):
    with FaultServer(answering(says), answering(says), status(402)) as server:
        with Memory(tmp_path / "m.db", endpoint(server)) as memory:
            with pytest.raises(BuildStopped, match="safe: 0"):
                memory.add(CAT)
    with FaultServer(answering(says)) as server, Memory(tmp_path / "m.db", endpoint(server)) as memory:
        assert len(memory.add(CAT)) == 3


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ([], "no message"),
        ([{"role": "system", "content": "x"}], "message 1.*role.*'system'"),
        ([*CAT, {"role": "user"}], "message 3.*content.*None"),
        ([{"role": "user", "content": "  "}], "expected a text"),
        ([{"role": "user", "content": "\ud83d"}], "half a surrogate pair"),
    ],
)
def test_what_is_no_conversation_is_refused_and_nothing_is_stored(tmp_path, messages, problem):
    with Memory(tmp_path / "m.db") as memory:
        with pytest.raises(DataError, match=problem):
            memory.add(messages)
        memory.add(CAT, datetime(2024, 5, 1))
        with pytest.raises(DataError, match="before"):
            memory.add(JOB, datetime(2024, 4, 1))
        with pytest.raises(DataError, match="zone"):
            memory.add(JOB, datetime.now().astimezone())
    with reading(tmp_path / "m.db") as store:
        assert store.num_sessions() == 1


def test_a_memory_of_another_writer_or_none_is_refused(tmp_path):
    with Memory(tmp_path / "m.db") as memory:
        with pytest.raises(StoreError, match="no such store"):
            memory.search("x")
        memory.add(CAT)
    with FaultServer(answering(says)) as server, Memory(tmp_path / "m.db", endpoint(server)) as memory:
        with pytest.raises(StoreError, match="model='rules'"):
            memory.add(JOB)
    with FaultServer(status(401)) as server, pytest.raises(ChatError, match="refuses the API key"):
        Memory(tmp_path / "m.db", endpoint(server))
