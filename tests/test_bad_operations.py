"""One bad operation among good ones: the others are applied and it is recorded, or it is asked for once more."""

import json
from contextlib import nullcontext
from pathlib import Path

import pytest

from membuilder import build, edit, expert, inspect, prepare
from membuilder.bank.html_page import render_page
from membuilder.bank.store import reading
from membuilder.building import dialogues
from membuilder.errors import ConfigError
from membuilder.llm.endpoints import ModelEndpoint
from membuilder.memory import Memory
from membuilder.types import Agent
from tests.fakes import HashEmbedder
from tests.fault_server import FaultServer, Request, answer, answering
from tests.keeper import SCHEME
from tests.scripted import agent_of, store_first_turn, talk
from tests.test_expert import custom
from tests.test_scheme import expert_command, folder  # noqa: F401 (fixtures)

CORE, EPISODIC, SEMANTIC, PROCEDURAL = Agent
THREE = talk(["I adopted a cat.", "Nice."], ["The cat is called Miso."], ["We moved to Oslo.", "Far!", "Yes."])
FIRST = "[2023-05-08] Ann: I adopted a cat."
SECOND = "[2023-05-15] Ann: The cat is called Miso."
GOOD = [{"action": "ADD", "quote": [1]}, {"action": "UPDATE", "old_memory": "e1", "new_memory": "The cat moved too."}]
APPLIED = [("[2023-05-22] Ann: We moved to Oslo.", ()), ("The cat moved too.", ("m3",))]
BAD = {
    "a target that is not there": ({"action": "UPDATE", "old_memory": "e9", "quote": [1]}, "unknown_target"),
    # m2 is the semantic agent's, and m1 was replaced by m3: neither is shown
    "another role's target": ({"action": "UPDATE", "old_memory": "m2", "quote": [1]}, "unknown_target"),
    "a superseded target": ({"action": "UPDATE", "old_memory": "m1", "quote": [1]}, "unknown_target"),
    "a target named twice": (
        {"action": "MERGE", "old_memories": ["e1", "m3"], "new_memory": "x"},
        "ambiguous_target",
    ),
    "the same target twice": ({"action": "MERGE", "old_memories": ["e1", "e1"], "new_memory": "x"}, "schema"),
    "an update without a target": ({"action": "UPDATE", "new_memory": "x"}, "schema"),
    "a merge of one": ({"action": "MERGE", "old_memories": ["e1"], "new_memory": "x"}, "schema"),
    "an empty memory": ({"action": "ADD", "memory": ""}, "schema"),
    "a blank memory": ({"action": "ADD", "memory": " \n"}, "schema"),
    "no memory": ({"action": "ADD"}, "schema"),
    "a wrong action": ({"action": "DELETE", "old_memory": "e1"}, "schema"),
    "a key too many": ({"action": "ADD", "memory": "x", "agent": "core"}, "schema"),
    "a turn that is not there": ({"action": "ADD", "quote": [4]}, "unknown_turn"),
    "half a character": ({"action": "ADD", "memory": "\ud83d"}, "not_json"),
    "a text": ("ADD x", "schema"),
    "a number": (3, "schema"),
    "nothing": (None, "schema"),
    "a list": ([GOOD[0]], "schema"),
}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs a command on one dialogue against a server, with a small embedder."""
    monkeypatch.setattr(dialogues, "embedder_of", lambda options, costs: nullcontext(HashEmbedder()))
    data = custom(tmp_path / "talk.jsonl", THREE)

    def command(name: str, server: FaultServer, *flags: str) -> int:
        base = ["--dataset", "custom", "--dataset-path", str(data), "--provider", "vllm", "--base-url", server.base_url]
        own = {
            "build": ["--model", "m-1", "--out", str(tmp_path / "d.db"), "prompts.include_superseded=false"],
            "expert": ["--expert-model", "m-1", "--output-dir", str(tmp_path / "samples")],
        }
        return {"build": build.main, "expert": expert.main}[name]([*base, *own[name], *flags])

    return command


def written(operations: list) -> str:
    return json.dumps({"operations": operations})


def replying(episodic: str, again: str | None = None, agent: Agent = EPISODIC):
    """Stores the first turn; about the third session one agent answers `episodic`, and `again` when asked again."""

    def reply(request: Request) -> str:
        messages = request.body["messages"]
        prompt = messages[0]["content"]
        if prompt.startswith("Answer with this JSON"):
            return '{"ready": true}'
        asked, said = agent_of(prompt), prompt.split("\n---\n")[0]
        if asked is agent and "Far!" in said:
            return episodic if len(messages) == 1 or again is None else again
        if asked is SEMANTIC and "adopted" in said:
            return written([{"action": "ADD", "memory": "Ann has a cat."}])
        return store_first_turn(asked, prompt)

    return answering(reply)


def third(path: Path, agent: Agent = EPISODIC):
    """The agent's stored answer about the third session, and what it wrote there with what that replaced."""
    with reading(path) as store:
        entries = [(each.text, each.supersedes) for each in store.bank().entries if each.session == 2]
        return store.sessions()[2].answers[agent], entries


def complaints(server: FaultServer) -> list[str]:
    return [each.body["messages"][2]["content"] for each in server.requests if len(each.body["messages"]) == 3]


NUM_ASKED = 1 + 4 * 3
"""The check, and four agents about three sessions."""


@pytest.mark.slow
@pytest.mark.parametrize("case", BAD)
def test_the_good_ones_are_applied_and_the_bad_one_is_recorded(run, tmp_path, capsys, case):
    bad, kind = BAD[case]
    text = written([GOOD[0], bad, GOOD[1]])
    with FaultServer(replying(text)) as server:
        assert run("build", server) == 0 and len(server.requests) == NUM_ASKED
        assert run("build", server, "--retry-failed") == 0 and len(server.requests) == NUM_ASKED + 1  # it stands
    stored, entries = third(tmp_path / "d.db")
    assert entries == APPLIED
    assert stored.text == text and stored.failure is None and len(stored.operations) == 2
    (dropped,) = stored.dropped
    assert dropped.kind == kind and dropped.detail
    assert dropped.operation == written([bad])
    assert f"failed answers: none; 1 operations dropped: 1 {kind}" in capsys.readouterr().out
    inspect.main([str(tmp_path / "d.db"), "--session", "2"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "2 operations, 1 dropped" in shown and f"dropped, {kind}: {dropped.detail[:20]}" in shown
    with reading(tmp_path / "d.db") as store:
        page = render_page(store.settings(), store.sessions(), store.bank())
    assert '"dropped":[{"operation":' in page and f'"kind":"{kind}"' in page


@pytest.mark.slow
@pytest.mark.parametrize("case", BAD)
def test_drop_lets_the_answer_fail_as_a_whole(run, tmp_path, capsys, case):
    bad, kind = BAD[case]
    is_unreadable = kind in ("schema", "not_json")
    with FaultServer(replying(written([GOOD[0], bad, GOOD[1]]))) as server:
        assert run("build", server, "--on-bad-operation", "drop") == 1
        assert len(server.requests) == NUM_ASKED + is_unreadable
    stored, entries = third(tmp_path / "d.db")
    assert (entries, stored.failure.kind, stored.dropped) == ([], kind, ())
    assert f"failed answers: 1 {kind}\n" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("case", BAD)
def test_retry_names_the_problem_and_takes_the_answer_put_right(run, tmp_path, capsys, case):
    bad, kind = BAD[case]
    right = written([GOOD[0], GOOD[1]])
    with FaultServer(replying(written([GOOD[0], bad, GOOD[1]]), right)) as server:
        assert run("build", server, "--on-bad-operation", "retry") == 0
        assert len(server.requests) == NUM_ASKED + 1
        (complaint,) = complaints(server)
    named = written([bad])
    assert named in complaint and f": {kind}, " in complaint and written([GOOD[0]]) not in complaint
    stored, entries = third(tmp_path / "d.db")
    assert (entries, stored.text, stored.failure, stored.dropped) == (APPLIED, right, None, ())
    assert "dropped" not in capsys.readouterr().out


@pytest.mark.parametrize("again", [None, "I cannot.", written([BAD["a number"][0]]), '{"operations": [{"action": "AD'])
def test_retry_asks_once_and_a_second_answer_that_is_no_use_leaves_the_first(run, tmp_path, again):
    text = written([*GOOD, BAD["a target that is not there"][0]])
    with FaultServer(replying(text, again)) as server:
        assert run("build", server, "--on-bad-operation", "retry") == 0
        assert len(server.requests) == NUM_ASKED + 1
    stored, entries = third(tmp_path / "d.db")
    assert (entries, stored.text, [each.kind for each in stored.dropped]) == (APPLIED, text, ["unknown_target"])


def test_a_second_answer_that_was_cut_off_leaves_the_first(run, tmp_path):
    text = written([*GOOD, BAD["a number"][0]])
    usual = replying(text)

    async def cut_off(request: Request, writer) -> None:
        second = len(request.body["messages"]) == 3
        await (answer('{"oper', "length") if second else usual)(request, writer)

    with FaultServer(cut_off) as server:
        assert run("build", server, "--on-bad-operation", "retry") == 0
    assert third(tmp_path / "d.db")[1] == APPLIED


@pytest.mark.parametrize("flag, num_asked", [("apply", 0), ("drop", 0), ("retry", 1)])
def test_an_answer_of_which_nothing_can_be_applied_failed_and_is_asked_for_again(run, tmp_path, flag, num_asked):
    bad = [BAD[case][0] for case in ("a target that is not there", "another role's target")]
    with FaultServer(replying(written(bad))) as server:
        assert run("build", server, "--on-bad-operation", flag) == 1
        assert len(server.requests) == NUM_ASKED + num_asked
    stored, entries = third(tmp_path / "d.db")
    assert (entries, stored.failure.kind, stored.dropped) == ([], "unknown_target", ())
    with FaultServer(replying(written(GOOD))) as server:
        assert run("build", server, "--on-bad-operation", flag, "--retry-failed") == 0 and len(server.requests) == 2
    assert third(tmp_path / "d.db")[1] == APPLIED


def test_a_core_that_is_too_long_is_asked_for_again_and_one_turn_too_many_does_not_lose_the_others(run, tmp_path):
    long = json.dumps({"operation": "APPEND", "content": "x" * 5001})
    short = json.dumps({"operation": "APPEND", "content": "Oslo"})
    with FaultServer(replying(long, short, CORE)) as server:
        assert run("build", server, "--on-bad-operation", "retry") == 0
        assert "core_limit, 5017 > 5000 chars" in complaints(server)[0]
    assert third(tmp_path / "d.db", CORE)[0].text == short
    (tmp_path / "d.db").unlink()
    turns = json.dumps({"#1": "add", "#2": "add", "#3": "add"})
    limit = len(FIRST) + len(SECOND) + len(APPLIED[0][0]) + len("\n[2023-05-22] Ann: Yes.") + 2
    flags = ["prompts.response_format=turns", f"prompts.core_limit_chars={limit}"]

    def decide(request: Request) -> str:
        prompt = request.body["messages"][0]["content"]
        if prompt.startswith("Answer with this JSON"):
            return '{"ready": true}'
        asked, said = agent_of(prompt), prompt.split("\n---\n")[0]
        if asked is EPISODIC and "Far!" in said:
            return '{"#1": "add", "#2": "e9", "#3": "perhaps", "#4": "add"}'
        if asked is CORE:
            return turns if "Far!" in said else '{"#1": "add"}'
        return "{}"

    with FaultServer(answering(decide)) as server:
        assert run("build", server, *flags) == 0
    core, entries = third(tmp_path / "d.db", CORE)
    assert [each.kind for each in core.dropped] == ["core_limit"] and len(core.operations) == 2
    assert entries == APPLIED[:1]
    episodic, _ = third(tmp_path / "d.db")
    assert [each.kind for each in episodic.dropped] == ["unknown_target", "schema", "schema"]


@pytest.mark.parametrize(
    "form", ["<think>Hm.</think>{}", "```json\n{}\n```", "Here: {}<|im_end|>", '{{"name": "store", "arguments": {}}}']
)
def test_operations_are_told_apart_in_whatever_a_real_model_wraps_them(run, tmp_path, form):
    with FaultServer(replying(form.format(written([*GOOD, None])))) as server:
        assert run("build", server) == 0 and len(server.requests) == NUM_ASKED
    stored, entries = third(tmp_path / "d.db")
    assert entries == APPLIED and [each.kind for each in stored.dropped] == ["schema"]


def test_a_build_goes_on_with_another_value_and_what_is_stored_stays(run, tmp_path):
    with FaultServer(replying(written([*GOOD, None]))) as server:
        assert run("build", server, "--on-bad-operation", "drop", "--max-failed", "1") == 0
        assert run("build", server, "--on-bad-operation", "apply", "--max-failed", "1") == 0
        assert third(tmp_path / "d.db")[1] == []
        assert run("build", server, "--on-bad-operation", "apply", "--retry-failed") == 0
    assert third(tmp_path / "d.db")[1] == APPLIED
    with pytest.raises(SystemExit), FaultServer(replying("")) as server:
        run("build", server, "--on-bad-operation", "ignore")


def test_an_expert_publishes_the_operations_that_were_applied_and_tells_of_the_others(run, tmp_path):
    with FaultServer(replying(written([*GOOD, None, 3]))) as server:
        assert run("expert", server) == 0
    sample = tmp_path / "samples/custom/d"
    told = json.loads((sample / "metadata.json").read_text())
    assert (told["failed_agent_calls"], told["dropped_operations"]) == ({}, {"schema": 2})
    call = json.loads((sample / "agent_calls.jsonl").read_text().splitlines()[9])
    assert [each["operation"] for each in call["dropped_operations"]] == [written([None]), written([3])]
    assert call["failure"] is None and call["expert_output"]["operations"] == [GOOD[0], GOOD[1]]
    out = tmp_path / "sft.jsonl"
    assert prepare.main(["sft", "--trajectories-dir", str(tmp_path / "samples"), "--output-file", str(out)]) == 0
    completions = [json.loads(line)["completion"] for line in out.read_text().splitlines()]
    assert any("The cat moved too." in text for text in completions) and not any("null" in text for text in completions)


def test_what_was_dropped_is_exported_and_forgotten_with_its_answer(run, tmp_path):
    store, secret = (
        tmp_path / "d.db",
        {"action": "UPDATE", "old_memory": "e9", "new_memory": "Ann moved to Oslo, Kirkeveien"},
    )
    with FaultServer(replying(written([*GOOD, secret]))) as server:
        assert run("build", server) == 0
    before, _ = third(store)
    assert edit.main([str(store), "export", str(tmp_path / "d.jsonl")]) == 0
    assert edit.main([str(tmp_path / "again.db"), "import", str(tmp_path / "d.jsonl")]) == 0
    assert third(tmp_path / "again.db")[0] == before and "Kirkeveien" in before.dropped[0].operation
    with reading(store) as opened:
        (gone,) = (each.id for each in opened.bank().entries if each.text == APPLIED[0][0])
    assert edit.main([str(store), "delete-entry", gone, "--with-turns"]) == 0
    after, _ = third(store)
    assert [(each.operation, each.kind) for each in after.dropped] == [("(removed)", "unknown_target")]
    assert not [path for path in tmp_path.glob("d.db*") if b"Kirkeveien" in path.read_bytes()]


def test_a_program_sets_it_too(tmp_path):
    with pytest.raises(ValueError, match="'ignore' is not a valid OnBadOperation"):
        Memory(tmp_path / "m.db", on_bad_operation="ignore")
    model = {"name": "m-1", "provider": "vllm"}
    for value, num_entries in (("drop", 0), ("apply", 2)):
        with FaultServer(replying(written([*GOOD[:1], {"action": "ADD", "memory": "b"}, None]))) as server:
            model["base_url"] = server.base_url
            with Memory(tmp_path / f"{value}.db", ModelEndpoint(**model), on_bad_operation=value) as memory:
                assert len(memory.add([{"role": "user", "content": "Far!"}])) == num_entries


# A scheme of one's own


@pytest.mark.parametrize("can_split", [True, False])
def test_a_scheme_of_ones_own_may_say_how_an_answer_is_split(expert_command, tmp_path, capsys, can_split):  # noqa: F811
    own = tmp_path / "own"
    own.mkdir()
    split = '    def split(self, role, text):\n        return text.split(",")\n\n'
    (own / "scheme.py").write_text(SCHEME.replace("    def write(", (split if can_split else "") + "    def write("))

    def reply(request: Request) -> str:
        return "#1,#9" if "keep:" in request.body["messages"][0]["content"] else '{"ready": true}'

    with FaultServer(answering(reply)) as server:
        flags = ["--expert-model", "m-1", "--provider", "vllm", "--base-url", server.base_url]
        assert expert_command(*flags, scheme=str(own)) == (0 if can_split else 1)
    with reading(tmp_path / "out/custom/d/memory.db") as store:
        answers = [each.answers["keeper"] for each in store.sessions()]
        assert len(store.bank().entries) == (3 if can_split else 0)
    assert [[each.operation for each in answer.dropped] for answer in answers] == [["#9"] if can_split else []] * 3
    assert all((answer.failure is None) is can_split for answer in answers)


def test_a_setting_of_no_such_value_is_refused_by_name(tmp_path):
    with pytest.raises(ConfigError, match="on_bad_operation"):
        build.parse(["--model", "rules", "--out", str(tmp_path / "d.db"), "on_bad_operation=ignore"])
