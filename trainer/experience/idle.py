"""A run that learns nothing says so: steps without anything to learn from are counted, and their likely cause is named.

`rl_cause` and `sft_cause` look at one step and tell in words why it taught nothing; None: it may have taught something.
"""

from collections import Counter
from collections.abc import Callable, Sequence

from transformers import PreTrainedTokenizerBase

from membuilder.errors import NothingLearnedError
from membuilder.text import on_one_line
from membuilder.types import FailureKind
from reward.rollouts import ScoredGroup
from reward.score import RewardStatus
from rollout.types import Sample
from trainer.experience.training_batch import Batch
from trainer.rl_config import RLConfig

MAX_SHOWN_CHARS = 160
"""Of a completion that a message shows."""


class IdleSteps:
    """Counts the steps in a row that taught nothing; `say` prints what is no error."""

    def __init__(self, limit: int, say: Callable[[str], None]) -> None:
        self._limit, self._say = limit, say
        self._in_a_row, self._cause, self._has_learned = 0, "", False

    def count(self, cause: str | None) -> NothingLearnedError | None:
        """Count a step, whose `cause` says why it taught nothing; return the error that ends a run of too many."""
        self._in_a_row = 0 if cause is None else self._in_a_row + 1
        self._has_learned |= cause is None
        self._cause = cause or ""
        if self._in_a_row != self._limit or cause is None:
            return None
        return NothingLearnedError(
            f"nothing could be learned from {self._in_a_row} steps in a row (max_idle_steps={self._limit}): {cause}. "
            "A checkpoint is saved; max_idle_steps=0 would train on all the same"
        )

    def close(self) -> None:
        """Say so where the run ends before the limit, but no step of it taught anything."""
        if self._in_a_row and not self._has_learned:
            self._say(f"warning: nothing could be learned from any of {self._in_a_row} steps: {self._cause}")


def sft_cause(norm: float, rate: float) -> str | None:
    """Tell why an SFT step taught nothing."""
    if rate == 0:
        return "the learning rate is 0: look at optim.lr, optim.warmup_ratio and optim.min_lr_ratio"
    if norm == 0:
        return "the gradient is exactly 0: is every weight frozen, or every token certain already (sft/loss 0)?"
    return None


def rl_cause(
    scored: Sequence[ScoredGroup],
    batch: Batch,
    norms: Sequence[float],
    rate: float,
    config: RLConfig,
    tokenizer: PreTrainedTokenizerBase,
) -> str | None:
    """Tell why an RL step taught nothing. `norms`: of the gradients of its updates, nan where one was left out."""
    rollouts = [rollout for group in scored for rollout in group.rollouts]
    samples = [sample for rollout in rollouts for sample in rollout.samples.values() if sample.completion is not None]
    if samples and all(sample.failure is not None for sample in samples):
        return _no_format(samples, config, tokenizer)
    advantages = (a for by_role in batch.advantages for values in by_role.values() for a in values)
    if not any(advantages):
        return _no_advantage(scored, config)
    if not norms:
        return f"no update was made: updates_per_step={config.updates_per_step}"
    if rate == 0:
        return sft_cause(norms[0], rate)
    if all(norm == 0 for norm in norms):
        return f"the gradient is exactly 0: is every weight frozen, or is that what loss.name={config.loss.name} gives?"
    return None


def _no_format(samples: Sequence[Sample], config: RLConfig, tokenizer: PreTrainedTokenizerBase) -> str:
    """Every completion failed: tell how most of them did, what one reads, and what that points to."""
    cut = sum(not sample.completion.finished for sample in samples)
    (kind, number), *_ = Counter(sample.failure.kind for sample in samples).most_common()
    example = next(sample for sample in samples if sample.failure.kind is kind)
    if cut == len(samples):
        seen = f"all {cut} completions were cut at sampling.max_tokens={config.sampling.max_tokens}"
        remedies = [_why_cut(samples, tokenizer)]
    else:
        failure = f"{kind} ({example.failure.detail})"
        seen = f"none of {len(samples)} completions has the format; {number} of them: {failure}"
        remedies = [
            "Was the model trained on this format (trainer.sft with the same scheme and `prompts`) and with this chat "
            "template?"
        ]
        if kind is FailureKind.TRUNCATED:
            remedies.append(_why_cut(samples, tokenizer))
    return " ".join([f"{seen}, one begins {_shown(example.text)}.", *remedies])


def _why_cut(samples: Sequence[Sample], tokenizer: PreTrainedTokenizerBase) -> str:
    """Tell what points to the end token, or else to the length."""
    special = set(tokenizer.all_special_ids)
    held = Counter(token for sample in samples for token in special & set(sample.completion.token_ids[:-1]))
    if not held:
        return (
            "None holds an end token: raise sampling.max_tokens, or train the model to end (trainer.sft with this "
            "tokenizer and chat template)"
        )
    (token, number), *_ = held.most_common()
    return (
        f"{number} hold the special token {tokenizer.convert_ids_to_tokens(token)!r} ({token}) and go on after it: is "
        "it the end token this model learned? Then name it as eos_token_id in the model's config.json and "
        f"generation_config.json; the tokenizer's is {tokenizer.eos_token!r} ({tokenizer.eos_token_id})"
    )


def _no_advantage(scored: Sequence[ScoredGroup], config: RLConfig) -> str:
    """Completions have the format, but no reward differs from another of its group."""
    scores = [score for group in scored for score in group.scores]
    rewards = [reward for score in scores for reward in score.reward.values() if reward is not None]
    statuses = Counter(status for score in scores for status in score.status.values())
    if not rewards and statuses[RewardStatus.NO_QUESTIONS]:
        return (
            "there is no reward, because no session had a question: does the data have questions that name their "
            "evidence? reward.earlier_questions=true asks those of earlier sessions too"
        )
    if not rewards:
        return f"there is no reward: {statuses.most_common(1)[0][0]}. Look at reward.judge={config.reward.judge}"
    if _are_all_alike(scored):
        return (
            f"all rollouts of a session are the same, token for token: raise sampling.temperature (now "
            f"{config.sampling.temperature}) or loss.entropy_coef"
        )
    if not any(score.qa for score in scores):
        return (
            "every reward is 0, because no question was answered from any memory: does the answer stand in the "
            f"session, and does reward.judge={config.reward.judge} find it? Look at reward.top_k and the questions"
        )
    return (
        f"every reward equals the others of its group (mean {sum(rewards) / len(rewards):.3g}): raise "
        f"sampling.temperature (now {config.sampling.temperature}), num_rollouts or reward.num_questions, or give data "
        "with questions that are neither always nor never answered"
    )


def _are_all_alike(scored: Sequence[ScoredGroup]) -> bool:
    return all(
        len({rollout.samples[role].text for rollout in group.rollouts}) == 1
        for group in scored
        for role in group.rollouts[0].samples
    )


def _shown(text: str | None) -> str:
    line = on_one_line(text or "")
    return repr(line if len(line) <= MAX_SHOWN_CHARS else f"{line[:MAX_SHOWN_CHARS]} ...")
