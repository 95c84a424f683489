"""Too many failed answers end `build` and `expert`, and `--retry-failed` asks these again and no other."""

import asyncio
import json
import random
import time
from collections import Counter
from contextlib import closing, nullcontext
from pathlib import Path

import pytest

from membuilder import build, expert, prepare, qa
from membuilder.bank.store import Store, reading, writing
from membuilder.building import dialogues
from membuilder.building.builder import Builder, ask_model
from membuilder.building.dialogues import Job, build_stores
from membuilder.errors import StoreError
from membuilder.schemes.four_agents.prompts import PromptConfig
from membuilder.schemes.four_agents.scheme import FourAgents
from membuilder.trajectories.published_layout import is_whole
from membuilder.trajectories.trajectory import read_trajectory
from membuilder.types import Agent, Bank, Dialogue
from tests import killed
from tests.fakes import HashEmbedder
from tests.fault_server import FaultServer, Request, answering, status
from tests.scripted import ScriptedModel, agent_of, store_first_turn, talk
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


# A build is held to the limit as a whole, an expert by sample: one of the 12 answers about dialogue d failed.
@pytest.mark.parametrize("command, failed, limit", [("build", "1 of 20", 1 / 20), ("expert", "1 of 12", 1 / 12)])
def test_too_many_failed_answers_end_the_command_and_say_so(run, command, failed, limit, capsys):
    with FaultServer(replying(ONE_OF_TWENTY)) as server:
        assert run(command, server) == 1
        said = capsys.readouterr().err
        assert f"{failed} answers failed ({limit:.1%}, limit 1.0%): 1 not_json." in said and "--max-failed" in said
        assert run(command, server, "--max-failed", str(limit - 0.01)) == 1
        assert run(command, server, "--max-failed", str(limit)) == 0  # at the limit is within it
        assert capsys.readouterr().err.count("answers failed") == 1
        with nullcontext() if command == "build" else pytest.raises(SystemExit):  # a key of its configuration, a flag
            run(command, server, "--max-failed", "1.5")
    assert "'1.5' does not fit; expected float (at least 0, at most 1)" in capsys.readouterr().err


def test_a_build_takes_the_limit_as_a_key_too(run):
    with FaultServer(replying(ONE_OF_TWENTY)) as server:
        assert run("build", server, "max_failed=0.05") == 0
        assert run("build", server, "max_failed=0.0") == 1


def prepared(tmp_path: Path, capsys) -> tuple[int, str]:
    """The exit status of `prepare sft` on all samples, and what it says."""
    out = str(tmp_path / "sft.jsonl")
    status = prepare.main(["sft", "--trajectories-dir", str(tmp_path / "samples"), "--output-file", out])
    said = capsys.readouterr()
    return status, said.out + said.err


def test_a_sample_with_too_many_failed_answers_is_whole_to_no_command(run, capsys, tmp_path):
    sample = tmp_path / "samples/custom/d"
    with FaultServer(replying(ONE_OF_TWENTY)) as server:
        assert run("expert", server) == 1
        assert f"1 of 2 samples are not whole, such as {sample};" in capsys.readouterr().err
        assert not (sample / "metadata.json").exists() and not is_whole(sample, 3)
        status, said = prepared(tmp_path, capsys)
        assert status == 0 and "left out: 1 samples_not_whole" in said
        assert run("expert", server, "--skip-existing") == 1
        assert "2 dialogues, of which 1 are whole and skipped" in capsys.readouterr().out
        # d alone is above 6%, both together are not: a run that leaves a sample out is no success
        assert run("expert", server, "--skip-existing", "--max-failed", "0.06") == 1
        assert "2 dialogues, of which 1 are whole and skipped" in capsys.readouterr().out
        assert run("expert", server, "--skip-existing", "--max-failed", "0.09") == 0
        assert run("expert", server, "--skip-existing", "--max-failed", "0.09") == 0
        assert "2 dialogues, of which 2 are whole and skipped" in capsys.readouterr().out
        assert json.loads((sample / "metadata.json").read_text())["failed_agent_calls"] == {"not_json": 1}
        status, said = prepared(tmp_path, capsys)
        assert status == 0 and "samples_not_whole" not in said
        assert run("expert", server, "--skip-existing") == 1  # a lower limit takes the mark away again
        assert not (sample / "metadata.json").exists()
    assert len(server.requests) == 1 + 20 + 1 + 4  # and the check of each run that skips not all
    used = (tmp_path / "samples/custom/usage.jsonl").read_text().splitlines()
    assert [json.loads(line)["whole"] for line in used] == [False, False, False, True, False]  # as the exit statuses


def test_folders_without_a_whole_sample_are_refused_saying_so(run, capsys, tmp_path):
    with FaultServer(replying(ONE_OF_TWENTY)) as server:
        assert run("expert", server, "--conv-id", "d") == 1
        status, said = prepared(tmp_path, capsys)
        assert status == 2 and "holds no whole trajectory, but 1 that are not" in said
        flags = ["--trajectories-dir", str(tmp_path / "samples"), "--provider", "vllm", "--base-url", server.base_url]
        assert qa.main(flags) == 2
        assert "but 1 that are not" in capsys.readouterr().err


# Asking again


SCHEME = FourAgents(PromptConfig())
SETTINGS = {"dialogue": "d", "speakers": ["Ann", "Ben"], "model": "scripted", "dimension": HashEmbedder().dimension}
TWO_OF_TWENTY = {"adopted": {EPISODIC}, "Miso": {CORE}}
HEALED = [
    # m1 was asked for again; m2 and m3 stand, and what m3 replaced is the same entry under its new id
    ("m1", "[2023-05-08] Ann: I adopted a cat.", ()),
    ("m2", "[2023-05-15] Ann: The cat is called Miso.", ()),
    ("m3", "[2023-05-22] Ann: We moved to Oslo.", ("m2",)),
]


def entries(bank: Bank) -> list[tuple]:
    return [(entry.id, entry.text, entry.supersedes) for entry in bank.entries]


def held(path: Path) -> tuple:
    with reading(path) as store:
        return store.bank(), store.sessions(), store.vectors().tobytes(), store.settings()


def test_a_second_run_asks_what_failed_and_nothing_else(run, tmp_path, capsys):
    path = tmp_path / "out/d.db"
    with FaultServer(replying(TWO_OF_TWENTY)) as server:
        assert run("build", server) == 1
        assert "2 of 20 answers failed" in (said := capsys.readouterr().err) and "--retry-failed" in said
    bank, before, _, settings = held(path)
    assert entries(bank) == [("m1", HEALED[1][1], ()), ("m2", HEALED[2][1], ("m1",))]
    with FaultServer(replying({})) as server:
        assert run("build", server, "--retry-failed") == 0
        assert len(server.requests) == 1 + 2
        assert [(agent, said.count("adopted"), said.count("Miso")) for agent, said in asked(server)] == [
            (EPISODIC, 1, 0),
            (CORE, 0, 1),
        ]
    bank, after, vectors, same = held(path)
    assert entries(bank) == HEALED and bank.core == "2 turns\n1 turns\n3 turns"
    assert vectors == HashEmbedder().embed([entry.text for entry in bank.entries]).tobytes() and same == settings
    assert [stored.core for stored in after] == ["2 turns", "2 turns\n1 turns", bank.core]
    for old, new in zip(before, after, strict=True):
        assert list(new.answers) == list(Agent) and old.session == new.session
        for agent, answer in new.answers.items():
            assert answer.failure is None and answer.text is not None
            assert json.loads(answer.text) and (answer.operations or agent in (SEMANTIC, PROCEDURAL))
            if old.answers[agent].failure is None:
                kept = old.answers[agent]
                assert (answer.text, answer.operations, answer.asked_at) == (kept.text, kept.operations, kept.asked_at)
    assert [new.answers[EPISODIC].shown for new in after] == [(), (), ("m2",)]
    assert {file.name for file in path.parent.glob("*.retry*")} == set()
    with FaultServer(replying({})) as server:
        assert run("build", server, "--retry-failed") == 0 and len(server.requests) == 1


def test_an_outage_in_a_retry_keeps_the_store_and_the_next_one_goes_on(run, tmp_path, capsys):
    path = tmp_path / "out/d.db"
    with FaultServer(replying(TWO_OF_TWENTY)) as server:
        assert run("build", server) == 1
    before = held(path)
    with FaultServer(*[replying({})] * 2, status(429, retry_after="3600")) as server:
        assert run("build", server, "--retry-failed", "--conv-id", "d") == 2  # the check and the first of two answers
    assert "stopped at session D2 of dialogue d" in capsys.readouterr().err
    assert held(path) == before
    with FaultServer(replying({})) as server:
        assert run("build", server, "--retry-failed") == 0
        assert [agent for agent, _ in asked(server)] == [CORE]
    assert entries(held(path)[0]) == HEALED


def test_what_fails_again_is_counted_again_and_a_longer_dialogue_goes_on(run, tmp_path, capsys):
    with FaultServer(replying(TWO_OF_TWENTY)) as server:
        assert run("build", server, "--sessions", "2") == 1
    with FaultServer(replying({"Miso": {CORE}})) as server:
        assert run("build", server, "--retry-failed") == 1  # two asked again, and all of the third session
        assert Counter(agent for agent, _ in asked(server)) == {
            CORE: 1 + 1 + 1,
            EPISODIC: 2,
            SEMANTIC: 1,
            PROCEDURAL: 1,
        }
    assert "1 of 20 answers failed (5.0%, limit 1.0%): 1 not_json." in capsys.readouterr().err.splitlines()[-1]
    assert [entry.text for entry in held(tmp_path / "out/d.db")[0].entries] == [text for _, text, _ in HEALED]


def test_a_cached_answer_is_asked_again_too(run, tmp_path):
    cache = ["--answer-cache", str(tmp_path / "cache")]
    with FaultServer(replying(TWO_OF_TWENTY)) as server:
        assert run("build", server, *cache) == 1
        address = server.port
    server = FaultServer(replying({}))
    server.port = address  # its address is part of the cache's key
    with server:
        assert run("build", server, "--retry-failed", *cache) == 0
        assert [agent for agent, _ in asked(server)] == [EPISODIC, CORE]


def test_a_sample_is_published_anew(run, tmp_path, capsys):
    folder = tmp_path / "samples/custom/d"
    with FaultServer(replying(TWO_OF_TWENTY)) as server:
        assert run("expert", server, "--max-failed", "1") == 0
    with FaultServer(*[replying({})] * 2, status(401)) as server:
        assert run("expert", server, "--retry-failed") == 2
    assert is_whole(folder, 3)  # as it was
    with FaultServer(replying({})) as server:
        assert run("expert", server, "--skip-existing", "--retry-failed", "--max-failed", "1") == 0
        assert [agent for agent, _ in asked(server)] == [CORE]
    assert is_whole(folder, 3)
    assert json.loads((folder / "metadata.json").read_text())["failed_agent_calls"] == {}
    calls = [json.loads(line) for line in (folder / "agent_calls.jsonl").read_text().splitlines()]
    assert all(call["failure"] is None for call in calls)
    assert calls[1]["expert_output"]["memories_added"] == ["[EPISODIC] [2023-05-08] Ann: I adopted a cat."]
    assert calls[9]["input"]["retrieved_memories"] == ["[2023-05-15] Ann: The cat is called Miso."]
    with reading(folder / "memory.db") as store:
        assert entries(read_trajectory(store).steps[-1].step.result.bank) == HEALED


def test_a_sample_is_not_whole_between_its_new_answers_and_their_files(run, tmp_path, monkeypatch):
    def stop(folder: Path, store: Store) -> None:
        raise StoreError(store.path, "stopped here")

    with FaultServer(replying(TWO_OF_TWENTY)) as server:
        assert run("expert", server) == 1
    with FaultServer(replying({})) as server, monkeypatch.context() as patch:
        patch.setattr(expert, "publish", stop)
        assert run("expert", server, "--retry-failed", "--conv-id", "d") == 2
    assert entries(held(tmp_path / "samples/custom/d/memory.db")[0]) == HEALED
    with FaultServer(replying({})) as server:
        assert run("expert", server, "--skip-existing") == 0 and len(server.requests) == 1
    published = json.loads((tmp_path / "samples/custom/d/metadata.json").read_text())
    assert published["failed_agent_calls"] == {}


def build_into(path: Path, dialogue: Dialogue, model: ScriptedModel, *, retry: bool) -> tuple:
    before_replace = (lambda path: None) if retry else None
    with closing(Builder(ask=ask_model(model, SCHEME), embedder=HashEmbedder(), scheme=SCHEME)) as builder:
        jobs = [Job(dialogue=dialogue, path=path, settings=SETTINGS)]
        asyncio.run(build_stores(jobs, builder, 1, "test", lambda path: None, before_replace))
    return held(path)


def scripted(answers: dict[tuple[str, Agent], dict]) -> ScriptedModel:
    """Answers by a text of the session and the agent; a missing one stores nothing."""

    def script(agent: Agent, prompt: str) -> str:
        said = prompt.split("\n---\n")[0]
        found = [answer for (text, who), answer in answers.items() if who is agent and text in said]
        nothing = {"operation": "SKIP"} if agent is CORE else {"operations": []}
        return json.dumps(found[0] if found else nothing)

    return ScriptedModel(script)


BROKEN = {"operations": "none"}
ADD = {"operations": [{"action": "ADD", "quote": [1]}]}


def test_an_entry_named_by_its_id_is_found_under_its_new_one(tmp_path):
    answers = {
        ("cat", EPISODIC): BROKEN,
        ("cat", SEMANTIC): {"operations": [{"action": "ADD", "memory": "Ann has a cat."}]},
        ("Miso", SEMANTIC): {
            "operations": [{"action": "UPDATE", "old_memory": "m1", "new_memory": "The cat is Miso."}]
        },
    }
    dialogue = talk(["I have a cat."], ["He is Miso."])
    bank, *_ = build_into(tmp_path / "memory.db", dialogue, scripted(answers), retry=False)
    assert entries(bank) == [("m1", "Ann has a cat.", ()), ("m2", "The cat is Miso.", ("m1",))]
    model = scripted({("cat", EPISODIC): ADD})
    bank, sessions, *_ = build_into(tmp_path / "memory.db", dialogue, model, retry=True)
    assert [agent for agent, _ in model.prompts] == [EPISODIC]
    assert entries(bank) == [
        ("m1", "[2023-05-08] Ann: I have a cat.", ()),
        ("m2", "Ann has a cat.", ()),
        ("m3", "The cat is Miso.", ("m2",)),
    ]
    assert sessions[1].answers[SEMANTIC].operations[0].targets == ("m2",)


def test_an_answer_that_no_longer_fits_is_asked_again(tmp_path):
    replace = {"operation": "REPLACE", "old_text": "tea", "new_text": "coffee"}
    later = {("two", CORE): {"operation": "APPEND", "content": "Ann likes tea."}, ("three", CORE): replace}
    dialogue = talk(["one"], ["two"], ["three"])
    first = scripted({("one", CORE): {"operation": "SHOUT"}} | later)
    assert build_into(tmp_path / "memory.db", dialogue, first, retry=False)[0].core == "Ann likes coffee."
    tea = {"operation": "APPEND", "content": "Ben sells tea."}
    clear = {"operation": "REPLACE", "old_text": "likes tea", "new_text": "likes milk"}
    second = scripted({("one", CORE): tea, ("three", CORE): clear})
    bank, sessions, *_ = build_into(tmp_path / "memory.db", dialogue, second, retry=True)
    assert [agent for agent, _ in second.prompts] == [CORE, CORE]  # about one and three: "tea" stands there twice now
    assert bank.core == "Ben sells tea.\nAnn likes milk."
    assert all(answer.failure is None for stored in sessions for answer in stored.answers.values())


LONG = talk(*([f"turn {n} about topic{n % 5}", f"reply {n}"] for n in range(30)))


def failing_episodic(agent: Agent, prompt: str) -> str:
    return "no" if agent is EPISODIC else store_first_turn(agent, prompt)


def slow_retry(path: Path, told) -> None:
    def script(agent: Agent, prompt: str) -> str:
        told.send(str(agent))
        return store_first_turn(agent, prompt)

    build_into(path, LONG, ScriptedModel(script, 0.02), retry=True)


@pytest.mark.slow
def test_a_retry_killed_anywhere_leaves_the_old_store_and_the_next_one_goes_on(tmp_path):
    path, straight, rng = tmp_path / "memory.db", tmp_path / "straight.db", random.Random(0)
    before = build_into(path, LONG, ScriptedModel(failing_episodic), retry=False)
    build_into(straight, LONG, ScriptedModel(failing_episodic), retry=False)
    for _ in range(3):
        told, to_tell = killed.pipe()
        process = killed.start(slow_retry, path, to_tell)
        to_tell.close()
        assert {told.recv() for _ in range(rng.randint(3, 7))} == {"episodic"}
        time.sleep(rng.random() * 0.05)
        process.kill()
        process.join()
        assert held(path) == before
    last = ScriptedModel(store_first_turn)
    after = build_into(path, LONG, last, retry=True)
    assert {agent for agent, _ in last.prompts} == {EPISODIC} and 1 <= len(last.prompts) <= 30 - 3 * 2
    whole = build_into(straight, LONG, ScriptedModel(store_first_turn), retry=True)
    assert (after[0], after[2]) == (whole[0], whole[2])
    assert len(after[0].entries) == 30 and after[0].core == before[0].core


def test_a_half_retry_of_another_store_is_not_gone_on_with(tmp_path):
    path = tmp_path / "memory.db"
    other = talk(["I have a dog."], ["He is Rex."])
    build_into(tmp_path / "other.db", other, ScriptedModel(failing_episodic), retry=False)
    (tmp_path / "other.db").rename(tmp_path / "memory.db.retry")
    dialogue = talk(["I have a cat."], ["He is Miso."])
    build_into(path, dialogue, ScriptedModel(failing_episodic), retry=False)
    bank, *_ = build_into(path, dialogue, ScriptedModel(store_first_turn), retry=True)
    assert [entry.text for entry in bank.entries] == [
        "[2023-05-08] Ann: I have a cat.",
        "[2023-05-15] Ann: He is Miso.",
    ]
    assert not list(tmp_path.glob("memory.db.retry*"))


def test_a_store_that_takes_over_another_holds_the_same_and_readers_keep_what_they_opened(tmp_path):
    path = tmp_path / "memory.db"
    before = build_into(path, THREE, ScriptedModel(failing_episodic), retry=False)
    with writing(path, SETTINGS) as store:
        build_into(tmp_path / "new.db", THREE, ScriptedModel(store_first_turn), retry=False)
        with reading(path) as reader:
            store.take_over(tmp_path / "new.db")
            assert reader.bank() == before[0]  # a reader keeps what it opened
    assert held(path)[:3] == held(tmp_path / "new.db")[:3]
