"""The rows of a micro-batch that carry loss, and the losses on them as the head calls them.

The head knows hidden states and targets only. It hands the log-probs and entropies of some rows to a function, which
knows everything else about these rows and returns their losses.
Letters: M rows that carry loss.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from trainer.configs import LossConfig
from trainer.losses import Loss, LossInputs, Metrics, TokenValues, checked, needs_whole_sequences


@dataclass(frozen=True, kw_only=True, slots=True)
class Objective:
    """A policy loss on the loss tokens of one micro-batch, as a function that the head calls chunk by chunk.

    Besides the loss it holds everything about these tokens that is known before the model runs; each tensor is (M,).
    """

    loss: Loss
    config: LossConfig
    scale: torch.Tensor
    """What each token's loss is multiplied by (`Update.token_scale`)."""
    values: TokenValues[torch.Tensor]
    ref_logprobs: torch.Tensor | None
    sequence: torch.Tensor

    @property
    def whole_sequences(self) -> bool:
        """Tell whether the head must call it once, with all rows."""
        return needs_whole_sequences(self.loss, self.config)

    def inputs(self, logprobs: torch.Tensor, entropy: torch.Tensor, rows: slice) -> LossInputs:
        """Return what the loss gets for some of the rows, given their log-probs and entropies."""
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
        per_token, metrics = checked(self.loss, self.loss(inputs, self.config), logprobs)
        gap = (inputs.proximal_logprobs - inputs.rollout_logprobs).abs()
        always = {"loss": per_token, "entropy": entropy, "sampling/logp_difference/mean": gap}
        return per_token * self.scale[rows], always | metrics


def cross_entropy(scale: torch.Tensor) -> Callable[[torch.Tensor, torch.Tensor, slice], tuple[torch.Tensor, Metrics]]:
    """Return the loss of supervised fine-tuning, for the head: minus each row's log-prob, times its scale (M,)."""

    def loss(logprobs: torch.Tensor, entropy: torch.Tensor, rows: slice) -> tuple[torch.Tensor, Metrics]:
        return -logprobs * scale[rows], {"loss": -logprobs}

    return loss
