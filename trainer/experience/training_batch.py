"""Scored groups become prefix trees with advantages and weights, and the counts that losses are divided by."""

from collections.abc import Sequence
from dataclasses import dataclass

from reward.rollouts import ScoredGroup
from rollout.types import Sample
from trainer.advantages import StdScale, group_advantages
from trainer.batching.packing import Share, TrainSequence, build_tree
from trainer.losses import TokenValues


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """What a step trains on."""

    groups: list[Share]
    """Every group that has a scored completion."""
    advantages: list[dict[str, list[float | None]]]
    """The advantages of each group and role, one for each rollout."""
    zero_std_share: float
    """Share of (group, role) pairs whose rewards are all equal, so that the policy term learns nothing from them."""

    @property
    def num_run_tokens(self) -> int:
        """Return the number of completion tokens that are run."""
        return sum(group.num_run_tokens for group in self.groups)

    def shares(self, num_shares: int) -> list[Share]:
        """Deal the groups to updates, those with most to run first, so that each has about as much to learn from.

        An update without a completion to run is left out.
        """
        dealt = sorted(self.groups, key=lambda group: group.num_run_tokens, reverse=True)
        joined = [_join(dealt[start::num_shares]) for start in range(num_shares)]
        return [share for share in joined if share.trees]


def _join(shares: Sequence[Share]) -> Share:
    return Share(
        trees=tuple(tree for share in shares for tree in share.trees),
        num_tokens=sum(share.num_tokens for share in shares),
        num_sequences=sum(share.num_sequences for share in shares),
    )


def make_batch(scored: Sequence[ScoredGroup], roles: Sequence[str], scale: StdScale, run_silent: bool) -> Batch:
    """Return all groups' training sequences, one prefix tree for each group, in the order of `roles` within it.

    Every completion that has a reward counts. With `run_silent` those of advantage 0 are run too, because the loss has
    terms beside the policy's; without it they cost no forward pass.
    """
    rewards = {
        (number, role): [score.reward[role] for score in group.scores]
        for number, group in enumerate(scored)
        for role in roles
    }
    found = dict(zip(rewards, group_advantages(list(rewards.values()), scale), strict=True))
    groups, advantages = [], []
    for number, group in enumerate(scored):
        by_role = {role: found[number, role] for role in roles}
        advantages.append(by_role)
        sequences = [
            sampled_sequence(group.rollouts[k].samples[role], advantage, group.scores[k].weights[role])
            for role, values in by_role.items()
            for k, advantage in enumerate(values)
            if advantage is not None
        ]
        run = [sequence for sequence in sequences if run_silent or sequence.values.advantage[0]]
        if sequences:
            groups.append(
                Share(
                    trees=(build_tree(run, group.id),) if run else (),
                    num_tokens=sum(len(sequence.completion_token_ids) for sequence in sequences),
                    num_sequences=len(sequences),
                )
            )
    silent = sum(any(a is not None for a in values) and not any(values) for values in found.values())
    return Batch(groups=groups, advantages=advantages, zero_std_share=silent / max(1, len(rewards)))


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
