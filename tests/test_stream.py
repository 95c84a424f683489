"""Which session comes next, and from whose bank."""

from dataclasses import replace

import pytest

from membuilder.generate.dialogue import generate
from membuilder.schemes.four_agents.prompts import PromptConfig
from membuilder.schemes.four_agents.scheme import FourAgents
from membuilder.types import Bank
from rollout.turns import Task
from rollout.types import Group, Rollout
from tests.fakes import HashEmbedder
from trainer.configs import States
from trainer.data.corpus import expert_builds
from trainer.experience.session_stream import SessionStream

PROMPTS = PromptConfig(template_set="compact", entries_shown=2)
SCHEME = FourAgents(PROMPTS)


@pytest.fixture(scope="module")
def embedder() -> HashEmbedder:
    return HashEmbedder()


@pytest.fixture(scope="module")
def builds(embedder):
    return expert_builds(generate(3, 1, "train", num_sessions=3), embedder, SCHEME, "rules")


def tasks_of(stream: SessionStream) -> list[Task]:
    return [stream.task(slot) for slot in range(len(stream.costs()))]


def groups_for(tasks, bank: Bank) -> list[Group]:
    """What sampling would give back if every rollout left this bank."""
    rollout = Rollout(samples={}, bank=bank)
    return [Group(id=t.id, dialogue_id=t.dialogue_id, session=t.session, rollouts=(rollout,)) for t in tasks]


def test_the_next_session_starts_from_the_policys_own_bank(builds, embedder):
    stream = SessionStream(builds, embedder, SCHEME, 2, States.POLICY, seed=1)
    own = Bank(core="written by the policy")
    for _ in range(6):
        before = tasks_of(stream)
        stream.advance(groups_for(before, own))
        for old, new in zip(before, tasks_of(stream), strict=True):
            if old.session.index < 2:
                assert (new.dialogue_id, new.session.index) == (old.dialogue_id, old.session.index + 1)
                assert new.bank == own
            else:
                assert new.session.index == 0 and new.bank == Bank()


def test_expert_states_are_the_experts(builds, embedder):
    stream = SessionStream(builds, embedder, SCHEME, 2, States.EXPERT, seed=1)
    for _ in range(4):
        tasks = tasks_of(stream)
        for slot, task in enumerate(tasks):
            build, session = stream.expert(slot)
            assert task.bank == build.steps[session].bank_before
        stream.advance(groups_for(tasks, Bank(core="never used")))


def test_every_dialogue_comes_once_before_any_comes_twice(builds, embedder):
    stream = SessionStream(builds, embedder, SCHEME, 3, States.POLICY, seed=5)
    assert len({task.dialogue_id for task in tasks_of(stream)}) == 3


def test_the_same_seed_gives_the_same_tasks(builds, embedder):
    first, second = (SessionStream(builds, embedder, SCHEME, 3, States.POLICY, seed=7) for _ in range(2))
    assert tasks_of(first) == tasks_of(second)
    other = SessionStream(builds, embedder, SCHEME, 3, States.POLICY, seed=8)
    assert [task.id for task in tasks_of(other)] != [task.id for task in tasks_of(first)]


def test_agents_see_only_entries_of_their_own(builds, embedder):
    build = builds[0]
    later = replace(build.steps[2])
    for agent, entries in later.shown.items():
        assert all(entry.agent is agent for entry in entries) and len(entries) <= 2
