"""Whole dialogues side by side, what their rewards are compared with, and which dialogues come next."""

from dataclasses import replace
from statistics import fmean

import pytest

from membuilder.errors import ConfigError
from membuilder.generate.dialogue import generate
from membuilder.types import Bank
from reward.score import Baseline
from rollout.equal_prompts import DrawsApart
from rollout.types import Completion, Sampled, SamplingConfig
from tests import keeper
from tests.fakes import HashEmbedder
from tests.memalpha_chunks import instance
from tests.small_rl import Run, builds_of, config_of
from tests.test_advantages import CORE, ROLES, group_of
from trainer.advantages import StdScale, compared
from trainer.data.corpus import ExpertBuild, build_corpus
from trainer.distributed.process_group import World
from trainer.experience.collector import Collector
from trainer.experience.episode_stream import EpisodeStream, make_stream
from trainer.experience.length_controller import LengthController
from trainer.experience.training_batch import make_batch

INSTANCE, EPISODE, SESSION = Baseline.INSTANCE, Baseline.EPISODE, Baseline.SESSION


def weight(advantages) -> float:
    """How much actions weigh in a step."""
    return sum(abs(value) for of_session in advantages for value in of_session)


# Baselines, worked out by hand


def test_a_session_where_nothing_is_worth_storing_is_pushed_down_by_instance_alone():
    """Two rollouts of two sessions. r1 is 1 and 0; a session with calls earns 0.2 for them, one without earns none."""
    rewards, owners = [(1.2, 0.2), (1.0, 0.0)], ["d", "d"]
    # the mean over all four is 0.6: what says nothing of itself lies 0.1 below what made a call, in both rollouts
    assert compared(rewards, owners, INSTANCE, StdScale.NONE) == [
        pytest.approx([0.6, -0.4]),
        pytest.approx([0.4, -0.6]),
    ]
    assert fmean(compared(rewards, owners, INSTANCE, StdScale.NONE)[1]) == pytest.approx(-0.1)
    # the episodes' means are 1.1 and 0.1: every session of an episode has its advantage, and no session is worse off
    for advantages in compared(rewards, owners, EPISODE, StdScale.NONE):
        assert advantages == pytest.approx([0.5, -0.5])


def test_a_session_that_never_earns_is_not_noise_in_an_episodes_scale():
    """Standard deviations: 0.5 over the episodes' means; over all actions sqrt(0.26), with the spread of sessions."""
    rewards, owners = [(1.2, 0.2), (1.0, 0.0)], ["d", "d"]
    assert compared(rewards, owners, EPISODE, StdScale.GROUP)[0] == pytest.approx([0.5 / 0.5001, -0.5 / 0.5001])
    assert compared(rewards, owners, INSTANCE, StdScale.GROUP)[0][0] == pytest.approx(0.6 / (0.26**0.5 + 1e-4))


def test_an_instance_of_20_sessions_weighs_as_much_as_one_of_5_under_episode_alone():
    rewards, owners = [(1.0, 0.0)] * 25, ["short"] * 5 + ["long"] * 20
    for baseline, share, short, long in (
        (INSTANCE, True, 5 * 2 * 0.5, 20 * 2 * 0.5),
        (EPISODE, False, 5 * 2 * 0.5, 20 * 2 * 0.5),
        # an advantage of 0.5, times the mean length 12.5, over 5 and over 20: all weigh what they weighed together
        (EPISODE, True, 12.5, 12.5),
    ):
        found = compared(rewards, owners, baseline, StdScale.NONE, share)
        assert (weight(found[:5]), weight(found[5:])) == pytest.approx((short, long)), (baseline, share)
    found = compared(rewards, owners, EPISODE, StdScale.NONE)
    assert found[0] == pytest.approx([1.25, -1.25]) and found[24] == pytest.approx([0.3125, -0.3125])


def test_what_is_missing_joins_no_baseline():
    """The second rollout was not asked in the first session: its return is that of the second alone."""
    rewards, owners = [(1.0, None), (0.5, 0.0)], ["d", "d"]
    first, second = compared(rewards, owners, EPISODE, StdScale.NONE, episode_share=False)
    assert first == [pytest.approx(0.375), None] and second == pytest.approx([0.375, -0.375])
    # three actions, 1.5 an episode in the mean: shares are 1.5 / 2 and 1.5 / 1
    first, second = compared(rewards, owners, EPISODE, StdScale.NONE)
    assert first == [pytest.approx(0.28125), None] and second == pytest.approx([0.28125, -0.5625])
    first, second = compared(rewards, owners, INSTANCE, StdScale.NONE)
    assert first == [pytest.approx(0.5), None] and second == pytest.approx([0.0, -0.5])
    for baseline in (INSTANCE, EPISODE):
        assert compared([(None, None)], ["d"], baseline, StdScale.GROUP) == [[None, None]]


def test_instances_stand_apart_whatever_order_their_sessions_have():
    mixed = [(1.0, 0.0), (0.2, 0.2), (1.0, 0.0), (0.2, 0.2)]
    for baseline in (INSTANCE, EPISODE):
        found = compared(mixed, ["a", "b", "a", "b"], baseline, StdScale.NONE)
        assert found == [[0.5, -0.5], [0.0, 0.0]] * 2
    assert compared(mixed, ["a", "b", "a", "b"], SESSION, StdScale.NONE) == [[0.5, -0.5], [0.0, 0.0]] * 2


def test_a_batch_takes_the_baseline_of_each_role_and_dialogue():
    first, second = (group_of({CORE: rewards}) for rewards in ((1.0, 0.0), (0.6, 0.4)))
    other = replace(second, dialogue_id="another")
    found = make_batch([first, second, other], ROLES, StdScale.NONE, False, INSTANCE).advantages
    assert [each[CORE] for each in found] == [
        pytest.approx([0.5, -0.5]),
        pytest.approx([0.1, -0.1]),
        pytest.approx([0.1, -0.1]),
    ]
    found = make_batch([first, second, other], ROLES, StdScale.NONE, False, EPISODE, False).advantages
    assert [each[CORE] for each in found] == [
        pytest.approx([0.3, -0.3]),
        pytest.approx([0.3, -0.3]),
        pytest.approx([0.1, -0.1]),
    ]


# Which dialogues come next


def stream_of(num_dialogues: int, num_instances: int, seed: int = 1) -> EpisodeStream:
    dialogues = generate(num_dialogues, 1, "train", num_sessions=2)
    return EpisodeStream(
        [ExpertBuild(dialogue=d, steps=()) for d in dialogues], HashEmbedder(), None, num_instances, seed
    )


def taken(stream: EpisodeStream, num_steps: int) -> list[list[str]]:
    found = []
    for _ in range(num_steps):
        found.append([build.dialogue.id for build in stream.builds()])
        stream.advance([])
    return found


def test_an_epoch_takes_each_dialogue_once_in_an_order_of_its_own_and_goes_on_from_a_checkpoint():
    whole = taken(stream_of(7, 3), 6)
    for epoch in (whole[:2], whole[2:4], whole[4:]):  # one of seven does not fill a step
        assert len(set(sum(epoch, []))) == 6
    assert len({tuple(sum(epoch, [])) for epoch in (whole[:2], whole[2:4], whole[4:])}) == 3
    begun, resumed = stream_of(7, 3), stream_of(7, 3)
    taken(begun, 3)
    resumed.load_state(begun.state)
    assert begun.state.taken == 9 and taken(resumed, 3) == whole[3:]
    assert taken(stream_of(7, 3, seed=2), 6) != whole


def test_episodes_are_dealt_to_processes_by_their_number_of_chunks():
    lengths = [219, *[5] * 40, 24, 24]
    dialogues = [instance(*[["A line."]] * length, name=f"d{i}") for i, length in enumerate(lengths)]
    dialogues[1] = instance(*[["A line. " * 10_000]] * 5, name="d1")  # read fast, whatever its lines
    builds = [ExpertBuild(dialogue=dialogue, steps=()) for dialogue in dialogues]
    stream = EpisodeStream(builds, HashEmbedder(), None, len(builds), seed=1)
    of_step = [len(build.dialogue.sessions) for build in stream.builds()]
    shares = [World(rank=rank, size=2).shard(stream.costs()) for rank in range(2)]
    assert sorted(index for share in shares for index in share) == list(range(len(builds)))
    chunks = [sum(of_step[index] for index in share) for share in shares]
    assert abs(chunks[0] - chunks[1]) <= 5 and {len(share) for share in shares} != {len(builds) // 2}


def test_two_dialogues_of_one_id_are_refused():
    (dialogue,) = generate(1, 1, "train", num_sessions=2)
    with pytest.raises(ConfigError, match=f"2 dialogues to train on have the id '{dialogue.id}'"):
        EpisodeStream([ExpertBuild(dialogue=dialogue, steps=())] * 2, HashEmbedder(), None, 1, seed=1)


@pytest.mark.parametrize(("changed", "expected"), [({"sessions_per_step": 7}, 3), ({"instances_per_step": 2}, 2)])
def test_a_step_has_as_many_dialogues_as_its_key_or_its_sessions_say(tmp_path, changed, expected):
    builds = [ExpertBuild(dialogue=d, steps=()) for d in generate(4, 1, "train", num_sessions=2)]
    config = config_of(tmp_path, dense=False, **changed)
    assert len(make_stream(config, builds, HashEmbedder(), None).builds()) == expected


@pytest.mark.parametrize(
    "changed", [{"instances_per_step": 2}, {"reward": {"baseline": INSTANCE}}, {"reward": {"episode_share": False}}]
)
def test_keys_without_effect_are_refused(tmp_path, changed):
    config = config_of(tmp_path)
    with pytest.raises(ValueError, match="without effect|set dense=false"):
        if "reward" in changed:
            changed = {"reward": replace(config.reward, **changed["reward"])}
        config_of(tmp_path, **changed)


# Equal prompts


class Alike:
    """Answers as the transformers engine does: by the prompt, so that equal prompts of a call are answered alike."""

    max_model_len = 100

    def __init__(self) -> None:
        self.calls: list[tuple[list[list[int]], int]] = []

    def stream(self, prompts, n, sampling, seed):
        self.calls.append((prompts, n))
        for place, prompt in enumerate(prompts):
            for number in range(n):
                ids = (prompt[0], number)
                completion = Completion(token_ids=ids, rollout_logprobs=(0.0, 0.0), finished=True, weight_version=0)
                yield Sampled(place, number, completion)


def test_equal_prompts_are_drawn_apart_and_all_others_as_before():
    inner, warm = Alike(), SamplingConfig(temperature=1.0)
    engine = DrawsApart(inner)
    prompts = [[5], [6], [5], [7], [5]]
    found = [each.token_ids for (each,) in engine.generate(prompts, 1, warm, seed=0)]
    assert found == [(5, 0), (6, 0), (5, 1), (7, 0), (5, 2)]
    assert inner.calls == [([[6], [7]], 1), ([[5]], 3)]
    inner.calls.clear()
    for n, sampling, given in ((2, warm, prompts), (1, replace(warm, temperature=0.0), prompts), (1, warm, [[5], [6]])):
        engine.generate(given, n, sampling, seed=0)
        assert inner.calls.pop() == (given, n) and not inner.calls


# Episodes


class Counting:
    """The engine, and how many prompts each of its calls had."""

    def __init__(self, engine) -> None:
        self.engine, self.calls, self.max_model_len = engine, [], engine.max_model_len

    def stream(self, prompts, n, sampling, seed):
        self.calls.append((len(prompts), n))
        return self.engine.stream(prompts, n, sampling, seed)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp("episodes")
    scheme = keeper.write(folder / "keeper")
    return Run(config_of(folder, scheme=str(scheme), dense=False, sessions_per_step=100, sampling=SHORT))


SHORT = SamplingConfig(temperature=1.2, top_p=1.0, max_tokens=4)


def two_episodes(run: Run) -> tuple[Collector, EpisodeStream]:
    """Of two and of three sessions."""
    collector = replace(run.collector, engine=Counting(run.engine))
    first, second = run.builds
    short = replace(
        first, dialogue=replace(first.dialogue, sessions=first.dialogue.sessions[:2]), steps=first.steps[:2]
    )
    long = replace(second, dialogue=replace(second.dialogue, sessions=second.dialogue.sessions[:3]), steps=())
    return collector, EpisodeStream([short, long], collector.embedder, collector.scheme, 2, seed=1)


def test_dialogues_advance_side_by_side_in_one_call_a_session(run):
    collector, stream = two_episodes(run)
    scored = collector.episodes(stream, 0.4, seed=3)
    groups = run.config.num_rollouts
    assert collector.engine.calls == [(2 * groups, 1), (2 * groups, 1), (groups, 1)]
    ids = [f"{build.dialogue.id}/{session.index}" for build in stream.builds() for session in build.dialogue.sessions]
    assert [group.id for group in scored] == ids and all(len(group.rollouts) == groups for group in scored)
    for build in stream.builds():
        own = [group for group in scored if group.dialogue_id == build.dialogue.id]
        for rollout in range(groups):
            banks = [Bank(), *(group.rollouts[rollout].bank for group in own)]
            for before, after in zip(banks, banks[1:], strict=False):
                assert after.entries[: len(before.entries)] == before.entries
            # one reward: that of the end
            assert len({group.scores[rollout].qa for group in own}) == 1
        # lengths of an expert's build, or none where no expert built it
        assert all(bool(group.expert_tokens) == bool(build.steps) for group in own)
    assert scored == collector.episodes(stream, 0.4, seed=3) != collector.episodes(stream, 0.4, seed=4)
    first = [group for group in scored if group.id.endswith("/0")]
    assert any(len({rollout.samples["keeper"].text for rollout in group.rollouts}) > 1 for group in first)


def test_each_process_walks_its_own_dialogues_and_all_get_the_same(run):
    """The costlier dialogue is dealt first; the engine samples a prompt alike in whichever process."""
    collector, stream = two_episodes(run)
    alone, shares = collector.episodes(stream, 0.4, seed=3), []

    class Rank(World):
        def gather(self, value):
            shares.append(value)
            return shares[-2:]

    for rank in range(2):
        found = replace(collector, world=Rank(rank=rank, size=2)).episodes(stream, 0.4, seed=3)
    assert found == alone and [len(share) for share in shares] == [1, 1]


@pytest.mark.slow
def test_a_scheme_without_an_expert_trains_on_episodes_and_not_on_sessions(run, tmp_path):
    """It starts from what another one learned; its lengths cannot be steered."""
    more = "\n\ndef make_scheme(prompts):\n    made = Keeper(prompts)\n    made.expert = None\n    return made\n"
    settings = {"scheme": str(keeper.write(tmp_path / "alone", more)), "dense": False, "instances_per_step": 2}
    config = config_of(tmp_path, **settings, eval_every=2)
    trained = Run(config, builds_of(replace(config, scheme=run.config.scheme)))
    trained.builds = [replace(build, steps=()) for build in trained.builds]
    rows = trained.train()
    assert [row["step"] for row in rows] == [0, 1] and "expert_tokens/keeper" not in rows[0]
    assert 0 <= rows[1]["eval/accuracy"] <= 1
    with pytest.raises(ConfigError, match="length_target: scheme 'keeper' has no offline expert"):
        LengthController(replace(config, length_target=1.0), trained.builds, trained.collector)
    with pytest.raises(ConfigError, match="no offline expert.*dense=false, which needs none"):
        build_corpus(config.data, HashEmbedder(), trained.scheme, "train")
    corpus = build_corpus(config.data, HashEmbedder(), trained.scheme, "train", is_needed=False)
    assert corpus.train and not any(build.steps for build in corpus.train)
