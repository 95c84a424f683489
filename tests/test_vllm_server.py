"""The client against a real vLLM server with a tiny model of random weights, started once for this file.

What the fakes of test_client.py assume of a server is seen here to be so: schemas are kept to, tokens are counted as the
server counts them, and refused keys, unknown models and a killed server look the way the client expects.
"""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from membuilder.answering import VERDICT_SCHEMA, Judgement, Strictness, answer, judge
from membuilder.chat import Role, read_json
from membuilder.client import ChatClient
from membuilder.endpoint_embedder import EndpointEmbedder
from membuilder.endpoints import ChatConfig, EmbeddingConfig, EndpointConfig, Provider
from membuilder.errors import ChatError, ChatErrorKind
from membuilder.schemas import ResponseFormat, schema
from membuilder.types import Agent, Question
from membuilder.usage import Usage
from trainer.tiny import TinyConfig, build_model, train_tokenizer

pytest.importorskip("vllm", reason="vLLM is not installed (launch/setup.sh)")

KEY = "sk-tiny-server"
START_SECONDS = 900  # a minute on an idle core; many share one when tests run beside each other
TEMPLATE = (
    "{% for message in messages %}[{{ message.role }}]\n{{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]\n{% endif %}"
)
TINY = TinyConfig(
    vocab_size=600, hidden_size=64, num_layers=2, num_heads=4, num_kv_heads=2, intermediate_size=96, max_position=1024
)
TEXTS = ["Ann: I adopted a cat called Miso. #1", "Ben: Yesterday I moved to Oslo for a new job. #2"] * 5
QUESTION = Question(id="q", text="What is the cat called?", answer="Miso", category="single", evidence=("1",))


@dataclass(frozen=True, kw_only=True)
class Server:
    process: subprocess.Popen
    base_url: str


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until_healthy(process: subprocess.Popen, port: int, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.5)
    pytest.fail(f"the vLLM server did not start:\n{log.read_text(errors='replace')[-4000:]}")


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    tokenizer = train_tokenizer(TEXTS, 60, TINY.vocab_size)
    tokenizer.chat_template = TEMPLATE
    build_model(tokenizer, TINY, seed=1).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    port, log = free_port(), folder / "server.log"
    options = {
        "model": folder / "model",
        "served-model-name": "tiny",
        "host": "127.0.0.1",
        "port": port,
        "api-key": KEY,
        "max-model-len": 1024,
        "dtype": "float32",
        "max-num-seqs": 16,
    }
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--enforce-eager"]
    command += [f"--{name}={value}" for name, value in options.items()]
    # "nobind": vLLM would otherwise pin its threads to cores of its own choice
    environment = os.environ | {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "1",  # off in a process that has loaded our own engine
        "VLLM_NO_USAGE_STATS": "1",
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        try:
            wait_until_healthy(process, port, log)
            yield Server(process=process, base_url=f"http://127.0.0.1:{port}/v1")
        finally:
            with suppress(ProcessLookupError):  # the server and its engine may be gone: a test kills it
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(60)


def config(server: Server, *, model: str = "tiny", max_tokens: int = 200, **endpoint) -> ChatConfig:
    patient = {
        "check_timeout_seconds": 120.0,
        "max_wait_seconds": 0.1,
    }  # the server may share its core with other tests
    settings = EndpointConfig(provider=Provider.VLLM, base_url=server.base_url, **patient, **endpoint)
    return ChatConfig(model=model, endpoint=settings, max_tokens=max_tokens)


def run(config: ChatConfig, use, usage: Usage | None = None, api_key: str = KEY):
    async def session():
        async with ChatClient(config, Role.JUDGE, usage or Usage(), api_key=api_key) as client:
            return await use(client)

    return asyncio.run(session())


def ask(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def server_counts(server: Server) -> dict[str, float]:
    """What the server itself counts: its Prometheus counters of tokens."""
    root = server.base_url.removesuffix("/v1")
    with urllib.request.urlopen(f"{root}/metrics", timeout=10) as response:
        lines = response.read().decode().splitlines()
    return {
        name: sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"vllm:{name}_total{{"))
        for name in ("prompt_tokens", "generation_tokens")
    }


def test_a_schema_is_kept_to_and_tokens_are_the_servers_own(server):
    usage, before = Usage(), server_counts(server)

    async def use(client):
        await client.check()
        return await asyncio.gather(
            *(client.complete(ask(f"Is {number} right?"), schema=VERDICT_SCHEMA) for number in range(8)),
            return_exceptions=True,
        )

    replies = run(config(server), use, usage)
    texts = [reply for reply in replies if isinstance(reply, str)]
    cut = [reply for reply in replies if isinstance(reply, ChatError)]
    # random weights may write a reason without end; what ends fits the schema
    assert {error.kind for error in cut} <= {ChatErrorKind.TRUNCATED} and len(texts) + len(cut) == 8
    assert texts and all(isinstance(read_json(text, VERDICT_SCHEMA)["correct"], bool) for text in texts)
    after, report = server_counts(server), usage.report()["judge"]
    assert report["calls"] == 9
    assert report["prompt_tokens"] == after["prompt_tokens"] - before["prompt_tokens"] > 0
    assert report["completion_tokens"] == after["generation_tokens"] - before["generation_tokens"] > 0


@pytest.mark.parametrize("agent", Agent)
@pytest.mark.parametrize("response_format", ResponseFormat)
def test_the_agents_own_schemas_are_taken(server, agent, response_format, caplog):
    wanted = schema(agent, response_format, num_turns=3)

    async def use(client):
        try:
            return await client.complete(ask("Ann: I adopted a cat. #1"), schema=wanted)
        except ChatError as error:
            assert error.kind is ChatErrorKind.TRUNCATED, error

    text = run(config(server, max_tokens=60), use)
    refused = [record for record in caplog.records if record.name == "membuilder.client"]
    assert refused == [] and (text is None or isinstance(json.loads(text), dict))


def test_an_answer_and_a_judgement_come_back(server):
    async def use(client):
        text = await answer(
            QUESTION, core="", memories=["[2023-05-08] Ann: I adopted a cat called Miso."], model=client
        )
        return text, await judge(QUESTION, "Miso", Strictness.STRICT, client)

    try:
        text, judgement = run(config(server, max_tokens=400), use)
    except ChatError as error:  # random weights may answer without end
        assert error.kind is ChatErrorKind.TRUNCATED
        judgement = run(config(server, max_tokens=400), lambda model: judge(QUESTION, "Miso", Strictness.STRICT, model))
    assert isinstance(judgement, Judgement) and judgement.reason is not None


def test_an_unknown_model_and_a_refused_key_are_found_by_the_check(server):
    for settings, key, kind, hint in (
        (config(server, model="other"), KEY, ChatErrorKind.UNKNOWN_MODEL, "It lists: tiny"),
        (config(server), "sk-wrong", ChatErrorKind.REFUSED_KEY, "--api-key"),
    ):
        began = time.monotonic()
        with pytest.raises(ChatError) as caught:
            run(settings, lambda client: client.check(), api_key=key)
        assert time.monotonic() - began < 10
        assert (caught.value.kind, caught.value.fatal) == (kind, True) and hint in str(caught.value)


def test_a_prompt_longer_than_the_context_fails_that_call_alone(server):
    async def use(client):
        with pytest.raises(ChatError) as caught:
            await client.complete(ask("cat " * 3000), schema=VERDICT_SCHEMA)
        return caught.value

    error = run(config(server), use)
    assert (error.kind, error.fatal) == (ChatErrorKind.BAD_REQUEST, False) and "1024" in str(error)


def test_a_server_that_chats_only_is_refused_as_an_embedder(server):
    with pytest.raises(ChatError) as caught:
        EndpointEmbedder(EmbeddingConfig(model="tiny", endpoint=config(server).endpoint), Usage(), api_key=KEY)
    assert caught.value.kind in (ChatErrorKind.UNKNOWN_MODEL, ChatErrorKind.BAD_REQUEST)


def test_killing_the_server_ends_the_calls_in_flight_as_unreachable(server):
    """Last in the file: the server does not come back."""

    async def use(client):
        calls = [asyncio.ensure_future(client.complete(ask(f"Tell {number}."))) for number in range(8)]
        await asyncio.sleep(0.3)
        server.process.kill()
        return await asyncio.gather(*calls, return_exceptions=True)

    began = time.monotonic()
    results = run(config(server, max_tokens=900, concurrency=4, max_attempts=3), use)
    assert time.monotonic() - began < 20
    errors = [result for result in results if not isinstance(result, str)]
    assert {error.kind for error in errors} <= {ChatErrorKind.UNREACHABLE, ChatErrorKind.TRUNCATED}
    assert any(error.fatal for error in errors)
