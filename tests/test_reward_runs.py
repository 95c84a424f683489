"""Whole RL runs in miniature whose rewards come from models: what they learn, ask, log and leave behind."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from membuilder.errors import RewardError
from membuilder.llm.answer_and_judge import prompt_hashes
from membuilder.llm.endpoints import Provider
from reward.score import LLM, POLICY, RewardConfig, RewardEndpoint
from rollout.tokens import encode_completion
from rollout.types import Completion, SamplingConfig
from tests.evidence_stub import NO, YES, EvidenceStub
from tests.fakes import streamed
from tests.fault_server import FaultServer, Request, answering, echo
from tests.small_rl import Run, builds_of, config_of, weights
from trainer.configs import LossConfig
from trainer.data.corpus import ExpertBuild
from trainer.experience.engine_weights import EngineWeights


def stub_of(builds: list[ExpertBuild]) -> EvidenceStub:
    return EvidenceStub(build.dialogue for build in builds)


def reward_of(server: FaultServer, **changed) -> RewardConfig:
    endpoint = RewardEndpoint(name="stub", provider=Provider.VLLM, base_url=server.base_url, max_attempts=1)
    return RewardConfig(**{"judge": LLM, "answerer": endpoint, "grader": endpoint, "earlier_questions": True} | changed)


def kept(rows: list[dict]) -> list[dict]:
    return [{name: value for name, value in row.items() if not name.startswith(("time/", "llm/"))} for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize("changed", [{}, {"dense": False, "sessions_per_step": 20}], ids=["dense", "sparse"])
def test_models_that_agree_with_evidence_teach_the_same_bit_for_bit(changed, tmp_path):
    changed = changed | {"num_steps": 3, "eval_every": 2}
    plain = Run(config_of(tmp_path / "evidence", **changed))
    expected = plain.train()
    stub = stub_of(plain.builds)
    with FaultServer(answering(stub)) as server:
        run = Run(config_of(tmp_path / "llm", reward=reward_of(server), **changed), plain.builds)
        start = weights(run.policy).clone()
        rows = run.train()
    assert kept(rows) == kept(expected) and len(rows) == 3
    assert 0 < rows[0]["qa/accuracy"] < 1
    assert torch.equal(weights(run.policy), weights(plain.policy))
    if run.config.dense:  # whole dialogues of the two at hand are all worth the same
        assert rows[0]["grad_norm"] > 0 and not torch.equal(weights(run.policy), start)
    assert all(row["llm/answerer/calls"] == row["llm/grader/calls"] > 0 for row in rows)
    assert stub.answered == stub.graded >= sum(row["llm/answerer/calls"] for row in rows)


@pytest.mark.slow
def test_a_run_says_what_it_asked_with_and_never_writes_its_key(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-17")
    builds = builds_of(config_of(tmp_path))
    with FaultServer(answering(stub_of(builds))) as server:
        endpoint = RewardEndpoint(name="stub", base_url=server.base_url)
        reward = reward_of(server, answerer=endpoint, grader=endpoint, cache=str(tmp_path / "cache"))
        Run(config_of(tmp_path / "run", reward=reward, num_steps=1), builds).train()
        assert {each.headers["authorization"] for each in server.requests} == {"Bearer sk-secret-17"}
    record = json.loads((tmp_path / "run" / "provenance.json").read_text())["reward_prompts"]
    assert {name: each["sha256"] for name, each in record.items()} == {
        name: prompt_hashes()[name] for name in ("answer", "judge_lenient", "judge_unanswerable")
    }
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 8 and [path for path in files if b"sk-secret" in path.read_bytes()] == []


def failing_for(share: int, stub):
    """The grader fails for one request of `share`, by its text."""

    def reply(request: Request) -> str:
        return "no verdict" if "response_format" in request.body and hash_of(request) % share == 0 else stub(request)

    return answering(reply)


def hash_of(request: Request) -> int:
    first = request.body["messages"][0]["content"].partition("\nReply with")[0]
    return sum(first.encode())


@pytest.mark.slow
def test_what_could_not_be_judged_is_counted_by_cause_and_too_much_of_it_stops_the_run(tmp_path):
    builds = builds_of(config_of(tmp_path))
    with FaultServer(failing_for(3, stub_of(builds))) as server:
        (row,) = Run(config_of(tmp_path / "few", reward=reward_of(server), num_steps=1), builds).train()
    assert row["qa/missing/grader_undecided"] >= 1
    with FaultServer(failing_for(1, stub_of(builds))) as server:
        run = Run(config_of(tmp_path / "all", reward=reward_of(server), num_steps=1), builds)
        with pytest.raises(RewardError, match=r"rewards of this step could not be judged .* grader_undecided \d+\."):
            run.train()


# the frozen reference answers


class Recorder:
    """An engine that notes what it was loaded with and asked."""

    max_model_len = 600

    def __init__(self, engine) -> None:
        self._engine, self.notes = engine, []

    def load_weights(self, named_tensors, version):
        tensors = dict(named_tensors)
        self.notes.append(("load", version, float(sum(tensor.double().sum() for tensor in tensors.values()))))
        self._engine.load_weights(tensors.items(), version)

    def stream(self, prompts, n, sampling, seed):
        self.notes.append(("stream", len(prompts), n, sampling))
        return self._engine.stream(prompts, n, sampling, seed)

    def __getattr__(self, name):
        return getattr(self._engine, name)


ANSWER = 40


class Talking(Recorder):
    """It answers questions in words, which the tiny model never learnt; the rest is the engine's."""

    def stream(self, prompts, n, sampling, seed):
        if sampling.max_tokens != ANSWER:
            return super().stream(prompts, n, sampling, seed)
        ids = tuple(encode_completion(self.tokenizer, "Oslo"))
        said = Completion(token_ids=ids, rollout_logprobs=(0.0,) * len(ids), finished=True, weight_version=0)
        return streamed([[said]] * len(prompts))


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Run:
    return Run(config_of(tmp_path_factory.mktemp("small")))


@pytest.mark.slow
def test_the_reference_answers_greedily_in_the_engine_and_the_policy_is_loaded_again(small):
    engine, policy = Recorder(small.engine), small.policy.model
    moved = {name: tensor + 0.01 for name, tensor in policy.state_dict().items()}
    engine_weights = EngineWeights(engine, lambda: moved.items())
    engine_weights.load_policy(7)
    write = engine_weights.answers_of(small.reference, small.tokenizer, max_tokens=5)
    found = dict(write(["Ann: What?", "word " * 2000, "Ben: Who?"]))
    assert found[1].cause == "answerer_unfit_prompt" and found[1].correct is None and set(found) == {0, 1, 2}
    load, again, streamed, back = engine.notes
    greedy = SamplingConfig(temperature=0.0, top_p=1.0, max_tokens=5)
    assert streamed == ("stream", 2, 1, greedy) and load == back and load[1] == 7
    assert again[1] == 0 and abs(again[2] - load[2]) > 1
    assert dict(write([])) == {} and len(engine.notes) == 7  # all processes gather the policy together


@pytest.mark.slow
@pytest.mark.parametrize(("dense", "kl_coef"), [(True, 0.0), (True, 0.02), (False, 0.0)])
def test_a_run_whose_reference_answers_trains_also_without_a_kl_term(kl_coef, dense, tmp_path):
    def grade(request: Request) -> str:
        return YES if len(echo(request)) % 2 else NO

    with FaultServer(answering(grade)) as server:
        reward = reward_of(server, answerer=POLICY, policy_answer_tokens=ANSWER)
        settings = {"dense": dense, "sessions_per_step": 3 if dense else 20, "max_model_len": 3000, "eval_every": 2}
        config = config_of(tmp_path, reward=reward, loss=LossConfig(kl_coef=kl_coef), **settings)
        run = Run(config)
        notes = Talking(run.engine)
        notes.max_model_len, notes.tokenizer = 3000, run.tokenizer
        run.collector = replace(run.collector, engine=notes)
        rows = run.train()
    loads = [note[1:] for note in notes.notes if note[0] == "load"]
    # a step: the reference, the policy back, the policy after its update; the evaluation: the first two again
    assert [version for version, _ in loads] == [0, 0, 1, 0, 1, 2, 0, 2]
    assert loads[0] == loads[1] == loads[3] == loads[6] and loads[2] == loads[4] and loads[5] == loads[7]
    assert len(rows) == 2 and rows[0]["llm/grader/calls"] > 0 and "llm/answerer/calls" not in rows[0]
    assert 0 < rows[0]["qa/accuracy"] < 1 and not any(name.startswith("qa/missing") for name in rows[0])
    assert {re.search("Answer to grade: (.*)", echo(request))[1] for request in server.requests} == {"Oslo"}
    assert "kl" in " ".join(rows[0]) if kl_coef else "kl" not in " ".join(rows[0])
    assert Path(config.out, "model").is_dir()
