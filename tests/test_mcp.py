"""The tools of the memory server, called by the SDK's own client over both transports."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

import httpx
import httpx2
import pytest
from mcp import Client
from mcp.client.stdio import StdioServerParameters
from mcp.client.streamable_http import streamable_http_client

from membuilder.serve import Client as RestClient
from membuilder.serve import main
from membuilder.serving.limits import RequestLimits
from membuilder.serving.service import MemoryService
from tests.fault_server import FaultServer
from tests.listening import embedding, key_for, listening
from tests.patience import HANGS

CAT, MOVE = "I adopted a cat called Miso.", "I moved to Leeds last week."
TOOLS = {"remember", "search_memory", "forget", "show_memory"}
LIST = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}
HEADERS = {"accept": "application/json, text/event-stream"}


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "name": "Ann", "content": text}]


def over_http(address: str, story: Callable, key: str | None = None, mode: str = "auto") -> object:
    """What a story returns that is told to a connected client."""

    async def told() -> object:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        async with httpx2.AsyncClient(headers=headers, timeout=HANGS) as http:
            async with Client(streamable_http_client(f"{address}/mcp", http_client=http), mode=mode) as client:
                return await story(client)

    return asyncio.run(told())


async def call(client: Client, tool: str, **arguments: object) -> dict:
    """What a tool replies, which must not be an error."""
    reply = await client.call_tool(tool, arguments)
    assert not reply.is_error, reply.content
    return reply.structured_content


async def refusal(client: Client, tool: str, **arguments: object) -> str:
    reply = await client.call_tool(tool, arguments)
    assert reply.is_error and reply.structured_content is None
    return reply.content[0].text


async def life(client: Client, **of: str) -> None:
    """A session that is remembered, found, shown and forgotten."""
    job = await call(client, "remember", messages=said(CAT), session_id="s1", timestamp="2024-03-01T10:00:00Z", **of)
    assert job == {"session_id": "s1", "state": "done", "detail": ""}
    assert await call(client, "remember", messages=said(CAT), session_id="s1", timestamp="2024-03-01T10:00:00Z", **of)
    await call(client, "remember", messages=said(MOVE), session_id="s2", timestamp="2024-04-01T10:00:00Z", **of)
    (found,) = (await call(client, "search_memory", query="Which cat?", k=1, **of))["entries"]
    assert found["text"] == f"[2024-03-01] Ann: {CAT}" and found["timestamp"] == "2024-03-01T10:00:00Z"
    shown = await call(client, "show_memory", **of)
    assert [CAT in each["text"] for each in shown["entries"]] == [False, True]  # the youngest first
    assert (shown["num_entries"], shown["sessions"], shown["core"]) == (2, ["s2", "s1"], "")
    assert (await call(client, "show_memory", skip=1, limit=1, **of))["entries"] == [found]
    await call(client, "forget", entry_id=found["id"], **of)
    await call(client, "forget", session_id="s2", **of)
    assert (await call(client, "show_memory", **of))["entries"] == []
    assert "There is nothing of this name" in await refusal(client, "forget", session_id="s2", **of)
    assert "Name either" in await refusal(client, "forget", session_id="s1", entry_id=found["id"], **of)


# Over HTTP


@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_an_agent_remembers_searches_and_forgets_over_http(mode, tmp_path):
    async def story(client: Client) -> None:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        assert tools.keys() == TOOLS and all("user" in tool.input_schema["required"] for tool in tools.values())
        assert tools["forget"].annotations.destructive_hint and tools["search_memory"].annotations.read_only_hint
        await life(client, user="ann")

    with listening(tmp_path) as address:
        over_http(address, story, mode=mode)


def test_a_tool_names_the_users_of_its_key_and_no_other(tmp_path):
    keys = tmp_path / "keys"
    of_ann, of_ben = key_for(keys, "ann", "team-*"), key_for(keys, "ben")
    tried = {"user": "ben"}
    others = ["ben", "Ann", "ann ", "ann/../ben", "*", "team", "ben\u0000", '"ben"', "%62en", "team-x/../ben"]

    async def foreign(client: Client) -> list[str]:
        told = [await refusal(client, "remember", messages=said("Ben lies."), **tried)]
        told += [await refusal(client, "search_memory", query="Leeds", user=user) for user in others]
        told += [await refusal(client, "show_memory", user=user) for user in others]
        told += [await refusal(client, "forget", session_id="secret-session", **tried)]
        told.append(await refusal(client, "search_memory", query="Leeds", user=["ann", "ben"]))
        await call(client, "remember", messages=said(CAT), user="team-one")
        assert [CAT in each["text"] for each in (await call(client, "show_memory", user="team-one"))["entries"]] == [
            True
        ]
        return told

    with listening(tmp_path / "root", api_keys=keys) as address:
        with RestClient(address, key=of_ben) as ben:
            ben.remember("ben", said(MOVE), session_id="secret-session", wait=True)
            told = over_http(address, foreign, of_ann)
            assert "not for this user" in told[0] and len(told) == 23
            assert not [text for text in told if MOVE in text or "secret" in text.replace("'secret-session'", "")]
            assert [each["id"] for each in ben.memory("ben")["sessions"]] == ["secret-session"]


def test_callers_at_the_same_time_keep_their_own_keys(tmp_path):
    keys = {user: key_for(tmp_path / "keys", user) for user in ("ann", "ben")}

    async def calls(client: Client, own: str, other: str) -> None:
        for number in range(5):
            text = f"I adopted a cat called {own.title()}{number}."
            wrote = call(client, "remember", messages=said(text), session_id=f"s{number}", user=own)
            told = await asyncio.gather(wrote, *(refusal(client, "show_memory", user=other) for _ in range(3)))
            assert all("not for this user" in each for each in told[1:])
        shown = (await call(client, "show_memory", user=own))["entries"]
        assert len(shown) == 5 and all(own.title() in each["text"] for each in shown)

    async def both(address: str) -> None:
        async with AsyncExitStack() as stack:
            clients = {}
            for user, key in keys.items():
                http = httpx2.AsyncClient(headers={"authorization": f"Bearer {key}"}, timeout=HANGS)
                transport = streamable_http_client(f"{address}/mcp", http_client=await stack.enter_async_context(http))
                clients[user] = await stack.enter_async_context(Client(transport))
            await asyncio.gather(calls(clients["ann"], "ann", "ben"), calls(clients["ben"], "ben", "ann"))

    with listening(tmp_path / "root", api_keys=tmp_path / "keys") as address:
        asyncio.run(both(address))


def test_without_a_key_that_is_known_nothing_is_told(tmp_path):
    key_for(tmp_path / "keys", "ann")
    with listening(tmp_path / "root", api_keys=tmp_path / "keys") as address:
        for headers in ({}, {"authorization": "Bearer mb-other"}, {"authorization": "Basic YW5u"}):
            reply = httpx.post(f"{address}/mcp", json=LIST, headers=HEADERS | headers)
            assert (reply.status_code, reply.json()["type"]) == (401, "urn:membuilder:no-key")
        with pytest.raises(ExceptionGroup):  # so the SDK tells that it was not let in
            over_http(address, lambda client: client.list_tools(), "mb-other")


def test_calls_count_as_requests_and_have_their_limits(tmp_path):
    with listening(tmp_path, requests=RequestLimits(requests_per_minute=4, body_bytes=1000)) as address:
        long = httpx.post(f"{address}/mcp", json=LIST | {"params": {"x": "x" * 2000}}, headers=HEADERS)
        assert (long.status_code, long.json()["type"]) == (413, "urn:membuilder:body-too-long")
        unsaid = httpx.post(f"{address}/mcp", content=iter([b"x" * 900] * 3), headers=HEADERS)
        assert unsaid.status_code == 413 and unsaid.json()["type"] == long.json()["type"]
        sent = httpx.post(f"{address}/v1/users/ann/sessions", content=iter([b" " * 900] * 3))
        assert sent.status_code == 413 and sent.json()["type"] == long.json()["type"]
        codes = [httpx.post(f"{address}/mcp", json=LIST, headers=HEADERS).status_code for _ in range(9)]
        codes.append(httpx.get(f"{address}/v1/users/ann/memory").status_code)
        assert 200 in codes and codes[-1] == 429  # in one minute or two


def test_a_web_page_reaches_no_server_that_asks_for_no_key(tmp_path):
    key = key_for(tmp_path / "keys", "ann")
    with listening(tmp_path / "open") as address:
        assert httpx.post(f"{address}/mcp", json=LIST, headers=HEADERS).status_code == 200
        for headers, code in (({"host": "evil.example"}, 421), ({"origin": "https://evil.example"}, 403)):
            assert httpx.post(f"{address}/mcp", json=LIST, headers=HEADERS | headers).status_code == code
        assert httpx.get(f"{address}/mcp", headers=HEADERS).status_code == 405
    with listening(tmp_path / "keyed", api_keys=tmp_path / "keys") as address:
        headers = HEADERS | {"host": "memory.example", "authorization": f"Bearer {key}"}
        assert httpx.post(f"{address}/mcp", json=LIST, headers=headers).status_code == 200


def test_a_fault_tells_nothing_of_a_memory(tmp_path, monkeypatch):
    async def broken(*_: object, **__: object) -> None:
        raise RuntimeError(f"a fault about {CAT}")

    monkeypatch.setattr(MemoryService, "search", broken)
    with listening(tmp_path) as address:
        told = over_http(address, lambda client: refusal(client, "search_memory", user="ann", query="cat"))
    assert told == "Error executing tool search_memory"


# Over standard input and output


@contextmanager
def stdio_command(root: Path) -> Iterator[list[str]]:
    """The command of a server of ann's memory."""
    with FaultServer(embedding) as embedder:
        flags = ["--embedding-provider", "vllm", "--embedding-base-url", embedder.base_url, "--embedding-model", "e"]
        yield [sys.executable, "-m", "membuilder.serve", "--root", str(root), "--mcp-stdio", "--user", "ann", *flags]


def test_one_users_tools_over_stdio_know_no_other_user(tmp_path):
    async def story(command: list[str]) -> None:
        server = StdioServerParameters(command=command[0], args=command[1:], env=dict(os.environ))
        async with Client(server) as client:
            tools = (await client.list_tools()).tools
            assert {tool.name for tool in tools} == TOOLS
            assert not [tool for tool in tools if "user" in tool.input_schema["properties"]]
            await life(client)
            await call(client, "remember", messages=said(MOVE), session_id="s3", user="ben")
            assert (await call(client, "show_memory", user="ben"))["sessions"] == ["s3", "s1"]  # ann's: nobody is asked

    with stdio_command(tmp_path) as command:
        asyncio.run(story(command))
    assert len(list((tmp_path / "users").rglob("*.db"))) == 1


@pytest.mark.parametrize("ends", [signal.SIGTERM, signal.SIGINT, None])
def test_nothing_but_the_protocol_stands_on_stdout_and_a_signal_ends_it(ends, tmp_path):
    arguments = {"messages": said(CAT), "session_id": "s1"}
    info = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
    requests = [
        {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": info},
        {"jsonrpc": "2.0", "method": "notifications/initialized"},
        {"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": {"name": "remember", "arguments": arguments}},
        {"jsonrpc": "2.0", "id": 3, "method": "tools/call", "params": {"name": "no_tool", "arguments": {}}},
    ]
    with stdio_command(tmp_path) as command:
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as server:
            server.stdin.write(b"".join(json.dumps(each).encode() + b"\n" for each in requests))
            server.stdin.flush()
            lines = [server.stdout.readline() for _ in range(3)]
            if ends is None:
                server.stdin.close()
            else:
                server.send_signal(ends)
            rest, told, status = server.stdout.read(), server.stderr.read(), server.wait(HANGS)
    replies = [json.loads(line) for line in lines]
    assert all(each["jsonrpc"] == "2.0" for each in replies) and {each["id"] for each in replies} == {1, 2, 3}
    assert rest == b"" and status == 0
    assert b"Traceback" not in told


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--mcp-stdio"], "--mcp-stdio and --user NAME go together"),
        (["--user", "ann"], "--mcp-stdio and --user NAME go together"),
        (["--mcp-stdio", "--user", "ann", "--api-keys", "keys"], "--api-keys has no effect with --mcp-stdio"),
        (["--mcp-stdio", "--user", "../ann"], "is no name of a user"),
    ],
)
def test_flags_that_do_not_fit_are_refused(flags, message, tmp_path, capsys):
    assert main(["--root", str(tmp_path / "root"), *flags]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "root").exists()
