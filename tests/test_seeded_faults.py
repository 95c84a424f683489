"""Faults with which a trainer would learn something else in silence: a named check finds each within a step."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from membuilder.errors import ConfigError, ParityError
from membuilder.schemes.four_agents import prompts
from membuilder.types import Agent
from rollout.hf_engine import TransformersEngine
from rollout.turns import Turns
from rollout.types import SamplingConfig
from tests import small_rl
from tests.lives import metrics
from tests.sequences import sequence
from tests.test_rl import collector_of, setting  # noqa: F401
from trainer.batching import packing
from trainer.experience import sample_checks
from trainer.experience.parity import GAP, check_next_token, check_step
from trainer.experience.sample_checks import check_prompts, check_template
from trainer.model import shared_prefix
from trainer.model.policy import Policy

pack, hidden_states, stream = packing.pack, shared_prefix.hidden_states, TransformersEngine.stream
render_prompt, make_rollout = prompts.render_prompt, Turns.first


def targets_one_later(patch) -> None:
    """Each target is the token after the one that should be predicted."""

    def shifted(*args):
        batch = pack(*args)
        return replace(batch, targets=batch.targets.roll(-1))

    patch.setattr(packing, "pack", shifted)


def targets_one_earlier(patch) -> None:
    """Each token is predicted from a hidden state that has read it."""

    def shifted(model, batch):
        return hidden_states(model, replace(batch, predict_from=(batch.predict_from + 1) % batch.token_ids.shape[1]))

    patch.setattr(shared_prefix, "hidden_states", shifted)


def stale_weights(patch) -> None:
    patch.setattr(TransformersEngine, "load_weights", lambda self, weights, version: None)


def stale_weights_under_a_new_version(patch) -> None:
    patch.setattr(TransformersEngine, "load_weights", lambda self, weights, version: setattr(self, "_version", version))


def another_temperature(patch) -> None:
    def warmer(self, prompts, n, sampling, seed):
        return stream(self, prompts, n, replace(sampling, temperature=1.3), seed)

    patch.setattr(TransformersEngine, "stream", warmer)


def swapped_samples(patch) -> None:
    """Prompt and completion of two roles are exchanged."""

    def swapped(*args):
        rollout, told = make_rollout(*args)
        first, second, *others = rollout.samples
        samples = rollout.samples | {first: rollout.samples[second], second: rollout.samples[first]}
        return replace(rollout, samples=samples), told

    patch.setattr(Turns, "first", swapped)


def swapped_completions(patch) -> None:
    """The completions of two roles are exchanged, their prompts are not."""

    def swapped(turns, task, prompts, drawn):
        core, episodic = drawn[Agent.CORE], drawn[Agent.EPISODIC]
        return make_rollout(turns, task, prompts, drawn | {Agent.CORE: episodic, Agent.EPISODIC: core})

    patch.setattr(Turns, "first", swapped)


def prompts_without_the_session(patch) -> None:
    def emptied(agent, session, *args):
        return render_prompt(agent, replace(session, turns=()), *args)

    patch.setattr("membuilder.schemes.four_agents.scheme.render_prompt", emptied)


EATING = "{{ messages | length }} message(s) came. Now answer."


def a_template_that_eats_the_prompt(patch) -> None:
    honest = small_rl.Run.train

    def train(run):
        run.tokenizer.chat_template = EATING
        return honest(run)

    patch.setattr(small_rl.Run, "train", train)


FAULTS: list[tuple[Callable, str, int]] = [
    (targets_one_later, "next_token", 0),
    (targets_one_earlier, "next_token", 0),
    (stale_weights, "weight_version", 1),
    (stale_weights_under_a_new_version, "step_logprobs", 1),
    (another_temperature, "engine_logprobs", 0),
    (swapped_samples, "roles", 0),
    (swapped_completions, "engine_logprobs", 0),
    (prompts_without_the_session, "prompt_text", 0),
]
"""What is seeded after SFT, which check finds it, and how many steps were trained on before."""


@pytest.fixture
def run(tmp_path) -> small_rl.Run:
    """Parity is checked before the first step alone, as in nine steps of ten of a real run."""
    return small_rl.Run(small_rl.config_of(tmp_path, num_steps=3, parity_every=100))


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "check", "num_trained"), FAULTS, ids=[fault.__name__ for fault, *_ in FAULTS])
def test_a_seeded_fault_is_found_within_a_step(run, monkeypatch, seed, check, num_trained):
    seed(monkeypatch)
    with pytest.raises(ParityError, match=f"^check {check}: ") as caught:
        run.train()
    assert caught.value.check == check
    assert len([row for row in metrics(Path(run.config.out)) if "reward/mean" in row]) >= num_trained
    assert not Path(run.config.out, "checkpoints").exists()


@pytest.mark.slow
def test_a_template_that_eats_the_prompt_is_found_before_anything_is_asked(run, monkeypatch):
    a_template_that_eats_the_prompt(monkeypatch)
    with pytest.raises(ConfigError, match="the chat template leaves out what a user says"):
        run.train()


@pytest.mark.slow
def test_an_engine_that_cuts_its_distribution_is_no_fault(tmp_path):
    """Its log-probs are larger than the trainer's by up to -log(top_p)."""
    sampling = SamplingConfig(temperature=1.0, top_p=0.6, max_tokens=6)
    rows = small_rl.Run(small_rl.config_of(tmp_path, num_steps=2, sampling=sampling)).train()
    assert any(row.get(GAP, 0) > 0.001 for row in rows)


def test_log_probs_of_a_step_that_differ_by_more_than_they_may_are_refused():
    config = small_rl.config_of(Path("nowhere"), parity_bound=0.02)
    for honest in ({}, {GAP: 0.02}, {GAP: float("nan")}):
        check_step(honest, config, step=3)
    with pytest.raises(
        ParityError, match=r"check step_logprobs: .* differ by 0.1 nats a token in step 3 .at most 0.02"
    ):
        check_step({GAP: 0.1}, config, step=3)
    cut = replace(config, sampling=SamplingConfig(top_p=0.9, max_tokens=6))
    check_step({GAP: 0.12}, cut, step=3)
    with pytest.raises(ParityError, match="at most 0.13"):
        check_step({GAP: 0.14}, cut, step=3)


@pytest.fixture
def policy() -> Policy:
    torch.manual_seed(0)
    sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, head_dim=8)
    return Policy(Qwen3ForCausalLM(Qwen3Config(vocab_size=16, num_key_value_heads=1, **sizes)))


@pytest.mark.parametrize("completion", [(4, 5), (4, 5, 6), (7, 4, 5, 6, 2)])
@pytest.mark.parametrize("seed", [targets_one_later, targets_one_earlier, None])
def test_targets_that_are_shifted_are_found_in_completions_of_any_length(policy, monkeypatch, seed, completion):
    groups = [[sequence((1, 2, 3), completion), sequence((1, 2, 3, 9), (6,))]]
    if seed is None:
        check_next_token(policy, groups)
        return
    seed(monkeypatch)
    with pytest.raises(ParityError, match="check next_token: token [012] of a completion was exchanged"):
        check_next_token(policy, groups)


def test_a_completion_of_one_token_is_not_asked_about_the_next(policy):
    check_next_token(policy, [[sequence((1, 2, 3), (6,))], []])


@pytest.fixture
def sampled(setting):  # noqa: F811
    """A collector, two tasks and a group of each."""
    collector, stream = collector_of(setting, '{"#1":"add"}')
    tasks = [stream.task(slot) for slot in range(2)]
    return collector, tasks, collector.sample(tasks, collector.sampling, 2, seed=1)


def test_prompts_are_their_roles_own(sampled):
    collector, tasks, groups = sampled
    check_prompts(collector.tokenizer, collector.scheme, tasks, groups)
    with pytest.raises(ParityError, match="check roles: .* was sampled from no prompt of this session"):
        check_prompts(collector.tokenizer, collector.scheme, tasks, groups[::-1])
    rollout = groups[0].rollouts[0]
    swapped = rollout.samples | {Agent.CORE: rollout.samples[Agent.SEMANTIC]}
    groups[0] = replace(groups[0], rollouts=(replace(rollout, samples=swapped),))
    said = "check roles: .* the completion of role core was sampled from the prompt of role semantic"
    with pytest.raises(ParityError, match=said):
        check_prompts(collector.tokenizer, collector.scheme, tasks, groups)


def test_completions_of_other_weights_are_refused(sampled):
    sample_checks.check_versions(sampled[2], 0)
    with pytest.raises(ParityError, match="check weight_version: completions of step 1 .* with the weights of step 0"):
        sample_checks.check_versions(sampled[2], 1)


def test_a_template_that_loses_the_prompt_is_found_before_anything_is_trained(setting):  # noqa: F811
    tokenizer = copy.deepcopy(setting[2])
    check_template(tokenizer)
    tokenizer.chat_template = None
    check_template(tokenizer)
    tokenizer.chat_template = EATING
    said = r"check prompt_text: .* is lost: 0 of \d+ of its words .* begins '1 message\(s\) came"
    with pytest.raises(ParityError, match=said):
        check_template(tokenizer)
    # a template may put words of its own around the prompt, and a lossy tokenizer may spell some otherwise
    tokenizer.chat_template = "You are a helper.\n{{ messages[0].content | upper | replace('MARCH', '?') }}\nAnswer:"
    check_template(tokenizer)


def tokenizers_that_eat_the_prompt(patch) -> None:
    honest = small_rl.train_tokenizer

    def eating(*args):
        tokenizer = honest(*args)
        tokenizer.chat_template = EATING
        return tokenizer

    patch.setattr(small_rl, "train_tokenizer", eating)


@pytest.mark.parametrize(
    ("seed", "error", "says"),
    [(tokenizers_that_eat_the_prompt, ConfigError, "the chat template leaves out what a user says"),
     (targets_one_later, ParityError, "^check own_forward: ")],
)  # fmt: skip
def test_sft_does_not_begin_with_a_fault(tmp_path, monkeypatch, seed, error, says):
    seed(monkeypatch)
    with pytest.raises(error, match=says):
        small_rl.Run(small_rl.config_of(tmp_path))
    assert not (tmp_path / "sft/metrics.jsonl").exists() or metrics(tmp_path / "sft") == []


def test_sft_goes_round_a_fault_of_shared_prompts_and_says_so(tmp_path, monkeypatch, caplog):
    targets_one_earlier(monkeypatch)
    small_rl.Run(small_rl.config_of(tmp_path))
    assert "every sequence is run whole: shared prompts give other log-probs" in caplog.text
    assert metrics(tmp_path / "sft")
