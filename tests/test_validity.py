"""r4: the rules on cases made by hand, and a model that answers, fails and hangs."""

import time

import pytest

from membuilder.errors import ChatError, ConfigError
from membuilder.llm.answer_and_judge import VALIDITY_PROMPTS, prompt_hashes
from membuilder.llm.endpoints import Provider
from reward.llm_judge import judge_prompts
from reward.memalpha_config import MemAlphaRewardConfig, ValidityBy
from reward.score import RewardConfig, RewardEndpoint
from reward.validity import ValidityModel, by_rules, make_validity
from tests.fault_server import FaultServer, answer, answering, echo, hang, status
from tests.patience import LINEAR

CASES = [
    ("semantic", "Ann lives in Oslo.", True),
    ("semantic", "Sentence: book a flight\nLabel: 3", True),
    ("semantic", "Oslo: capital of Norway, founded in 1040", True),
    ("semantic", "[2024-01-02] Ann: I live in Oslo.", True),  # a line stored word for word: the date is the scheme's
    ("semantic", "[2024-01-02] Ann moved to Oslo.", False),
    ("semantic", "On Monday Ann moved.", True),
    ("semantic", "2024-05-01: Ann moved to Oslo.", False),
    ("semantic", "", False),
    ("semantic", " \n", False),
    ("semantic", "...", False),
    ("semantic", "N/A", False),
    ("semantic", "nothing to store", False),
    ("semantic", "No new information", False),
    ("semantic", "placeholder", False),
    ("semantic", "[2024-01-02] Ann: ...", False),
    ("semantic", "12345", False),
    ("semantic", "This memory holds facts about Ann.", False),
    ("semantic", "The semantic memory was updated.", False),
    ("semantic", "I have stored the facts.", False),
    ("semantic", "See the previous chunk.", False),
    ("semantic", "[2024-01-02] Ann: see the previous chunk", True),  # somebody else's words
    ("semantic", "The memory of her mother matters to Ann.", True),
    ("semantic", "\u5b89\u59ae\u4f4f\u5728\u5965\u65af\u9646", True),
    ("episodic", "[2024-01-02] Ann moved to Oslo.", True),
    ("episodic", "[2024-01-02] Ann: I moved to Oslo.", True),
    ("episodic", "Ann moved to Oslo on 5 May.", True),
    ("episodic", "In May 2023 Ann moved.", True),
    ("episodic", "Ann moved in 1999.", True),
    ("episodic", "2024\u5e745\u6708 \u5b89\u59ae\u642c\u5bb6", True),
    ("episodic", "Ann moved to Oslo.", False),
    ("episodic", "Yesterday Ann moved.", False),
    ("episodic", "[2024-01-02] User: Label: 3", False),
    ("core", "Ann, nurse, 30, asks for short answers.", True),
    ("core", "Label 3 is a request for music.", True),
    ("core", "The core memory is empty.", False),
    ("core", "none", False),
    ("procedural", "Tea: boil water, wait, pour.", True),
    ("procedural", "-", False),
]


@pytest.mark.parametrize("part, text, is_valid", CASES)
def test_rules(part, text, is_valid):
    verdict = by_rules((part, text))
    assert verdict.correct == float(is_valid) and bool(verdict.reason) != is_valid


def test_rules_are_quick_on_any_text():
    started = time.monotonic()
    for text in ("a " * 100_000, "1-" * 100_000, "[2024-01-02] " * 20_000, "nothing " * 50_000, "no " * 50_000):
        for part in ("core", "semantic", "episodic"):
            by_rules((part, text))
    assert time.monotonic() - started < LINEAR


def config_of(server: FaultServer, **changed) -> RewardConfig:
    few = {"max_attempts": 1, "max_wait_seconds": 0.01, "timeout_seconds": 5.0}
    validator = RewardEndpoint(name="m", provider=Provider.VLLM, base_url=server.base_url, **few)
    settings = MemAlphaRewardConfig(validity=ValidityBy.LLM)
    return RewardConfig(validator=validator, memalpha=settings, **changed)


def judged(request) -> str:
    return '{"correct": true}' if "Oslo" in echo(request) else '{"correct": false, "reason": "empty"}'


STORED = [("semantic", "Ann lives in Oslo"), ("episodic", "nothing"), ("semantic", "Ann lives in Oslo")]


def test_a_model_judges_each_text_once_by_the_prompt_of_its_part():
    with FaultServer(answering(judged)) as server:
        validity = make_validity(config_of(server))
        assert [each.correct for each in validity(STORED)] == [1, 0, 1]
        assert validity.metrics()["llm/validator/calls"] == 2 and validity.metrics() == {}
        prompts = sorted(echo(request) for request in server.requests)
        assert len(prompts) == 2 and any("part holds what happened" in each for each in prompts)
        assert all(request.body["temperature"] == 0 for request in server.requests)


def test_what_was_judged_once_is_not_paid_for_twice(tmp_path):
    with FaultServer(answering(judged)) as server:
        config = config_of(server, cache=str(tmp_path / "cache"))
        for _ in range(2):
            assert [each.correct for each in make_validity(config)(STORED)] == [1, 0, 1]
        assert len(server.requests) == 2


def test_a_verdict_that_cannot_be_had_is_missing_by_its_cause():
    with FaultServer(status(503)) as server:
        assert {each.cause for each in make_validity(config_of(server))(STORED)} == {"validator_exhausted"}
    with FaultServer(answer("I cannot tell.")) as server:
        (verdict,) = make_validity(config_of(server))(STORED[:1])
        assert (verdict.correct, verdict.cause) == (None, "validator_undecided") and len(server.requests) == 3
    with FaultServer(hang) as server:
        (verdict,) = make_validity(config_of(server, step_deadline_seconds=0.2))(STORED[:1])
        assert (verdict.correct, verdict.cause) == (None, "validator_deadline")


def test_a_refused_key_ends_the_run_and_is_told_before_it():
    with FaultServer(status(401)) as server:
        with pytest.raises(ChatError, match="reward.validator"):
            make_validity(config_of(server))(STORED[:1])
        with pytest.raises(ChatError):
            make_validity(config_of(server)).check()


def test_a_key_that_is_not_set_is_told_at_once(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    config = RewardConfig(validator=RewardEndpoint(name="m"), memalpha=MemAlphaRewardConfig(validity=ValidityBy.LLM))
    with pytest.raises(ConfigError, match="OPENAI_API_KEY"):
        ValidityModel(config)


def test_the_prompts_hashes_are_told_where_a_model_judges():
    assert judge_prompts(RewardConfig()) == {}
    with FaultServer() as server:
        told = judge_prompts(config_of(server))
    assert {name: prompt["sha256"] for name, prompt in told.items()} == prompt_hashes(VALIDITY_PROMPTS)
