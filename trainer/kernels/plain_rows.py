"""What the head needs of a chunk of logits, row by row, in plain PyTorch: the twin of triton_rows.py, on any device.

Letters: n rows of a chunk, V vocabulary, T temperature; z = logits / T, p = softmax(z), H = -sum p log p.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True, slots=True)
class RowStatistics:
    logprobs: torch.Tensor  # (n,) float32, log p of the target
    entropy: torch.Tensor  # (n,) float32
    logsumexp: torch.Tensor  # (n,) float32, of z


def statistics(logits: torch.Tensor, targets: torch.Tensor, temperature: float) -> RowStatistics:
    """Of logits (n, V) in any float type, computed in at least float32; the logits stay as they are."""
    log_p = logits.to(_wide(logits)) / temperature
    logsumexp = log_p.logsumexp(-1)
    log_p.sub_(logsumexp[:, None])
    logprobs = log_p.gather(-1, targets[:, None]).squeeze(-1)
    # logsumexp - sum p z would be the difference of two large numbers
    entropy = -log_p.exp().mul_(log_p).sum(-1)
    return RowStatistics(logprobs=logprobs, entropy=entropy, logsumexp=logsumexp)


def write_gradient_(
    logits: torch.Tensor,
    targets: torch.Tensor,
    rows: RowStatistics,
    logprob_gradient: torch.Tensor,
    entropy_gradient: torch.Tensor,
    temperature: float,
) -> None:
    """Overwrite logits (n, V) by the gradient of the loss with respect to them, in their own type.

    (dL/dlogp (onehot - p) - dL/dH p (log p + H)) / T, from the loss's gradients (n,) by log-prob and by entropy.
    """
    log_p = (logits.to(_wide(logits)) / temperature).sub_(rows.logsumexp[:, None])
    p = log_p.exp()
    log_p.add_(rows.entropy[:, None]).mul_(entropy_gradient[:, None]).add_(logprob_gradient[:, None])
    gradient = p.mul_(log_p).neg_()
    gradient.scatter_add_(-1, targets[:, None], logprob_gradient[:, None])
    logits.copy_(gradient.div_(temperature))


def _wide(logits: torch.Tensor) -> torch.dtype:
    return torch.promote_types(logits.dtype, torch.float32)
