"""Dialogues in Chinese, Japanese, Thai, Korean, Arabic, Hindi and emoji, from the answer to the trained text."""

import json

import pytest

from membuilder import build, expert, inspect, prepare
from membuilder import eval as eval_command
from membuilder.bank.store import reading
from membuilder.memory import Memory
from tests.fault_server import FaultServer, Request, answering, stub_reply
from tests.scripted import agent_of
from tests.test_expert import served
from tests.test_ranking import SCRIPTS, dialogue_of
from trainer.model.tiny_model import train_tokenizer


def writing_in_ones_own_words(request: Request) -> str:
    """Play every part: the episodic agent repeats the first turn as its own words, in the turn's own script."""
    prompt = request.body["messages"][-1]["content"]
    if "Answer with this JSON" in prompt or '"dialogue"' in prompt:
        return served(request)
    try:
        agent = agent_of(prompt)
    except (KeyError, ValueError, StopIteration):
        return stub_reply(request)
    if agent != "episodic":
        return '{"operation": "SKIP"}' if agent == "core" else '{"operations": []}'
    said = prompt.split("\n---\n")[0]
    (told,) = (text for told, other, _ in SCRIPTS.values() for text in (told, other) if text in said)
    operation = {"action": "ADD", "memory": f"« {told} »"}
    return json.dumps({"operations": [operation]}, ensure_ascii=False)


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setenv("MEMBUILDER_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    lines = [dialogue_of((told, other), asked, name) for name, (told, other, asked) in SCRIPTS.items()]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (tmp_path / "mine.jsonl").write_text(text, encoding="utf-8")
    return ["--dataset", "custom", "--dataset-path", str(tmp_path / "mine.jsonl")]


@pytest.fixture
def server():
    with FaultServer(answering(writing_in_ones_own_words)) as running:
        yield running


@pytest.mark.slow
def test_what_a_model_wrote_is_stored_found_shown_and_answered_from(data, server, tmp_path, capsys):
    chat = ["--model", "m-1", "--provider", "vllm", "--base-url", server.base_url]
    assert build.main([*data, *chat, "--out", str(tmp_path / "stores")]) == 0
    for name, (told, _, asked) in SCRIPTS.items():
        path = tmp_path / "stores" / f"{name}.db"
        with reading(path) as store:
            assert f"« {told} »" in [entry.text.partition("] ")[2] or entry.text for entry in store.bank().entries]
        capsys.readouterr()
        inspect.main([str(path)])
        assert told in capsys.readouterr().out
        model = build.parse([*data, *chat, "--out", str(path)])[0].model
        with Memory(path, model, dataset="custom") as memory:
            assert told in memory.search(asked).entries[0].text


@pytest.mark.slow
def test_answers_are_asked_and_judged_from_them(data, server, tmp_path):
    chat = ["--model", "m-1", "--provider", "vllm", "--base-url", server.base_url]
    judge = ["--judge-model", "m-1", "--judge-provider", "vllm"]
    out = tmp_path / "out"
    assert eval_command.main([*data, *chat, *judge, "--system", "agents", "--output-dir", str(out)]) == 0
    records = [json.loads(line) for line in (out / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
    for record, (told, _, _) in zip(records, SCRIPTS.values(), strict=True):
        assert told in record["retrieved"][0]["text"] and record["answer"] == "a stub's answer"


@pytest.mark.slow
def test_an_expert_teaches_in_every_script(data, server, tmp_path):
    flags = ["--expert-model", "m-1", "--provider", "vllm", "--base-url", server.base_url]
    assert expert.main([*data, *flags, "--output-dir", str(tmp_path / "expert")]) == 0
    records = tmp_path / "sft.jsonl"
    found = ["--trajectories-dir", str(tmp_path / "expert" / "custom"), "--output-file", str(records)]
    assert prepare.main(["sft", *found]) in (0, None)
    pairs = [json.loads(line) for line in records.read_text(encoding="utf-8").splitlines()]
    texts = [f"{pair['prompt']}\n{pair['completion']}" for pair in pairs]
    assert all(any(f"« {told} »" in text for text in texts) for told, _, _ in SCRIPTS.values())
    tokenizer = train_tokenizer(texts[:40], [], 600)  # far too small for these scripts: bytes stand in
    assert all(tokenizer.decode(tokenizer(text)["input_ids"]) == text for text in texts)
