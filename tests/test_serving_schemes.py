"""The memory server under every scheme: the same story, whoever writes the memory and however many parts it has."""

import pytest

from membuilder.llm.endpoints import ModelEndpoint, Provider
from tests.fault_server import FaultServer, answer
from tests.served import served

CAT, MOVE = "I adopted a cat called Miso yesterday.", "I moved to Leeds last week for my new job as a nurse."
CALL = '{"name": "memory_insert", "arguments": {"memory_type": "semantic_memory", "content": "A cat."}}'


@pytest.mark.parametrize("scheme", ["four_agents", "memalpha"])
def test_a_session_is_read_corrected_and_erased(tmp_path, scheme):
    with served(tmp_path, settings={"scheme": scheme}) as server:
        server.tell("ann", "s1", CAT, MOVE)
        cat = server.id_of("ann", "Miso")
        assert server.patch(f"/v1/users/ann/entries/{cat}", {"text": "Ann has a dog."}).status_code == 204
        assert server.found("ann", "dog cat Miso", k=1) == ["Ann has a dog."]
        dog = server.id_of("ann", "dog")
        history = server.get(f"/v1/users/ann/entries/{dog}").json()["history"]
        assert [each["id"] for each in history] == [cat, dog] and history[1]["part"] == history[0]["part"]
        assert server.delete(f"/v1/users/ann/entries/{dog}").status_code == 204
        assert [MOVE in text for text in server.texts("ann")] == [True]
        page = server.request("GET", "/v1/users/ann/memory", headers={"accept": "text/html"}).text
        assert "What is remembered" in page or MOVE in page


def test_a_model_that_answers_by_calls_writes_the_memory(tmp_path):
    with FaultServer(answer(f"<tool_call>\n{CALL}\n</tool_call>")) as model:
        endpoint = ModelEndpoint(name="m-1", provider=Provider.VLLM, base_url=model.base_url)
        with served(tmp_path, endpoint, settings={"scheme": "memalpha"}) as server:
            assert server.tell("ann", "s1", CAT).json()["state"] == "done"
            (entry,) = server.get("/v1/users/ann/memory").json()["entries"]
            assert (entry["part"], entry["text"]) == ("semantic", "A cat.")
