"""Memalpha's instances through an evaluation: systems under one reader, parts left out, bad input, and kills."""

import gzip
import json
import time
from dataclasses import replace
from pathlib import Path

import pytest

from membuilder import build, data
from membuilder import eval as command
from membuilder.datasets.load import load
from membuilder.datasets.memalpha import read_rows
from membuilder.embedding import options
from membuilder.evaluation import run
from membuilder.evaluation.banks import BankFolder
from membuilder.evaluation.compare import compare, compare_memory, load_side, memory_as_text
from membuilder.evaluation.records import read_records
from membuilder.evaluation.run import RUN_FILE
from membuilder.types import Bank
from tests import keeper, raw_data
from tests.evaluating import hash_embedder, result
from tests.fault_server import FaultServer, Request, answering, status
from tests.instances import CHUNKS, caller, flags, row
from tests.killed import start
from tests.memalpha_chunks import bank_of, insert
from tests.patience import LINEAR

WRITER, READER = "You keep a memory for somebody", "You answer questions about people"


def first_message(request: Request) -> str:
    return request.body["messages"][0]["content"]


def reply(request: Request) -> str:
    """As writer stores the first line of each chunk, as reader says what stands in its prompt, as judge agrees."""
    prompt = first_message(request)
    if prompt.startswith(WRITER):
        said = "".join(each["content"] for each in request.body["messages"])
        known = next((chunk for chunk in CHUNKS if chunk.split("\n")[1] in said), "Nothing new")
        part = "semantic" if "semantic_memory" in said else "episodic"
        return insert(part, known.split("\n")[0])
    if prompt.startswith(READER):
        return next((word for word in ("Oslo", "whale") if word in prompt.partition("Question:")[0]), "unknown")
    return '{"correct": true}'


MEMALPHA = ("--scheme", "memalpha")


def perltqa_as_published(folder: Path) -> None:
    """Raw files with all four kinds of questions; relationships are the text of a Python dict, as some of them are."""
    path = raw_data.perltqa(folder, characters=2)
    asked_path = folder / "perltqa_en_v2.json.gz"
    memory, asked = json.loads(path.read_text()), json.loads(gzip.decompress(asked_path.read_bytes()))
    for (name, told), questions in zip(memory.items(), asked, strict=True):
        friend = {"Supporting Characters": "Ma Jun", "Relationship": "rower", "Description": "They met at the lake."}
        told["profile"]["Occupation"] = "a surveyor"
        told["social_relationship"] = str({"1_0": friend})

        def question(text: str, answer: str, memory: str) -> dict:
            return {"Question": text, "Answer": answer, "Reference Memory": memory, "Memory Anchors": []}

        questions[name]["profile"] = [question(f"What is {name}?", "a surveyor", "Occupation")]
        questions[name]["social_relationship"] = [{"1_0": [question(f"Who rows with {name}?", "Ma Jun", "['1_0']")]}]
        questions[name]["dialogues"] = [{"1_0#0": [question(f"What did {name} plant?", "trees", "['1_0#0']")]}]
    raw_data.written(path, json.dumps(memory))
    raw_data.written(asked_path, json.dumps(asked))


def test_perltqa_is_built_from_its_published_files_and_scored_by_the_parts_of_its_golds(tmp_path, monkeypatch):
    perltqa_as_published(tmp_path / "raw")
    flags = ["--dataset", "perltqa", "--source", str(tmp_path / "raw"), "--split", "0", "--chunk-tokens", "300"]
    assert data.main(["build-memalpha", *flags, "--out", str(tmp_path / "built")]) == 0
    path = tmp_path / "built/perltqa/train.parquet"
    golds = {question.text: question for dialogue in load(path) for question in dialogue.questions}
    for dialogue in load(path):
        texts = {turn.id: turn.text for session in dialogue.sessions for turn in session.turns}
        for question in dialogue.questions:
            told = " ".join(texts[each] for each in question.evidence)
            assert all(part in told for part in question.answer.split("; "))
    added = ("a surveyor", "Ma Jun", "trees")
    assert len(golds) == 2 * (24 + 3) and all(
        sum(each.answer == gold for each in golds.values()) == 2 for gold in added
    )

    def says_the_last_part(request: Request) -> str:
        if not first_message(request).startswith(READER):
            return '{"correct": true}'
        asked = next(text for text in golds if text in first_message(request))
        return f"It is {golds[asked].answer.split('; ')[-1]}, I think."

    call = caller(tmp_path, monkeypatch, *read_rows(path))
    with FaultServer(answering(says_the_last_part)) as server:
        assert call(server, "--system", "none") == 0
    by_source = result(tmp_path / "out")["systems"]["none"]["by_source"]["sources"]
    parts = [len(each.answer.split("; ")) for each in golds.values()]
    assert set(parts) >= {1, 2} or set(parts) >= {1, 3}
    assert by_source["perltqa"]["score"] == pytest.approx(sum(1 / number for number in parts) / len(parts))


def test_every_system_is_answered_by_one_reader_and_its_memory_is_counted(tmp_path, monkeypatch):
    call = caller(tmp_path, monkeypatch)
    systems = ("agents", "rules", "all", "random", "full-context", "none")
    with FaultServer(answering(reply)) as server:
        assert call(server, *MEMALPHA, *(each for name in systems for each in ("--system", name))) == 0
        temperatures = {request.body["temperature"] for request in server.requests}
    found = result(tmp_path / "out")
    assert tuple(found["systems"]) == systems and temperatures == {0.0}
    squad = {name: each["by_source"]["sources"]["squad"] for name, each in found["systems"].items()}
    kept = {name: each["memory_tokens"] for name, each in squad.items()}
    written = sum(-(-len(chunk.split("\n")[0]) // 4) for chunk in CHUNKS)  # four characters a token
    assert kept["agents"] == written and kept["none"] == 0
    assert kept["full-context"] == squad["none"]["chunk_tokens"] == sum(-(-len(chunk) // 4) for chunk in CHUNKS)
    assert 0 < kept["random"] <= kept["rules"] <= kept["all"]
    assert squad["agents"]["score"] == 0.5 and squad["none"]["score"] == 0.0  # the reader says the first thing it sees
    table = (tmp_path / "out" / "table.md").read_text(encoding="utf-8")
    assert "| system | hotpotqa | squad | mean of sources |" in table
    assert f"| agents | {written} | {written} | {written} |" in table and "| chunks |" in table
    assert any(name.startswith("memalpha/full/") for name in found["run"]["prompts"])
    assert found["run"]["build_config"]["scheme"] == "memalpha"
    sides = [load_side(f"{tmp_path / 'out'}:{name}") for name in ("none", "agents")]
    assert compare(*sides, ["source"], seed=0)["source"]["answerable"].difference == 0.5
    memory = compare_memory(*(load_side(f"{tmp_path / 'out'}:{name}") for name in ("all", "agents")), seed=0)
    assert (memory.questions, memory.mean_b, memory.only_a) == (2, written, 2)
    assert memory.difference == memory.mean_b - memory.mean_a == written - kept["all"] and memory.high < 0
    told = memory_as_text(memory)
    assert f"B / A {written / kept['all']:.3f}, B - A {written - kept['all']:+.1f} [" in told
    assert "A larger in 2" in told
    others = [replace(record, chunk_tokens=record.chunk_tokens + 1) for record in sides[1]]  # another tokenizer's
    assert compare_memory(sides[0], others, seed=0) is None and "not compared" in memory_as_text(None)


def test_parts_are_left_out_of_what_is_built_and_of_what_is_read(tmp_path, monkeypatch, capsys):
    call = caller(tmp_path, monkeypatch, row(0, "squad"))
    db, without = ("--db-path", str(tmp_path / "db")), ("--exclude-memory", "episodic,core")
    with FaultServer(answering(reply)) as server:
        assert call(server, *MEMALPHA, "--system", "agents", *db) == 0
        assert call(server, *MEMALPHA, "--system", "agents", *without, *db, out="other") == 2
        assert "was begun with other settings: memalpha" in capsys.readouterr().err
        warm = ("--build-endpoint", "temperature=0.7", *db)
        assert call(server, *MEMALPHA, "--system", "agents", *warm, out="warm") == 2
        assert "was begun with other settings: temperature" in capsys.readouterr().err
        asked = len(server.requests)
        own = ("--db-path", str(tmp_path / "own"))
        assert call(server, *MEMALPHA, "--system", "agents", *without, *own, out="own") == 0
        writers = [request for request in server.requests[asked:] if first_message(request).startswith(WRITER)]
        assert len(writers) == 2 and not any("episodic" in json.dumps(request.body) for request in writers)
        bank = bank_of(("semantic", "Ann lives in Oslo."), ("episodic", "A whale swam."), core="Core text.")
        _keep(tmp_path / "db", bank)
        stored = ("--mode", "answer", "--system", "bank", *MEMALPHA, *db)
        assert call(server, *stored, out="all") == 0
        assert call(server, *stored, "--exclude-memory", "core,episodic", out="less") == 0
    prompts = [first_message(request) for request in server.requests if first_message(request).startswith(READER)]
    whole, less = prompts[-4:-2], prompts[-2:]
    assert all("Core text." in prompt and "whale swam" in prompt for prompt in whole)
    assert not any("Core text." in prompt or "whale swam" in prompt for prompt in less)
    kept = [result(tmp_path / out)["systems"]["bank"]["by_source"]["memory_tokens"] for out in ("all", "less")]
    assert kept == [3 + 5 + 4, 5]


def test_a_memory_that_another_command_built_of_whole_chunks_is_answered_from(tmp_path, monkeypatch):
    long = [chunk + "\nIt is late." * 70 for chunk in CHUNKS]  # four agents would read each of them in two parts
    call = caller(tmp_path, monkeypatch, row(0, "squad", chunks=long))
    db, data = str(tmp_path / "db"), ["--dataset", "memalpha", "--dataset-path", str(tmp_path / "test.parquet")]
    with FaultServer(answering(reply)) as server:
        served = ["--model", "m", "--provider", "vllm", "--base-url", server.base_url, *MEMALPHA]
        assert build.main([*data, *served, "--out", db]) == 0
        written = sum(first_message(request).startswith(WRITER) for request in server.requests)
        assert call(server, *MEMALPHA, "--system", "agents", "--db-path", db) == 0
        assert written == sum(first_message(request).startswith(WRITER) for request in server.requests) == 2
    assert result(tmp_path / "out")["systems"]["agents"]["by_source"]["memory_tokens"] > 0


def test_a_scheme_of_ones_own_builds_and_finds_as_it_says(tmp_path, monkeypatch):
    call, folder = caller(tmp_path, monkeypatch, row(0, "squad")), keeper.write(tmp_path / "keeper")

    def keep(request: Request) -> str:
        return "#1" if first_message(request).endswith("keep:") else reply(request)

    systems = ("--system", "agents", "--system", "rules", "--system", "all")
    with FaultServer(answering(keep)) as server:
        assert call(server, "--scheme", str(folder), *systems) == 0
    records = read_records(tmp_path / "out" / "answers.jsonl")
    found = {name: [r for r in records if r.system == name][0].retrieved for name in ("agents", "rules", "all")}
    assert {len(each) for each in (found["agents"], found["rules"])} == {2} and len(found["all"]) == 4
    assert {each.text.partition(": ")[2] for each in found["agents"]} == {chunk.split("\n")[0] for chunk in CHUNKS}


def _keep(folder: Path, bank: Bank) -> None:
    """Put a bank in the place of the one that was built of instance squad-0."""

    (dialogue,) = load(folder.parent / "test.parquet")
    BankFolder(folder).save(dialogue, bank)


def test_a_memory_of_50000_entries_is_answered_from_within_the_budget(tmp_path, monkeypatch):
    call = caller(tmp_path, monkeypatch, row(0, "squad"))
    db = ("--db-path", str(tmp_path / "db"))
    noise = [("semantic", f"Fact {number} is about topic {number % 997}.") for number in range(49_999)]
    with FaultServer(answering(reply)) as server:
        assert call(server, *MEMALPHA, "--system", "agents", *db) == 0
        _keep(tmp_path / "db", bank_of(*noise, ("episodic", "Ann lives in Oslo."), core="A core."))
        began = time.monotonic()
        assert call(server, "--mode", "answer", "--system", "bank", *db, "--top-k", "20", out="many") == 0
        assert time.monotonic() - began < LINEAR
        prompt = first_message(server.requests[-2])
    assert len(prompt) < 4 * 30_000 and prompt.count("\n- ") <= 2 * 20 + 6
    squad = result(tmp_path / "many")["systems"]["bank"]["by_source"]["sources"]["squad"]
    assert squad["memory_tokens"] > 300_000 and squad["score"] == 0.5


def test_a_reader_that_answers_nothing_is_counted_and_said(tmp_path, monkeypatch, capsys):
    call = caller(tmp_path, monkeypatch, row(0, "squad"), row(1, "hotpotqa"))

    def silent(request: Request) -> str:
        prompt = first_message(request)
        return "" if prompt.startswith(READER) and "Where does Ann live?" in prompt else reply(request)

    with FaultServer(answering(silent)) as server:
        assert call(server, *MEMALPHA, "--system", "all") == 1
    assert "all: 50.0% of the answers could not be had, above 1%" in capsys.readouterr().err
    found = result(tmp_path / "out")["systems"]["all"]
    assert found["unanswered"] == 2 and found["by_source"]["sources"]["squad"]["unscored"] == 1
    table = (tmp_path / "out" / "table.md").read_text(encoding="utf-8")
    assert "all: 2 questions could not be scored, and count in no mean." in table
    answers = [record.answer for record in read_records(tmp_path / "out" / "answers.jsonl")]
    assert sorted(map(str, answers)) == ["None", "None", "Oslo", "Oslo"]  # nothing is taken for an answer


def test_a_judge_that_is_down_for_a_tenth_of_its_calls_is_counted_and_said(tmp_path, monkeypatch, capsys):
    asked = [(f"What about topic {number}?", "Oslo") for number in range(10)]
    call = caller(tmp_path, monkeypatch, row(0, "lme_train", asked, question_type="knowledge-update"))

    async def serve(request: Request, writer) -> None:
        is_lost = request.body["model"] == "judge" and "topic 7?" in first_message(request)
        await (status(503) if is_lost else answering(reply))(request, writer)

    with FaultServer(serve) as server:
        assert call(server, *MEMALPHA, "--system", "all", "--judge-endpoint", "max_attempts=1") == 1
    assert "all: 10.0% of the verdicts could not be had, above 1%" in capsys.readouterr().err
    source = result(tmp_path / "out")["systems"]["all"]["by_source"]["sources"]["lme_train"]
    assert (source["questions"], source["unscored"], source["score"]) == (10, 1, 1.0)


# kills


def evaluate(folder: str, arguments: list[str]) -> None:
    """Run the command in a process of its own, with a bag of words in place of the embedding model."""
    options.open_embedder = hash_embedder(Path(folder))
    run.draw = lambda *_: None
    raise SystemExit(command.main(arguments))


@pytest.mark.slow
@pytest.mark.parametrize("system", ["agents", "memagent-blind"])
def test_a_run_of_many_chunks_goes_on_at_the_chunk_in_flight_after_a_kill(tmp_path, monkeypatch, system):
    chunks = [f"Chunk {number} says that Ann lives in Oslo, number {number}." for number in range(12)]
    caller(tmp_path, monkeypatch, row(0, "squad", chunks=chunks))

    def write(request: Request) -> str:
        said = "".join(each["content"] for each in request.body["messages"])
        if first_message(request).startswith(WRITER):
            return insert("semantic", max(chunk for chunk in chunks if chunk in said))
        return "A memory." if "section by section" in said else reply(request)

    def reads(request: Request) -> bool:
        return first_message(request).startswith((WRITER, "You read a long text"))

    with FaultServer(answering(write, seconds=0.2)) as server:
        how = ("--system", system, *(MEMALPHA if system == "agents" else ()))
        arguments = flags(tmp_path, server.base_url, *how)
        process = start(evaluate, str(tmp_path), arguments)
        while sum(map(reads, server.requests)) < 5 and process.is_alive():
            time.sleep(0.01)
        process.kill()
        process.join()
        begun = sum(map(reads, server.requests))
        assert process.exitcode == -9 and 5 <= begun < 12
        again = start(evaluate, str(tmp_path), arguments)
        again.join()
        assert again.exitcode == 0
        assert sum(map(reads, server.requests)) in (12, 12 + 1)  # at most the chunk in flight is read twice
        other = flags(tmp_path, server.base_url, *how, "--max-tokens", "99")
        refused = start(evaluate, str(tmp_path), other)
        refused.join()
        assert refused.exitcode == 2
    assert (tmp_path / "out" / RUN_FILE).exists()
    squad = result(tmp_path / "out")["systems"][system]["by_source"]["sources"]["squad"]
    assert squad["questions"] == 2 and squad["memory_tokens"] > 0
