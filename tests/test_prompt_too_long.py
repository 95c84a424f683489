"""One long prompt costs one agent one session and nothing else, in the RL loop and in evaluation, by a real engine."""

from dataclasses import replace

import pytest

from membuilder.errors import ConfigError
from membuilder.types import Agent, Bank, Entry
from tests.small_rl import Run, config_of
from trainer.configs import States
from trainer.data.corpus import ExpertBuild
from trainer.experience.evaluate import build_with_policy, summarize, tally
from trainer.experience.parity import sample_sequences
from trainer.experience.session_stream import SessionStream
from trainer.logs.run_log import read_jsonl
from trainer.rl_config import RLConfig

OTHERS = [agent for agent in Agent if agent is not Agent.SEMANTIC]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    config = config_of(tmp_path_factory.mktemp("rl"), eval_every=2)
    config.prompts.max_entry_chars = 100_000
    return Run(config)


def with_a_huge_entry(build: ExpertBuild) -> ExpertBuild:
    """As if a turn of 24,000 characters had been quoted before every session."""

    def grown(bank: Bank, timestamp) -> Bank:
        huge = Entry(
            id="huge", agent=Agent.SEMANTIC, text="cat " * 6000, session=0, timestamp=timestamp, source_turns=()
        )
        return replace(bank, entries=(huge, *bank.entries))

    steps = [replace(step, bank_before=grown(step.bank_before, step.session.timestamp)) for step in build.steps]
    return replace(build, steps=tuple(steps))


@pytest.mark.slow
def test_a_run_goes_on_past_prompts_that_are_too_long(run):
    run.builds, plain = [with_a_huge_entry(build) for build in run.builds], run.builds
    rows = run.train()
    run.builds = plain
    assert len(rows) == 2 and any(row["grad_norm"] > 0 for row in rows)
    for row in rows:
        assert row["prompt_too_long/semantic"] == 1.0 and row["prompt_too_long"] == 0.25
        assert not {"reward/semantic", "format/semantic", "completions/semantic/mean_length"} & set(row)
        assert row["rewards/missing"] >= 0.25
        for agent in OTHERS:
            assert row[f"prompt_too_long/{agent}"] == 0.0 and row[f"completions/{agent}/mean_length"] > 0
    assert rows[1]["eval/prompt_too_long"] == 0.0  # evaluation starts from empty banks
    completions = read_jsonl(f"{run.config.out}/completions.jsonl")
    left_out = [row for row in completions if row["agent"] == "semantic"]
    for row in left_out:
        assert (row["status"], row["completion"], row["reward"], row["weight_version"]) == (
            "prompt_too_long", None, None, None,
        )  # fmt: skip
        assert "leave no room for an answer within max_model_len" in row["failure"]
    assert len(left_out) == 6 and {row["status"] for row in completions if row["agent"] == "core"} != {
        "prompt_too_long"
    }


def test_the_parity_checks_leave_out_what_is_not_sampled(run):
    builds = [with_a_huge_entry(build) for build in run.builds]
    stream = SessionStream(builds, run.collector.embedder, run.collector.scheme, 2, States.EXPERT, seed=1)
    groups = sample_sequences(run.collector, [stream.task(0), stream.task(1)], 1.0, seed=1)
    assert [len(group) for group in groups] == [2 * 3, 2 * 3]


def test_evaluation_counts_them_apart(run, monkeypatch):
    dialogues = [build.dialogue for build in run.builds]
    whole = build_with_policy(dialogues, run.collector, "all prompts")
    num_outputs = sum(each.num_outputs for each in whole)
    assert not any(each.num_too_long for each in whole) and num_outputs == sum(4 * len(d.sessions) for d in dialogues)
    lengths = [100, 130, 1000]  # around the lengths of the sessions' prompts
    built = []
    for length in lengths:
        monkeypatch.setattr(run.engine, "max_model_len", length)
        built.append(build_with_policy(dialogues, run.collector, "short prompts"))
        assert sum(each.num_too_long + each.num_outputs for each in built[-1]) == num_outputs
    shares = [summarize(tally(dialogues, each, run.collector)).prompt_too_long for each in built]
    assert shares[0] >= shares[1] > shares[2] == 0 and 0 < shares[1] < 1


def test_without_any_output_the_format_is_unknown(run, monkeypatch):
    monkeypatch.setattr(run.engine, "max_model_len", 10)
    dialogues = [build.dialogue for build in run.builds]
    result = summarize(tally(dialogues, build_with_policy(dialogues, run.collector, "none"), run.collector))
    assert (result.format_valid, result.prompt_too_long, result.memory_tokens) == (None, 1.0, 0.0)
    assert "eval/format_valid" not in result.metrics() and result.metrics()["eval/prompt_too_long"] == 1.0


def test_a_prompt_with_no_room_beside_the_answer_is_a_setting_not_data():
    with pytest.raises(ValueError, match="max_model_len=6000 leaves no prompt room beside sampling.max_tokens=6000"):
        RLConfig(max_model_len=6000)


def test_where_no_prompt_fits_the_run_says_so(run, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "config", replace(run.config, out=str(tmp_path)))
    monkeypatch.setattr(run.engine, "max_model_len", 10)
    with pytest.raises(ConfigError, match="every prompt of this step is too long.*raise max_model_len"):
        run.train()
