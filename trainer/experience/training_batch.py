"""Scored groups become prefix trees with advantages and weights; completions without an advantage are left out."""

from collections.abc import Sequence
from dataclasses import dataclass

from reward.rollouts import ScoredGroup
from rollout.types import Sample
from trainer.advantages import StdScale, group_advantages
from trainer.batching.packing import Node, TrainSequence, build_tree, count_loss_tokens
from trainer.losses import TokenValues


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """What a step trains on."""

    trees: list[Node]
    num_tokens: int
    """Number of completion tokens that carry loss."""
    advantages: list[dict[str, list[float | None]]]
    """The advantages of each group and role, one for each rollout."""
    zero_std_share: float
    """Share of (group, role) pairs whose rewards are all equal, so that nothing is learned from them."""


def make_batch(scored: Sequence[ScoredGroup], roles: Sequence[str], scale: StdScale) -> Batch:
    """Return all groups' training sequences, one prefix tree for each group, in the order of `roles` within it."""
    rewards = {
        (number, role): [score.reward[role] for score in group.scores]
        for number, group in enumerate(scored)
        for role in roles
    }
    found = dict(zip(rewards, group_advantages(list(rewards.values()), scale), strict=True))
    trees, silent, advantages = [], 0, []
    for number, group in enumerate(scored):
        by_role = {role: found[number, role] for role in roles}
        advantages.append(by_role)
        sequences = []
        for role, values in by_role.items():
            carrying = [k for k, advantage in enumerate(values) if advantage]
            silent += not carrying and any(advantage is not None for advantage in values)
            sequences += [
                sampled_sequence(group.rollouts[k].samples[role], values[k], group.scores[k].weights[role])
                for k in carrying
            ]
        if sequences:
            trees.append(build_tree(sequences, group.id))
    return Batch(
        trees=trees,
        num_tokens=sum(count_loss_tokens(tree) for tree in trees),
        advantages=advantages,
        zero_std_share=silent / max(1, len(rewards)),
    )


def sampled_sequence(sample: Sample, advantage: float = 0.0, weight: float = 0.0) -> TrainSequence:
    """Return a sampled completion with its tokens' values; nothing is learned from it where the advantage is 0."""
    assert sample.completion is not None, "what was not sampled has no reward"
    num_tokens = len(sample.completion.token_ids)
    values = TokenValues(
        advantage=(advantage,) * num_tokens,
        weight=(weight,) * num_tokens,
        truncated=(float(not sample.completion.finished),) * num_tokens,
        rollout_logprobs=sample.completion.rollout_logprobs,
    )
    return TrainSequence(
        prompt_token_ids=sample.prompt_token_ids, completion_token_ids=sample.completion.token_ids, values=values
    )
