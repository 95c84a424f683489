"""The published story as one chain, each command working on what the one before it left, up to the last number shown.

Real: generated dialogues, training, RL with vLLM, the served model. A scripted server on loopback stands in for the
hosted models: expert, question writer, answerer and judge.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from membuilder.generate.dialogue import generate
from membuilder.types import Agent
from tests.evaluating import JUDGED, caller, reply
from tests.fault_server import FaultServer, Request, answer, answering
from tests.recomputed import check_numbers
from tests.scripted import agent_of
from tests.test_expert import custom
from tests.vllm_servers import serving
from tests.walkthrough import Walk, hosted_model

KEY = "sk-story"
WRITER, ANSWERER = "gpt-4.1", "gpt-4.1-mini"
SESSIONS = {"num_sessions": 3, "turns_per_session": 8}
SMALL = "model.dtype=float32 model.gradient_checkpointing=false"
"""What shrinks the configurations of the 4B model to a laptop, as in the walkthrough."""
EXPERT = {
    Agent.CORE: '{"operation": "APPEND", "content": "They talk."}',
    Agent.EPISODIC: '{"operations": [{"action": "ADD", "quote": [3]}, {"action": "ADD", "quote": [4]}]}',
    Agent.SEMANTIC: '{"operations": [{"action": "ADD", "quote": [5]}]}',
    Agent.PROCEDURAL: '{"operations": []}',
}
"""What the expert answers, whatever was said."""
WORD = re.compile(r"[a-z]{4,}")


@dataclass(kw_only=True)
class Hosted:
    """The hosted models."""

    silent_about: str
    """A turn; WRITER has no questions about its session."""
    cut_short: str
    """The answer to this question is cut short, while `weak`."""
    unclear: str
    """No verdict on an answer to this one can be read, while `weak`."""
    weak: bool = True
    num_asked: int = 0

    async def __call__(self, request: Request, writer) -> None:
        first, model = request.body["messages"][0]["content"], request.body["model"]
        reason = "stop"
        if "You keep the" in first:
            reply = EXPERT[agent_of(first)]
        elif first.startswith("You grade an answer"):
            reply = "Perhaps." if self.weak and self.unclear in first else verdict(first)
        elif first.startswith("You answer questions") and model == ANSWERER:
            reply = answered(first)
            reason = "length" if self.weak and self.cut_short in first else "stop"
        elif first.startswith("You write questions") and model == WRITER and self.silent_about in first:
            reply = '{"questions": []}'
        else:
            reply = hosted_model(request)
        self.num_asked += 1
        await answer(reply, reason)(request, writer)


def answered(prompt: str) -> str:
    """The memory that shares most long words with the question, without its date; none where one word is all."""
    asked = set(WORD.findall(re.search(r"^Question: (.*)$", prompt, re.MULTILINE)[1].lower()))
    memories = re.findall(r"^- (.*)$", prompt.split("\nRules for the answer:")[0], re.MULTILINE)
    ranked = ((len(asked & set(WORD.findall(each.lower()))), each) for each in memories)
    common, best = max(ranked, default=(0, ""))
    return best.partition("] ")[2] if common > 1 else "I do not know."


def verdict(prompt: str) -> str:
    """Strictly all words of the gold answer, leniently one of them; of what nobody told, that it declines."""
    told = re.search(r"^Answer to grade: (.*)$", prompt, re.MULTILINE)[1].lower()
    if "does not hold what the question asks for" in prompt:
        return json.dumps({"correct": "do not know" in told})
    gold = re.search(r"^Reference answer: (.*)$", prompt, re.MULTILINE)[1].lower().split()
    found = [word in told for word in gold]
    return json.dumps({"correct": all(found) if "Grade strictly" in prompt else any(found)})


@pytest.mark.slow
def test_the_story_from_the_expert_to_the_last_number(tmp_path, monkeypatch):
    pytest.importorskip("vllm", reason="vLLM is not installed (launch/setup.sh)")
    monkeypatch.setenv("VLLM_API_KEY", KEY)
    train, held_out = (generate(2, 7, split, **SESSIONS) for split in ("train", "heldout"))
    custom(tmp_path / "train.jsonl", *train)
    custom(tmp_path / "held_out.jsonl", *held_out)
    cut_short, unclear, *_ = (question.text for question in held_out[0].questions)
    hosted = Hosted(silent_about=train[1].sessions[0].turns[0].text, cut_short=cut_short, unclear=unclear)
    with FaultServer(hosted) as server:
        walk = Walk(tmp_path, server.base_url)
        try:
            teach(walk)
            train_and_export(walk)
            with serving(tmp_path / "my-memory", "--max-model-len", "2048", key=KEY) as vllm:
                built = build(walk, vllm.base_url)
                before = hosted.num_asked
                evaluate(walk, vllm.base_url, status=1)
            check_answers(tmp_path, missing=(cut_short, unclear))
            hosted.weak = False
            said = evaluate(walk, vllm.base_url)  # whose server is gone: no memory is missing
            check_answers(tmp_path, missing=())
        finally:
            walk.close()
    banks = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "memories").glob("gen-*.json")}
    assert {name: (len(bank["entries"]), len(bank["core"])) for name, bank in banks.items()} == built
    usage = json.loads((tmp_path / "answers/results.json").read_text())["run"]["usage"]
    calls = {role: used["calls"] for role, used in usage.items()}
    assert calls["builder"] == 1  # the small check: the memories were there
    assert calls["answerer"] + calls["judge"] == hosted.num_asked - before
    assert f"usage: {sum(calls.values())} calls" in said and said.endswith("results in answers\n")


def teach(walk: Walk) -> None:
    """The expert's memories, questions about them, and training files."""
    data = "--dataset custom --dataset-path train.jsonl"
    said = walk.shell(f"python -m membuilder.expert {data} --expert-model {WRITER} --output-dir expert")
    assert said.count("3 sessions, 9 entries, core 32 characters; failed answers: none") == 2
    # of two times three sessions with two questions each the writer leaves one session out
    qa = "python -m membuilder.qa --qa-per-session 2 --trajectories-dir"
    said = walk.shell(f"{qa} expert --model {WRITER} 2>&1", status=1)
    problem = next(line for line in said.splitlines() if line.startswith("membuilder.qa: "))
    assert "16.7% of the questions asked for are missing, more than --max-missing 0.1" in problem
    assert "The 2 files rl_training_data.jsonl are whole and usable, 1 with fewer questions" in problem
    prepare = "python -m membuilder.prepare {0} --trajectories-dir expert --output-file {0}.jsonl"
    assert "rl.jsonl: 5 records; left out: 1 no_questions" in walk.shell(prepare.format("rl"))
    sample, *files = re.search(r"such as (\S+), remove its (\S+) and (\S+) and", problem).groups()
    said = walk.shell(f"(cd {sample} && rm {' '.join(files)}) && {qa} {sample} --model gpt-5")
    assert "kept 6 (3 single session, 1 temporal, 2 multi session); missing none" in said
    assert "rl.jsonl: 6 records; left out: none" in walk.shell(prepare.format("rl"))
    assert "sft.jsonl: 24 records; left out: none" in walk.shell(prepare.format("sft"))


def train_and_export(walk: Walk) -> None:
    """A tiny model that knows the words of the prompts stands in for the one of 4B."""
    sft = f"python -m trainer.sft --config configs/sft_qwen3_4b.yaml {SMALL}"
    walk.shell(f"{sft} model.path=null data.path=train.jsonl max_steps=1 out=base")
    prepared = "data.path=null data.prepared"
    walk.shell(
        f"{sft} model.path=base/model {prepared}=sft.jsonl max_steps=20 sessions_per_step=2 optim.lr=2e-3"
        " max_length=4096 out=sft"
    )
    walk.shell(
        f"python -m trainer.rl --config configs/rl_qwen3_4b.yaml {SMALL} model.path=sft/model {prepared}=rl.jsonl"
        " states=expert num_steps=2 save_every=2 sessions_per_step=4 num_rollouts=2 sampling.top_p=1.0"
        " sampling.max_tokens=120 max_model_len=2048 out=rl"
    )
    assert walk.shell("python -m trainer.export rl/checkpoints/step_2 my-memory 2>&1") == "wrote my-memory\n"


def build(walk: Walk, base_url: str) -> dict[str, tuple[int, int]]:
    """The held-out dialogues' memories by the served model; returns what it says that they hold."""
    said = walk.shell(
        "python -m membuilder.build --dataset custom --dataset-path held_out.jsonl --model my-memory --provider vllm"
        f" --base-url {base_url} --out memories --max-failed 1 model.max_tokens=120"
    )
    told = re.findall(r"^memories/(\S+)\.db: 3 sessions, (\d+) entries, core (\d+) characters", said, re.MULTILINE)
    assert len(told) == 2 and all(int(entries) for _, entries, _ in told), said
    return {name: (int(entries), int(core)) for name, entries, core in told}


def evaluate(walk: Walk, base_url: str, status: int = 0) -> str:
    return walk.shell(
        "python -m membuilder.eval --dataset custom --dataset-path held_out.jsonl --output-dir answers"
        " --system agents --db-path memories --build-model my-memory --build-provider vllm"
        f" --build-base-url {base_url} --max-tokens 120 --system rag-turn-bm25"
        f" --model {ANSWERER} --judge-model {WRITER}",
        status,
    )


def check_answers(folder: Path, missing: tuple[str, ...]) -> None:
    """Every number, and whose answers and verdicts are missing."""
    lines = check_numbers(folder / "answers")
    assert len(lines) == 2 * 14
    asked = [line["question"] for line in lines if line["system"] == "agents"]
    assert {question for question in missing} <= set(asked)
    without = {
        line["question"]
        for line in lines
        if line["answer"] is None or any(verdict["correct"] is None for verdict in line["verdicts"].values())
    }
    assert without == set(missing)


def test_a_wrong_number_is_found(tmp_path, monkeypatch):
    call = caller(tmp_path, monkeypatch)
    with FaultServer(answering(reply)) as server:
        assert call(server, "--system", "agents", "--system", "rag-turn-bm25", "--model", "m", *JUDGED) == 0
    assert len(check_numbers(tmp_path / "out")) == 4
    for file, shown, wrong in (("table.md", "0.500 [", "0.501 ["), ("results.json", '"f1": 0.5', '"f1": 0.500001')):
        path = tmp_path / "out" / file
        text = path.read_text(encoding="utf-8")
        assert shown in text
        path.write_text(text.replace(shown, wrong, 1), encoding="utf-8")
        with pytest.raises(AssertionError, match="is not"):
            check_numbers(tmp_path / "out")
        path.write_text(text, encoding="utf-8")
