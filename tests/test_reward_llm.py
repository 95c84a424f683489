"""The judge that asks models, against a real HTTP server on loopback that answers, fails and hangs."""

import json
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime

import pytest
import torch

from membuilder.bank.retrieve import Retrieval
from membuilder.config import dump, load
from membuilder.errors import ChatError, ConfigError
from membuilder.llm.answer_and_judge import Strictness, prompt_hashes
from membuilder.llm.endpoints import Provider
from membuilder.schemes.four_agents.prompts import PromptConfig
from membuilder.schemes.four_agents.scheme import FourAgents
from membuilder.types import Agent, Bank, Entry, Question
from reward.asking import answer_banks, asking
from reward.judges import Verdict, evidence
from reward.llm_judge import LLMJudge, judge_prompts, make_judge
from reward.qa import QAResult
from reward.score import LLM, RewardConfig, RewardEndpoint
from tests.fakes import HashEmbedder
from tests.fault_server import FaultServer, Request, answer, answering, echo, hang, status
from tests.patience import SOON
from trainer.experience.collector import Collector
from trainer.rl_config import RLConfig
from trainer.run_setup import setup_rl

SCHEME = FourAgents(PromptConfig())
DAY = datetime(2023, 5, 8)
YES, NO = '{"correct": true, "reason": "so it is"}', '{"correct": false, "reason": "it is not"}'


def bank_of(*texts: str, core: str = "") -> Bank:
    entries = [
        Entry(id=f"m{n}", agent=Agent.EPISODIC, text=text, session=0, timestamp=DAY, source_turns=())
        for n, text in enumerate(texts)
    ]
    return Bank(core=core, entries=tuple(entries))


def question(text: str = "What cat?", gold: str | None = "Miso", **changed) -> Question:
    settings = {"id": "q", "category": "single", "evidence": ("D1:1",), "asked_at": DAY} | changed
    return Question(text=text, answer=gold, **settings)


def is_grading(request: Request) -> bool:
    return "response_format" in request.body


def by_role(answered=lambda prompt: "Miso", graded=lambda prompt: YES, seconds: float = 0.0):
    """A server that answers questions and grades answers, each from the request's text alone."""
    return answering(lambda request: (graded if is_grading(request) else answered)(echo(request)), seconds)


def config_of(server: FaultServer, grader: FaultServer | None = None, **changed) -> RewardConfig:
    def endpoint(url: str) -> RewardEndpoint:
        few = {"max_attempts": 2, "max_wait_seconds": 0.01, "timeout_seconds": 5.0}
        return RewardEndpoint(name="m", provider=Provider.VLLM, base_url=url, **few | settings)

    settings = changed.pop("endpoint", {})
    return RewardConfig(
        judge=LLM, answerer=endpoint(server.base_url), grader=endpoint((grader or server).base_url), **changed
    )


def judged(config: RewardConfig, *tasks: tuple[Bank, list[Question]], judge: LLMJudge | None = None) -> list[QAResult]:
    return answer_banks(
        list(tasks), SCHEME, HashEmbedder(), judge or make_judge(config), config.top_k, config.limits, None
    )


def correct(results: list[QAResult]) -> list[list[float | None]]:
    return [[verdict.correct for verdict in result.verdicts] for result in results]


# what is asked


def test_one_model_answers_from_what_was_found_and_another_grades_the_answer():
    graded = lambda prompt: YES if "Answer to grade: it is Miso" in prompt else NO  # noqa: E731
    with (
        FaultServer(answering(lambda request: "it is Miso")) as answerer,
        FaultServer(by_role(graded=graded)) as grader,
    ):
        config = config_of(answerer, grader)
        ((verdict,),) = [each.verdicts for each in judged(config, (bank_of("a cat", core="Ann"), [question()]))]
    assert verdict.correct == 1.0 and verdict.cause == ""
    (asked,), (grading,) = answerer.requests, grader.requests
    assert "Core memory, always true until something newer contradicts it:\nAnn\n" in echo(asked)
    assert "- a cat\n" in echo(asked) and "Today is Monday, 2023-05-08." in echo(asked) and "What cat?" in echo(asked)
    assert "Miso" not in echo(asked)
    assert "Reference answer: Miso\nAnswer to grade: it is Miso" in echo(grading)


@pytest.mark.parametrize("strictness", Strictness)
def test_grading_is_as_strict_as_the_configuration_says(strictness):
    with FaultServer(by_role()) as server:
        judged(config_of(server, grading=strictness), (Bank(), [question()]))
    assert ("Grade strictly." in echo(server.requests[1])) == (strictness is Strictness.STRICT)


def test_an_unanswerable_question_is_graded_by_whether_the_answer_declines():
    with FaultServer(by_role()) as server:
        asked = question(gold=None, answerable=False)
        assert correct(judged(config_of(server), (Bank(), [asked]))) == [[1.0]]
    assert "only right answer says so" in echo(server.requests[1])


def test_without_a_gold_answer_nobody_is_asked():
    with FaultServer(by_role()) as server:
        (result,) = judged(config_of(server), (Bank(), [question(gold=None)]))
    assert server.requests == [] and result.missing == {"no_gold_answer": 1} and result.accuracy is None


def test_what_is_asked_about_one_memory_is_asked_once_a_step():
    same, other = bank_of("a cat"), bank_of("a dog")
    cases = [(same, [question(), question("Who?")]), (bank_of("a cat"), [question()]), (other, [question()])]
    with FaultServer(
        by_role(lambda prompt: "Rex" if "dog" in prompt else "Miso", lambda p: NO if "Rex" in p else YES)
    ) as server:
        config = config_of(server)
        judge = make_judge(config)
        assert correct(judged(config, *cases, judge=judge)) == [[1, 1], [1], [0]]
        assert len([each for each in server.requests if not is_grading(each)]) == 3
        assert correct(judged(config, *cases, judge=judge)) == [[1, 1], [1], [0]]
        assert len([each for each in server.requests if not is_grading(each)]) == 6  # the next step asks anew


def test_what_the_cache_holds_is_not_asked_again(tmp_path):
    with FaultServer(by_role()) as server:
        config = config_of(server, cache=str(tmp_path / "answers"))
        for _ in range(2):
            assert correct(judged(config, (bank_of("a cat"), [question()]))) == [[1.0]]
        assert len(server.requests) == 2
        judge = make_judge(config)
        judged(config, (bank_of("a cat"), [question()]), judge=judge)
    assert judge.metrics() == {
        "llm/answerer/calls": 0, "llm/answerer/cached": 1, "llm/grader/calls": 0, "llm/grader/cached": 1,
    }  # fmt: skip
    assert judge.metrics() == {}  # told once


def test_no_more_questions_are_in_work_than_the_bound_and_all_of_it_is_used():
    with FaultServer(by_role(seconds=0.02)) as server:
        config = config_of(server, max_concurrent=7)
        judged(config, *((bank_of(f"cat {n}"), [question()]) for n in range(30)))
    assert server.peak_in_flight == 7 and len(server.requests) == 60


# what fails is missing


def test_a_call_that_fails_for_good_is_missing_and_one_that_is_mended_is_not():
    failing = lambda request: "cat 3" in echo(request)  # noqa: E731

    async def respond(request, writer):
        is_bad = failing(request) or (request.body["messages"][0]["content"] not in seen and "cat 5" in echo(request))
        seen.add(request.body["messages"][0]["content"])
        await (status(500) if is_bad else by_role())(request, writer)

    seen: set[str] = set()
    with FaultServer(respond) as server:
        results = judged(config_of(server), *((bank_of(f"cat {n}"), [question()]) for n in range(8)))
    assert correct(results) == [[1.0]] * 3 + [[None]] + [[1.0]] * 4
    assert results[3].missing == {"answerer_exhausted": 1}
    (verdict,) = results[3].verdicts
    assert verdict.reason.startswith("reward.answerer: ") and "(a key of reward.answerer)" in verdict.reason
    assert "--" not in verdict.reason  # a run of trainer.rl has no flag for it


@pytest.mark.parametrize(
    ("behaviour", "cause"),
    [
        (status(503), "grader_exhausted"),
        (answer("maybe"), "grader_undecided"),
        (answer("so", finish_reason="length"), "grader_undecided"),
        (hang, "grader_timeout"),
    ],
    ids=["down", "no verdict", "cut", "hangs"],
)
def test_a_grader_that_fails_leaves_the_verdict_missing(behaviour, cause):
    with FaultServer(answer("Miso")) as answerer, FaultServer(behaviour) as grader:
        (result,) = judged(config_of(answerer, grader, endpoint={"timeout_seconds": 0.2}), (Bank(), [question()]))
    assert result.missing == {cause: 1} and result.accuracy is None


def test_a_server_that_is_gone_is_missing_because_it_may_come_back():
    with FaultServer(by_role()) as server:
        config = config_of(server)
    (result,) = judged(config, (Bank(), [question()]))
    assert result.missing == {"answerer_unreachable": 1}


def test_what_no_later_call_can_mend_ends_the_run_and_says_where_the_key_is_set(monkeypatch):
    monkeypatch.setenv("VLLM_API_KEY", "sk-secret-1")
    with FaultServer(status(401)) as server, pytest.raises(ChatError) as caught:
        judged(config_of(server), *((bank_of(f"cat {n}"), [question()]) for n in range(5)))
    assert str(caught.value).startswith("reward.answerer: ") and "set VLLM_API_KEY." in str(caught.value)
    assert "sk-secret" not in str(caught.value) and "--" not in str(caught.value)


def test_a_question_that_takes_too_long_is_missing_and_the_others_are_judged():
    async def respond(request, writer):
        await (hang if "cat 1" in echo(request) else by_role())(request, writer)

    with FaultServer(respond) as server:
        config = config_of(server, question_timeout_seconds=0.4)
        results = judged(config, *((bank_of(f"cat {n}"), [question()]) for n in range(3)))
    assert correct(results) == [[1.0], [None], [1.0]] and results[1].missing == {"question_timeout": 1}
    assert results[1].verdicts[0].reason == "no verdict within reward.question_timeout_seconds=0.4"


def test_at_the_deadline_of_the_step_what_is_there_is_kept():
    async def respond(request, writer):
        await (hang if "cat 1" in echo(request) else by_role())(request, writer)

    began = time.monotonic()
    with FaultServer(respond) as server:
        config = config_of(server, step_deadline_seconds=0.5)
        results = judged(config, *((bank_of(f"cat {n}"), [question(), question("Who?")]) for n in range(3)))
    assert correct(results) == [[1.0, 1.0], [None, None], [1.0, 1.0]]
    assert results[1].missing == {"step_deadline": 2} and time.monotonic() - began < SOON


# while the engine decodes


def test_questions_are_asked_while_other_rollouts_are_still_sampled():
    with FaultServer(by_role()) as server:
        config = config_of(server)
        with asking(SCHEME, HashEmbedder(), make_judge(config), 10, config.limits) as step:
            step.add((0, 1), bank_of("a cat"), [question()])
            until = time.monotonic() + SOON
            while len(server.requests) < 2 and time.monotonic() < until:
                time.sleep(0.01)
            assert len(server.requests) == 2  # answered and graded, before the other bank is there
            step.add((0, 0), bank_of("a dog"), [question()])
            results = step.results()
    assert list(results) == [(0, 1), (0, 0)] and len(server.requests) == 4


def test_memories_are_embedded_with_one_cpu_thread_beside_the_engine():
    """Two pools of OpenMP threads on two CPUs sleep at every barrier, and the engine decodes three times slower."""
    seen = {}

    class Watched(HashEmbedder):
        def embed(self, texts):
            seen[threading.current_thread()] = torch.get_num_threads()
            return super().embed(texts)

    with FaultServer(by_role()) as server:
        config = config_of(server)
        with asking(SCHEME, Watched(), make_judge(config), 10, config.limits) as step:
            step.add((0, 0), bank_of("a cat"), [question()])
            step.results()
    assert list(seen.values()) == [1] and threading.main_thread() not in seen


def test_the_thread_that_decodes_keeps_its_cpu_threads():
    """In a process of its own: libraries that other tests load may limit their number."""
    program = (
        "import threading, torch; from reward.alongside import _searcher; count = torch.get_num_threads\n"
        "torch.set_num_threads(2); executor = _searcher(); print(executor.submit(count).result(), count())\n"
        "later = threading.Thread(target=lambda: print(count())); later.start(); later.join()"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ran.stdout.split() == ["1", "2", "2"], ran.stderr


def test_a_thread_is_left_for_no_step():
    with FaultServer(by_role()) as server:
        config = config_of(server)
        judge, before = make_judge(config), threading.active_count()
        for _ in range(3):
            judged(config, (Bank(), [question()]), judge=judge)
        time.sleep(0.1)
        assert threading.active_count() == before


def test_a_fatal_answer_ends_the_step_while_others_are_still_sampled():
    with FaultServer(status(401)) as server:
        config = config_of(server)
        with pytest.raises(ChatError), asking(SCHEME, HashEmbedder(), make_judge(config), 10, config.limits) as step:
            for number in range(500):
                step.add((number,), bank_of(f"cat {number}"), [question()])
                time.sleep(0.01)
        assert number < 499


def test_what_was_asked_is_told_over_all_processes():
    class World:
        def gather(self, value):
            return [value, {"llm/grader/calls": 3.0, "llm/grader/failed_timeout": 1.0}]

    others = dict.fromkeys("engine tokenizer embedder scheme formula sampling num_rollouts count_tokens".split())
    with FaultServer(by_role()) as server:
        config = config_of(server)
        judge = make_judge(config)
        judged(config, (Bank(), [question()]), judge=judge)
    found = Collector(**others, judge=judge, reward=config, world=World()).judge_metrics()
    assert found == {
        "llm/answerer/calls": 1, "llm/answerer/cached": 0, "llm/grader/calls": 4, "llm/grader/cached": 0,
        "llm/grader/failed_timeout": 1,
    }  # fmt: skip
    assert Collector(**others, judge=evidence, reward=RewardConfig(), world=World()).judge_metrics() == {}


def test_the_policy_answers_in_a_training_run_only():
    reward = RewardConfig(judge=LLM, answerer="policy", grader=RewardEndpoint(name="g", provider=Provider.VLLM))
    others = dict.fromkeys("engine tokenizer embedder scheme formula sampling num_rollouts count_tokens".split())
    with pytest.raises(ConfigError, match="reward.answerer=policy answers inside a run of trainer.rl only"):
        Collector(**others, judge=make_judge(reward), reward=reward).answer([])


# the configuration


def loaded(*overrides: str) -> RewardConfig:
    return load(RLConfig, None, overrides).reward


BOTH = ("reward.judge=llm", "reward.answerer.name=a", "reward.grader.name=g")


def test_both_models_are_sections_and_policy_is_a_word():
    config = loaded(*BOTH, "reward.answerer.provider=vllm", "reward.grader.api_key_env=GRADER_KEY")
    assert (config.answerer.name, config.answerer.provider, config.answerer.concurrency) == ("a", Provider.VLLM, 64)
    assert (config.grader.api_key_env, config.grading) == ("GRADER_KEY", Strictness.LENIENT)
    policy = loaded("reward.judge=llm", "reward.grader.name=g", "reward.answerer=policy")
    assert policy.answerer == "policy"
    for each in (config, policy):
        assert load(RewardConfig, None, []) != each
        assert RewardConfig(**vars(each)) == each and dump(each).count("null") >= 1


def test_a_saved_configuration_comes_back(tmp_path):
    for overrides in (BOTH, ("reward.judge=llm", "reward.grader.name=g", "reward.answerer=policy")):
        config = load(RLConfig, None, overrides)
        (tmp_path / "config.yaml").write_text(dump(config))
        assert load(RLConfig, tmp_path / "config.yaml") == config


def test_a_word_in_a_file_gives_way_to_a_section_and_back(tmp_path):
    (tmp_path / "policy.yaml").write_text("reward: {judge: llm, answerer: policy, grader: {name: g}}\n")
    (tmp_path / "model.yaml").write_text("reward: {judge: llm, answerer: {name: a}, grader: {name: g}}\n")
    assert load(RLConfig, tmp_path / "policy.yaml", ["reward.answerer.name=a"]).reward.answerer.name == "a"
    assert load(RLConfig, tmp_path / "model.yaml", ["reward.answerer=policy"]).reward.answerer == "policy"


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["reward.judge=llm"], "judge: llm needs answerer and grader"),
        (["reward.judge=llm", "reward.answerer=policy"], "judge: llm needs answerer and grader"),
        (["reward.grader.name=g"], "grader without effect: .* set judge=llm or reward.grader=null"),
        (["reward.cache=answers"], "cache without effect"),
        ([*BOTH, "reward.answerer=reference"], "reward.answerer"),
        ([*BOTH, "reward.max_concurrent=0"], "max_concurrent"),
        ([*BOTH, "reward.policy_answer_tokens=0"], "policy_answer_tokens"),
        ([*BOTH, "reward.question_timeout_seconds=0"], "question_timeout_seconds"),
        ([*BOTH, "reward.step_deadline_seconds=-1"], "step_deadline_seconds"),
        ([*BOTH, "reward.grader.timeout=3"], "Did you mean 'reward.grader.timeout_seconds'"),
        ([*BOTH, "reward.answerer.temperture=0"], "Did you mean 'reward.answerer.temperature'"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value[-1:]),
)
def test_what_cannot_work_or_would_have_no_effect_is_refused(overrides, problem):
    with pytest.raises(ConfigError, match=problem):
        loaded(*overrides)


PUBLISHED = ("configs/rl_qwen3_4b.yaml", "configs/rl_qwen3_4b_8gpu.yaml", "configs/rl_qwen3_4b_32gpu.yaml")


@pytest.mark.parametrize("path", PUBLISHED)
def test_the_published_configs_answer_and_grade_with_the_published_models(path):
    reward = load(RLConfig, path).reward
    assert (reward.judge, reward.answerer.name, reward.grader.name) == ("llm", "gpt-4.1-mini", "gpt-4.1")
    assert reward.grading == Strictness.LENIENT
    assert {reward.answerer.api_key_env, reward.grader.api_key_env} == {"OPENAI_API_KEY"}


@pytest.mark.parametrize("path", PUBLISHED)
def test_a_run_without_its_key_is_refused_by_name_before_anything_is_loaded(path, monkeypatch, tmp_path):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    config = load(RLConfig, path, [f"out={tmp_path / 'out'}", "model.path=/nowhere/model"])
    with pytest.raises(ConfigError, match="provider openai needs a key: set OPENAI_API_KEY;"):
        setup_rl(config)
    assert not (tmp_path / "out").exists()


@contextmanager
def refusing(endpoint: str):
    with FaultServer(by_role()) as good, FaultServer(status(404)) as bad:
        pair = (bad, good) if endpoint == "answerer" else (good, bad)
        yield config_of(*pair)


@pytest.mark.parametrize("endpoint", ["answerer", "grader"])
def test_a_model_that_its_server_does_not_have_is_found_before_anything_is_loaded(endpoint, tmp_path):
    with refusing(endpoint) as reward:
        config = replace(load(RLConfig, None, ["model.path=/nowhere/model", f"out={tmp_path / 'out'}"]), reward=reward)
        with pytest.raises(ChatError, match=f"reward.{endpoint}: .* it serves no model 'm'"):
            setup_rl(config)
    assert not (tmp_path / "out").exists()


def test_the_prompts_and_their_hashes_are_told():
    with FaultServer(by_role()) as server:
        found = judge_prompts(config_of(server, grading=Strictness.STRICT))
    assert list(found) == ["answer", "judge_strict", "judge_unanswerable"]
    for name, prompt in found.items():
        assert prompt["sha256"] == prompt_hashes()[name] and "Question: $question" in prompt["text"]
    assert judge_prompts(RewardConfig()) == {}
    assert json.dumps(found)


def test_a_verdict_says_in_one_word_why_it_is_missing():
    result = QAResult(
        retrievals=(Retrieval(entries=(), scores=()),) * 3,
        verdicts=tuple(
            Verdict(correct=value, reason="", cause=cause) for value, cause in ((None, "x"), (None, ""), (1.0, ""))
        ),
    )
    assert result.missing == {"x": 1, "undecided": 1}
