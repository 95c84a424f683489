"""Training sequences for tests."""

from collections.abc import Sequence

from trainer.batching.packing import TrainSequence
from trainer.losses import TokenValues


def sequence(prompt: Sequence[int], completion: Sequence[int], **columns: tuple[float, ...]) -> TrainSequence:
    """A sequence to imitate, or with some columns of its values one that was sampled; the other columns are zeros."""
    zeros = dict.fromkeys(("advantage", "weight", "truncated", "rollout_logprobs"), (0.0,) * len(completion))
    values = TokenValues(**zeros | columns) if columns else None
    return TrainSequence(prompt_token_ids=tuple(prompt), completion_token_ids=tuple(completion), values=values)
