"""A run from which nothing can be learned stops, saves and names the likely cause."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from membuilder.errors import NothingLearnedError
from membuilder.types import Agent
from rollout.types import Completion, SamplingConfig
from tests import small_rl
from tests.fakes import streamed
from tests.lives import checkpoint_names
from tests.test_rl import collector_of, setting  # noqa: F401
from trainer import rl, sft
from trainer.advantages import StdScale, group_advantages
from trainer.experience.idle import IdleSteps, rl_cause, sft_cause
from trainer.rl_config import RLConfig

LEARNED = [0.5]
"""Norms of the gradients of a step."""


def cause_of(collector, stream, norms=LEARNED, rate=1e-3, change=lambda scored: scored) -> str | None:
    scored = change(collector.dense(stream, 0.4, seed=1))
    config = RLConfig(sampling=collector.sampling, reward=collector.reward)
    advantages = [
        {role: group_advantages([[score.reward[role] for score in group.scores]], StdScale.GROUP)[0] for role in Agent}
        for group in scored
    ]
    batch = SimpleNamespace(advantages=advantages)
    return rl_cause(scored, batch, norms, rate, config, collector.tokenizer)


class Cut:
    """Writes the same tokens without an end, each with an engine's log-prob."""

    max_model_len = 10_000

    def __init__(self, token_ids: list[int]) -> None:
        self.token_ids = tuple(token_ids)

    def stream(self, prompts, n, sampling, seed):
        logprobs = (-0.1,) * len(self.token_ids)
        cut = Completion(token_ids=self.token_ids, rollout_logprobs=logprobs, finished=False, weight_version=0)
        return streamed([[cut] * n for _ in prompts])


def test_completions_that_are_all_cut_point_to_the_length_or_to_the_end_token(setting):  # noqa: F811
    collector, stream = collector_of(setting, "")
    plain = collector.tokenizer('{"#1":"add","#2":', add_special_tokens=False)["input_ids"]
    said = cause_of(replace(collector, engine=Cut(plain)), stream)
    assert said.startswith('all 32 completions were cut at sampling.max_tokens=12, one begins \'{"#1"')
    assert "None holds an end token: raise sampling.max_tokens" in said
    end = collector.tokenizer.eos_token_id
    said = cause_of(replace(collector, engine=Cut([*plain, end, *plain])), stream)
    assert f"32 hold the special token '<end>' ({end}) and go on after it" in said and "eos_token_id" in said


def test_no_format_anywhere_names_the_commonest_failure_and_shows_one(setting):  # noqa: F811
    said = cause_of(*collector_of(setting, "Sure! Here is the memory."))
    assert said.startswith("none of 32 completions has the format; 32 of them: not_json (") and "'Sure! Here is" in said
    assert "trainer.sft with the same scheme" in said


def test_rollouts_that_are_all_alike_point_to_the_temperature(setting):  # noqa: F811
    said = cause_of(*collector_of(setting, '{"#1":"add"}'))
    assert said == (
        "all rollouts of a session are the same, token for token: raise sampling.temperature (now 1.25) or "
        "loss.entropy_coef"
    )


def unlike(scored: list) -> list:
    """The rollouts of a group with other texts, each with the reward it had."""
    return [
        replace(group, rollouts=tuple(
            replace(rollout, samples={role: replace(sample, text=f"{k}") for role, sample in rollout.samples.items()})
            for k, rollout in enumerate(group.rollouts)
        ))
        for group in scored
    ]  # fmt: skip


def scored_as(reward: float | None, qa: float | None, status: str):
    def change(scored: list) -> list:
        def of(score):
            roles = score.reward
            return replace(score, reward=dict.fromkeys(roles, reward), qa=qa, status=dict.fromkeys(roles, status))

        return [replace(group, scores=tuple(map(of, group.scores))) for group in unlike(scored)]

    return change


@pytest.mark.parametrize(
    ("reward", "qa", "status", "said"),
    [
        (0.5, 0.5, "scored", "every reward equals the others of its group (mean 0.5): raise sampling.temperature"),
        (0.0, 0.0, "scored", "every reward is 0, because no question was answered from any memory"),
        (None, None, "no_questions", "no session had a question: does the data have questions"),
        (None, None, "not_judged", "there is no reward: not_judged. Look at reward.judge=evidence"),
    ],
)
def test_rewards_that_are_all_alike_point_to_questions_or_judge(setting, reward, qa, status, said):  # noqa: F811
    collector, stream = collector_of(setting, '{"#1":"add"}')
    assert said in cause_of(collector, stream, change=scored_as(reward, qa, status))


def one_better(scored: list) -> list:
    """As if the first rollout of each group had been worth more."""

    def better(group):
        first, *others = group.scores
        return replace(group, scores=(replace(first, reward=dict.fromkeys(first.reward, 1.0)), *others))

    return [better(group) for group in scored_as(0.5, 0.5, "scored")(scored)]


def test_a_step_with_signal_and_a_gradient_is_not_idle(setting):  # noqa: F811
    collector, stream = collector_of(setting, '{"#1":"add"}')
    assert cause_of(collector, stream, change=one_better) is None
    assert cause_of(collector, stream, [float("nan")], change=one_better) is None, "max_skipped counts those"
    assert "updates_per_step=1" in cause_of(collector, stream, [], change=one_better)
    assert "loss.name=adrpo" in cause_of(collector, stream, [0.0, 0.0], change=one_better)
    assert "optim.lr" in cause_of(collector, stream, rate=0.0, change=one_better)
    assert sft_cause(0.1, 1e-3) is None and "frozen" in sft_cause(0.0, 1e-3) and "optim.lr" in sft_cause(0.1, 0.0)


def test_only_steps_in_a_row_count_and_what_ends_before_the_limit_is_said():
    said: list[str] = []
    steps = IdleSteps(2, said.append)
    assert [steps.count(cause) for cause in ("a", None, "b")] == [None] * 3
    steps.close()
    assert said == [], "something was learned"
    assert "from 2 steps in a row (max_idle_steps=2): c." in str(steps.count("c"))
    for limit in (0, 9):
        steps = IdleSteps(limit, said.append)
        assert not any(steps.count("the cause") for _ in range(3))
        steps.close()
    assert said == ["warning: nothing could be learned from any of 3 steps: the cause"] * 2


def test_a_run_whose_completions_are_all_cut_stops_and_is_saved(tmp_path):
    cut = SamplingConfig(temperature=1.0, top_p=1.0, max_tokens=1)
    run = small_rl.Run(small_rl.config_of(tmp_path, num_steps=9, max_idle_steps=2, sampling=cut))
    said = r"from 2 steps in a row .max_idle_steps=2.: all 36 completions were cut at sampling.max_tokens=1, one begins"
    with pytest.raises(NothingLearnedError, match=said):
        run.train()
    assert checkpoint_names(tmp_path) == ["step_2"]


@pytest.mark.slow
def test_a_run_that_makes_no_update_stops(tmp_path, monkeypatch):
    run = small_rl.Run(small_rl.config_of(tmp_path, num_steps=9, max_idle_steps=2))
    update = SimpleNamespace(weighted=lambda: [], ids=[], num_packed_tokens=0, num_repeated_tokens=0)
    monkeypatch.setattr(rl, "make_update", lambda *_: update)
    with pytest.raises(NothingLearnedError, match="the gradient is exactly 0"):
        run.train()


def test_sft_without_a_learning_rate_stops(tmp_path, monkeypatch):
    monkeypatch.setattr(sft, "learning_rate", lambda *_: 0.0)
    with pytest.raises(NothingLearnedError, match="from 5 steps in a row .max_idle_steps=5.: the learning rate is 0"):
        small_rl.Run(small_rl.config_of(tmp_path))
    assert checkpoint_names(Path(tmp_path, "sft")) == ["step_5"]
