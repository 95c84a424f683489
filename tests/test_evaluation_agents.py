"""The four-agent builder as a system of the evaluation, its model on a real HTTP server on loopback."""

import hashlib
from pathlib import Path

import pytest

from membuilder import build
from membuilder import eval as command
from membuilder.bank.store import reading
from membuilder.config import dump
from membuilder.errors import ConfigError
from membuilder.evaluation.options import parse
from membuilder.evaluation.records import read_records
from membuilder.schemes.four_agents import prompts
from membuilder.schemes.four_agents.prompts import PromptConfig
from membuilder.schemes.four_agents.schemas import ResponseFormat
from membuilder.types import Agent
from tests.evaluating import JUDGED, caller, reply, result
from tests.fakes import HashEmbedder
from tests.fault_server import FaultServer, Request, answering, payload, status
from trainer.rl_config import RLConfig


@pytest.fixture
def call(tmp_path, monkeypatch):
    return caller(tmp_path, monkeypatch)


def test_a_model_builds_and_answers_under_the_same_questions_as_every_other_system(call, tmp_path):
    with FaultServer(answering(reply)) as server:
        assert call(server, "--system", "agents", "--system", "rag-turn-bm25", "--model", "m", *JUDGED) == 0
    found = result(tmp_path / "out")
    assert list(found["systems"]) == ["agents", "rag-turn-bm25"]
    assert found["systems"]["agents"]["evidence_recall"]["10"] == 0.5  # the first turn is in memory, the second is not
    # "Does it rain?" shares no word with "It rains." and finds nothing
    assert found["systems"]["rag-turn-bm25"]["evidence_recall"]["10"] == 0.5
    first = read_records(tmp_path / "out" / "answers.jsonl")[0]
    assert first.retrieved[0].text == "[2024-03-15] Ann: My cat is called Miso." and first.answer == "Miso"
    told = found["run"]
    full = Path(prompts.__file__).parent / "templates" / "full"
    for name in ("core", "episodic", "turn"):
        assert told["prompts"][f"full/{name}"] == hashlib.sha256((full / f"{name}.txt").read_bytes()).hexdigest()
    assert {"answer", "judge_strict", "judge_lenient"} < told["prompts"].keys()
    assert (
        told["agents"]
        == {
            "sessions": 2,
            "answers": 8,
            "failed_answers": {},
            "dropped_operations": {},
        }
        and told["resumed"] is False
    )
    calls = {role: used["calls"] for role, used in told["usage"].items()}
    assert calls == {"builder": 1 + 8, "answerer": 1 + 4, "judge": 1 + 8}
    with reading(tmp_path / "out" / "memories" / "d1.db") as store:  # for membuilder.inspect
        assert store.settings()["model"] == "m" and store.num_sessions() == 2


def test_one_model_builds_another_answers_in_one_step_or_two(call, tmp_path, capsys):
    db = ("--db-path", str(tmp_path / "db"))
    with FaultServer(answering(reply)) as server:
        assert call(server, "--mode", "build", "--model", "writer", *db) == 0
        assert (
            "2 sessions, 8 answers; failed answers: none" in capsys.readouterr().out and not (tmp_path / "out").exists()
        )
        assert {request.body["model"] for request in server.requests} == {"writer"}
        assert call(server, "--mode", "answer", "--model", "reader", *JUDGED, *db) == 0
        assert call(server, "--build-model", "writer", "--model", "reader", *JUDGED, out="once") == 0
        assert {request.body["model"] for request in server.requests} == {"writer", "reader", "judge"}
        two, once = result(tmp_path / "out"), result(tmp_path / "once")
        assert two["systems"]["bank"] == once["systems"]["agents"]
        assert two["run"]["banks"]["model"] == "writer" and once["run"]["build_model"]["model"] == "writer"
        assert call(server, "--mode", "build", "--model", "other", *db) == 2
        assert "was begun with other settings: model=" in capsys.readouterr().err


def test_a_memory_of_membuilder_build_is_answered_from_also_after_a_refusal(call, tmp_path, capsys):
    db, data = str(tmp_path / "db"), ["--dataset", "custom", "--dataset-path", str(tmp_path / "mine.jsonl")]
    with FaultServer(answering(reply)) as server:
        served = ["--model", "writer", "--provider", "vllm", "--base-url", server.base_url]
        assert build.main([*data, *served, "--out", db, "model.max_tokens=99"]) == 0
        asked = len(server.requests)
        flags = ("--model", "writer", "--db-path", db, *JUDGED)
        assert call(server, *flags, out="refused") == 2
        assert "max_tokens=99 (now 4096)" in capsys.readouterr().err
        assert call(server, *flags, "--max-tokens", "99") == 0
        used = result(tmp_path / "out")["run"]["usage"]
        assert used["builder"]["calls"] == 1  # the check: nothing is built again
        assert len(server.requests) == asked + 3 + sum(role["calls"] for role in used.values())
    assert result(tmp_path / "out")["systems"]["agents"]["evidence_recall"]["10"] == 0.5


def test_without_a_model_to_answer_retrieval_is_scored_alone(call, tmp_path):
    with FaultServer(answering(reply)) as server:
        flags = ("--system", "agents", "--build-model", "writer", "--build-provider", "vllm")
        assert call(None, *flags, "--build-base-url", server.base_url) == 0
        assert len(server.requests) == 1 + 8
    found = result(tmp_path / "out")
    assert found["systems"]["agents"]["evidence_recall"]["10"] == 0.5 and found["systems"]["agents"]["f1"] is None


def test_a_checkpoint_is_asked_the_way_it_was_trained(call, tmp_path, capsys):
    trained = RLConfig(prompts=PromptConfig(template_set="compact", response_format=ResponseFormat.TURNS))
    trained.data.max_turns = 1
    (tmp_path / "config.yaml").write_text(dump(trained), encoding="utf-8")
    flags = ("--system", "agents", "--build-model", "policy", "--build-config", str(tmp_path / "config.yaml"))

    def policy(request: Request) -> str:
        return '{"#1":"add"}' if request.body["messages"][-1]["content"].endswith("[semantic]\n") else "{}"

    with FaultServer(answering(policy)) as server:
        assert call(server, *flags) == 0
        prompts = [request.body["messages"][-1]["content"] for request in server.requests[1:]]
    assert prompts[0] == "2024-03-15 09:30\nAnn: My cat is called Miso. #1\n[core]\n"
    assert len(prompts) == 3 * 4  # three turns, read one at a time
    found = result(tmp_path / "out")
    assert found["systems"]["agents"]["evidence_recall"]["10"] == 1.0  # every turn is kept
    assert found["run"]["build_config"]["max_turns"] == 1
    assert set(found["run"]["prompts"]) == {f"compact/{name}" for name in (*Agent, "turn")}
    (tmp_path / "config.yaml").write_text("seed: 1\n", encoding="utf-8")
    assert call(None, *flags, out="other") == 2
    assert "name the config.yaml that a training run wrote" in capsys.readouterr().err


def test_a_judge_that_refuses_its_key_is_found_before_anything_is_built(call, tmp_path, capsys):
    with FaultServer(answering(reply)) as server, FaultServer(status(401, "no such key")) as judge:
        flags = ("--system", "agents", "--model", "m", *JUDGED, "--judge-base-url", judge.base_url)
        assert call(server, *flags) == 2
        assert len(server.requests) == 1  # the check
    assert "no such key" in capsys.readouterr().err and not list((tmp_path / "out").rglob("*.db"))


def test_failed_answers_of_the_agents_are_counted(call, tmp_path):
    def talkative(request: Request) -> str:
        prompt = request.body["messages"][-1]["content"]
        return "I would rather not." if "You keep the semantic" in prompt else reply(request)

    with FaultServer(answering(talkative)) as server:
        assert call(server, "--system", "agents", "--build-model", "m") == 0
    assert result(tmp_path / "out")["run"]["agents"]["failed_answers"] == {"not_json": 2}


def test_what_becomes_of_a_bad_operation_is_a_flag_and_part_of_what_the_memories_are(call, tmp_path, capsys):
    def careless(request: Request) -> str:
        prompt = request.body["messages"][-1]["content"]
        good, bad = '{"action": "ADD", "quote": [1]}', '{"action": "UPDATE", "old_memory": "e9", "quote": [1]}'
        return f'{{"operations": [{good}, {bad}]}}' if "You keep the semantic" in prompt else reply(request)

    flags = ("--system", "agents", "--build-model", "m", "--db-path", str(tmp_path / "db"))
    with FaultServer(answering(careless)) as server:
        assert call(server, *flags, "--mode", "build") == 0
        assert "failed answers: none; 2 operations dropped: 2 unknown_target" in capsys.readouterr().out
        assert call(server, *flags, "--on-bad-operation", "drop") == 2
        assert "was begun with other settings: on_bad_operation=" in capsys.readouterr().err
        strict = (*flags[:-1], str(tmp_path / "strict"), "--on-bad-operation", "drop")
        assert call(server, *strict, out="strict") == 0
    told = result(tmp_path / "strict")["run"]["agents"]
    assert (told["failed_answers"], told["dropped_operations"]) == ({"unknown_target": 2}, {})


def test_answers_in_the_cache_are_not_paid_for_twice(call, tmp_path):
    cache = ("--answer-cache", str(tmp_path / "answers"))
    with FaultServer(answering(reply)) as server:
        assert call(server, "--system", "agents", "--model", "m", *JUDGED, *cache) == 0
        asked = len(server.requests)
        assert call(server, "--system", "agents", "--model", "m", *JUDGED, *cache, out="again") == 0
        assert len(server.requests) == asked + 3  # the checks, which never come from the cache
    first, again = result(tmp_path / "out"), result(tmp_path / "again")
    assert first["systems"] == again["systems"]
    assert {role: used["cached"] for role, used in again["run"]["usage"].items()} == {
        "answerer": 2,
        "builder": 8,
        "judge": 4,
    }


def test_who_builds_and_how_many_requests_may_be_in_flight():
    assert parse([]).systems == ("rules",) and parse([]).builder is None
    assert parse(["--mode", "answer", "--db-path", "db", "--model", "m"]).systems == ("bank",)
    options = parse("--model m --concurrency 64 --parallel --workers 3 --max-tokens 99".split())
    assert options.systems == ("agents",) and options.builder.endpoint.name == "m" and options.build_parallel == 3
    counts = tuple(each.endpoint.concurrency for each in (options.answerer, options.judge, options.builder))
    assert counts == (64, 128, 12) and options.judge.endpoint.max_tokens == 99
    other = parse("--model m --provider openai --api-key k --build-model p --build-provider vllm".split())
    endpoint = other.builder.endpoint
    assert (endpoint.name, endpoint.provider, other.builder.api_key) == ("p", "vllm", None)
    with pytest.raises(ConfigError, match="needs --build-model or --model"):
        parse(["--system", "agents"])


def test_embeddings_go_where_chat_goes(call, tmp_path):
    async def send(request: Request, writer) -> None:
        rows = [{"index": n, "embedding": [1.0, 2.0]} for n, _ in enumerate(request.body.get("input", []))]
        await (payload({"data": rows}) if rows else answering(reply))(request, writer)

    flags = "--system agents --build-model m --embedding-provider vllm --embedding-model e --api-key k".split()
    with FaultServer(send) as server:
        assert call(server, *flags) == 0
        asked = {(request.path, request.headers["authorization"]) for request in server.requests}
    assert asked == {("/v1/chat/completions", "Bearer k"), ("/v1/embeddings", "Bearer k")}
    (store_path,) = (tmp_path / "out").rglob("*.db")
    with reading(store_path) as store:
        settings = store.settings()
    assert (settings["embedding_provider"], settings["embedding_model"]) == ("vllm", "e")


def test_an_endpoint_may_embed_and_prices_give_the_cost(call, tmp_path):
    def vectors(request: Request) -> dict:
        rows = HashEmbedder(64).embed(request.body["input"]).tolist()
        data = [{"index": n, "embedding": row} for n, row in enumerate(rows)]
        return {"data": data, "usage": {"prompt_tokens": 5, "total_tokens": 5}}

    async def send(request: Request, writer) -> None:
        behave = payload(vectors(request)) if request.path.endswith("/embeddings") else answering(reply)
        await behave(request, writer)

    flags = (
        "--system agents --model m --embedding-provider vllm --embedding-model e --price m=1,10 --price e=3,0".split()
    )
    with FaultServer(send) as server:
        assert call(server, *flags, *JUDGED, "--embedding-base-url", server.base_url) == 0
    found = result(tmp_path / "out")
    assert found["systems"]["agents"]["evidence_recall"]["10"] == 0.5
    usage = found["run"]["usage"]
    embedded = usage["embedder"]
    assert embedded["calls"] > 1 and embedded["usd"] == pytest.approx(embedded["calls"] * 5 * 3 / 1e6)
    assert usage["judge"]["usd"] is None
    assert usage["builder"]["usd"] == pytest.approx(
        9 * (7 * 1 + 3 * 10) / 1e6
    )  # the server counts 7 and 3 tokens a call


def test_the_help_says_how_to_use_a_trained_checkpoint(capsys):
    with pytest.raises(SystemExit):
        command.main(["--help"])
    said = capsys.readouterr().out
    assert "launch/serve.sh OUT/rl/model" in said and "--build-config OUT/rl/config.yaml" in said
