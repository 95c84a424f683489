"""Parts of the RL loop with a scripted engine: steering of the length price, greedy memory, updates."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from membuilder.datasets.windows import in_windows
from membuilder.errors import ConfigError, ParityError
from membuilder.generate.dialogue import generate
from membuilder.schemes.four_agents.prompts import PromptConfig
from membuilder.schemes.four_agents.schemas import ResponseFormat
from membuilder.schemes.four_agents.scheme import FourAgents
from membuilder.types import Agent, Bank, Entry
from reward import four_agents
from reward.judges import Verdict, evidence
from reward.length import LengthConfig, LengthScope
from reward.score import RewardConfig
from rollout.tokens import TokenCounter, encode_completion
from rollout.types import Completion, SamplingConfig
from tests.fakes import HashEmbedder, streamed
from tests.sequences import sequence
from trainer.batching.packing import TrainSequence, dense_tree, pack
from trainer.configs import DataConfig, States
from trainer.data.corpus import Corpus, expert_builds, load_corpus, sft_builds, training_text
from trainer.distributed.process_group import World
from trainer.experience.collector import Collector
from trainer.experience.episode_stream import EpisodeStream
from trainer.experience.evaluate import summarize, tally, without_model
from trainer.experience.length_controller import LengthController
from trainer.experience.parity import check_engine, check_shared
from trainer.experience.session_stream import SessionStream
from trainer.model import shared_prefix
from trainer.model.policy import Policy
from trainer.model.tiny_model import train_tokenizer
from trainer.quickstart import table
from trainer.rl_config import RLConfig

PROMPTS = PromptConfig(template_set="compact", response_format=ResponseFormat.TURNS, entries_shown=0)
SCHEME = FourAgents(PROMPTS)
REWARD = RewardConfig(length_weight=0.4, length=LengthConfig(scope=LengthScope.MEAN))


class ScriptedEngine:
    """Answers every prompt alike and remembers how it was asked."""

    max_model_len = 10_000

    def __init__(self, tokenizer, answer: str) -> None:
        ids = tuple(encode_completion(tokenizer, answer))
        self.completion = Completion(
            token_ids=ids, rollout_logprobs=(-0.1,) * len(ids), finished=True, weight_version=0
        )
        self.asked: list[tuple[int, SamplingConfig]] = []

    def stream(self, prompts, n, sampling, seed):
        self.asked.append((n, sampling))
        return streamed([[self.completion] * n for _ in prompts])


@pytest.fixture(scope="module")
def setting():
    embedder = HashEmbedder()
    builds = expert_builds([in_windows(d, 3) for d in generate(3, 1, "train")], embedder, SCHEME, "rules")
    tokenizer = train_tokenizer(training_text(builds, SCHEME), SCHEME.tiny_tokens(3), 600)
    return embedder, builds, tokenizer


def collector_of(setting, answer: str) -> tuple[Collector, SessionStream]:
    embedder, builds, tokenizer = setting
    collector = Collector(
        engine=ScriptedEngine(tokenizer, answer),
        tokenizer=tokenizer,
        embedder=embedder,
        judge=evidence,
        scheme=SCHEME,
        formula=four_agents.score,
        sampling=SamplingConfig(temperature=1.25, top_p=1.0, max_tokens=12),
        reward=REWARD,
        num_rollouts=2,
        count_tokens=TokenCounter(tokenizer),
    )
    return collector, SessionStream(builds, embedder, SCHEME, 4, States.POLICY, seed=1)


def controller_of(setting, answer: str, **settings) -> LengthController:
    collector, _ = collector_of(setting, answer)
    return LengthController(RLConfig(reward=REWARD, sessions_per_step=4, **settings), setting[1], collector)


def test_greedy_memory_is_measured_greedily_against_the_expert(setting):
    silent, stream = collector_of(setting, "{}")
    assert silent.greedy_memory_ratio(stream) == 0
    assert [(n, sampling.temperature) for n, sampling in silent.engine.asked] == [(1, 0.0)]
    hoarding, stream = collector_of(setting, '{"#1":"add","#2":"add"}')
    # four agents store two turns of each session; the rules store about one turn of three
    assert hoarding.greedy_memory_ratio(stream) > 4


def test_against_an_expert_that_wrote_nothing_only_silence_is_on_target(setting):
    embedder, builds, tokenizer = setting
    nothing = dict.fromkeys(Agent, ())
    quiet = [
        replace(build, steps=tuple(replace(step, result=replace(step.result, written=nothing)) for step in build.steps))
        for build in builds
    ]
    setting = embedder, quiet, tokenizer
    silent, stream = collector_of(setting, "{}")
    assert silent.greedy_memory_ratio(stream) == 1.0
    hoarding, stream = collector_of(setting, '{"#1":"add"}')
    assert hoarding.greedy_memory_ratio(stream) == math.inf
    lengths = controller_of(setting, '{"#1":"add"}', length_target=1.0)
    assert lengths.weight() == (1.0, {"length_weight": 1.0})
    lengths.advance({"length_weight": 1.0})
    assert lengths.state().memory_ratio is None, "no ratio to remember"


@pytest.mark.parametrize("answer, expected", [("{}", 0.0), ('{"#1":"add","#2":"add"}', 1.0)])
def test_the_price_falls_and_rises_with_what_is_written(setting, answer, expected):
    weight, logged = controller_of(setting, answer, length_target=1.1).weight()
    assert weight == expected and logged["length_weight"] == expected and logged["memory_ratio"] >= 0


def test_at_the_target_the_price_is_the_configured_one(setting):
    ratio = controller_of(setting, '{"#1":"add"}', length_target=1.0).weight()[1]["memory_ratio"]
    assert controller_of(setting, '{"#1":"add"}', length_target=ratio).weight()[0] == pytest.approx(0.4)


def test_the_price_follows_the_ratio_of_several_steps(setting):
    """0.75 of what was known and 0.25 of what is measured now."""
    now = controller_of(setting, '{"#1":"add"}', length_target=1.0).weight()[1]["memory_ratio"]
    settings = {"length_target": now, "length_gain": 2.0, "length_smoothing": 0.75}
    lengths = controller_of(setting, '{"#1":"add"}', **settings)
    lengths.load(replace(lengths.state(), memory_ratio=now * 1.4))
    weight, logged = lengths.weight()
    assert logged["memory_ratio"] == now and logged["memory_ratio/smoothed"] == pytest.approx(now * 1.3)
    assert weight == pytest.approx(0.4 * 1.3**2)


def test_a_stream_skips_to_other_sessions_and_can_be_moved_back(setting):
    _, stream = collector_of(setting, "{}")
    before, there = [stream.task(slot).id for slot in range(4)], stream.state
    stream.skip()
    assert [stream.task(slot).id for slot in range(4)] != before
    stream.load_state(there)
    assert [stream.task(slot).id for slot in range(4)] == before


def test_steering_dialogues_are_neither_trained_on_nor_judged():
    corpus = load_corpus(DataConfig(num_train=3, num_held_out=2, num_steering=2))
    sides = [{dialogue.id for dialogue in side} for side in (corpus.train, corpus.held_out, corpus.steering)]
    assert [len(side) for side in sides] == [3, 2, 2] and len(set().union(*sides)) == 7
    # and they change nothing about the other two sides
    without = load_corpus(DataConfig(num_train=3, num_held_out=2))
    assert (without.train, without.held_out, without.steering) == (corpus.train, corpus.held_out, [])


def test_without_a_target_nothing_is_generated(setting):
    lengths = controller_of(setting, "{}")
    assert lengths.weight() == (0.4, {})
    assert lengths._collector.engine.asked == []


def test_a_controller_goes_on_from_its_state(setting):
    """Also where the journal gives what was measured: the two then hold the same state."""
    settings = {"length_target": 1.1, "length_gain": 2.0}
    whole, resumed = (controller_of(setting, '{"#1":"add"}', **settings) for _ in range(2))
    before = whole.state()
    _, measured = whole.weight()
    whole.advance(measured)
    resumed.advance(measured)
    assert resumed.state() == whole.state() != before
    anew = controller_of(setting, '{"#1":"add"}', **settings)
    anew.load(whole.state())
    assert anew.weight() == whole.weight() == resumed.weight()
    assert whole.state().memory_ratio == measured["memory_ratio/smoothed"]


def test_what_is_superseded_is_neither_shown_nor_found_where_the_config_says_so(setting):
    embedder, builds, _ = setting
    collector, _ = collector_of(setting, "{}")
    question = next(question for asked in builds[0].asked() for question in asked)
    turns = {turn.id: turn for step in builds[0].steps for turn in step.session.turns}
    when = builds[0].steps[0].session.timestamp
    old, new = (
        Entry(
            id=f"m{number}",
            agent=Agent.EPISODIC,
            text=" ".join(turns[each].text for each in question.evidence),
            session=0,
            timestamp=when,
            source_turns=sources,
            supersedes=supersedes,
        )
        for number, sources, supersedes in ((1, question.evidence, ()), (2, (), ("m1",)))
    )
    bank = Bank(entries=(old, new))
    for included, shown, accuracy in ((True, 2, 1.0), (False, 1, 0.0)):
        prompts = replace(PROMPTS, entries_shown=5, include_superseded=included)
        scheme = FourAgents(prompts)
        here = replace(collector, scheme=scheme)
        stream = SessionStream(builds, embedder, scheme, 1, States.POLICY, seed=1)
        stream.load_state(replace(stream.state, slots=(replace(stream.state.slots[0], bank=bank),)))
        assert len(stream.task(0).shown[Agent.EPISODIC]) == shown
        (answer,) = here.answer([(bank, [question])])
        assert answer.accuracy == accuracy


def test_accuracy_is_the_mean_of_verdicts_that_may_be_shares(setting):
    _, builds, _ = setting
    verdicts = itertools.cycle([Verdict(correct=0.25, reason=""), Verdict(correct=1.0, reason="")])
    collector = replace(collector_of(setting, "{}")[0], judge=lambda *case: next(verdicts))
    dialogues = [build.dialogue for build in builds]
    tallies = tally(dialogues, without_model(lambda build: Bank(), builds), collector)
    shares = [verdict for each in tallies for verdict in each.verdicts]
    assert set(shares) == {0.25, 1.0}
    result = summarize(tallies)
    assert result.accuracy == pytest.approx(sum(shares) / len(shares)) and result.prompt_too_long == 0.0
    assert "whose whole evidence is found" in table({"rules": result}, "evidence")
    assert "as the judge 'coverage' sees them answered" in table({"rules": result}, "coverage")
    assert "rules: 12.5% of its prompts were too long" in table({"rules": replace(result, prompt_too_long=0.125)}, "")


def test_too_few_dialogues_for_whole_ones_are_refused_by_key(setting):
    embedder, builds, _ = setting
    with pytest.raises(
        ConfigError, match="dense=false.*sessions_per_step.* makes that 4 a step, but there are 3 .*num_train"
    ):
        EpisodeStream(builds, embedder, SCHEME, 4, seed=1)


def test_a_dense_step_scores_with_the_price_it_is_given(setting):
    """Every agent stores two turns: a higher price takes a larger part of the same qa."""
    rewards = []
    for weight in (0.0, 1.0):
        collector, stream = collector_of(setting, '{"#1":"add","#2":"add"}')
        tight = LengthConfig(
            scope=LengthScope.MEAN, tolerance_tokens=1, ratio_lowest=0.0, ratio_lower=0.1, ratio_upper=0.1,
            core_start_tokens=0, core_maximum_tokens=50,
        )  # fmt: skip
        collector = replace(collector, reward=replace(REWARD, earlier_questions=True, length=tight))
        scored = collector.dense(stream, weight, seed=1)
        rewards.append([value for group in scored for score in group.scores for value in score.reward.values()])
    free, priced = rewards
    assert any(free)
    for without, with_price in zip(free, priced, strict=True):
        assert (without is None) == (with_price is None)
        assert not without or with_price < without


def test_extra_dialogues_stand_beside_those_of_a_file(tmp_path, monkeypatch):
    file = [replace(dialogue, id=f"file {dialogue.id}") for dialogue in generate(4, 7, "heldout")]
    monkeypatch.setattr("trainer.data.corpus.load", lambda path: file)
    corpus = load_corpus(DataConfig(path="talk.json", num_extra=3, held_out=0.5))
    assert [dialogue.id.startswith("file") for dialogue in (*corpus.train, *corpus.held_out)] == [True] * 4
    assert len(corpus.extra) == 3 and not any(dialogue.id.startswith("file") for dialogue in corpus.extra)
    assert load_corpus(DataConfig(num_extra=3, num_train=2, num_held_out=1)).extra == []


def test_of_a_file_the_last_training_dialogues_steer(monkeypatch):
    file = generate(4, 7, "heldout")
    monkeypatch.setattr("trainer.data.corpus.load", lambda path: file)
    whole, apart = (load_corpus(DataConfig(path="talk.json", held_out=0.5, num_steering=n)) for n in (0, 1))
    assert (apart.train, apart.steering) == (whole.train[:-1], whole.train[-1:])
    with pytest.raises(ConfigError, match="num_steering=2 of 2 training dialogues leaves none to train on"):
        load_corpus(DataConfig(path="talk.json", held_out=0.5, num_steering=2))


def test_an_epoch_of_sft_repeats_the_file_and_not_the_extra(setting):
    _, builds, _ = setting
    config = DataConfig(path="talk.json", repeat=2)
    assert sft_builds(Corpus(train=builds[:1], extra=builds[1:]), config) == [builds[0], builds[0], *builds[1:]]
    assert sft_builds(Corpus(train=builds), DataConfig(repeat=2)) == builds


def sequence_of(prompt, completion, rollout: float) -> TrainSequence:
    return sequence(prompt, completion, rollout_logprobs=(rollout,) * len(completion))


@pytest.fixture
def policy() -> Policy:
    torch.manual_seed(0)
    sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, head_dim=8)
    return Policy(Qwen3ForCausalLM(Qwen3Config(vocab_size=16, num_key_value_heads=1, **sizes)))


GROUPS = [
    [
        sequence_of((1, 2, 3), (4, 5), -1.0),
        sequence_of((1, 2, 3, 9), (6,), -1.0),
        sequence_of((1, 2, 3), (7,), -1.0),
    ]
]
WIDE = 1000
"""Tokens of a micro-batch: all of GROUPS in one."""


def test_shared_prompts_pass_against_dense_copies(policy):
    assert check_shared(policy, GROUPS, temperature=0.7, bound=1e-5, max_tokens=WIDE) < 1e-6


def test_a_model_that_must_not_share_prompts_stops_the_run(policy, monkeypatch):
    """As if what stands above a node were never read: its tokens would not see their prompt."""
    honest = shared_prefix.merged_attention

    def forgetful(query, key, value, plan, *how):
        return honest(query, key, value, [call for call in plan if call.causal], *how)

    monkeypatch.setattr(shared_prefix, "merged_attention", forgetful)
    with pytest.raises(ParityError, match="must not share prompts"):
        check_shared(policy, GROUPS, temperature=1.0, bound=1e-5, max_tokens=WIDE)


def test_an_engine_that_disagrees_stops_the_run(policy):
    with pytest.raises(ParityError, match="engine and trainer differ by"):
        check_engine(policy, GROUPS, temperature=1.0, bound=1e-3, max_tokens=WIDE)


def test_a_gap_that_is_not_a_number_stops_the_run(policy):
    broken = [[sequence_of((1, 2), (4,), float("nan"))]]
    with pytest.raises(ParityError):
        check_engine(policy, broken, temperature=1.0, bound=1e9, max_tokens=WIDE)


@pytest.fixture
def sizes(policy) -> list[int]:
    """Packed tokens of every forward of the policy."""
    seen: list[int] = []
    policy.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].token_ids.shape[1]))
    return seen


def rolled_out(policy, groups):
    """The groups with the policy's own log-probs as the engine's, each sequence run alone."""
    return [
        [
            sequence(
                each.prompt_token_ids,
                each.completion_token_ids,
                rollout_logprobs=tuple(policy(pack([dense_tree(each)])).logprobs.tolist()),
            )
            for each in group
        ]
        for group in groups
    ]


def test_checks_run_in_micro_batches(policy, sizes):
    """Two sessions of 3 + 1 + 1 packed tokens (shared) and of 4 + 4 + 3 (dense copies), in batches of at most 8."""
    groups = rolled_out(policy, GROUPS * 2)
    sizes.clear()
    assert check_shared(policy, groups, temperature=1.0, bound=1e-5, max_tokens=8) < 1e-6
    assert sizes == [5, 5, 8, 8, 6]
    sizes.clear()
    assert check_engine(policy, groups, temperature=1.0, bound=1e-5, max_tokens=8) < 1e-6
    assert sizes == [5, 5]


def test_what_is_compared_does_not_depend_on_the_micro_batches(policy):
    """A wrong log-prob is found at the token where it stands, whatever the order of the batches."""
    groups = rolled_out(policy, [*GROUPS, [sequence_of((8,) * 9, (1, 2, 3), 0.0)]])
    right = groups[0][2].values.rollout_logprobs
    groups[0][2] = replace(groups[0][2], values=replace(groups[0][2].values, rollout_logprobs=(right[0] - 0.7,)))
    for max_tokens in (1, 6, WIDE):
        # one token of seven is off by 0.7
        assert check_engine(policy, groups, 1.0, bound=0.11, max_tokens=max_tokens) == pytest.approx(0.1, abs=1e-5)
        with pytest.raises(ParityError, match="worst 0.7"):
            check_engine(policy, groups, 1.0, bound=0.09, max_tokens=max_tokens)


def test_processes_run_equally_many_batches(policy, sizes):
    """Another process needs four batches: this one must meet it four times, also with nothing to check."""

    class OfTwo(World):
        def gather(self, value):
            return [value, 4]

    assert check_shared(policy, GROUPS, temperature=1.0, bound=1e-5, max_tokens=WIDE, world=OfTwo()) < 1e-6
    assert sizes == [5, 1, 1, 1, 11, 1, 1, 1]
    sizes.clear()
    assert check_engine(policy, [], temperature=1.0, bound=1e-5, max_tokens=WIDE, world=OfTwo()) is None
    assert sizes == [1, 1, 1, 1]
