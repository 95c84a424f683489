"""Addresses and keys, configuration, Retry-After, accounting, and embeddings from an endpoint."""

import argparse
import asyncio
import json
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest

from membuilder.bank.retrieve import retrieve
from membuilder.config import dump, load
from membuilder.embedding.remote import EndpointEmbedder
from membuilder.errors import CacheError, ChatError, ChatErrorKind, ConfigError
from membuilder.llm.chat_model import Role, read_json
from membuilder.llm.endpoints import (
    VLLM_BASE_URL,
    EmbeddingEndpoint,
    ModelAccess,
    ModelEndpoint,
    PriceConfig,
    Provider,
    chat_address,
    embeddings_address,
)
from membuilder.llm.flags import add_endpoint_flags, read_endpoint
from membuilder.llm.response_cache import AnswerCache
from membuilder.llm.retries import retry_after
from membuilder.llm.usage import Tokens, Usage
from membuilder.types import Agent, Bank, Entry
from tests.fault_server import FaultServer, Request, payload, raw, status

OPENAI, VLLM = (ModelEndpoint(name="m", provider=provider) for provider in Provider)
CLOUD = {"OPENAI_API_KEY": "cloud", "OPENAI_BASE_URL": "http://cloud/v1"}


def test_where_chat_goes_and_with_which_key():
    def found(config, api_key=None, **environ):
        address = chat_address(ModelAccess(endpoint=config, api_key=api_key), environ)
        return address.base_url, address.api_key.get_secret_value()

    assert found(OPENAI, OPENAI_API_KEY="cloud") == (None, "cloud")
    assert found(OPENAI, **CLOUD) == ("http://cloud/v1", "cloud")
    assert found(OPENAI, "given", **CLOUD) == ("http://cloud/v1", "given")
    assert found(VLLM) == (VLLM_BASE_URL, "EMPTY")
    assert found(VLLM, VLLM_API_KEY="local") == (VLLM_BASE_URL, "local")
    # a key of the cloud is not sent to a server of one's own
    assert found(VLLM, **CLOUD) == (VLLM_BASE_URL, "EMPTY")
    assert found(ModelEndpoint(name="m", base_url="http://mine/v1"), **CLOUD) == ("http://mine/v1", "cloud")
    with pytest.raises(ConfigError, match="--api-key or OPENAI_API_KEY"):
        chat_address(ModelAccess(endpoint=OPENAI), {})


def test_where_embeddings_go_and_with_which_key():
    def found(config, api_key=None, **environ):
        address = embeddings_address(config, api_key, environ)
        return address.base_url, address.api_key.get_secret_value()

    own = {"OPENAI_EMBEDDINGS_BASE_URL": "http://vectors/v1", "OPENAI_EMBEDDINGS_API_KEY": "vectors"}
    assert found(OPENAI, **CLOUD, **own) == ("http://vectors/v1", "vectors")
    assert found(VLLM, **CLOUD, **own) == ("http://vectors/v1", "vectors")
    assert found(OPENAI, **CLOUD) == ("http://cloud/v1", "cloud")
    assert found(OPENAI, OPENAI_EMBEDDINGS_API_KEY="vectors", **CLOUD) == ("http://cloud/v1", "vectors")
    # an address of its own without a key of its own gets no key at all
    assert found(OPENAI, OPENAI_EMBEDDINGS_BASE_URL="http://vectors/v1", **CLOUD) == ("http://vectors/v1", "EMPTY")
    assert found(OPENAI, "given", **CLOUD, **own) == ("http://vectors/v1", "given")


def test_embeddings_go_where_chat_goes_only_under_the_same_provider_and_keys_stay_at_their_address():
    def found(config, chat, api_key=None, **environ):
        address = embeddings_address(config, api_key, environ, chat)
        return address.base_url, address.api_key.get_secret_value()

    mine = access("vllm", "http://mine:9/v1", "k")
    assert found(VLLM, mine) == ("http://mine:9/v1", "k")
    assert found(VLLM, mine, "own") == ("http://mine:9/v1", "own")
    assert found(OPENAI, access("openai", None, "k")) == (None, "k")
    assert found(OPENAI, access("openai", None, "k"), **CLOUD) == ("http://cloud/v1", "k")
    # another provider, or an address of its own: nothing of chat's
    assert found(OPENAI, mine, **CLOUD) == ("http://cloud/v1", "cloud")
    assert found(VLLM, access("openai", "http://paid/v1", "k")) == (VLLM_BASE_URL, "EMPTY")
    assert found(ModelEndpoint(name="m", provider=Provider.VLLM, base_url="http://e/v1"), mine) == (
        "http://e/v1",
        "EMPTY",
    )
    assert found(VLLM, mine, OPENAI_EMBEDDINGS_BASE_URL="http://e/v1") == ("http://e/v1", "EMPTY")
    with pytest.raises(ConfigError, match="--embedding-api-key or OPENAI_EMBEDDINGS_API_KEY"):
        embeddings_address(OPENAI, None, {}, mine)
    hints = [embeddings_address(VLLM, None, {}, chat).key_hint for chat in (None, mine)]
    assert all("--embedding-api-key" in hint for hint in hints)


def access(provider: str, base_url: str | None = None, api_key: str | None = None) -> ModelAccess:
    endpoint = ModelEndpoint(name="m", provider=Provider(provider), base_url=base_url)
    return ModelAccess(endpoint=endpoint, api_key=api_key)


def test_another_model_is_on_the_same_server_unless_told_otherwise():
    first = access("openai", "http://one/v1", "k")
    parser = argparse.ArgumentParser()
    add_endpoint_flags(parser, "judge-", "judges")

    def other(flags: str = "") -> tuple[str, str | None, str | None]:
        found = read_endpoint(parser.parse_args(flags.split()), "judge-", "j", like=first)
        assert (found.endpoint.name, found.key_flag) == ("j", "--judge-api-key")
        return str(found.endpoint.provider), found.endpoint.base_url, found.api_key

    assert other() == ("openai", "http://one/v1", "k")
    assert other("--judge-provider openai --judge-base-url http://one/v1/") == ("openai", "http://one/v1/", "k")
    assert other("--judge-base-url http://two/v1") == ("openai", "http://two/v1", None)
    assert other("--judge-provider vllm") == ("vllm", None, None)
    first = replace(first, api_key=None, endpoint=replace(first.endpoint, api_key_env="MINE"))
    for flags, variable in (("", "MINE"), ("--judge-base-url http://two/v1", None), ("--judge-provider vllm", None)):
        found = read_endpoint(parser.parse_args(flags.split()), "judge-", "j", like=first)
        assert found.endpoint.api_key_env == variable
    first = access("openai", "http://one/v1", "k")
    mine = "--judge-provider vllm --judge-base-url http://one/v1 --judge-api-key l"
    assert other(mine) == ("vllm", "http://one/v1", "l")
    assert "'k'" not in repr(first)


def test_any_setting_of_an_endpoint_is_a_flag_and_a_wrong_one_is_named():
    parser = argparse.ArgumentParser()
    add_endpoint_flags(parser, "", "answers", provider="openai")
    given = parser.parse_args(["--endpoint", "timeout_seconds=300", "--endpoint", "price.input_per_million=2"])
    found = read_endpoint(given, "", "m", max_tokens=9).endpoint
    assert (found.timeout_seconds, found.max_tokens, found.price.input_per_million) == (300, 9, 2)
    for wrong, says in (
        ("timeout=3", "unknown key 'timeout'"),
        ("concurrency=0", "concurrency"),
        ("seed", "key=value"),
    ):
        with pytest.raises(ConfigError, match=f"model 'm'.*{says}"):
            read_endpoint(parser.parse_args(["--endpoint", wrong]), "", "m")


def test_a_key_comes_from_the_variable_that_the_endpoint_names():
    for endpoint in (OPENAI, VLLM):
        named = ModelAccess(endpoint=replace(endpoint, api_key_env="MINE"), key_flag="--judge-api-key")
        address = chat_address(named, {"MINE": "k", **CLOUD})
        assert address.api_key.get_secret_value() == "k" and address.key_hint == "--judge-api-key or MINE"


@pytest.mark.parametrize("url", ["localhost:8000/v1", "ftp://x/v1", "http://", "http://x/v1?key=s", ""])
def test_an_address_that_is_none_is_refused(url):
    with pytest.raises(ValueError, match="base_url"):
        ModelEndpoint(name="m", base_url=url)


def test_a_key_in_an_address_is_refused_without_showing_it():
    with pytest.raises(ValueError) as caught:
        ModelEndpoint(name="m", base_url="http://user:sk-secret@host/v1")
    assert "sk-secret" not in str(caught.value)
    with pytest.raises(ConfigError, match="OPENAI_BASE_URL") as caught:
        chat_address(ModelAccess(endpoint=OPENAI, api_key="k"), {"OPENAI_BASE_URL": "http://user:sk-secret@host/v1"})
    assert "sk-secret" not in str(caught.value)


def test_a_configuration_is_read_saved_and_has_no_place_for_a_key():
    overrides = [
        "name=qwen3",
        "provider=vllm",
        "concurrency=64",
        "extra_body.chat_template_kwargs.enable_thinking=false",
        "price.input_per_million=0.4",
    ]
    config = load(ModelEndpoint, None, overrides)
    assert (config.name, config.provider, config.concurrency) == ("qwen3", Provider.VLLM, 64)
    assert config.extra_body == {"chat_template_kwargs": {"enable_thinking": False}}
    assert config.price == PriceConfig(input_per_million=0.4, output_per_million=0.0)
    assert [line for line in dump(config).lower().splitlines() if "key" in line] == ["api_key_env: null"]
    with pytest.raises(ConfigError, match="unknown key"):
        load(ModelEndpoint, None, ["name=x", "api_key=sk"])
    with pytest.raises(ConfigError, match="concurrency"):
        load(ModelEndpoint, None, ["name=x", "concurrency=0"])


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after-ms": "250", "retry-after": "7"}, 0.25),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:10 GMT"}, 10.0),
        ({"retry-after": "Wed, 21 Oct 2026 07:27:00 GMT"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "nan"}, None),
    ],
)
def test_retry_after_is_read(headers, seconds):
    assert retry_after(headers, now=datetime(2026, 10, 21, 7, 28, 0, tzinfo=UTC)) == seconds


def test_usage_adds_up_per_role():
    usage, price = Usage(), PriceConfig(input_per_million=2.0, output_per_million=8.0)
    for seconds in range(1, 101):
        usage.add_answer(Role.JUDGE, float(seconds), Tokens(prompt=1000, completion=10), price)
    usage.add_cached(Role.JUDGE)
    usage.add_failure(Role.JUDGE, ChatErrorKind.TIMEOUT)
    usage.add_answer(Role.BUILDER, 1.0, Tokens(prompt=5, completion=1), None)
    usage.add_failure(Role.EXPERT, ChatErrorKind.EXHAUSTED)
    report = usage.report()
    assert report["judge"] == {
        "calls": 100,
        "cached": 1,
        "prompt_tokens": 100_000,
        "completion_tokens": 1000,
        "calls_without_tokens": 0,
        "usd": pytest.approx(0.208),  # 100,000 x 2 / 1e6 + 1,000 x 8 / 1e6
        "latency_p50_seconds": 50.5,
        "latency_p95_seconds": pytest.approx(95.05),
        "failed_attempts": {"timeout": 1},
    }
    # a price that is not known is not a price of 0
    assert (report["builder"]["usd"], report["builder"]["prompt_tokens"]) == (None, 5)
    assert report["expert"]["latency_p50_seconds"] is None
    assert json.loads(json.dumps(report)) == report


def test_a_server_that_counts_no_tokens_leaves_tokens_and_cost_missing():
    usage, price = Usage(), PriceConfig(input_per_million=2.0)
    usage.add_answer(Role.JUDGE, 1.0, Tokens(prompt=5, completion=1), price)
    usage.add_answer(Role.JUDGE, 1.0, None, price)
    report = usage.report()["judge"]
    assert (report["prompt_tokens"], report["completion_tokens"], report["usd"]) == (None, None, None)
    assert (report["calls"], report["calls_without_tokens"]) == (2, 1)


def test_json_must_fit_its_schema():
    schema = {"type": "object", "required": ["a"]}
    assert read_json('<think>hm</think>```json\n{"a": 1}\n```', schema) == {"a": 1}
    for text in ('{"b": 1}', "[" * 100_000, '{"a": 1, "a": 2}'):
        with pytest.raises(ValueError):
            read_json(text, schema)


WORDS = ("cat", "dog", "Oslo")


def vector(text: str) -> list[float]:
    """Counts of three words, twice as long as a unit vector needs to be."""
    return [2.0 * text.count(word) for word in WORDS] + [0.25]


async def embeddings(request: Request, writer) -> None:
    rows = [{"index": index, "embedding": vector(text)} for index, text in enumerate(request.body["input"])]
    await payload({"data": rows[::-1], "usage": {"prompt_tokens": 2 * len(rows)}})(request, writer)


def embedder_of(
    server: FaultServer, usage: Usage | None = None, batch_size: int = 64, **more
) -> closing[EndpointEmbedder]:
    quick = {"max_attempts": 3, "timeout_seconds": 2.0, "check_timeout_seconds": 2.0, "max_wait_seconds": 0.01}
    address = {"provider": Provider.VLLM, "base_url": server.base_url}
    endpoint = EmbeddingEndpoint(name="e", **address, batch_size=batch_size, **quick)
    return closing(EndpointEmbedder(endpoint, usage or Usage(), **more))


def test_an_endpoint_embeds_in_batches_in_order_to_unit_length_and_each_text_once():
    usage = Usage()
    with FaultServer(embeddings) as server:
        with embedder_of(server, usage, batch_size=2, api_key="k") as embedder:
            rows = embedder.embed(["cat", "dog", "cat", "Oslo"])
            again = embedder.embed(["Oslo", "cat"])
            assert embedder.embed([]).shape == (0, 4) and embedder.dimension == 4
    assert rows.dtype == np.float32
    expected = np.array([vector(text) for text in ("cat", "dog", "cat", "Oslo")]) / np.sqrt(4.0625)
    np.testing.assert_allclose(rows, expected, atol=1e-6)
    np.testing.assert_array_equal(again, rows[[3, 0]])
    bodies = [request.body for request in server.requests]
    assert sorted(body["input"] for body in bodies) == [["Oslo"], ["cat", "dog"], ["ready?"]]
    assert all(body["model"] == "e" for body in bodies)
    report = usage.report()["embedder"]
    assert (report["calls"], report["prompt_tokens"], report["completion_tokens"]) == (3, 8, 0)


def test_an_endpoint_serves_retrieval_also_from_inside_an_event_loop():
    at = datetime(2023, 5, 8)
    texts = ("a dog", "a cat", "in Oslo")
    entries = tuple(
        Entry(id=text, agent=Agent.EPISODIC, text=text, session=0, timestamp=at, source_turns=()) for text in texts
    )

    async def search(embedder):
        return retrieve(Bank(entries=entries), ["cat?"], embedder, k=1)

    with FaultServer(embeddings) as server, embedder_of(server) as embedder:
        (found,) = asyncio.run(search(embedder))
    assert [entry.id for entry in found.entries] == ["a cat"]


def test_vectors_are_kept_between_runs(tmp_path):
    usage = Usage()
    with FaultServer(embeddings) as server:
        rows = []
        for _ in range(2):
            cache = AnswerCache(tmp_path)
            with embedder_of(server, usage, cache=cache) as embedder:
                rows.append(embedder.embed(["cat", "dog"]))
            cache.close()
        np.testing.assert_array_equal(*rows)
        assert [request.body["input"] for request in server.requests] == [["ready?"], ["cat", "dog"], ["ready?"]]
        assert usage.report()["embedder"]["cached"] == 2
        shorter = payload({"data": [{"index": 0, "embedding": [1.0]}]})
        server.script = [shorter]
        cache = AnswerCache(tmp_path)
        with pytest.raises(CacheError, match="changed"), embedder_of(server, usage, cache=cache):
            raise AssertionError("it is refused when it is opened")
        cache.close()


def one_vector(*numbers: float) -> dict:
    return {"data": [{"index": 0, "embedding": list(numbers)}]}


WRONG_EMBEDDINGS = {
    "none": payload({"data": []}),
    "two for one": payload({"data": one_vector(1.0)["data"] * 2}),
    "wrong index": payload({"data": [{"index": 1, "embedding": [1.0]}]}),
    "empty": payload(one_vector()),
    "words": payload({"data": [{"index": 0, "embedding": ["a"]}]}),
    "null inside": raw(b'{"data": [{"index": 0, "embedding": [null, 1.0]}]}'),
    "all zero": payload(one_vector(0.0, 0.0, 0.0, 0.0)),
    "not a number": raw(b'{"data": [{"index": 0, "embedding": [NaN, 1.0, 1.0, 1.0]}]}'),
    "another length": payload(one_vector(1.0, 1.0)),
}


@pytest.mark.parametrize("fault", WRONG_EMBEDDINGS)
def test_a_wrong_vector_is_an_error_never_a_zero_vector(fault):
    with FaultServer(embeddings, WRONG_EMBEDDINGS[fault]) as server:
        with embedder_of(server) as embedder, pytest.raises(ChatError) as caught:
            embedder.embed(["cat"])
    assert caught.value.kind is ChatErrorKind.BAD_RESPONSE


def test_a_text_beyond_the_servers_limit_is_an_error_never_an_empty_context():
    async def limited(request: Request, writer) -> None:
        too_long = any(len(text) > 10 for text in request.body["input"])
        await (status(400, "maximum context length is 10") if too_long else embeddings)(request, writer)

    with FaultServer(limited) as server:
        with embedder_of(server) as embedder:
            with pytest.raises(ChatError, match="maximum context length is 10.*set long_texts=cut") as caught:
                embedder.embed(["cat", "a cat in Oslo", "dog"])
        assert caught.value.kind is ChatErrorKind.BAD_REQUEST


def test_an_embedder_that_cannot_work_fails_when_it_is_made():
    with FaultServer(status(401)) as server, pytest.raises(ChatError) as caught:
        embedder_of(server)
    assert caught.value.kind is ChatErrorKind.REFUSED_KEY and "OPENAI_EMBEDDINGS_API_KEY" in str(caught.value)
