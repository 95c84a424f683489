from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

import pytest

from membuilder.errors import ConfigError, RewardError
from membuilder.types import Agent, Bank, Failure, FailureKind, Session, Turn
from reward.rollouts import ScoredGroup
from reward.score import RewardStatus, Score
from rollout.types import Completion, Rollout, Sample
from trainer.advantages import StdScale, group_advantages
from trainer.batching.packing import Node, TrainSequence, pack
from trainer.experience.metrics import check_missing, completion_rows, rollout_metrics
from trainer.experience.training_batch import Batch, make_batch
from trainer.losses import TokenValues

CORE, EPISODIC, SEMANTIC, PROCEDURAL = Agent
ROLES = tuple(Agent)
SESSION = Session(
    id="S1", index=0, timestamp=datetime(2023, 5, 8), turns=(Turn(id="D1:1", speaker="Ann", role="user", text="Hi."),)
)
EQUAL = (0.5, 0.5)


def sample_of(agent: Agent, k: int, *, finished: bool = True, failure: Failure | None = None) -> Sample:
    """Rollout k answers with k + 1 tokens, after a prompt of the dialogue (1 2) and the agent's own token."""
    number = list(Agent).index(agent)
    return Sample(
        prompt_token_ids=(1, 2, 10 + number),
        completion=Completion(
            token_ids=tuple(100 * (number + 1) + 10 * k + i for i in range(k + 1)),
            rollout_logprobs=tuple(-0.5 * (i + 1) for i in range(k + 1)),
            finished=finished,
            weight_version=3,
        ),
        text=f"{agent} {k}",
        written=() if failure else (f"memory {k}",) * (k + 1),
        failure=failure,
    )


def status_of(reward: float | None) -> RewardStatus:
    return RewardStatus.NOT_JUDGED if reward is None else RewardStatus.SCORED


def group_of(
    rewards: dict[Agent, Sequence[float | None]], *, agents=tuple(Agent), name: str = "g", **parts
) -> ScoredGroup:
    """A scored group: `rewards` of each rollout for the agents named, EQUAL for the rest. `agents` is the order in
    which the agents' completions arrived; `parts` are fields of Score to change, one per rollout."""
    count = len(next(iter(rewards.values())))
    by_agent = {agent: rewards.get(agent, (0.5,) * count) for agent in Agent}
    rollouts, scores = [], []
    for k in range(count):
        reward = {agent: by_agent[agent][k] for agent in agents}
        fields = dict(
            reward=reward,
            status={agent: status_of(value) for agent, value in reward.items()},
            qa=0.5,
            parts={"format": dict.fromkeys(agents, 1.0), "length_penalty": dict.fromkeys(agents, 0.0)},
            weights=dict.fromkeys(agents, 1.0),
            retrieval_counts=dict.fromkeys(agents, 0),
            num_missing_verdicts=0,
        )
        scores.append(Score(**fields | {key: values[k] for key, values in parts.items()}))
        rollouts.append(Rollout(samples={agent: sample_of(agent, k) for agent in agents}, bank=Bank()))
    return ScoredGroup(
        id=name,
        dialogue_id="d",
        session=SESSION,
        rollouts=tuple(rollouts),
        scores=tuple(scores),
        expert_tokens=dict.fromkeys(Agent, 2),
    )


def leaves(node: Node) -> list[TrainSequence]:
    return node.sequences + [sequence for child in node.children for sequence in leaves(child)]


def trees_of(batch: Batch) -> list[Node]:
    return [tree for group in batch.groups for tree in group.trees]


def trained(batch: Batch) -> dict[tuple[int, ...], TrainSequence]:
    """Completion -> its training sequence, over all trees."""
    return {sequence.completion_token_ids: sequence for tree in trees_of(batch) for sequence in leaves(tree)}


# advantages


@pytest.mark.parametrize(
    "scale, expected",
    [
        (StdScale.NONE, [0.5, -0.5]),
        (StdScale.GROUP, [0.9998, -0.9998]),  # 0.5 / (0.5 + 1e-4)
        (StdScale.GROUP_SAMPLE, [0.7070068, -0.7070068]),  # 0.5 / (sqrt(0.5 / 1) + 1e-4)
    ],
)
def test_two_rewards(scale, expected):
    assert group_advantages([[1.0, 0.0]], scale) == [pytest.approx(expected, abs=1e-6)]


def test_group_scale_is_the_groups_own():
    easy, hard = group_advantages([[1.0, 1.0, 0.0, 0.0], [0.2, 0.1]], StdScale.GROUP)
    assert easy == pytest.approx([0.9998, 0.9998, -0.9998, -0.9998], abs=1e-6)
    assert hard == pytest.approx([0.998004, -0.998004])  # 0.05 / 0.0501


def test_batch_scale_is_one_for_all_groups():
    # centred: 0.5, -0.5, 0, 0; their standard deviation is sqrt(0.5 / 4) = 0.353553
    advantages = group_advantages([[1.0, 0.0], [0.7, 0.7]], StdScale.BATCH)
    assert advantages[0] == pytest.approx([1.413814, -1.413814], abs=1e-6)
    assert advantages[1] == [0.0, 0.0]


@pytest.mark.parametrize("scale", StdScale)
def test_missing_rewards_stay_missing_and_move_no_baseline(scale):
    (with_missing,) = group_advantages([[1.0, None, 0.0, None]], scale)
    (without,) = group_advantages([[1.0, 0.0]], scale)
    assert with_missing == [without[0], None, without[1], None]


@pytest.mark.parametrize("scale", StdScale)
def test_missing_members_and_groups_leave_the_batch_scale_alone(scale):
    groups = group_advantages([[1.0, 0.0], [None, None], [0.3, None]], scale)
    # the member left alone in its group is at its own mean, so it counts as one more zero in the batch deviation
    assert groups[1:] == [[None, None], [0.0, None]]
    if scale is StdScale.BATCH:
        assert groups[0] == pytest.approx([1.224445, -1.224445])  # 0.5 / (sqrt(0.5 / 3) + 1e-4)


@pytest.mark.parametrize("scale", StdScale)
@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1, 1 / 3, 0.1 + 0.2, 1e-9])
@pytest.mark.parametrize("count", [1, 2, 3, 7, 8])
def test_equal_rewards_are_exact_zeros(scale, reward, count):
    assert group_advantages([[reward] * count], scale) == [[0.0] * count]


@pytest.mark.parametrize("scale", StdScale)
def test_rewards_equal_but_for_rounding_are_exact_zeros(scale):
    assert group_advantages([[0.1 + 0.2, 0.3, 0.3]], scale) == [[0.0] * 3]


@pytest.mark.parametrize("scale", StdScale)
def test_no_groups(scale):
    assert group_advantages([], scale) == []
    assert group_advantages([[]], scale) == [[]]


@pytest.mark.parametrize("scale", StdScale)
def test_advantages_of_a_group_sum_to_zero(scale):
    (advantages,) = group_advantages([[0.9, 0.2, 0.4, 0.4, 0.0]], scale)
    assert sum(advantages) == pytest.approx(0, abs=1e-12)
    assert advantages[2] == advantages[3] and sorted(advantages)[-1] == advantages[0]


# batches


def test_sequences_carry_their_own_numbers():
    weights = [{**dict.fromkeys(Agent, 1.0), SEMANTIC: 4.0}, dict.fromkeys(Agent, 1.0)]
    batch = make_batch([group_of({SEMANTIC: (1.0, 0.0)}, weights=weights)], ROLES, StdScale.NONE, run_silent=False)
    first, second = trained(batch)[(300,)], trained(batch)[(310, 311)]
    assert first.prompt_token_ids == second.prompt_token_ids == (1, 2, 12)
    assert first.values == TokenValues(advantage=(0.5,), weight=(4.0,), truncated=(0.0,), rollout_logprobs=(-0.5,))
    assert second.values == TokenValues(
        advantage=(-0.5, -0.5), weight=(1.0, 1.0), truncated=(0.0, 0.0), rollout_logprobs=(-0.5, -1.0)
    )


def test_agents_are_compared_with_themselves_only():
    batch = make_batch([group_of({CORE: (1.0, 0.0), EPISODIC: (0.0, 0.2)})], ROLES, StdScale.NONE, run_silent=False)
    (advantages,) = batch.advantages
    assert advantages[CORE] == [0.5, -0.5] and advantages[EPISODIC] == pytest.approx([-0.1, 0.1])
    assert advantages[SEMANTIC] == advantages[PROCEDURAL] == [0.0, 0.0]


def test_silent_agents_cost_no_forward():
    batch = make_batch([group_of({CORE: (1.0, 0.0)})], ROLES, StdScale.GROUP, run_silent=False)
    assert set(trained(batch)) == {(100,), (110, 111)}
    assert batch.num_run_tokens == 3
    assert batch.zero_std_share == 0.75
    assert sum(tree.num_tokens for tree in trees_of(batch)) == 4  # prompt 1 2 10 and 110


def test_members_at_the_mean_cost_no_forward():
    batch = make_batch([group_of({CORE: (1.0, 0.5, 0.0)})], ROLES, StdScale.GROUP, run_silent=False)
    assert set(trained(batch)) == {(100,), (120, 121, 122)}
    assert batch.num_run_tokens == 4


def test_missing_rewards_cost_no_forward_and_stay_missing():
    batch = make_batch(
        [group_of({CORE: (1.0, None, 0.0), EPISODIC: (None, None, 0.3)})], ROLES, StdScale.NONE, run_silent=False
    )
    assert set(trained(batch)) == {(100,), (120, 121, 122)}
    assert batch.advantages[0][CORE] == [0.5, None, -0.5]
    assert batch.advantages[0][EPISODIC] == [None, None, 0.0]
    assert batch.num_run_tokens == 4


def test_denominator_counts_loss_tokens_over_all_groups():
    groups = [group_of({CORE: (1.0, 0.0)}), group_of({CORE: EQUAL}), group_of({CORE: (0.0, 1.0), SEMANTIC: (1.0, 0.0)})]
    batch = make_batch(groups, ROLES, StdScale.GROUP, run_silent=False)
    assert batch.num_run_tokens == 3 + 0 + 6
    assert len(trees_of(batch)) == 2  # the second session has nothing to learn from
    assert len(pack(trees_of(batch)).targets) == batch.num_run_tokens
    assert batch.zero_std_share == 0.75  # 9 of 12
    assert len(batch.advantages) == 3


def test_every_scored_completion_counts_and_a_missing_one_does_not():
    groups = [group_of({CORE: (1.0, None)}), group_of({CORE: EQUAL, EPISODIC: (None, 0.0)})]
    batch = make_batch(groups, ROLES, StdScale.NONE, run_silent=False)
    assert trees_of(batch) == [], "nobody has an advantage"
    assert [(group.num_sequences, group.num_tokens) for group in batch.groups] == [(7, 10), (7, 11)]
    assert batch.shares(1) == [], "no update without anything to run"


@pytest.mark.parametrize("num_shares", [1, 2, 3])
def test_silent_groups_count_in_the_updates_they_are_dealt_to(num_shares):
    groups = [group_of({CORE: (1.0, 0.0)}), *[group_of({CORE: EQUAL})] * 3]
    (share,) = make_batch(groups, ROLES, StdScale.GROUP, run_silent=False).shares(num_shares)
    dealt = {1: 4, 2: 2, 3: 2}[num_shares]
    assert share.num_run_tokens == 3
    assert (share.num_sequences, share.num_tokens) == (8 * dealt, 12 * dealt)


def test_silent_completions_are_run_where_the_loss_has_other_terms():
    batch = make_batch([group_of({CORE: (1.0, 0.0, None)})], ROLES, StdScale.GROUP, run_silent=True)
    (group,) = batch.groups
    assert group.num_run_tokens == group.num_tokens == 3 + 3 * 6
    assert len(leaves(group.trees[0])) == group.num_sequences == 2 + 3 * 3
    found = sorted({sequence.values.advantage[0] for sequence in leaves(group.trees[0])})
    assert found == pytest.approx([-0.9998, 0.0, 0.9998], abs=1e-6)


def test_nothing_to_learn():
    batch = make_batch([group_of({CORE: EQUAL}), group_of({CORE: (0.7,)})], ROLES, StdScale.GROUP, run_silent=False)
    assert (trees_of(batch), batch.num_run_tokens, batch.zero_std_share) == ([], 0, 1.0)
    assert make_batch([], ROLES, StdScale.GROUP, run_silent=False).num_run_tokens == 0


def test_batch_scale_spans_groups_and_agents():
    # sixteen centred rewards: +-0.5 and +-0.1, the rest zero; sqrt(0.52 / 16) = 0.180278
    groups = [group_of({CORE: (1.0, 0.0)}), group_of({EPISODIC: (0.4, 0.6)})]
    batch = make_batch(groups, ROLES, StdScale.BATCH, run_silent=False)
    assert batch.advantages[0][CORE] == pytest.approx([2.771968, -2.771968], abs=1e-5)
    assert batch.advantages[1][EPISODIC] == pytest.approx([-0.554394, 0.554394], abs=1e-5)


def test_one_tree_per_session_shares_the_dialogue():
    batch = make_batch([group_of({agent: (1.0, 0.0) for agent in Agent})], ROLES, StdScale.GROUP, run_silent=False)
    (tree,) = trees_of(batch)
    assert tree.token_ids == (1, 2)
    assert tree.num_tokens == 2 + 4 * (1 + 1)  # per agent its own prompt token and the longer completion's first


def test_order_of_arrival_never_matters():
    rewards = {agent: (0.1 * i, 0.4, 0.9) for i, agent in enumerate(Agent)}
    forward, backward = group_of(rewards), group_of(rewards, agents=tuple(Agent)[::-1])
    for scale in StdScale:
        assert make_batch([forward], ROLES, scale, run_silent=False) == make_batch(
            [backward], ROLES, scale, run_silent=False
        )
    batch = make_batch([forward], ROLES, StdScale.GROUP, run_silent=False)
    assert rollout_metrics([forward], batch, len) == rollout_metrics([backward], batch, len)


# stopping


def missing_of(missing: int, total: int) -> ScoredGroup:
    """A group of which `missing` of its `total` rewards could not be judged; `total` a multiple of four."""
    values = [None] * missing + [0.5] * (total - missing)
    return group_of({agent: values[i::4] for i, agent in enumerate(Agent)})


def test_too_many_missing_rewards_stop_the_run():
    with pytest.raises(RewardError, match=r"5 of 20 rewards of this step could not be judged \(allowed: 20%\)"):
        check_missing([missing_of(5, 20)], max_share=0.2)


def test_share_is_taken_over_all_groups():
    with pytest.raises(RewardError, match="5 of 24"):
        check_missing([missing_of(4, 4), missing_of(1, 20)], max_share=0.2)
    check_missing([missing_of(4, 4), missing_of(0, 20)], max_share=0.2)


@pytest.mark.parametrize("missing, share", [(0, 0.0), (4, 0.2), (20, 1.0)])
def test_as_many_as_allowed_go_on(missing, share):
    check_missing([missing_of(missing, 20)], max_share=share)


@pytest.mark.parametrize("status", [RewardStatus.NO_QUESTIONS, RewardStatus.INVALID])
def test_only_what_could_not_be_judged_counts(status):
    group = group_of({CORE: (None,)}, status=[dict.fromkeys(Agent, status)])
    check_missing([group], max_share=0.0)


def not_asked(group: ScoredGroup, *missing: tuple[Agent, int]) -> ScoredGroup:
    """The group as if these agents' prompts had been too long in these rollouts."""
    rollouts, scores = list(group.rollouts), list(group.scores)
    for agent, k in missing:
        failure = Failure(kind=FailureKind.PROMPT_TOO_LONG, detail="30000 tokens")
        sample = replace(rollouts[k].samples[agent], completion=None, text=None, written=(), failure=failure)
        rollouts[k] = replace(rollouts[k], samples=rollouts[k].samples | {agent: sample})
        scores[k] = replace(
            scores[k],
            reward=scores[k].reward | {agent: None},
            status=scores[k].status | {agent: RewardStatus.PROMPT_TOO_LONG},
            parts={name: values | {agent: None} for name, values in scores[k].parts.items()},
        )
    return replace(group, rollouts=tuple(rollouts), scores=tuple(scores))


def test_prompts_that_are_too_long_do_not_stop_a_run_unless_all_are():
    group = group_of({CORE: (1.0,)})
    some = not_asked(group, (EPISODIC, 0), (SEMANTIC, 0), (CORE, 0))
    check_missing([some], max_share=0.0)
    every = not_asked(group, *((agent, 0) for agent in Agent))
    check_missing([every, some], max_share=0.0)
    with pytest.raises(ConfigError, match="every prompt of this step is too long.*raise max_model_len"):
        check_missing([every, every], max_share=0.0)


def test_what_was_not_sampled_is_neither_trained_on_nor_averaged():
    """Rollouts of whole dialogues have banks of their own, so a prompt can be too long in one of them only."""
    group = not_asked(group_of({CORE: (1.0, 0.0, 0.5)}), (CORE, 2), (EPISODIC, 0), (EPISODIC, 1), (EPISODIC, 2))
    batch = make_batch([group], ROLES, StdScale.NONE, run_silent=False)
    assert batch.advantages[0][CORE] == [0.5, -0.5, None]
    assert sorted(map(len, trained(batch))) == [1, 2]
    metrics = rollout_metrics([group], batch, words)
    assert metrics["prompt_too_long"] == pytest.approx(4 / 12)
    assert (metrics["prompt_too_long/core"], metrics["prompt_too_long/semantic"]) == (pytest.approx(1 / 3), 0.0)
    assert metrics["completions/core/mean_length"] == 1.5 and metrics["memory_tokens/core"] == 3
    assert metrics["reward/core"] == 0.5
    assert not {"reward/episodic", "completions/episodic/mean_length", "memory_tokens/episodic"} & set(metrics)
    rows = completion_rows([group], batch, step=0, num_per_role=1)
    assert (rows[1]["completion"], rows[1]["status"], rows[1]["weight_version"]) == (None, "prompt_too_long", None)


def test_nothing_scored_is_not_a_fault_of_the_judge():
    check_missing([], max_share=0.2)


# metrics


def words(texts: Sequence[str]) -> int:
    return sum(len(text.split()) for text in texts)


def metrics_of(*groups: ScoredGroup) -> dict[str, float]:
    return rollout_metrics(groups, make_batch(groups, ROLES, StdScale.GROUP, run_silent=False), words)


def test_rewards_are_reported_per_agent_and_over_all():
    metrics = metrics_of(group_of({CORE: (1.0, 0.0), EPISODIC: (0.2, None)}))
    assert metrics["reward/core"] == 0.5 and metrics["reward/episodic"] == 0.2
    assert metrics["reward/semantic"] == metrics["reward/procedural"] == 0.5
    assert metrics["reward/mean"] == pytest.approx(3.2 / 7)
    assert metrics["rewards/missing"] == 0.125
    assert metrics["frac_reward_zero_std"] == 0.75
    assert metrics["num_tokens"] == 3


def test_spread_of_rewards_is_that_of_rewards():
    """All questions answered alike, yet two of four rollouts lose half their reward to length."""
    metrics = metrics_of(group_of(dict.fromkeys(Agent, (1.0, 0.5, 1.0, 0.5)), qa=[1.0] * 4))
    assert metrics["reward/std"] == 0.25


def test_parts_are_means_over_rollouts():
    valid, free = dict.fromkeys(Agent, 1.0), dict.fromkeys(Agent, 0.1)
    parts = {
        "qa": [1.0, None],
        "parts": [
            {"format": valid, "length_penalty": dict.fromkeys(Agent, 0.5)},
            {"format": {**valid, CORE: 0.0}, "length_penalty": {**free, CORE: None}},
        ],
        "weights": [{**dict.fromkeys(Agent, 1.0), SEMANTIC: 4.0}, dict.fromkeys(Agent, 1.0)],
    }
    metrics = metrics_of(group_of({CORE: (1.0, 0.0)}, **parts))
    assert metrics["qa/accuracy"] == 1.0
    assert (metrics["format/core"], metrics["format/episodic"]) == (0.5, 1.0)
    assert (metrics["length_penalty/core"], metrics["length_penalty/episodic"]) == (0.5, pytest.approx(0.3))
    assert (metrics["attribution_weight/semantic"], metrics["attribution_weight/core"]) == (2.5, 1.0)


def test_lengths_are_of_memory_text_and_of_completions():
    metrics = metrics_of(group_of({CORE: (1.0, 0.0)}))
    assert metrics["memory_tokens/core"] == 3  # "memory 0" once, "memory 1" twice
    assert metrics["expert_tokens/core"] == 2
    assert metrics["completions/core/mean_length"] == 1.5
    assert metrics["completions/core/clipped_ratio"] == 0


def test_clipped_completions_are_counted():
    group = group_of({CORE: (1.0, 0.0)})
    cut = sample_of(CORE, 0, finished=False)
    rollout = Rollout(samples={**group.rollouts[0].samples, CORE: cut}, bank=Bank())
    metrics = metrics_of(replace(group, rollouts=(rollout, group.rollouts[1])))
    assert metrics["completions/core/clipped_ratio"] == 0.5
    assert metrics["completions/semantic/clipped_ratio"] == 0


def test_a_mean_over_nothing_is_left_out():
    metrics = metrics_of(group_of({agent: (None, None) for agent in Agent}, qa=[None, None]))
    assert metrics["rewards/missing"] == 1
    assert not {"reward/mean", "reward/core", "qa/accuracy"} & set(metrics)
    assert None not in metrics.values()


# table


def test_rows_show_every_part_of_the_reward():
    weights = [{**dict.fromkeys(Agent, 1.0), SEMANTIC: 4.0}, dict.fromkeys(Agent, 1.0)]
    group = group_of({SEMANTIC: (1.0, 0.0), CORE: (None, None)}, name="D1/0", weights=weights, qa=[0.75, 0.25])
    rows = completion_rows([group], make_batch([group], ROLES, StdScale.NONE, run_silent=False), step=7, num_per_role=1)
    assert [row["agent"] for row in rows] == ["core", "episodic", "semantic", "procedural"]
    assert rows[2] == {
        "step": 7,
        "session": "D1/0",
        "format": 1.0,
        "agent": "semantic",
        "completion": "semantic 0",
        "stored": ["memory 0"],
        "status": "scored",
        "failure": None,
        "reward": 1.0,
        "qa": 0.75,
        "length_penalty": 0.0,
        "weight": 4.0,
        "advantage": 0.5,
        "weight_version": 3,
    }
    assert (rows[0]["reward"], rows[0]["advantage"], rows[0]["status"]) == (None, None, "not_judged")


def test_rows_name_the_failure():
    group = group_of({CORE: (0.0, 1.0)})
    broken = sample_of(CORE, 0, failure=Failure(kind=FailureKind.NOT_JSON, detail="no JSON"))
    rollout = Rollout(samples={**group.rollouts[0].samples, CORE: broken}, bank=Bank())
    scored = replace(group, rollouts=(rollout, group.rollouts[1]))
    rows = completion_rows(
        [scored], make_batch([scored], ROLES, StdScale.NONE, run_silent=False), step=0, num_per_role=1
    )
    assert (rows[0]["failure"], rows[0]["stored"]) == ("no JSON", [])


def test_rows_come_from_the_first_groups():
    groups = [group_of({CORE: (1.0, 0.0)}, name=name) for name in "abc"]
    rows = completion_rows(groups, make_batch(groups, ROLES, StdScale.NONE, run_silent=False), step=0, num_per_role=2)
    assert [row["session"] for row in rows] == ["a"] * 4 + ["b"] * 4
