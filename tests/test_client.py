"""The client against a loopback server that fails in every way we know; test_vllm_server.py runs it against the real
thing.
"""

import asyncio
import logging
import pickle
import socket
import sqlite3
import subprocess
import sys
import time
import traceback

import pytest

from membuilder.errors import CacheError, ChatError, ChatErrorKind
from membuilder.llm.chat_model import Role
from membuilder.llm.client import ChatClient
from membuilder.llm.costs import Costs
from membuilder.llm.endpoints import ModelAccess, ModelEndpoint, Provider
from membuilder.llm.response_cache import AnswerCache
from membuilder.llm.usage import Usage
from tests.fault_server import (
    FaultServer,
    announcing,
    answer,
    answering,
    close_without_answer,
    completion,
    drip,
    echo,
    hang,
    head,
    payload,
    raw,
    refusing_schemas,
    reset_mid_body,
    status,
)
from tests.patience import SOON

KEY = "sk-secret-7d1f"
SCHEMA = {"type": "object", "properties": {"cat": {"type": "string"}}, "required": ["cat"]}
OTHER_SCHEMA = {"type": "object", "properties": {"dog": {"type": "string"}}, "required": ["dog"]}


def ask(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def settings(base_url: str, *, model: str = "m", seed: int | None = None, temperature: float = 0.0, **endpoint):
    """Three quick attempts, a second at most."""
    quick = {"max_attempts": 3, "timeout_seconds": 1.0, "check_timeout_seconds": 1.0, "max_wait_seconds": 0.01}
    more = {"provider": Provider.VLLM} | quick | endpoint
    return ModelEndpoint(name=model, base_url=base_url, seed=seed, temperature=temperature, max_tokens=50, **more)


def run(config: ModelEndpoint, use, usage: Usage | None = None, cache: AnswerCache | None = None):
    """What `use(client)` returns, in an event loop of its own."""

    costs = Costs(usage=usage or Usage(), answers=cache)

    async def session():
        async with ChatClient(ModelAccess(endpoint=config, api_key=KEY), Role.JUDGE, costs) as client:
            return await use(client)

    return asyncio.run(session())


def failure(config: ModelEndpoint, use=None, usage: Usage | None = None) -> ChatError:
    with pytest.raises(ChatError) as caught:
        run(config, use or (lambda client: client.complete(ask("hi"))), usage)
    return caught.value


def test_a_call_sends_what_is_configured_and_returns_the_text():
    with FaultServer(answer("yes")) as server:
        config = settings(server.base_url, seed=5)
        config.extra_body["chat_template_kwargs"] = {"enable_thinking": False}
        assert run(config, lambda client: client.complete(ask("hi"), schema=SCHEMA)) == "yes"
    (request,) = server.requests
    assert (request.method, request.path) == ("POST", "/v1/chat/completions")
    assert request.headers["authorization"] == f"Bearer {KEY}"
    schema = {"name": "answer", "schema": SCHEMA, "strict": False}
    assert request.body == {
        "model": "m",
        "messages": ask("hi"),
        "temperature": 0.0,
        "seed": 5,
        "max_tokens": 50,
        "chat_template_kwargs": {"enable_thinking": False},
        "response_format": {"type": "json_schema", "json_schema": schema},
    }


def test_a_schema_is_sent_without_what_vllms_grammars_do_not_know():
    items = {"type": "array", "items": {"type": "integer"}, "minItems": 1}
    properties = {"uniqueItems": {"type": "boolean"}, "quote": items | {"uniqueItems": True}}
    with FaultServer(answer("{}")) as server:
        schema = {"oneOf": [{"type": "object", "properties": properties}]}
        run(settings(server.base_url), lambda client: client.complete(ask("hi"), schema=schema))
    sent = server.requests[0].body["response_format"]["json_schema"]["schema"]
    assert sent == {"anyOf": [{"type": "object", "properties": {"uniqueItems": {"type": "boolean"}, "quote": items}}]}


def test_openai_gets_its_own_name_for_the_token_limit():
    with FaultServer(answer("yes")) as server:
        run(settings(server.base_url, provider=Provider.OPENAI), lambda client: client.complete(ask("hi")))
    assert server.requests[0].body["max_completion_tokens"] == 50
    assert "max_tokens" not in server.requests[0].body


@pytest.mark.parametrize("code", [408, 409, 429, 500, 502, 503])
def test_a_transient_status_is_tried_again(code):
    usage = Usage()
    with FaultServer(status(code), answer("yes")) as server:
        assert run(settings(server.base_url), lambda client: client.complete(ask("hi")), usage) == "yes"
    assert len(server.requests) == 2
    report = usage.report()["judge"]
    assert (report["calls"], report["failed_attempts"]) == (1, {"exhausted": 1})


async def garbage(_, writer) -> None:
    writer.write(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")
    await writer.drain()
    writer.close()


BROKEN = {
    "reset mid-body": (reset_mid_body, ChatErrorKind.UNREACHABLE),
    "closed without an answer": (close_without_answer, ChatErrorKind.UNREACHABLE),
    "truncated JSON": (raw(b'{"choices": [{"message": {"con'), ChatErrorKind.BAD_RESPONSE),
    "not UTF-8": (raw(b'{"choices": "\xff\xfe"}'), ChatErrorKind.BAD_RESPONSE),
    "nested too deeply": (raw(b"[" * 200_000), ChatErrorKind.BAD_RESPONSE),
    "a web page": (raw(b"<html>Welcome</html>", content_type="text/html"), ChatErrorKind.BAD_RESPONSE),
    "JSON declared as text": (raw(b'{"choices": []}', content_type="text/plain"), ChatErrorKind.BAD_RESPONSE),
    "a bare number": (payload(3), ChatErrorKind.BAD_RESPONSE),
    "no choice": (payload(completion("x") | {"choices": []}), ChatErrorKind.BAD_RESPONSE),
    "choices of null": (payload(completion("x") | {"choices": None}), ChatErrorKind.BAD_RESPONSE),
    "content null": (answer(None), ChatErrorKind.NO_TEXT),
    "content blank": (answer(" \n"), ChatErrorKind.NO_TEXT),
    "content of a wrong type": (answer({"text": "x"}), ChatErrorKind.BAD_RESPONSE),
    "not HTTP": (garbage, ChatErrorKind.UNREACHABLE),
    "redirected": (status(307, location="http://elsewhere/v1"), ChatErrorKind.UNREACHABLE),
    "half a surrogate pair": (answer("\ud83d"), ChatErrorKind.NO_TEXT),
    "an error with status 200": (payload({"error": {"message": "overloaded"}}), ChatErrorKind.BAD_RESPONSE),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_answer_is_tried_again_and_named_when_it_stays(fault):
    behaviour, kind = BROKEN[fault]
    usage = Usage()
    with FaultServer(behaviour, answer("yes")) as server:
        assert run(settings(server.base_url), lambda client: client.complete(ask("hi")), usage) == "yes"
    assert usage.report()["judge"]["failed_attempts"] == {kind.value: 1}
    with FaultServer(behaviour) as server:
        error = failure(settings(server.base_url))
    # a server that writes nothing may write nothing to anybody: the small check request is asked after it
    refuses_all = kind is ChatErrorKind.NO_TEXT
    assert error.kind is (ChatErrorKind.REFUSES_ALL if refuses_all else kind)
    assert len(server.requests) == (5 if refuses_all else 3)
    assert server.base_url in str(error) and "given up after 3 attempts" in str(error)


@pytest.mark.parametrize("behaviour", [hang, drip])
def test_an_answer_that_never_ends_is_a_timeout(behaviour):
    with FaultServer(behaviour) as server:
        began = time.monotonic()
        error = failure(settings(server.base_url, timeout_seconds=0.3, max_attempts=2))
        assert 0.6 <= time.monotonic() - began < SOON
    assert error.kind is ChatErrorKind.TIMEOUT and "timeout_seconds" in str(error) and len(server.requests) == 2


def test_an_endless_body_is_not_read():
    with FaultServer(announcing(10**11)) as server:
        began = time.monotonic()
        error = failure(settings(server.base_url, timeout_seconds=60.0, max_attempts=1))
        assert time.monotonic() - began < SOON
    assert error.kind is ChatErrorKind.BAD_RESPONSE and "100000000000 bytes" in str(error)


def test_a_long_answer_is_read_whole():
    with FaultServer(answer("x" * 5_000_000)) as server:
        assert len(run(settings(server.base_url), lambda client: client.complete(ask("hi")))) == 5_000_000


def test_retry_after_is_honoured_and_too_long_a_pause_is_not_waited_for():
    with FaultServer(status(429, retry_after="1"), answer("yes")) as server:
        began = time.monotonic()
        assert run(settings(server.base_url), lambda client: client.complete(ask("hi"))) == "yes"
        assert 1 <= time.monotonic() - began < SOON
    with FaultServer(status(429, retry_after="3600"), answer("yes")) as server:
        error = failure(settings(server.base_url))
    assert (error.kind, error.retry_after_seconds, len(server.requests)) == (ChatErrorKind.EXHAUSTED, 3600, 1)


FATAL = {
    "401": (status(401), ChatErrorKind.REFUSED_KEY, "VLLM_API_KEY"),
    "403": (status(403), ChatErrorKind.REFUSED_KEY, "VLLM_API_KEY"),
    "404": (status(404, "no such model"), ChatErrorKind.UNKNOWN_MODEL, "'m'"),
    "400 for the model": (status(400, "unknown", "model_not_found"), ChatErrorKind.UNKNOWN_MODEL, "'m'"),
    "no credit": (status(429, "pay", "insufficient_quota"), ChatErrorKind.NO_CREDIT, "no credit"),
    "payment required": (status(402, "top up"), ChatErrorKind.NO_CREDIT, "top up"),
}


@pytest.mark.parametrize("fault", FATAL)
def test_what_cannot_heal_fails_at_once_and_is_fatal(fault):
    behaviour, kind, hint = FATAL[fault]
    with FaultServer(behaviour) as server:
        error = failure(settings(server.base_url))
    assert (error.kind, error.fatal, len(server.requests)) == (kind, True, 1)
    assert hint in str(error)


ONE_CALL = {
    "too long a prompt": (status(400, "too long", "context_length_exceeded"), ChatErrorKind.UNFIT_PROMPT, "too long"),
    "filtered prompt": (status(400, "no", "content_filter"), ChatErrorKind.DECLINED, "content filter"),
    "reached the limit": (answer("half an ans", "length"), ChatErrorKind.TRUNCATED, "max_tokens"),
    "limit reached while thinking": (answer(None, "length"), ChatErrorKind.TRUNCATED, "max_tokens"),
    "filtered": (answer("", "content_filter"), ChatErrorKind.DECLINED, "content_filter"),
    "refusal": (answer(None, refusal="I cannot"), ChatErrorKind.DECLINED, "I cannot"),
}


@pytest.mark.parametrize("fault", ONE_CALL)
def test_what_is_wrong_with_one_call_fails_that_call_alone(fault):
    behaviour, kind, hint = ONE_CALL[fault]
    usage = Usage()
    with FaultServer(behaviour) as server:
        error = failure(settings(server.base_url), usage=usage)
    assert (error.kind, error.fatal, len(server.requests)) == (kind, False, 1)
    assert hint in str(error)
    # an answer cut short is paid for like any other
    assert usage.report()["judge"]["prompt_tokens"] == (7 if "prompt" not in fault else 0)


@pytest.mark.parametrize("refusal", [status(400, "maximum context length"), status(422), answer("")])
def test_a_refusal_concerns_one_call_where_the_small_check_request_is_answered(refusal):
    """Whatever the words: a server that answers the next request was speaking of this one."""
    with FaultServer(refusal, answer("ready")) as server:
        error = failure(settings(server.base_url, max_attempts=1))
    assert error.models_fault and not error.fatal and len(server.requests) == 2


@pytest.mark.parametrize(
    "refusal", [status(400, "insufficient balance"), status(400, "API key expired"), status(410, "closed"), answer("")]
)
def test_a_refusal_of_every_request_is_fatal_whatever_its_words(refusal):
    with FaultServer(refusal) as server:
        error = failure(settings(server.base_url, max_attempts=1))
    assert (error.kind, error.fatal) == (ChatErrorKind.REFUSES_ALL, True) and "smallest request too" in str(error)


def test_a_server_that_dies_after_a_refusal_is_not_the_models_fault():
    with FaultServer(status(400, "bad"), status(503)) as server:
        error = failure(settings(server.base_url, max_attempts=1))
    assert (error.kind, error.models_fault) == (ChatErrorKind.EXHAUSTED, False)


def test_half_a_surrogate_pair_in_a_prompt_fails_that_call_alone():
    with FaultServer(answer("yes")) as server:
        error = failure(settings(server.base_url), lambda client: client.complete(ask("\ud83d")))
    assert (error.kind, error.fatal, server.requests) == (ChatErrorKind.UNFIT_PROMPT, False, [])


def test_no_more_requests_than_configured_are_in_flight():
    async def many(client):
        return await asyncio.gather(*(client.complete(ask(str(number))) for number in range(20)))

    with FaultServer(answering(echo, 0.02)) as server:
        answers = run(settings(server.base_url, concurrency=4), many)
    assert answers == [str(number) for number in range(20)]
    assert server.peak_in_flight == 4


def test_a_server_without_schemas_is_noticed_by_the_check_and_said_once(caplog):
    async def use(client):
        await client.check()
        return [await client.complete(ask("hi"), schema=schema) for schema in (SCHEMA, OTHER_SCHEMA, SCHEMA)]

    with FaultServer(refusing_schemas("{}")) as server, caplog.at_level(logging.WARNING):
        assert run(settings(server.base_url), use) == ["{}"] * 3
    assert ["response_format" in request.body for request in server.requests] == [True, False, False, False, False]
    (warning,) = [record for record in caplog.records if record.name == "membuilder.llm.client"]
    assert "JSON schemas" in warning.getMessage() and "response_format is not supported" in warning.getMessage()


def test_one_refused_schema_leaves_the_others(caplog):
    async def use(client):
        for schema in (SCHEMA, OTHER_SCHEMA, SCHEMA):
            await client.complete(ask("hi"), schema=schema)

    with FaultServer(refusing_schemas("{}", only="cat")) as server, caplog.at_level(logging.WARNING):
        run(settings(server.base_url), use)
    assert ["response_format" in request.body for request in server.requests] == [True, False, True, False]
    assert len([record for record in caplog.records if record.name == "membuilder.llm.client"]) == 1


def test_a_refusal_of_the_prompt_is_not_blamed_on_the_schema():
    async def use(client):
        with pytest.raises(ChatError, match="too long"):
            await client.complete(ask("hi"), schema=SCHEMA)
        await client.complete(ask("hi"), schema=SCHEMA)

    with FaultServer(status(400, "too long"), status(400, "too long"), answer("{}")) as server:
        run(settings(server.base_url), use)
    # without the schema, then the small check request: it is answered, so the refusal was about the prompt
    assert ["response_format" in request.body for request in server.requests] == [True, False, False, True]


def check(client: ChatClient):
    return client.check()


def test_a_check_passes_and_a_talkative_model_passes_it_too():
    for text, reason in (('{"ready": true}', "stop"), ("Well, let me", "length")):
        with FaultServer(answer(text, reason)) as server:
            run(settings(server.base_url), check)
        assert len(server.requests) == 1


def test_a_check_names_the_models_there_are():
    models = payload({"object": "list", "data": [{"id": "qwen3-4b"}, {"id": "other"}]})
    with FaultServer(status(404, "no model m"), models) as server:
        error = failure(settings(server.base_url), check)
    assert error.kind is ChatErrorKind.UNKNOWN_MODEL and "It lists: qwen3-4b, other" in str(error)
    assert [request.path for request in server.requests] == ["/v1/chat/completions", "/v1/models"]


def test_a_check_finds_a_refused_key_a_dead_server_and_a_hanging_one_at_once():
    with FaultServer(status(401)) as server:
        assert failure(settings(server.base_url), check).kind is ChatErrorKind.REFUSED_KEY
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
        began = time.monotonic()
        # as a user runs it: six attempts, pauses up to 30 s, 120 s per call
        config = ModelEndpoint(name="m", provider=Provider.VLLM, base_url=dead)
        error = failure(config, check)
        assert time.monotonic() - began < SOON
    assert (error.kind, error.fatal) == (ChatErrorKind.UNREACHABLE, True) and dead in str(error)
    with FaultServer(hang) as server:
        began = time.monotonic()
        error = failure(settings(server.base_url, timeout_seconds=60.0, check_timeout_seconds=0.3), check)
        assert time.monotonic() - began < SOON
    assert error.kind is ChatErrorKind.TIMEOUT and "check_timeout_seconds" in str(error)


def test_a_page_instead_of_an_answer_leaves_the_tokens_of_the_answers_known():
    usage = Usage()
    with FaultServer(raw(b"<html>", content_type="text/html"), answer(None), answer("yes")) as server:
        run(settings(server.base_url), lambda client: client.complete(ask("hi")), usage)
    report = usage.report()["judge"]
    assert (report["calls"], report["prompt_tokens"], report["completion_tokens"]) == (2, 14, 6)
    assert report["failed_attempts"] == {"bad_response": 1, "no_text": 1}


def test_the_cache_answers_the_same_request_and_no_other(tmp_path):
    cache, usage = AnswerCache(tmp_path), Usage()

    def complete(config, text="hi", schema=None):
        return run(config, lambda client: client.complete(ask(text), schema=schema), usage, cache)

    with FaultServer(answering(echo)) as server:
        config = settings(server.base_url)
        for _ in range(3):
            assert complete(config) == "hi"
        assert len(server.requests) == 1
        complete(config, text="ho")
        complete(config, schema=SCHEMA)
        complete(config, schema=OTHER_SCHEMA)
        complete(settings(server.base_url, model="m2"))
        complete(settings(server.base_url, seed=1))
        complete(settings(server.base_url, temperature=0.5))
        complete(settings(server.base_url.replace("/v1", "/v2")))
        assert len(server.requests) == 8
    cache.close()
    report = usage.report()["judge"]
    assert (report["calls"], report["cached"], report["prompt_tokens"]) == (8, 2, 56)
    reopened = AnswerCache(tmp_path)  # the server is gone
    assert run(config, lambda client: client.complete(ask("ho")), cache=reopened) == "ho"
    reopened.close()


def test_failures_are_not_cached_and_a_check_never_comes_from_the_cache(tmp_path):
    cache = AnswerCache(tmp_path)

    async def use(client):
        await client.check()
        await client.check()
        with pytest.raises(ChatError):
            await client.complete(ask("hi"))
        return await client.complete(ask("hi"))

    with FaultServer(answer("{}"), answer("{}"), answer("ha", "length"), answer("whole")) as server:
        assert run(settings(server.base_url), use, cache=cache) == "whole"
    assert len(server.requests) == 4
    cache.close()


class Planted:
    def __reduce__(self):
        return print, ("unpickled",)


def test_a_planted_pickle_is_not_run_and_a_damaged_cache_says_so(tmp_path, capsys):
    cache = AnswerCache(tmp_path)
    cache.put("key", {"text": "yes"})
    cache.close()
    with sqlite3.connect(tmp_path / "cache.db") as database:
        database.execute("UPDATE Cache SET mode = 4, value = ?", [pickle.dumps(Planted())])
    cache = AnswerCache(tmp_path)
    with pytest.raises(CacheError, match="pickled"):
        cache.get("key")
    cache.close()
    assert capsys.readouterr().out == ""
    (tmp_path / "cache.db").write_bytes(b"no database" * 1000)
    with pytest.raises(CacheError, match="delete it"):
        AnswerCache(tmp_path)


def test_the_key_is_nowhere_but_in_the_request(tmp_path, caplog):
    cache = AnswerCache(tmp_path / "cache")
    config = settings("http://127.0.0.1:9/v1")
    clients, said = [], []

    async def use(client):
        clients.append(client)
        return await client.complete(ask("hi"))

    with caplog.at_level(logging.DEBUG):
        for fault in (status(401, f"bad key {KEY}"), payload({"error": KEY}), status(500, KEY), answer("fine")):
            with FaultServer(fault) as server:
                config = settings(server.base_url)
                try:
                    run(config, use, cache=cache)
                except ChatError as error:
                    said += [str(error), repr(error), "".join(traceback.format_exception(error))]
                    said.append("".join(traceback.format_exception(error.__context__)) if error.__context__ else "")
                assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"
    cache.close()
    said += [repr(config), caplog.text, *map(repr, clients), *(repr(vars(client)) for client in clients)]
    said += [repr(vars(client._connection)) for client in clients]
    said += [path.read_bytes().decode("latin-1") for path in tmp_path.rglob("*") if path.is_file()]
    assert len(said) > 15 and caplog.text
    assert [text for text in said if KEY in text] == []


def test_bytes_of_an_answer_are_not_enough_to_be_one():
    # the length announced is longer than what is sent before the server leaves
    body = b'{"choices": []}'

    async def short(_, writer):
        writer.write(head(200, len(body) + 10) + body)
        await writer.drain()
        writer.close()

    with FaultServer(short) as server:
        assert failure(settings(server.base_url, max_attempts=1)).kind is ChatErrorKind.UNREACHABLE


def test_content_in_parts_is_their_text():
    parts = [{"type": "reasoning", "text": "hm"}, {"type": "text", "text": "yes"}, {"type": "text", "text": "!"}]
    with FaultServer(answer(parts)) as server:
        assert run(settings(server.base_url), lambda client: client.complete(ask("hi"))) == "yes!"


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_an_answer_that_came_as_reasoning_alone_says_what_mends_it(name):
    body = completion("")
    body["choices"][0]["message"] |= {"content": None, name: '{"correct": true}'}
    with FaultServer(payload(body), answer("ready")) as server:
        error = failure(settings(server.base_url, max_attempts=1))
    assert error.kind is ChatErrorKind.NO_TEXT and "reasoning parser" in str(error) and "extra_body" in str(error)


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "ALL_PROXY"])
def test_a_proxy_of_the_environment_is_gone_through_and_its_exceptions_are_not(variable, monkeypatch):
    for name in ("HTTP_PROXY", "ALL_PROXY", "http_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with FaultServer(answer("yes"), status(503), answer("no")) as proxy, FaultServer(answer("direct")) as server:
        monkeypatch.setenv(variable, proxy.base_url.removesuffix("/v1"))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        far, near = settings("http://models.example/v1"), settings(server.base_url)
        for text in ("yes", "no"):  # what a proxy's refusal means is read alike: the second call is tried again
            assert run(far, lambda client: client.complete(ask("hi"))) == text
        assert run(near, lambda client: client.complete(ask("hi"))) == "direct"
    assert [request.path for request in proxy.requests] == ["http://models.example/v1/chat/completions"] * 3
    (direct,) = server.requests
    assert direct.path == "/v1/chat/completions" and direct.body == proxy.requests[0].body
    for request in (direct, proxy.requests[0]):
        assert request.headers["authorization"] == f"Bearer {KEY}"
        assert request.headers["content-type"] == "application/json"


def test_the_account_that_the_environment_names_is_sent_along(monkeypatch):
    monkeypatch.setenv("OPENAI_ORG_ID", "org-1")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "proj-1")
    with FaultServer(answer("yes")) as server:
        run(settings(server.base_url), lambda client: client.complete(ask("hi")))
    headers = server.requests[0].headers
    assert (headers["openai-organization"], headers["openai-project"]) == ("org-1", "proj-1")
    assert not [name for name in headers if name.startswith("x-stainless")]  # nothing of this machine


def test_roles_that_ask_one_server_share_its_connections_until_the_last_one_leaves():
    peers = []

    async def note(request, writer) -> None:
        peers.append(writer.get_extra_info("peername"))
        await answer("yes")(request, writer)

    async def session(config: ModelEndpoint) -> None:
        def client(role: Role) -> ChatClient:
            return ChatClient(ModelAccess(endpoint=config, api_key=KEY), role, Costs(usage=Usage()))

        async with client(Role.JUDGE) as judge:
            async with client(Role.ANSWERER) as answerer:
                await answerer.complete(ask("1"))
                await judge.complete(ask("2"))
            await judge.complete(ask("3"))
        async with client(Role.JUDGE) as judge:
            await judge.complete(ask("4"))

    with FaultServer(note) as server:
        for _ in range(2):  # another event loop has connections of its own
            asyncio.run(session(settings(server.base_url)))
    assert len(peers) == 8 and len(set(peers)) == 4
    assert peers[0] == peers[1] == peers[2] != peers[3]


def test_what_is_loaded_is_not_looked_through_again():
    program = """
import gc, time, torch, transformers
from membuilder.garbage import keep_loaded
before = len(gc.get_objects())
keep_loaded()
print(before, len(gc.get_objects()))
"""
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    before, after = map(int, found.stdout.split())
    assert before > 50_000 > 100 * after
