"""The statistics and gradients of rows of logits in plain PyTorch, for any device; triton_rows.py is the fast twin.

A soft cap on the logits is put on as they are read: the logits that these functions are given have none.
Letters: n rows of a chunk, V vocabulary, T temperature; z = logits / T, or cap tanh(logits / cap) / T; p = softmax(z),
H = -sum p log p.
"""

from typing import NamedTuple

import torch


class RowStatistics(NamedTuple):
    """What the loss and its gradient need to know of a chunk of logits."""

    logprobs: torch.Tensor  # (n,) float32, log p of the target
    entropy: torch.Tensor  # (n,) float32
    logsumexp: torch.Tensor  # (n,) float32, of z


BLOCK = 2**18
"""Count of logits that are worked on at once, so few that what is made of them stays in a core's cache."""


def statistics(
    logits: torch.Tensor, targets: torch.Tensor, temperature: float, cap: float | None = None
) -> RowStatistics:
    """Compute the statistics of logits (n, V) in at least float32; the logits stay as they are."""
    parts = [_statistics(logits[block], targets[block], temperature, cap) for block in _blocks(logits)]
    return RowStatistics(*map(torch.cat, zip(*parts, strict=True)))


def _statistics(logits: torch.Tensor, targets: torch.Tensor, temperature: float, cap: float | None) -> RowStatistics:
    z = logits.to(_wide(logits)) / (temperature if cap is None else cap)
    if cap is not None:
        z.tanh_().mul_(cap / temperature)
    maximum = z.amax(-1)
    z.sub_(maximum[:, None])
    exponentials = z.exp()
    total = exponentials.sum(-1)
    log_total = total.log()
    return RowStatistics(
        logprobs=z.gather(-1, targets[:, None]).squeeze(-1) - log_total,
        entropy=log_total - torch.linalg.vecdot(exponentials, z) / total,
        logsumexp=maximum + log_total,
    )


def write_gradient_(
    logits: torch.Tensor,
    targets: torch.Tensor,
    rows: RowStatistics,
    logprob_gradient: torch.Tensor,
    entropy_gradient: torch.Tensor | None,
    temperature: float,
    cap: float | None = None,
) -> None:
    """Overwrite logits (n, V) by the gradient of the loss with respect to them, in their own type.

    It is (dL/dlogp (onehot - p) - dL/dH p (log p + H)) / T, from the loss's gradients (n,) by log-prob and by entropy,
    and under a cap that times 1 - tanh(logits / cap)^2. None for the entropy's leaves its term out.
    """
    for block in _blocks(logits):
        by_entropy = None if entropy_gradient is None else entropy_gradient[block]
        own = RowStatistics(*(each[block] for each in rows))
        _write_gradient_(logits[block], targets[block], own, logprob_gradient[block], by_entropy, temperature, cap)


def _write_gradient_(
    logits: torch.Tensor,
    targets: torch.Tensor,
    rows: RowStatistics,
    logprob_gradient: torch.Tensor,
    entropy_gradient: torch.Tensor | None,
    temperature: float,
    cap: float | None,
) -> None:
    gradient = logits.to(_wide(logits))  # the logits themselves where they are wide enough
    if cap is None:
        gradient.div_(temperature)
    else:
        gradient.div_(cap).tanh_()
        slope = 1 - gradient.square()
        gradient.mul_(cap / temperature)
    gradient.sub_(rows.logsumexp[:, None])  # log p
    by_logprob = (logprob_gradient / temperature)[:, None]
    if entropy_gradient is None:
        gradient.exp_().mul_(-by_logprob)
    else:
        p = gradient.exp()
        by_entropy = (entropy_gradient / temperature)[:, None]
        gradient.add_(rows.entropy[:, None]).mul_(by_entropy).add_(by_logprob).mul_(p).neg_()
    gradient.scatter_add_(-1, targets[:, None], by_logprob)
    if cap is not None:
        gradient.mul_(slope)
    if gradient is not logits:
        logits.copy_(gradient)


def _blocks(logits: torch.Tensor) -> list[slice]:
    """Return slices of whole rows; one of none where there are no rows."""
    size = max(BLOCK // logits.shape[1], 1)
    return [slice(start, start + size) for start in range(0, max(len(logits), 1), size)]


def row_width(vocab_size: int) -> int:
    """Return how long rows of logits should be allocated: no longer than they are."""
    return vocab_size


def _wide(logits: torch.Tensor) -> torch.dtype:
    return torch.promote_types(logits.dtype, torch.float32)
