"""What an evaluation could not have: answers and verdicts, per system; what a killed run used; and measures by
category.
"""

import json
import time
from pathlib import Path

import pytest

from membuilder import eval as command
from membuilder.embedding import options
from membuilder.errors import ChatErrorKind, DataError
from membuilder.evaluation.records import read_records
from membuilder.llm.chat_model import Role
from membuilder.llm.usage import Tokens, Usage
from tests import killed
from tests.evaluating import DIALOGUE, JUDGED, caller, flags, hash_embedder, reply, result
from tests.fault_server import FaultServer, Request, answer, answering, status
from tests.patience import HANGS

MANY = 60
MANY_ASKED = DIALOGUE | {
    "questions": [
        {"question": f"What is cat {number} called?", "answer": "Miso", "category": "single-hop", "evidence": ["S1:1"]}
        for number in range(MANY)
    ]
}


@pytest.fixture
def call(tmp_path, monkeypatch):
    return caller(tmp_path, monkeypatch)


def failing(text: str, times: int, fault):
    """A server that fails its first answers to prompts with this text. A request with a schema that it refuses is sent
    once more without.
    """
    left = [times]

    async def send(request: Request, writer) -> None:
        prompt = request.body.get("messages", [{"content": ""}])[0]["content"]
        if text in prompt and left[0]:
            left[0] -= 1
            await fault(request, writer)
        else:
            await answering(reply)(request, writer)

    return send


# per system


def test_one_systems_missing_answers_fail_the_run_whatever_the_others_have(tmp_path, monkeypatch, capsys):
    """1 of 60 is 1.7%, though 0.8% of both systems' 120."""
    call = caller(tmp_path, monkeypatch, MANY_ASKED)
    both = ("--system", "rag-turn-bm25", "--system", "none", "--model", "m", *JUDGED, "--concurrency", "8")
    with FaultServer(failing("(none found)", 1, status(400, "no"))) as server:
        assert call(server, *both) == 1
        assert "none: 1.7% of the answers could not be had" in capsys.readouterr().err
        found = result(tmp_path / "out")["systems"]
        assert (found["none"]["unanswered"], found["rag-turn-bm25"]["unanswered"]) == (1, 0)
        assert found["none"]["questions"] == MANY and found["none"]["judge"]["strict"]["judged"] == MANY - 1
        assert call(server, *both) == 0  # only the one is asked again
    assert result(tmp_path / "out")["systems"]["none"]["unanswered"] == 0


def test_an_unanswered_question_stays_in_recall(call, tmp_path):
    with FaultServer(failing("Does it rain?", 1, status(400, "no"))) as server:
        assert call(server, "--system", "rag-turn-bm25", "--model", "m", *JUDGED) == 1
    system = result(tmp_path / "out")["systems"]["rag-turn-bm25"]
    assert (system["questions"], system["unanswered"], system["questions_with_evidence"]) == (2, 1, 2)
    # "Does it rain?" shares no word with "It rains." and finds nothing
    assert system["evidence_recall"]["10"] == 0.5 and system["f1"] == 1.0  # of the one that was answered
    assert [record.answer for record in read_records(tmp_path / "out" / "answers.jsonl")].count(None) == 1


def test_one_systems_missing_verdicts_of_one_judge_fail_the_run(tmp_path, monkeypatch, capsys):
    call = caller(tmp_path, monkeypatch, MANY_ASKED)
    both = ("--system", "rag-turn-bm25", "--system", "none", "--model", "m", *JUDGED)
    with FaultServer(failing("Grade strictly", 2, status(400, "no"))) as server:
        assert call(server, *both) == 1  # 1 of 60, though 0.4% of all 240 verdicts
    said = capsys.readouterr().err
    assert "rag-turn-bm25: 1.7% of the verdicts could not be had" in said and said.count("could not be had") == 1


def test_an_answer_that_lacked_its_verdict_is_not_lost_to_a_later_failure(call, tmp_path):
    again = ("--system", "none", "--model", "m", *JUDGED)
    with FaultServer(failing("Grade strictly", 2, status(400, "no"))) as server:
        assert call(server, *again) == 1
        server.script[0] = failing("What is the cat called?", 1, status(400, "no"))
        assert call(server, *again) == 1
        records = read_records(tmp_path / "out" / "answers.jsonl")
        assert [record.answer for record in records] == ["Miso", "Miso"]
        assert call(server, *again) == 0


def test_a_verdict_that_was_none_is_asked_for_past_the_answer_cache(call, tmp_path):
    good: list[bool] = []

    def judge(request: Request) -> str:
        if not request.body["messages"][0]["content"].startswith("You grade"):
            return reply(request)
        return '{"correct": true}' if good else "Looks fine to me."

    keep = ("--system", "none", "--model", "m", *JUDGED, "--answer-cache", str(tmp_path / "answers"))
    with FaultServer(answering(judge)) as server:
        assert call(server, *keep) == 1
        good.append(True)
        assert call(server, *keep) == 0
    assert result(tmp_path / "out")["systems"]["none"]["judge"]["strict"]["unjudged"] == 0


@pytest.mark.parametrize("fault", [answer("{", "length"), answer(None, "content_filter")])
def test_a_judge_cut_short_or_declining_once_still_judges(call, tmp_path, fault):
    with FaultServer(failing("Grade strictly", 1, fault)) as server:
        assert call(server, "--system", "none", "--model", "m", *JUDGED) == 0
    assert result(tmp_path / "out")["run"]["usage"]["judge"]["failed_attempts"] != {}


# by category


def test_every_measure_that_was_taken_is_shown_by_category(tmp_path, monkeypatch):
    unanswerable = {"question": "What is the dog called?", "category": "adversarial", "answerable": False}
    other = {"question": "Where did Ann move?", "answer": "Oslo", "category": "temporal", "evidence": ["S2:1"]}
    questions = [*DIALOGUE["questions"], other, unanswerable]
    call = caller(tmp_path, monkeypatch, DIALOGUE | {"questions": questions}, draws=True)

    def grade(request: Request) -> str:
        prompt = request.body["messages"][0]["content"]
        right = "Grade strictly" not in prompt and "dog" not in prompt
        return json.dumps({"correct": right}) if prompt.startswith("You grade") else reply(request)

    with FaultServer(answering(grade)) as server:
        assert call(server, "--system", "none", "--model", "m", *JUDGED) == 0
    table = (tmp_path / "out" / "table.md").read_text()
    rows = [line for line in table.split("\n") if line.startswith("| none |")]
    assert rows[1:] == [
        "| none | 0.000 | 0.000 |  |",  # evidence recall; the adversarial question has no evidence
        "| none | 0.500 | 0.000 | 0.000 |",  # F1: "Miso" for Miso, yes and Oslo; no phrase of refusal
        "| none | 0.000 | 0.000 | 0.000 |",  # strict
        "| none | 1.000 | 1.000 | 0.000 |",  # lenient
    ]
    for name in ("Evidence recall@10 by category:", "F1 by category:", "Judge, strict by category:"):
        assert name in table
    head, first = table.split("\n")[0].split(" | "), rows[0].split(" | ")
    assert first[head.index("judge lenient (set apart)")].startswith("0.000")
    assert (tmp_path / "out" / "by_category.png").read_bytes().startswith(b"\x89PNG")


# what it used


def test_usage_counts_on_over_processes(tmp_path):
    first = Usage()
    first.add_answer(Role.JUDGE, 1.0, Tokens(prompt=7, completion=3), None)  # before anything is kept: a check
    first.keep(tmp_path / "usage.jsonl")
    first.add_answer(Role.JUDGE, 3.0, Tokens(prompt=5, completion=1), None)
    first.add_failure(Role.JUDGE, ChatErrorKind.TIMEOUT)
    with (tmp_path / "usage.jsonl").open("ab") as file:
        file.write(b'{"role": "jud')  # killed while it wrote
    second = Usage()
    second.add_cached(Role.JUDGE)
    second.keep(tmp_path / "usage.jsonl")
    second.add_answer(Role.ANSWERER, 2.0, None, None)
    third = Usage()
    third.keep(tmp_path / "usage.jsonl")
    assert third.report() == second.report()
    judge, answerer = third.report()["judge"], third.report()["answerer"]
    assert (judge["calls"], judge["cached"], judge["prompt_tokens"], judge["completion_tokens"]) == (2, 1, 12, 4)
    assert judge["latency_p50_seconds"] == 2.0 and judge["failed_attempts"] == {"timeout": 1}
    assert (answerer["calls"], answerer["prompt_tokens"], answerer["calls_without_tokens"]) == (1, None, 1)


@pytest.mark.parametrize("line", ["{", "5", '{"role": "judge"}', '{"role": "nobody", "cached": true}'])
def test_a_damaged_line_of_usage_is_refused(tmp_path, line):
    (tmp_path / "usage.jsonl").write_text(line + "\n")
    with pytest.raises(DataError, match="line 1.*remove the line"):
        Usage().keep(tmp_path / "usage.jsonl")


def evaluate(folder: str, argv: list[str]) -> None:
    options.open_embedder = hash_embedder(Path(folder))
    command.main(argv)


@pytest.mark.slow
def test_a_killed_and_resumed_run_accounts_for_every_answer_the_server_gave(call, tmp_path):
    """Killed while it builds and while it answers, each time with one request that the server never answers."""
    num_answered, hang_at = 0, [6, 19]  # in the first session; behind 3 + 8 more of the builder, in a question

    async def send(request: Request, writer) -> None:
        nonlocal num_answered
        if hang_at and num_answered >= hang_at[0]:
            return  # no answer, on an open connection
        num_answered += 1
        await answering(reply)(request, writer)

    argv_more = ("--system", "agents", "--model", "m", *JUDGED)
    usage = tmp_path / "out" / "usage.jsonl"
    with FaultServer(send) as server:
        while hang_at:
            process = killed.start(evaluate, str(tmp_path), flags(tmp_path, server, *argv_more))
            deadline = time.monotonic() + HANGS
            while not usage.exists() or len(usage.read_bytes().splitlines()) < hang_at[0]:
                assert process.is_alive() and time.monotonic() < deadline
                time.sleep(0.01)
            process.kill()
            process.join()
            hang_at.pop(0)
        assert call(server, *argv_more) == 0
    used = result(tmp_path / "out")["run"]["usage"]
    assert result(tmp_path / "out")["run"]["resumed"] is True
    assert sum(role["calls"] for role in used.values()) == num_answered
    assert sum(role["prompt_tokens"] for role in used.values()) == 7 * num_answered
    assert used["builder"]["calls"] > 8 and used["judge"]["calls"] > 4
