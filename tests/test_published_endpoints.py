"""The endpoints of Mem-alpha's published server, with request bodies as its programs send them."""

import json

import pytest

from membuilder.bank.okapi import _index_of
from membuilder.llm.endpoints import ModelAccess, ModelEndpoint, Provider
from tests.fault_server import FaultServer, Request, answer, status
from tests.listening import key_for
from tests.served import served

BATCH = """{
  "memories": [
    {"core": "Ann is a nurse in Leeds.", "semantic": [{"a1b2": "Ann's cat is called Miso."}, {"c3d4": 42}],
     "episodic": [{"e5f6": "At 2024-03-01, Ann bought a piano."}]},
    {"core": null, "semantic": [], "episodic": [{"0a0b": "At 2024-04-01, Ben sold his car."}]}
  ],
  "questions": [["What is the cat called?", "What did Ann buy?"], ["What did Ben sell?"]],
  "max_tokens": 2048, "temperature": 0.7, "enable_thinking": false, "qwen_batch_size": 32, "azure_batch_size": 20
}"""
AGENTIC = """{
  "memories": [{"core": "", "semantic": [{"a1": "Ann has a cat."}, {"a2": "The cat of Ann is called Miso."},
    {"a3": "Ann was told about a cat by Ben."}, {"a4": "A piano stands in the hall."}], "episodic": []}],
  "questions": [["Which cat has Ann, and what stands in the hall?"]],
  "max_iterations": 5, "temperature": 0.7, "max_tokens": 2048
}"""
CALLS = """{
  "batch": [
    [{"name": "new_memory_insert", "arguments": {"memory_type": "semantic", "content": "Ann's cat is called Miso."},
      "success": true, "result": "ok"},
     {"name": "memory_update", "arguments": {"memory_type": "core", "new_content": "I am an empty memory."}},
     {"name": "memory_delete", "arguments": {"memory_type": "episodic", "memory_id": "a1b2"}}],
    [{"name": "new_memory_insert", "arguments": null}, {"name": "new_memory_insert", "arguments": "hello"},
     {"name": "new_memory_insert", "arguments": {"memory_type": null, "content": "x"}}],
    []
  ],
  "qwen_batch_size": 32, "azure_batch_size": 20
}"""
JSON = {"content-type": "application/json"}


def access(model: FaultServer, **settings) -> ModelAccess:
    endpoint = ModelEndpoint(
        name="m-1", provider=Provider.VLLM, base_url=model.base_url, max_attempts=1, timeout_seconds=60, **settings
    )
    return ModelAccess(endpoint=endpoint, api_key="sk-answerer")


def asked(request: Request) -> str:
    return request.body["messages"][-1]["content"]


def noted(request: Request) -> list[str]:
    """The entries that a prompt shows."""
    return [
        line for line in asked(request).splitlines() if line.startswith("- ") and ("apples" in line or "cat" in line)
    ]


def test_questions_are_answered_each_from_its_own_memory(tmp_path):
    async def respond(request: Request, writer) -> None:
        said = asked(request)
        known = {"cat called": "Miso.", "Ann buy": "A piano.", "Ben sell": "His car."}
        await answer(next(text for words, text in known.items() if words in said))(request, writer)

    with FaultServer(respond) as model, served(tmp_path, answerer=access(model)) as server:
        for path in ("/batch_process", "/process"):
            reply = server.request("POST", path, content=BATCH, headers=JSON)
            assert reply.status_code == 200 and reply.json() == {
                "result": [["Miso.", "A piano."], ["His car."]],
                "errors": [[None, None], [None]],
                "status": "success",
                "processed_count": 3,
            }
        of_ben = [asked(request) for request in model.requests if "Ben sell" in asked(request)]
        assert len(of_ben) == 2 and not any("Miso" in said or "nurse" in said for said in of_ben)
        assert all("nurse in Leeds" in asked(request) for request in model.requests if "cat called" in asked(request))
    assert _index_of.cache_info().currsize == 0
    assert not [path for path in (tmp_path / "users").rglob("*") if path.is_file()]


def test_the_question_alone_ranks_and_twenty_of_each_part_are_read(tmp_path):
    notes = [{f"n{number}": f"Note {number} is about apples."} for number in range(60)]
    notes.insert(45, {"miso": "The cat is called Miso."})
    body = {"memories": [{"core": None, "semantic": notes, "episodic": notes}], "questions": [["the cat"]]}
    with FaultServer(answer("Miso.")) as model, served(tmp_path, answerer=access(model)) as server:
        assert server.post("/batch_process", body).json()["result"] == [["Miso."]]
        assert len(noted(model.requests[-1])) == 40 and noted(model.requests[-1])[0] == "- The cat is called Miso."
        server.post("/process", body)  # it all fits
        assert len(noted(model.requests[-1])) == 122
        long = [{name: text + " pear" * 700} for each in notes for name, text in each.items()]
        server.post("/process", {"memories": [{"semantic": long}], "questions": [["the cat"]]})
        assert 0 < len(noted(model.requests[-1])) <= 15


def test_one_bad_question_fails_alone(tmp_path):
    async def respond(request: Request, writer) -> None:
        behaviour = status(400, "too strange") if "forbidden" in asked(request) else answer("Miso.")
        await behaviour(request, writer)

    questions = ["What is the cat called?", "", "Say the forbidden word.", "x" * 40_000]
    body = {"memories": [{"core": "The cat is called Miso."}], "questions": [questions]}
    with FaultServer(respond) as model, served(tmp_path, answerer=access(model)) as server:
        told = server.post("/batch_process", body).json()
    assert told["result"] == [["Miso.", None, None, None]] and told["status"] == "partial"
    assert [bool(error) for error in told["errors"][0]] == [False, True, True, True]
    assert "bad_request" in told["errors"][0][2] and "strange" not in json.dumps(told)


def test_a_model_that_is_away_fails_the_request_and_not_each_question(tmp_path):
    with FaultServer(status(401)) as model, served(tmp_path, answerer=access(model)) as server:
        for path, body in (("/batch_process", BATCH), ("/agentic_process", AGENTIC), ("/analyze_function", CALLS)):
            reply = server.request("POST", path, content=body, headers=JSON)
            assert (reply.status_code, reply.json()["type"]) == (503, "urn:membuilder:model-unavailable")


def test_a_searching_model_is_shown_two_new_entries_a_round(tmp_path):
    call = '<tool_call>{"name": "search_memory", "arguments": {"query": "piano hall"}}</tool_call>'
    with FaultServer(answer(call), answer(call), answer("Miso, and a piano.")) as model:
        with served(tmp_path, answerer=access(model)) as server:
            told = server.request("POST", "/agentic_process", content=AGENTIC, headers=JSON).json()
    first, second, third = map(asked, model.requests)
    entries = [text for each in json.loads(AGENTIC)["memories"][0]["semantic"] for text in each.values()]
    shown = [[text for text in entries if f"- {text}" in said] for said in (first, second)]
    assert list(map(len, shown)) == [2, 2] and sorted(shown[0] + shown[1]) == sorted(entries)
    assert "nothing new" in third
    assert told["result"] == [["Miso, and a piano."]] and (told["status"], told["processed_count"]) == ("success", 1)
    (steps,) = told["search_iterations"][0]
    search = {"memory_type": "all", "query": "piano hall", "search_method": "bm25", "results_count": 4}
    assert steps[:2] == [{"iteration": 1, "new_items": 2} | search, {"iteration": 2, "new_items": 0} | search]
    assert steps[2]["iteration"] == 3 and steps[2]["action"] == "answer" and len(steps) == 3


def test_a_model_that_never_answers_has_no_answer(tmp_path):
    call = '<tool_call>{"name": "search_memory", "arguments": {"query": "cat"}}</tool_call>'
    with FaultServer(answer(call)) as model, served(tmp_path, answerer=access(model)) as server:
        told = server.request("POST", "/agentic_process", content=AGENTIC, headers=JSON).json()
    assert told["result"] == [[None]] and "no_text" in told["errors"][0][0] and len(model.requests) == 6


def test_calls_are_judged_and_what_stored_nothing_counts_as_nothing(tmp_path):
    async def respond(request: Request, writer) -> None:
        is_good = "Miso" in asked(request)
        await answer(json.dumps({"reason": "because", "correct": is_good}))(request, writer)

    with FaultServer(respond) as model, served(tmp_path, answerer=access(model)) as server:
        told = server.request("POST", "/analyze_function", content=CALLS, headers=JSON).json()
    assert told["scores"] == [pytest.approx(1 / 3), 0.0, 0.0] and told["status"] == "success"
    good, bad, deleted = told["detailed_analyses"][0]
    assert good == {"is_valid": True, "score": 1.0, "issues": [], "explanation": "because"}
    assert bad == {"is_valid": False, "score": 0.0, "issues": ["because"], "explanation": "because"}
    assert deleted["is_valid"] is False and deleted["score"] == 0.0 and deleted["error"]
    assert (told["total_items"], told["total_groups"], told["llm_processed"], len(model.requests)) == (6, 3, 2, 2)


def test_a_verdict_that_cannot_be_had_is_none_and_in_no_mean(tmp_path):
    async def respond(request: Request, writer) -> None:
        behaviour = status(400) if "empty memory" in asked(request) else answer('{"correct": true}')
        await behaviour(request, writer)

    with FaultServer(respond) as model, served(tmp_path, answerer=access(model)) as server:
        told = server.request("POST", "/analyze_function", content=CALLS, headers=JSON).json()
    assert told["scores"][0] == 0.5 and told["status"] == "partial"  # of one valid call and the deletion
    assert told["detailed_analyses"][0][1]["score"] is None


@pytest.mark.parametrize(("path", "body"), [("/batch_process", BATCH), ("/process", BATCH),
                                            ("/agentic_process", AGENTIC), ("/analyze_function", CALLS)])  # fmt: skip
def test_without_an_answering_model_nobody_answers(path, body, tmp_path):
    with served(tmp_path) as server:
        reply = server.request("POST", path, content=body, headers=JSON)
    assert (reply.status_code, reply.json()["type"]) == (501, "urn:membuilder:no-answerer")


@pytest.mark.parametrize(
    "body",
    [
        {"memories": [{}]},
        {"memories": [{}], "questions": []},
        {"memories": [{}], "questions": [["x"] * 5_001]},
        {"memories": [{"semantic": [{"a": ["x"]}]}], "questions": [["x"]]},
        {"memories": [{"semantic": {"a": "x"}}], "questions": [["x"]]},
        {"memories": "x", "questions": "x"},
        [],
    ],
)
def test_what_is_no_batch_is_refused(body, tmp_path):
    with FaultServer(answer("x")) as model, served(tmp_path, answerer=access(model)) as server:
        for path in ("/batch_process", "/agentic_process"):
            reply = server.post(path, body)
            assert (reply.status_code, reply.json()["type"]) == (422, "urn:membuilder:invalid-request")
        assert not model.requests


def test_any_key_may_ask_and_nobody_without_one(tmp_path):
    key = key_for(tmp_path / "keys", "ann")
    with FaultServer(answer("Miso.")) as model:
        with served(tmp_path / "root", answerer=access(model), api_keys=tmp_path / "keys") as server:
            for headers, code in ((JSON, 401), (JSON | {"authorization": f"Bearer {key}"}, 200)):
                assert server.request("POST", "/batch_process", content=BATCH, headers=headers).status_code == code
