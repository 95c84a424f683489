"""Hidden states and head weight -> log-probs and entropies of the target rows."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadOutput:
    logprobs: torch.Tensor  # (M,) float32, differentiable
    entropy: torch.Tensor  # (M,) float32, differentiable


def token_logprobs(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, temperature: float = 1.0
) -> HeadOutput:
    """Log-probs of `targets` (M,) under softmax(hidden (M, H) @ weight (V, H)^T / temperature), in float32."""
    logits = (hidden @ weight.T).float() / temperature  # (M, V)
    normaliser = logits.logsumexp(-1)
    logprobs = logits.gather(-1, targets[:, None]).squeeze(-1) - normaliser
    entropy = normaliser - ((logits - normaliser[:, None]).exp() * logits).sum(-1)
    return HeadOutput(logprobs=logprobs, entropy=entropy)
