"""Scored groups become prefix trees with advantages and weights, and the counts that losses are divided by."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from reward.rollouts import ScoredGroup
from reward.score import Baseline
from rollout.routed_experts import RoutedExperts
from rollout.types import Rollout, Sample
from trainer.advantages import StdScale, compared
from trainer.batching.packing import Share, TrainSequence, build_tree
from trainer.losses import TokenValues

OfPrompts = Mapping[tuple[int, ...], RoutedExperts]


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


def make_batch(
    scored: Sequence[ScoredGroup],
    roles: Sequence[str],
    scale: StdScale,
    run_silent: bool,
    baseline: Baseline = Baseline.SESSION,
    episode_share: bool = True,
) -> Batch:
    """Return all groups' training sequences, one prefix tree for each group, in the order of `roles` within it.

    Every completion that has a reward counts. With `run_silent` those of advantage 0 are run too, because the loss has
    terms beside the policy's; without it they cost no forward pass.
    """
    # of each (session, role); sessions of another role or dialogue are other ones, also to the baselines over several
    rewards = {
        (number, role): [score.reward[role] for score in group.scores]
        for number, group in enumerate(scored)
        for role in roles
    }
    owners = [(scored[number].dialogue_id, role) for number, role in rewards]
    found = dict(zip(rewards, compared(list(rewards.values()), owners, baseline, scale, episode_share), strict=True))
    groups, advantages = [], []
    for number, group in enumerate(scored):
        by_role = {role: found[number, role] for role in roles}
        advantages.append(by_role)
        of_prompts = prompt_experts(group.rollouts)
        sequences = [
            sequence
            for role, values in by_role.items()
            for rollout, score, advantage in zip(group.rollouts, group.scores, values, strict=True)
            if advantage is not None
            for sequence in sampled_sequences(rollout.samples[role], advantage, score.weights[role], of_prompts)
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


def sampled_sequences(
    sample: Sample, advantage: float = 0.0, weight: float = 0.0, of_prompts: OfPrompts = MappingProxyType({})
) -> list[TrainSequence]:
    """Return each turn of a sample with its tokens' values; nothing is learned from it where the advantage is 0.

    What a role was told between two turns is part of the later one's prompt: it carries no loss. `of_prompts`: the
    experts of prompts, which not every completion of a prompt carries.
    """
    assert sample.completion is not None, "what was not sampled has no reward"
    experts = _told_experts(sample, of_prompts)
    return [
        TrainSequence(
            prompt_token_ids=prompt,
            completion_token_ids=completion.token_ids,
            values=TokenValues(
                advantage=(advantage,) * len(completion.token_ids),
                weight=(weight,) * len(completion.token_ids),
                truncated=(float(is_cut),) * len(completion.token_ids),
                rollout_logprobs=completion.rollout_logprobs,
            ),
            routed_experts=experts[: number + 2],
        )
        for number, (prompt, completion, is_cut) in enumerate(sample.turns())
    ]


def prompt_experts(rollouts: Iterable[Rollout]) -> OfPrompts:
    """Return the experts of each prompt for which a completion carries them: the first one's, for all that share it.

    Which one it is decides nothing: all are choices of the same weights, most of them read from the same cache.
    """
    found: dict[tuple[int, ...], RoutedExperts] = {}
    for sample in (sample for rollout in rollouts for sample in rollout.samples.values()):
        prompt, completion = sample.prompt_token_ids, sample.completion
        told = None if completion is None else completion.routed_experts
        if told is not None and told.num_tokens == len(prompt) + len(completion.token_ids) - 1:
            found.setdefault(prompt, told.first(len(prompt)))
    return found


def _told_experts(sample: Sample, of_prompts: OfPrompts) -> tuple[RoutedExperts, ...]:
    """Return the experts of a sample's prompt, its first completion, and each later one with what came before it.

    They are none where a turn lacks them: an engine reports the experts of all its completions or of none.
    """
    first, *later = (completion for _, completion, _ in sample.turns())
    parts = [each.routed_experts for each in (first, *later)]
    prompt = of_prompts.get(sample.prompt_token_ids)
    if prompt is None or None in parts:
        return ()
    return (prompt, parts[0].last(len(first.token_ids) - 1), *parts[1:])
