"""The rows of a micro-batch that carry loss, and the losses on them as the head calls them.

The head knows hidden states and targets only. It hands the log-probs and entropies of some rows to a function, which
knows everything else about these rows and returns their losses.
Letters: M rows that carry loss.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from trainer.configs import Aggregation, LossConfig
from trainer.losses import Loss, LossInputs, Metrics, TokenValues, needs_whole_sequences, sequence_lengths


@dataclass(frozen=True, kw_only=True, slots=True)
class Objective:
    """A policy loss on the loss tokens of one micro-batch, as a function that the head calls chunk by chunk.

    Besides the loss it holds everything about these tokens that is known before the model runs; each tensor is (M,).
    """

    loss: Loss
    config: LossConfig
    scale: torch.Tensor
    """What the token's loss is multiplied by: `token_scale`, times the number of ranks where their mean is taken."""
    values: TokenValues[torch.Tensor]
    ref_logprobs: torch.Tensor | None
    sequence: torch.Tensor

    @property
    def whole_sequences(self) -> bool:
        """Whether the head must call it once, with all rows."""
        return needs_whole_sequences(self.loss, self.config)

    def inputs(self, logprobs: torch.Tensor, entropy: torch.Tensor, rows: slice) -> LossInputs:
        """What the loss gets for some of the rows, given their log-probs and entropies."""
        known = {name: column[rows] for name, column in self.values.columns().items()}
        return LossInputs(
            trainer_logprobs=logprobs,
            entropy=entropy,
            ref_logprobs=None if self.ref_logprobs is None else self.ref_logprobs[rows],
            sequence=self.sequence[rows],
            **{"proximal_logprobs": logprobs.detach()} | known,
        )

    def __call__(self, logprobs: torch.Tensor, entropy: torch.Tensor, rows: slice) -> tuple[torch.Tensor, Metrics]:
        inputs = self.inputs(logprobs, entropy, rows)
        per_token, metrics = self.loss(inputs, self.config)
        gap = (inputs.proximal_logprobs - inputs.rollout_logprobs).abs()
        always = {"loss": per_token, "entropy": entropy, "sampling/logp_difference/mean": gap}
        return per_token * self.scale[rows], always | metrics


def cross_entropy(scale: torch.Tensor) -> Callable[[torch.Tensor, torch.Tensor, slice], tuple[torch.Tensor, Metrics]]:
    """Supervised fine-tuning, for the head: minus the log-prob of each row, times its scale (M,)."""

    def loss(logprobs: torch.Tensor, entropy: torch.Tensor, rows: slice) -> tuple[torch.Tensor, Metrics]:
        return -logprobs * scale[rows], {"loss": -logprobs}

    return loss


def token_scale(
    aggregation: Aggregation, sequence: torch.Tensor, num_tokens: int, num_sequences: int, max_tokens: int
) -> torch.Tensor:
    """(M,): what each token's loss is multiplied by before the sum over all tokens of an update.

    `num_tokens` and `num_sequences` count the whole update, over all micro-batches and ranks, so any split into
    micro-batches gives the same gradient. `max_tokens` is the longest completion allowed.
    """
    if aggregation is Aggregation.SEQUENCE:
        return 1 / (sequence_lengths(sequence, torch.float32) * num_sequences)
    divisor = num_tokens if aggregation is Aggregation.TOKEN else num_sequences * max_tokens
    return torch.full(sequence.shape, 1 / divisor, device=sequence.device)
