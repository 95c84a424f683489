"""Tools offered to a model behind an endpoint: what is sent, how calls come back, and several turns of a build."""

import asyncio
import json
from contextlib import closing

import pytest

from membuilder.bank.store import reading, writing
from membuilder.building.builder import Builder, ask_model
from membuilder.errors import ChatError, ChatErrorKind
from membuilder.llm.chat_model import Role
from membuilder.llm.client import ChatClient
from membuilder.llm.costs import Costs
from membuilder.llm.endpoints import ModelAccess, ModelEndpoint, Provider
from membuilder.llm.responses import read_chat
from membuilder.llm.usage import Usage
from membuilder.schemes.four_agents.prompts import PromptConfig
from membuilder.schemes.load import load_scheme
from membuilder.schemes.memalpha.config import MemAlphaConfig
from membuilder.schemes.scheme import CallOutcome
from membuilder.types import AgentUpdate, Bank
from tests.fakes import HashEmbedder
from tests.fault_server import FaultServer, answer, completion
from tests.scripted import talk

(SESSION,) = talk(["I adopted a cat.", "Nice."]).sessions
SETTINGS = {"dialogue": "d", "dimension": HashEmbedder().dimension}


def insert(content: str) -> dict:
    arguments = json.dumps({"memory_type": "semantic_memory", "content": content})
    return {"id": "c1", "type": "function", "function": {"name": "memory_insert", "arguments": arguments}}


def scheme_of(**settings):
    return load_scheme("memalpha", PromptConfig(), MemAlphaConfig(**settings))


def outcomes(text: str) -> list[CallOutcome]:
    scheme = scheme_of()
    update = scheme.parse("writer", text, SESSION)
    assert isinstance(update, AgentUpdate)
    return [call.outcome for call in scheme.apply(SESSION, Bank(), {"writer": update}, {"writer": ()}).calls["writer"]]


def test_calls_that_a_server_names_apart_are_the_text_that_the_scheme_reads():
    calls = [insert("Ann has a cat."), insert("A tag: </tool_call> <tool_call> inside.")]
    text = read_chat(completion("I keep two.", "tool_calls", tool_calls=calls), with_calls=True)
    assert (
        text.startswith("I keep two.\n<tool_call>\n") and text.count("<tool_call>") == text.count("</tool_call>") == 2
    )
    assert outcomes(text) == [CallOutcome.RAN] * 2
    update = scheme_of().parse("writer", text, SESSION)
    assert [each.text for each in update.operations] == ["Ann has a cat.", "A tag: </tool_call> <tool_call> inside."]
    assert read_chat(completion(None, "tool_calls", tool_calls=calls[:1]), with_calls=True).startswith("<tool_call>")


def test_broken_arguments_are_not_mended():
    broken = {"function": {"name": "memory_insert", "arguments": '{"memory_type": "semantic_memory", "content": "Ann'}}
    text = read_chat(completion(None, tool_calls=[broken]), with_calls=True)
    assert outcomes(text) == [CallOutcome.NOT_JSON]


@pytest.mark.parametrize("calls", [[{"function": {"name": "a"}}], [{"function": {"name": 1, "arguments": "{}"}}], "a"])
def test_calls_of_another_shape_are_a_bad_response(calls):
    with pytest.raises(ChatError, match="calls a tool without a name") as caught:
        read_chat(completion(None, tool_calls=calls), with_calls=True)
    assert caught.value.kind is ChatErrorKind.BAD_RESPONSE


def test_calls_that_nobody_offered_are_no_answer():
    with pytest.raises(ChatError) as caught:
        read_chat(completion(None, tool_calls=[insert("Ann has a cat.")]))
    assert caught.value.kind is ChatErrorKind.NO_TEXT


@pytest.mark.parametrize("provider", Provider)
def test_a_build_offers_tools_and_tells_results_until_the_writer_is_done(provider, tmp_path):
    scheme, dialogue = scheme_of(max_turns=3), talk(["I adopted a cat.", "Nice."])
    arguments = json.dumps({"memory_type": "semantic_memory", "memory_id": "m7"})
    wrong = {"function": {"name": "memory_delete", "arguments": arguments}}
    answers = [
        answer(None, "tool_calls", tool_calls=[insert("Ann has a cat."), wrong]),
        answer(None, "tool_calls", tool_calls=[insert("Ben likes it.")]),
        answer("Done."),
    ]

    async def build(url: str) -> Bank:
        endpoint = ModelEndpoint(name="m-1", provider=provider, base_url=url)
        async with ChatClient(ModelAccess(endpoint=endpoint, api_key="k"), Role.BUILDER, Costs(usage=Usage())) as model:
            with closing(Builder(ask=ask_model(model, scheme), embedder=HashEmbedder(), scheme=scheme)) as builder:
                with writing(tmp_path / "memory.db", SETTINGS) as store:
                    return await builder.build(dialogue, store)

    with FaultServer(*answers) as server:
        bank = asyncio.run(build(server.base_url))
    assert [entry.text for entry in bank.entries] == ["Ann has a cat.", "Ben likes it."]
    first, second, third = (request.body for request in server.requests)
    assert [tool["function"]["name"] for tool in first["tools"]][
        0
    ] == "memory_insert" and "response_format" not in first
    own = {name: first[name] for name in ("tool_choice", "skip_special_tokens") if name in first}
    assert own == ({"tool_choice": "none", "skip_special_tokens": False} if provider is Provider.VLLM else {})
    assert first["messages"] == second["messages"][: len(first["messages"])]
    said, *results = second["messages"][len(first["messages"]) :]
    assert said["role"] == "assistant" and said["content"].count("<tool_call>") == 2
    assert [each["role"] for each in results] == ["tool" if provider is Provider.VLLM else "user"] * 2
    assert '"ok"' in results[0]["content"] and "m7" in results[1]["content"]
    assert len(third["messages"]) == len(second["messages"]) + 2
    with reading(tmp_path / "memory.db") as store:
        (stored,) = store.sessions()
        (kept,) = stored.answers.values()
        assert kept.failure is None and [each.kind for each in kept.dropped] == ["unknown_id"]
        assert kept.text.endswith("Done.") and len(kept.operations) == 2
