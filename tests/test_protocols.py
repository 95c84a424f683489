"""Other ways of keeping a long text: a cut context, chunks by words, a running memory, a reader that searches."""

import json
from dataclasses import replace

import pytest

from membuilder.bank import okapi
from membuilder.evaluation.chunks import token_counter
from membuilder.evaluation.protocols.long_context import LongContext, kept
from membuilder.evaluation.records import read_records
from membuilder.llm.answer_and_judge import answer_prompt
from membuilder.types import Question
from tests.evaluating import result
from tests.fault_server import FaultServer, Request, answer, answering, status
from tests.instances import ASKED, CHUNKS, caller, row
from tests.memalpha_chunks import call as tool_call
from tests.memalpha_chunks import instance

COUNT = token_counter(None)


def prompts(server: FaultServer, begins: str) -> list[str]:
    texts = [request.body["messages"][0]["content"] for request in server.requests]
    return [text for text in texts if text.startswith(begins)]


def reader(request: Request) -> str:
    """Answers from what stands in its prompt."""
    prompt = request.body["messages"][0]["content"]
    return next((word for word in ("Oslo", "whale") if word in prompt), "It is not known.")


def test_the_middle_is_cut_in_halves_that_fit():
    assert kept([5, 5, 5], 15) == (3, 0)
    assert kept([5, 5, 5, 5], 15) == (1, 2)  # 5 of 7 at the beginning, 10 of the other 10 at the end
    assert kept([5, 5, 5], 4) == (0, 0) and kept([5, 5], -3) == (0, 0) and kept([], -1) == (0, 0)


def test_a_long_context_fits_its_limit_keeps_the_question_and_tells_what_was_cut():
    lines = [f"Line {number} is about something." for number in range(400)]
    whole = instance(lines[:200], lines[200:])
    question = Question(id="q", text="What is line 7 about?", answer="x", category="squad", evidence=("C1:8",))
    system = LongContext(limit=1000, count=COUNT, by_source=True)
    (ranking,) = system(replace(whole, questions=(question,)), 20)
    (item,) = ranking.items
    asked = answer_prompt(question, core="", memories=[item.text], now=whole.sessions[-1].timestamp)
    assert 900 < COUNT(asked) <= 1000 and question.text in asked
    assert item.text.startswith("Line 0 is") and item.text.rstrip().endswith("Line 399 is about something.")
    told = sum(map(COUNT, ranking.memory)) + ranking.cut_tokens
    total = COUNT("\n".join(lines))
    assert abs(told - total) < 0.02 * total and f"[{ranking.cut_tokens} tokens are left out here]" in item.text
    assert "C1:1" in item.source_turns and "C2:200" in item.source_turns and "C1:199" not in item.source_turns
    (uncut,) = LongContext(limit=100_000, count=COUNT, by_source=True)(replace(whole, questions=(question,)), 20)
    assert uncut.cut_tokens == 0 and len(uncut.items[0].source_turns) == 400


def test_a_limited_context_and_the_best_chunks_are_answered_by_one_reader(tmp_path, monkeypatch, capsys):
    long = [*CHUNKS, *(f"Chunk {number} of noise. " * 40 for number in range(30))]
    call = caller(tmp_path, monkeypatch, row(0, "squad", chunks=long))
    systems = ("--system", "long-context", "--system", "bm25", "--context-tokens", "1200", "--chunks", "1")
    with FaultServer(answering(reader)) as server:
        assert call(server, *systems) == 0
        asked = prompts(server, "You answer questions about people")
    found = result(tmp_path / "out")
    assert found["systems"]["bm25"]["by_source"]["mean_of_sources"] == 1.0
    best = asked[2:]  # of system bm25
    assert all(chunk.split("\n")[0] in prompt for chunk, prompt in zip(CHUNKS, best, strict=True))
    assert CHUNKS[1].split("\n")[0] not in best[0]
    squad = {name: each["by_source"]["sources"]["squad"] for name, each in found["systems"].items()}
    assert squad["bm25"]["cut_tokens"] is None and squad["bm25"]["memory_tokens"] == squad["bm25"]["chunk_tokens"]
    of_context = squad["long-context"]
    assert of_context["memory_tokens"] < 1200 < of_context["cut_tokens"] < of_context["chunk_tokens"]
    table = (tmp_path / "out" / "table.md").read_text(encoding="utf-8")
    assert "Memory tokens by source" in table and "long-context: tokens cut out of the middle" in table
    assert (found["run"]["context_tokens"], found["run"]["chunks"]) == (1200, 1)
    records = read_records(tmp_path / "out" / "answers.jsonl")
    assert all(record.cut_tokens > 1000 for record in records if record.system == "long-context")


def memory_of(request: Request) -> str:
    """As MemAgent and MEM1 the number of chunks read so far, as reader the memory's own words."""
    prompt = request.body["messages"][0]["content"]
    if "section by section" in prompt:
        return f"<think>Let me see.</think>{'whale Oslo ' if 'whale' in prompt else 'Oslo '}read"
    if "one after the other" in prompt:
        return f"<think>old</think><think>{'whale Oslo' if 'whale' in prompt else 'Oslo'}</think>"
    return reader(request)


RUNNING = [each for name in ("memagent", "memagent-blind", "mem1", "mem1-blind") for each in ("--system", name)]


def test_running_memories_are_rewritten_chunk_after_chunk_with_the_question_and_blind(tmp_path, monkeypatch):
    call = caller(tmp_path, monkeypatch, row(0, "squad"))
    with FaultServer(answering(memory_of)) as server:
        assert call(server, *RUNNING) == 0
        agent = prompts(server, "You read a long text section by section")
        states = prompts(server, "You answer a question from pieces") + prompts(server, "You are shown pieces")
    blind = [prompt for prompt in agent if "not known yet" in prompt]
    assert len(agent) == 2 * 2 + 2 and len(blind) == 2  # two chunks: once per question, once for both
    assert not any(text in prompt for prompt in blind for text, _ in ASKED)
    assert sum(ASKED[0][0] in prompt for prompt in agent) == 2
    assert "(empty)" in blind[0] and CHUNKS[0] in blind[0] and "Oslo read" in blind[1] and CHUNKS[1] in blind[1]
    assert "Let me see" not in blind[1]  # thoughts are no memory
    assert len(states) == 6 and sum("<think>\nOslo\n</think>" in prompt for prompt in states) == 3
    found = result(tmp_path / "out")
    assert set(found["systems"]) == {"memagent", "memagent-blind", "mem1", "mem1-blind"}
    assert {f"protocols/{name}" for name in ("memagent", "memagent_blind", "mem1", "mem1_blind")} <= set(
        found["run"]["prompts"]
    )
    squad = found["systems"]["mem1-blind"]["by_source"]["sources"]["squad"]
    assert squad["memory_tokens"] == COUNT("whale Oslo") and squad["chunk_tokens"] == sum(map(COUNT, CHUNKS))
    assert found["run"]["running"] == {name: {} for name in found["systems"]}


def test_an_answer_that_cannot_be_used_leaves_the_memory_as_it_was_and_is_counted(tmp_path, monkeypatch, caplog):
    call = caller(tmp_path, monkeypatch, row(0, "squad"))

    def forgetful(request: Request) -> str:
        prompt = request.body["messages"][0]["content"]
        if "one after the other" in prompt and "whale" in prompt:
            return "There is nothing to add."  # without its state
        return memory_of(request)

    with FaultServer(answering(forgetful)) as server:
        assert call(server, "--system", "mem1-blind") == 0
    assert result(tmp_path / "out")["run"]["running"] == {"mem1-blind": {"no_text": 1}}
    assert "mem1-blind: 1 answers could not be used (1 no_text), and the memory stayed as it was" in caplog.text
    lines = (tmp_path / "out" / "running" / "mem1-blind" / "squad-0.jsonl").read_text().splitlines()
    assert [json.loads(line)["memory"] for line in lines] == ["Oslo", "Oslo"]


def test_a_server_that_fails_ends_the_reading_and_nothing_is_read_twice(tmp_path, monkeypatch, capsys):
    call = caller(tmp_path, monkeypatch, row(0, "squad"))
    how = ("--system", "memagent-blind", "--endpoint", "max_attempts=1", "--build-endpoint", "max_attempts=1")

    is_down = True

    async def serve(request: Request, writer) -> None:
        prompt = request.body["messages"][0]["content"]
        fails = is_down and "section by section" in prompt and "whale" in prompt
        await (status(503) if fails else answering(memory_of))(request, writer)

    with FaultServer(serve) as server:
        assert call(server, *how) == 2
        assert "HTTP 503" in capsys.readouterr().err
        is_down, asked = False, len(prompts(server, "You read a long text"))
        assert call(server, *how) == 0
        assert len(prompts(server, "You read a long text")) == asked + 1


# a reader that searches


def searching(request: Request) -> str:
    """Searches for the whale until it has read of it; an answer begins the next round no more."""
    messages = request.body["messages"]
    if messages[0]["content"].startswith("Answer with this JSON"):
        return "{}"
    said = "\n".join(each["content"] for each in messages)
    if "tools" in request.body and "whale swam" not in said:
        return tool_call("search_memory", query="whale sea")
    return "whale" if "whale swam" in said else "Oslo"


def test_a_reader_may_search_in_rounds_and_then_must_answer(tmp_path, monkeypatch):
    call = caller(tmp_path, monkeypatch, row(0, "squad"))
    flags = ("--system", "all", "--scheme", "memalpha", "--agentic-search", "2", "--top-k", "1")
    with FaultServer(answering(searching)) as server:
        assert call(server, *flags) == 0
        asked = [request.body for request in server.requests if len(request.body["messages"]) > 1]
    assert "Found for 'whale sea':" in asked[0]["messages"][2]["content"]
    first = next(each for each in read_records(tmp_path / "out" / "answers.jsonl") if "Ann" in each.question)
    assert first.searches == ("whale sea",) and first.answer == "whale"
    told = result(tmp_path / "out")["run"]
    assert told["agentic_search"] == 2 and {"protocols/search", "protocols/answer_now"} <= set(told["prompts"])


def test_a_reader_that_never_answers_is_unanswered_after_its_rounds(tmp_path, monkeypatch, capsys):
    call = caller(tmp_path, monkeypatch, row(0, "squad"))
    broken = "<tool_call>{name: search}</tool_call>" + tool_call("search_memory", query="dragons")

    def stubborn(request: Request) -> str:
        return "{}" if request.body["messages"][0]["content"].startswith("Answer with this JSON") else broken

    with FaultServer(answering(stubborn)) as server:
        assert call(server, "--system", "all", "--scheme", "memalpha", "--agentic-search", "3") == 1
        said = [request.body for request in server.requests if len(request.body["messages"]) == 7]
    assert len(said) == 2 and all("tools" not in body for body in said)
    assert "A call could not be read: it is no JSON" in said[0]["messages"][2]["content"]
    assert "(nothing new)" in said[0]["messages"][4]["content"]
    assert "No more searches are left" in said[0]["messages"][6]["content"]
    assert "100.0% of the answers could not be had" in capsys.readouterr().err


def test_a_reader_that_searches_has_each_part_of_a_memory_indexed_once(tmp_path, monkeypatch):
    new = [[f"{chunk} {word} sang." for chunk in CHUNKS] for word in ("Bo", "Di")]  # no other test has indexed these
    call = caller(tmp_path, monkeypatch, *(row(number, "squad", chunks=chunks) for number, chunks in enumerate(new)))
    indexed, index = [], okapi.Okapi

    def counted(texts: list, *more: object) -> okapi.Okapi:
        indexed.append(tuple(map(tuple, texts)))
        return index(texts, *more)

    def curious(request: Request) -> str:
        return tool_call("search_memory", query="whale sea") if "tools" in request.body else "Oslo"

    monkeypatch.setattr(okapi, "Okapi", counted)
    flags = ("--system", "all", "--scheme", "memalpha", "--agentic-search", "3", "--concurrency", "4")
    with FaultServer(answering(curious)) as server:
        assert call(server, *flags) == 0
    records = read_records(tmp_path / "out" / "answers.jsonl")
    assert [record.searches for record in records] == [("whale sea",) * 3] * 4
    assert len(indexed) == len(set(indexed)) == 2  # the one part of each memory that holds something


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (("--system", "rules", "--context-tokens", "9"), "it is about system long-context"),
        (("--system", "rules", "--chunks", "9"), "it is about system bm25"),
        (("--system", "none", "--agentic-search"), "--agentic-search is without effect here"),
        (("--system", "none", "--scheme", "memalpha"), "--scheme is without effect here"),
        (("--system", "rules", "--exclude-memory", "core"), "add --scheme"),
        (
            ("--system", "rules", "--scheme", "memalpha", "--exclude-memory", "core,semantic,episodic"),
            "--exclude-memory: ",
        ),
        (("--system", "rules", "--scheme", "memalpha", "--index", "kind=hnsw"), "searches each part"),
        (("--system", "mem1", "--mode", "build"), "needs a system that builds"),
    ],
)
def test_flags_without_effect_are_refused(tmp_path, monkeypatch, capsys, flags, problem):
    call = caller(tmp_path, monkeypatch, row(0, "squad"))
    with FaultServer(answer("x")) as server:
        assert call(server, *flags) == 2
        assert not server.requests
    assert problem in capsys.readouterr().err


def test_what_a_reader_is_told_about_thinking_is_sent_and_kept(tmp_path, monkeypatch, capsys):
    call = caller(tmp_path, monkeypatch, row(0, "squad"))
    with FaultServer(answering(reader)) as server:
        assert call(server, "--system", "bm25", "--thinking", "off") == 0
        sent = [r.body.get("chat_template_kwargs") for r in server.requests if r.body["model"] == "m"]
        assert all(each == {"enable_thinking": False} for each in sent)
        assert call(server, "--system", "bm25", "--thinking", "on") == 2
    assert "was begun with other settings: answer_model" in capsys.readouterr().err
    told = result(tmp_path / "out")["run"]["answer_model"]
    assert (told["thinking"], told["temperature"]) == ("off", 0.0)
