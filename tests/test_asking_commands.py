"""Flags that build, expert and qa share: a server that embeds, prices, the answer cache, what a run used, and whose key
goes where.
"""

import json
from pathlib import Path

import pytest

from membuilder import expert, qa
from membuilder.bank.store import reading
from membuilder.build import main as build
from membuilder.building.config import BuildConfig, Keys
from membuilder.embedding import options
from membuilder.embedding.options import EmbedderOptions, embedder_of
from membuilder.errors import ConfigError
from membuilder.llm.costs import Costs
from membuilder.llm.endpoints import ModelEndpoint, PriceConfig
from membuilder.llm.flags import model_price
from membuilder.llm.usage import Usage
from tests.fakes import HashEmbedder
from tests.fault_server import FaultServer, Request, answering, payload, status
from tests.scripted import talk
from tests.test_expert import THREE, custom, make, served
from tests.test_qa_generation import Scripted, keep_all, two_questions


async def chat_and_embed(request: Request, writer) -> None:
    """64 numbers a text, 5 tokens a request; chat as in `served`, 7 and 3 tokens."""
    if not request.path.endswith("/embeddings"):
        await answering(served)(request, writer)
        return
    rows = HashEmbedder(64, request.body["model"]).embed(request.body["input"]).tolist()
    data = [{"index": n, "embedding": row} for n, row in enumerate(rows)]
    await payload({"data": data, "usage": {"prompt_tokens": 5, "total_tokens": 5}})(request, writer)


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """Flags of a build and of an expert of one dialogue, both asking one server for chat."""
    for variable in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_EMBEDDINGS_BASE_URL", "OPENAI_EMBEDDINGS_API_KEY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("MEMBUILDER_CACHE", str(tmp_path / "cache"))
    data = ["--dataset", "custom", "--dataset-path", str(custom(tmp_path / "talks.jsonl", THREE))]

    def flags(command: str, server: FaultServer) -> list[str]:
        chat = ["--provider", "vllm", "--base-url", server.base_url]
        if command == "build":
            return [*data, *chat, "--model", "m-1", "--out", str(tmp_path / "d.db")]
        return [*data, *chat, "--expert-model", "m-1", "--output-dir", str(tmp_path / "out")]

    return flags


def run(command: str, flags: list[str]) -> int:
    """Exit status."""
    return {"build": build, "expert": expert.main}[command](flags)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


PLACES = {
    "build": ("d.db", "d.usage.jsonl", "builder"),
    "expert": ("out/custom/d/memory.db", "out/custom/usage.jsonl", "expert"),
}


@pytest.mark.parametrize("command", PLACES)
def test_a_server_embeds_and_the_store_knows_which(command, asked, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(options, "Embedder", None)  # no local model is loaded
    store_path, usage_path, role = PLACES[command]
    with FaultServer(chat_and_embed) as server:
        flags = asked(command, server)
        remote = [
            "--embedding-provider",
            "vllm",
            "--embedding-model",
            "e-1",
            "--price",
            "m-1=1,10",
            "--price",
            "e-1=2,0",
        ]
        assert run(command, [*flags, *remote]) == 0
        chats = [request for request in server.requests if "/chat/" in request.path]
        assert (len(chats), len(server.requests) > len(chats)) == (1 + 4 * 3, True)
        assert run(command, [*flags, *remote[:3], "e-2"]) == 2  # another model of the same server
        assert "embedder 'e-1' at vllm; 'e-2' at vllm is another" in capsys.readouterr().err
        with FaultServer(status(401)) as cloud:
            other = [
                "--embedding-provider",
                "openai",
                "--embedding-base-url",
                cloud.base_url,
                "--embedding-model",
                "e-1",
            ]
            assert run(command, [*flags, *other]) == 2
        assert "--embedding-api-key or OPENAI_EMBEDDINGS_API_KEY" in capsys.readouterr().err
    with reading(tmp_path / store_path) as store:
        settings = store.settings()
        assert (settings["embedding_provider"], settings["embedding_model"]) == ("vllm", "e-1")
        assert store.vectors().shape == (3, 64)
    whole, refused, _ = lines(tmp_path / usage_path)
    used = whole["usage"]
    assert whole["whole"] and not refused["whole"] and whole["command"] == f"membuilder.{command}"
    assert used[role]["calls"] == 13 and used[role]["usd"] == pytest.approx(13 * (7 * 1 + 3 * 10) / 1e6)
    assert used[role]["prompt_tokens"] == 13 * 7 and used[role]["latency_p95_seconds"] > 0
    assert used["embedder"]["usd"] == pytest.approx(used["embedder"]["calls"] * 5 * 2 / 1e6)


@pytest.mark.parametrize("command", PLACES)
def test_the_environment_names_the_embeddings_server_and_chats_key_does_not_go_there(command, asked, monkeypatch):
    with FaultServer(chat_and_embed) as server, FaultServer(chat_and_embed) as vectors:
        monkeypatch.setenv("OPENAI_EMBEDDINGS_BASE_URL", vectors.base_url)
        remote = ["--embedding-provider", "vllm", "--embedding-model", "e-1", "--api-key", "sesame"]
        assert run(command, [*asked(command, server), *remote]) == 0
        assert {request.path for request in vectors.requests} == {"/v1/embeddings"}
        assert {request.headers["authorization"] for request in vectors.requests} == {"Bearer EMPTY"}
        assert {request.headers["authorization"] for request in server.requests} == {"Bearer sesame"}


@pytest.mark.parametrize("command", PLACES)
def test_answers_in_the_cache_are_not_paid_for_twice(command, asked, tmp_path, monkeypatch):
    store_path, usage_path, role = PLACES[command]
    with FaultServer(chat_and_embed) as server:
        flags = [*asked(command, server), "--answer-cache", str(tmp_path / "answers")]
        flags += ["--embedding-provider", "vllm", "--embedding-model", "e-1"]
        assert run(command, flags) == 0
        num_asked = len(server.requests)
        (tmp_path / store_path).unlink()
        assert run(command, flags) == 0
        assert len(server.requests) == num_asked + 2  # the checks, which never come from the cache
    again = lines(tmp_path / usage_path)[1]["usage"]
    assert (again[role]["cached"], again[role]["calls"]) == (12, 1) and again["embedder"]["cached"] > 0


def test_a_stopped_build_says_what_it_used(asked, tmp_path, capsys):
    with FaultServer(*[chat_and_embed] * 10, status(429, retry_after="3600")) as server:
        flags = [*asked("build", server), "--embedding-provider", "vllm", "--embedding-model", "e-1"]
        assert run("build", flags) == 2
    said, error = capsys.readouterr()
    assert "run the same command again" in error and "Sessions stored before it and safe: " in error
    (line,) = lines(tmp_path / "d.usage.jsonl")
    (printed,) = [each for each in said.splitlines() if each.startswith("usage: ")]
    calls = sum(role["calls"] for role in line["usage"].values())
    failed = sum(sum(role["failed_attempts"].values()) for role in line["usage"].values())
    assert not line["whole"] and calls > 5 and failed > 0
    assert printed.startswith(f"usage: {calls} calls, ") and f"{failed} failed attempts" in printed
    assert printed.endswith(f"details in {tmp_path / 'd.usage.jsonl'}")


def test_a_key_or_address_of_no_server_and_a_price_of_no_shape_are_refused(tmp_path):
    for given in ({"base_url": "http://e/v1"}, {"api_key": "k"}):
        with (
            pytest.raises(ConfigError, match="need --embedding-provider"),
            embedder_of(EmbedderOptions(**given), costs()),
        ):
            pass
    with (
        pytest.raises(ConfigError, match="needs --embedding-model"),
        embedder_of(EmbedderOptions(provider="vllm"), costs()),
    ):
        pass
    assert model_price("org/m=0.5,2") == ("org/m", PriceConfig(input_per_million=0.5, output_per_million=2.0))
    for text in ("m", "m=1", "=1,2", "m=1,2,3", "m=a,b", "m=-1,2"):
        with pytest.raises(ValueError):
            model_price(text)


def costs() -> Costs:
    return Costs(usage=Usage())


def test_a_local_embedder_is_the_default_and_its_vectors_are_kept(tmp_path):
    options = EmbedderOptions(cache=tmp_path / "cache.sqlite")
    with embedder_of(options, costs()) as embedder:
        assert embedder.dimension == 384 and embedder.embed(["a cat"]).shape == (1, 384)
    with embedder_of(options, costs()) as again:
        again.embed(["a cat"])
        assert again.num_encoded == 0


def test_no_key_is_in_a_configuration():
    config = BuildConfig(out="o", model=ModelEndpoint(name="m"), embedding_provider="openai", embedding_model="e")
    keys = Keys(chat="sesame", embedding="hidden")
    options = config.embedder(keys)
    assert (options.api_key, options.chat.api_key) == ("hidden", "sesame")
    said = f"{config} {keys} {options} {config.settings(talk(['a']), {})}"
    assert "sesame" not in said and "hidden" not in said


# Questions: three models


def by_part(request: Request) -> str:
    messages = request.body["messages"]
    if messages[0]["content"].startswith("Answer with this JSON"):
        return '{"ready": true}'
    return Scripted(two_questions).reply(messages)


def test_writer_checker_and_closed_book_model_may_be_on_three_servers(tmp_path, capsys):
    make(tmp_path / "set" / "d", THREE, keep_all)
    flags = [
        "--trajectories-dir",
        str(tmp_path / "set"),
        "--model",
        "writer",
        "--qa-per-session",
        "2",
        "--provider",
        "vllm",
    ]
    with (
        FaultServer(answering(by_part)) as one,
        FaultServer(answering(by_part)) as two,
        FaultServer(answering(by_part)) as three,
    ):
        flags += [
            "--base-url",
            one.base_url,
            "--api-key",
            "first",
            "--check-model",
            "checker",
            "--check-base-url",
            two.base_url,
        ]
        flags += [
            "--closed-book-model",
            "closed",
            "--closed-book-base-url",
            three.base_url,
            "--closed-book-api-key",
            "third",
        ]
        assert qa.main([*flags, "--price", "checker=1,10", "--answer-cache", str(tmp_path / "answers")]) == 0
        seen = [
            (
                {request.body["model"] for request in server.requests},
                {request.headers["authorization"] for request in server.requests},
            )
            for server in (one, two, three)
        ]
    assert seen == [({"writer"}, {"Bearer first"}), ({"checker"}, {"Bearer EMPTY"}), ({"closed"}, {"Bearer third"})]
    (line,) = lines(tmp_path / "set" / "qa_usage.jsonl")
    printed = capsys.readouterr().out.splitlines()[-1]
    assert printed.startswith(f"usage: {sum(role['calls'] for role in line['usage'].values())} calls, ")
    priced = line["usage"]["judge"]["usd"]
    assert (
        f", {priced:.2f} USD and an unknown cost of closed, writer (--price gives prices)" in printed
        and printed.endswith(f"details in {tmp_path / 'set' / 'qa_usage.jsonl'}")
    )
    assert line["usage"]["judge"]["usd"] == pytest.approx(line["usage"]["judge"]["calls"] * (7 + 3 * 10) / 1e6)
    assert line["usage"]["questioner"]["usd"] is None


def test_a_closed_book_server_needs_a_closed_book_model(tmp_path, capsys):
    assert qa.main(["--trajectories-dir", str(tmp_path), "--closed-book-provider", "vllm"]) == 2
    assert "need --closed-book-model" in capsys.readouterr().err


REFUSALS = {
    "402": status(402, "top up your account"),
    "400 that speaks of money": status(400, "insufficient balance"),
    "revoked key": status(401, "key revoked"),
    "key refused by a 400": status(400, "API key not valid"),
    "closed endpoint": status(410, "this endpoint is closed"),
    "model taken away": status(404, "no such model"),
}


@pytest.mark.slow
@pytest.mark.parametrize("refusal", REFUSALS)
@pytest.mark.parametrize("command", PLACES)
def test_a_server_that_refuses_everything_stops_a_run_and_nothing_of_it_is_stored(
    command, refusal, asked, tmp_path, capsys
):
    """In the middle of a build, from one moment to the next; the same command goes on once the server answers."""
    check_and_one_session = [answering(served)] * 5
    with FaultServer(*check_and_one_session, REFUSALS[refusal]) as server:
        assert run(command, asked(command, server)) == 2
    said = capsys.readouterr().err
    assert "goes on" in said and "Traceback" not in said
    path = tmp_path / PLACES[command][0]
    with reading(path) as store:
        assert store.num_sessions() == 1
        assert not any(answer.failure for session in store.sessions() for answer in session.answers.values())
    with FaultServer(answering(served)) as server:
        assert run(command, asked(command, server)) == 0
        assert len(server.requests) == 1 + 4 * 2
    with reading(path) as store:
        assert store.num_sessions() == 3


def failing_once(request: Request) -> str:
    """One agent writes no JSON about one session, however often it is asked."""
    first = request.body["messages"][0]["content"]
    fails = "Far!" in first.split("\n---\n")[0] and "You keep the semantic" in first
    return "I would add that Ann moved." if fails else served(request)


@pytest.mark.parametrize("command", PLACES)
def test_more_failed_answers_than_allowed_end_a_run_with_status_1_and_nothing_is_called_whole(
    command, asked, tmp_path, capsys
):
    with FaultServer(answering(failing_once)) as server:
        flags = asked(command, server)
        assert run(command, flags) == 1
        said = capsys.readouterr()
        assert "1 of 12 answers failed (8.3%, limit 1.0%): 1 not_json" in said.err and "--retry-failed" in said.err
        assert "failed answers: 1 not_json" in said.out
        assert run(command, [*flags, "--max-failed", "0.1"]) == 0
        if command == "expert":
            skipping = [*flags, "--skip-existing"]
            assert run(command, skipping) == 1 and "0 are whole" in capsys.readouterr().out
            assert run(command, [*skipping, "--max-failed", "0.1"]) == 0 and "0 are whole" in capsys.readouterr().out
            assert run(command, [*skipping, "--max-failed", "0.1"]) == 0 and "1 are whole" in capsys.readouterr().out
    used = lines(tmp_path / PLACES[command][1])
    assert [line["whole"] for line in used][:2] == [False, True]  # as the exit status says
