"""Every setting of a server reaches every role of every command, by its flag, its configuration or from Python."""

import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from membuilder import eval as evaluation
from membuilder import expert, qa
from membuilder.build import main as build
from membuilder.embedding import options
from membuilder.errors import MemBuilderError
from membuilder.llm.endpoints import ModelEndpoint
from membuilder.llm.flags import endpoint_of
from membuilder.memory import Memory
from tests.evaluating import caller, hash_embedder
from tests.evaluating import reply as evaluated
from tests.fakes import HashEmbedder
from tests.fault_server import FaultServer, Request, answer, answering, hang, payload, raw
from tests.patience import LINEAR, SOON
from tests.test_asking_commands import by_part
from tests.test_client import failure, run, settings
from tests.test_expert import THREE, custom, make, served
from tests.test_memory import CAT, says
from tests.test_qa_generation import keep_all

COMMANDS = {"build": build, "expert": expert.main, "qa": qa.main, "eval": evaluation.main}
REPLIES = {"build": served, "expert": served, "qa": by_part, "eval": evaluated, "memory": says}
ROLES = [
    ("build", "", "m"), ("expert", "", "m"), ("memory", "", "m"),
    ("qa", "", "m"), ("qa", "check-", "check"), ("qa", "closed-book-", "closed"),
    ("eval", "", "m"), ("eval", "judge-", "judge"), ("eval", "build-", "writer"),
    ("build", "embedding-", "e"), ("expert", "embedding-", "e"), ("eval", "embedding-", "e"),
    ("memory", "embedding-", "e"),
]  # fmt: skip
"""(command, prefix of the flag, the model asked in that role)"""
CHATS = [role for role in ROLES if role[1] != "embedding-"]
EMBEDDERS = [role for role in ROLES if role[1] == "embedding-"]


@pytest.fixture
def ask(tmp_path, monkeypatch, capsys) -> Callable[..., tuple[int, str]]:
    """`ask(command, server, settings of each prefix)`: the exit status and what was printed."""
    caller(tmp_path, monkeypatch)  # mine.jsonl, no picture
    monkeypatch.setattr(options, "open_embedder", hash_embedder(tmp_path))
    data = ["--dataset", "custom", "--dataset-path", str(custom(tmp_path / "talks.jsonl", THREE))]
    make(tmp_path / "set" / "d", THREE, keep_all)
    fixed = {
        "build": [*data, "--model", "m", "--out", str(tmp_path / "d.db")],
        "expert": [*data, "--expert-model", "m", "--output-dir", str(tmp_path / "out")],
        "qa": [
            *("--trajectories-dir", str(tmp_path / "set"), "--model", "m", "--qa-per-session", "1"),
            *("--check-model", "check", "--closed-book-model", "closed"),
        ],
        "eval": [
            *("--dataset", "custom", "--dataset-path", str(tmp_path / "mine.jsonl"), "--system", "agents"),
            *("--output-dir", str(tmp_path / "eval"), "--model", "m", "--build-model", "writer"),
            *("--judge-model", "judge", "--judge-provider", "vllm"),
        ],
    }

    def ask(command: str, server: FaultServer, **given: list[str]) -> tuple[int, str]:
        if command == "memory":
            return _remember(tmp_path / "m.db", server, given)
        flags = [*fixed[command], "--provider", "vllm", "--base-url", server.base_url]
        if "embedding-" in given:
            flags += ["--embedding-provider", "vllm", "--embedding-model", "e"]
        flags += [part for prefix in given for each in given[prefix] for part in (f"--{prefix}endpoint", each)]
        code = COMMANDS[command](flags)
        said = capsys.readouterr()
        return code, said.out + said.err

    return ask


def _remember(path: Path, server: FaultServer, given: dict[str, list[str]]) -> tuple[int, str]:
    about = {"name": "m", "provider": "vllm", "base_url": server.base_url}
    embeds = {}
    if "embedding-" in given:
        embeds = {"embedding_provider": "vllm", "embedding_model": "e", "embedding_endpoint": given["embedding-"]}
    try:
        model = endpoint_of(ModelEndpoint, about, given.get("", []))
        with Memory(path, model, **embeds) as memory:
            memory.add(CAT)
            memory.answer("Which pet?")
    except MemBuilderError as error:
        return 2, str(error)
    return 0, ""


def serving(command: str, *, hanging: str | None = None, after: int = 0, texts: int = 10**6):
    """All models of a command; the one that is `hanging` falls silent after so many answers."""
    answered = Counter()

    async def send(request: Request, writer) -> None:
        name = request.body["model"]
        answered[name] += 1
        if name == hanging and answered[name] > after:
            await hang(request, writer)
        elif request.path.endswith("/embeddings"):
            given = request.body["input"]
            assert len(given) <= texts
            rows = HashEmbedder(64).embed(given).tolist()
            await payload({"data": [{"index": n, "embedding": row} for n, row in enumerate(rows)]})(request, writer)
        else:
            await answering(REPLIES[command])(request, writer)

    return send


def bodies(server: FaultServer, model: str) -> list[dict]:
    return [request.body for request in server.requests if request.body["model"] == model]


@pytest.mark.parametrize(("command", "prefix", "model"), CHATS)
def test_what_is_sent_of_each_role_is_what_is_set(command, prefix, model, ask):
    given = ["temperature=null", "top_p=0.5", "seed=7", "max_tokens=321", "max_tokens_field=max_completion_tokens"]
    with FaultServer(serving(command)) as server:
        code, said = ask(command, server, **{prefix: [*given, "extra_body.min_p=0.1"]})
        assert code == 0, said
        sent, others = bodies(server, model), [r.body for r in server.requests if r.body["model"] != model]
    assert len(sent) > 1
    for body in sent:
        assert body.keys() - {"model", "messages", "response_format"} == {
            "top_p", "seed", "max_completion_tokens", "min_p",
        }  # fmt: skip
        assert (body["top_p"], body["seed"], body["max_completion_tokens"], body["min_p"]) == (0.5, 7, 321, 0.1)
    assert all(body["temperature"] == 0 and "max_tokens" in body for body in others)
    assert bool(others) == (command in ("qa", "eval"))


@pytest.mark.parametrize("command", ["eval", "qa"])
def test_what_is_set_of_the_first_model_holds_in_every_part_it_plays(command, ask, tmp_path):
    """Where no other model is named for a part; a part's own flag wins."""
    flags = {"eval": ["--mode", "build", "--system", "agents"], "qa": []}[command]
    part = {"eval": "build-", "qa": "check-"}[command]
    with FaultServer(serving(command)) as server:
        given = ["--model", "m", "--provider", "vllm", "--base-url", server.base_url]
        given += ["--endpoint", "temperature=null", "--endpoint", "seed=7", f"--{part}endpoint", "top_p=0.5"]
        where = {"eval": ["--dataset", "custom", "--dataset-path", str(tmp_path / "mine.jsonl")]}
        where["eval"] += ["--db-path", str(tmp_path / "db")]
        where["qa"] = ["--trajectories-dir", str(tmp_path / "set"), "--qa-per-session", "1"]
        assert COMMANDS[command]([*where[command], *flags, *given]) == 0
        sent = bodies(server, "m")
    assert all("temperature" not in body and body["seed"] == 7 for body in sent)
    assert {body.get("top_p") for body in sent} == ({0.5} if command == "eval" else {None, 0.5})


def test_a_configuration_sets_the_same_keys(ask, tmp_path, capsys):
    (tmp_path / "c.yaml").write_text(
        "out: d.db\nembedding_model: e\nembedding_provider: vllm\nembedding_endpoint: [batch_size=1]\n"
        "model: {name: m, provider: vllm, temperature: null, max_tokens_field: max_completion_tokens}\n"
    )
    with FaultServer(serving("build", texts=1)) as server:
        flags = ["--config", str(tmp_path / "c.yaml"), "--base-url", server.base_url, "--out", str(tmp_path / "c.db")]
        assert build([*flags, "--dataset", "custom", "--dataset-path", str(tmp_path / "talks.jsonl")]) == 0
        sent = bodies(server, "m")
    assert all("temperature" not in body and body["max_completion_tokens"] == 4096 for body in sent)


@pytest.mark.parametrize(("command", "prefix", "model"), EMBEDDERS)
def test_what_an_embedding_server_is_sent_is_what_is_set(command, prefix, model, ask):
    given = ["batch_size=1", "extra_body.dimensions=64", "max_text_chars=30", "long_texts=split"]
    with FaultServer(serving(command, texts=1)) as server:
        code, said = ask(command, server, **{prefix: given})
        assert code == 0, said
        sent = bodies(server, model)
    assert all(body["dimensions"] == 64 and len(body["input"]) == 1 for body in sent)
    assert max(len(text) for body in sent for text in body["input"]) == 30


@pytest.mark.slow
@pytest.mark.parametrize(("command", "prefix", "model"), ROLES)
def test_a_silent_server_is_found_by_the_check_within_its_own_time(command, prefix, model, ask):
    with FaultServer(serving(command, hanging=model)) as server:
        began = time.perf_counter()
        code, said = ask(command, server, **{prefix: ["check_timeout_seconds=0.3"]})
    assert code == 2 and "no answer within 0.3 s of starting" in said and "check_timeout_seconds" in said
    assert time.perf_counter() - began < SOON and len(bodies(server, model)) == 1


@pytest.mark.slow
@pytest.mark.parametrize(("command", "prefix", "model"), ROLES)
def test_a_call_ends_within_its_own_time(command, prefix, model, ask):
    with FaultServer(serving(command, hanging=model, after=1)) as server:
        began = time.perf_counter()
        code, said = ask(command, server, **{prefix: ["timeout_seconds=0.2", "max_attempts=1"]})
    assert code in (1, 2) and ("no whole answer within 0.2 s" in said or "failed attempts" in said), said
    assert time.perf_counter() - began < LINEAR and len(bodies(server, model)) > 1


@pytest.mark.parametrize(("command", "prefix", "model"), ROLES)
def test_a_key_of_the_other_kind_of_server_is_refused_by_name(command, prefix, model, ask):
    """Long texts are no matter of chat, and temperature none of embeddings."""
    key = "temperature" if prefix == "embedding-" else "batch_size"
    with FaultServer(serving(command)) as server:
        code, said = ask(command, server, **{prefix: [f"{key}=1"]})
    assert code == 2 and "unknown key" in said and key in said


async def strict(request: Request, writer) -> None:
    """As some reasoning models do: neither `max_tokens` nor a temperature is taken."""
    wrong = next((field for field in ("max_tokens", "temperature") if field in request.body), None)
    error = {"message": f"Unsupported parameter: '{wrong}'", "param": wrong, "code": "unsupported_parameter"}
    refusal = raw(json.dumps({"error": error}).encode(), 400)
    await (answer("yes") if wrong is None else refusal)(request, writer)


def test_a_refusal_of_a_setting_names_the_key_that_mends_it():
    fields = {"max_tokens_field": "max_completion_tokens"}
    with FaultServer(strict) as server:
        for given, advice in (({}, "Set max_tokens_field=max_completion_tokens"), (fields, "Set temperature=null")):
            error = failure(settings(server.base_url, **given), lambda client: client.check())
            assert advice in str(error) and "--endpoint" in str(error)
        run(settings(server.base_url, temperature=None, **fields), lambda client: client.check())
