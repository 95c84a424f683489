"""Too many failed answers end `build` and `expert`."""

import json
from contextlib import nullcontext
from pathlib import Path

import pytest

from membuilder import build, expert
from membuilder.building import dialogues
from membuilder.types import Agent
from tests.fakes import HashEmbedder
from tests.fault_server import FaultServer, Request, answering
from tests.scripted import agent_of, store_first_turn, talk
from tests.test_expert import custom

CORE, EPISODIC, SEMANTIC, PROCEDURAL = Agent
THREE = talk(["I adopted a cat.", "Nice."], ["The cat is called Miso."], ["We moved to Oslo.", "Far!", "Yes."])
OTHER = talk(["I bake."], ["Rye bread."], name="e")


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs a command on two dialogues against a server, with a small embedder."""
    monkeypatch.setattr(dialogues, "embedder_of", lambda options, account: nullcontext(HashEmbedder()))
    data = custom(tmp_path / "talks.jsonl", THREE, OTHER)

    def command(name: str, server: FaultServer, *flags: str) -> int:
        base = ["--dataset", "custom", "--dataset-path", str(data), "--provider", "vllm", "--base-url", server.base_url]
        own = {
            "build": ["--model", "m-1", "--out", str(tmp_path / "out")],
            "expert": ["--expert-model", "m-1", "--output-dir", str(tmp_path / "samples")],
        }
        return {"build": build.main, "expert": expert.main}[name]([*base, *own[name], *flags])

    return command


def replying(failing: dict[str, set[Agent]]):
    """Answers as `store_first_turn`, but for the agents that fail where a text is in the session: those write prose."""

    def reply(request: Request) -> str:
        prompt = request.body["messages"][0]["content"]
        if prompt.startswith("Answer with this JSON"):
            return '{"ready": true}'
        said, agent = prompt.split("\n---\n")[0], agent_of(prompt)
        fails = any(text in said and agent in agents for text, agents in failing.items())
        return "I would rather not." if fails else store_first_turn(agent, prompt)

    return answering(reply)


def asked(server: FaultServer) -> list[tuple[Agent, str]]:
    """Who was asked, and the last text of its session; the check is left out."""
    prompts = [request.body["messages"][0]["content"] for request in server.requests]
    return [(agent_of(each), each.split("\n---\n")[0]) for each in prompts if "You keep the" in each]


ONE_OF_TWENTY = {"Miso": {EPISODIC}}


@pytest.mark.parametrize("command", ["build", "expert"])
def test_too_many_failed_answers_end_the_command_and_say_so(run, command, capsys):
    with FaultServer(replying(ONE_OF_TWENTY)) as server:
        assert run(command, server) == 1
        said = capsys.readouterr().err
        assert "1 of 20 answers failed (5.0%, limit 1.0%): 1 not_json." in said and "--max-failed" in said
        assert run(command, server, "--max-failed", "0.04") == 1
        assert run(command, server, "--max-failed", "0.05") == 0  # at the limit is within it
        assert capsys.readouterr().err.count("answers failed") == 1
        assert run(command, server, "--max-failed", "1.5") == 2
    assert "must be a share from 0 to 1" in capsys.readouterr().err


def test_a_build_takes_the_limit_as_a_key_too(run):
    with FaultServer(replying(ONE_OF_TWENTY)) as server:
        assert run("build", server, "max_failed=0.05") == 0
        assert run("build", server, "max_failed=0.0") == 1


def test_a_sample_with_too_many_failed_answers_is_not_skipped(run, capsys, tmp_path):
    with FaultServer(replying(ONE_OF_TWENTY)) as server:
        assert run("expert", server) == 1
        capsys.readouterr()
        assert run("expert", server, "--skip-existing") == 1
        assert "2 dialogues, of which 1 are whole and skipped" in capsys.readouterr().out
        assert run("expert", server, "--skip-existing", "--max-failed", "0.09") == 0  # d: 1 of 12
        assert "2 dialogues, of which 2 are whole and skipped" in capsys.readouterr().out
        # d alone is above 6%, both together are not
        assert run("expert", server, "--skip-existing", "--max-failed", "0.06") == 0
        assert "2 dialogues, of which 1 are whole and skipped" in capsys.readouterr().out
    metadata = json.loads((Path(tmp_path) / "samples/custom/d/metadata.json").read_text())
    assert metadata["failed_agent_calls"] == {"not_json": 1}
