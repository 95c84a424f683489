"""The rows of a micro-batch that carry loss: what is known of them before the model runs, and how much each counts."""

from dataclasses import dataclass

import torch

from trainer.losses import Aggregation, LossInputs, sequence_lengths


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """Everything about the loss tokens of a micro-batch that is known before the model runs; each (M,)."""

    scale: torch.Tensor
    """What the token's loss is multiplied by: `token_scale`, times the number of ranks where their mean is taken."""
    proximal_logprobs: torch.Tensor | None
    """None where one update consumes the samples: the log-probs of this very pass, detached, are the proximal's."""
    rollout_logprobs: torch.Tensor
    ref_logprobs: torch.Tensor | None
    advantage: torch.Tensor
    weight: torch.Tensor
    truncated: torch.Tensor
    sequence: torch.Tensor

    def inputs(self, logprobs: torch.Tensor, entropy: torch.Tensor, chunk: slice) -> LossInputs:
        """What the loss gets for some of the rows, given their log-probs and entropies."""
        proximal, reference = self.proximal_logprobs, self.ref_logprobs
        return LossInputs(
            trainer_logprobs=logprobs,
            entropy=entropy,
            proximal_logprobs=logprobs.detach() if proximal is None else proximal[chunk],
            rollout_logprobs=self.rollout_logprobs[chunk],
            ref_logprobs=None if reference is None else reference[chunk],
            advantage=self.advantage[chunk],
            weight=self.weight[chunk],
            truncated=self.truncated[chunk],
            sequence=self.sequence[chunk],
        )


def supervised_rows(sequence: torch.Tensor, num_tokens: float) -> Rows:
    """Rows of tokens to imitate, for `cross_entropy`: weight one, and nothing that only sampled tokens have."""
    zeros, ones = (
        torch.zeros(sequence.shape, device=sequence.device),
        torch.ones(sequence.shape, device=sequence.device),
    )
    return Rows(
        scale=ones / num_tokens,
        proximal_logprobs=None,
        rollout_logprobs=zeros,
        ref_logprobs=None,
        advantage=ones,
        weight=ones,
        truncated=zeros,
        sequence=sequence,
    )


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
