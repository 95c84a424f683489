"""The functions of plain_rows.py as Triton kernels.

One program handles one row, and reads it in blocks with a running maximum. So the sum of exponentials never overflows,
and nothing of size (n, V) is made besides the logits themselves.

A thread reads and writes 16 bytes at a time only where rows start at multiples of 16 bytes and the compiler knows that
every block ends at one. So rows may be padded (`row_width`), and the kernels walk over `width`, the padded row.
"""

import torch
import triton
import triton.language as tl

from trainer.kernels.plain_rows import RowStatistics

BLOCK = 4096
"""Vocabulary entries that a program reads at a time."""
ALIGNMENT = 16
"""Numbers that a padded row is a multiple of: as many as Triton asks for before it makes accesses wide."""


@triton.jit
def _tanh(x):
    """Return tanh, wrong by a few roundings of 1: the interpreter knows no other way to it."""
    return 1 - 2 / (tl.exp(2 * x) + 1)  # where exp overflows, 2 / inf is 0


@triton.jit
def _statistics_kernel(
    logits,
    targets,
    logprobs,
    entropy,
    logsumexp,
    row_stride,
    width,
    vocab_size,
    inverse_temperature,
    CAP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    logits += row * row_stride
    maximum = tl.full((), float("-inf"), tl.float32)
    total = tl.zeros((), tl.float32)  # sum of exp(z - maximum)
    weighted = tl.zeros((), tl.float32)  # sum of (z - maximum) exp(z - maximum)
    for start in range(0, width, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < vocab_size
        x = tl.load(logits + columns, mask=columns < width, other=0.0).to(tl.float32)
        if CAP is not None:
            x = CAP * _tanh(x / CAP)
        z = x * inverse_temperature
        z = tl.where(inside, z, float("-inf"))
        new_maximum = tl.maximum(maximum, tl.max(z, 0))
        # before the first block there is nothing to rescale, and -inf - -inf would be NaN
        shift = tl.where(maximum == float("-inf"), 0.0, maximum - new_maximum)
        rescale = tl.exp(shift)
        e = tl.where(inside, tl.exp(z - new_maximum), 0.0)
        centred = tl.where(inside, z - new_maximum, 0.0)
        weighted = (weighted + total * shift) * rescale + tl.sum(centred * e, 0)
        total = total * rescale + tl.sum(e, 0)
        maximum = new_maximum
    log_total = tl.log(total)
    target = tl.load(targets + row)
    x_target = tl.load(logits + target).to(tl.float32)
    if CAP is not None:
        x_target = CAP * _tanh(x_target / CAP)
    z_target = x_target * inverse_temperature
    tl.store(logprobs + row, z_target - maximum - log_total)
    tl.store(entropy + row, log_total - weighted / total)
    tl.store(logsumexp + row, maximum + log_total)


@triton.jit
def _gradient_kernel(
    logits,
    targets,
    entropy,
    logsumexp,
    logprob_gradient,
    entropy_gradient,
    row_stride,
    width,
    inverse_temperature,
    CAP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    logits += row * row_stride
    target = tl.load(targets + row)
    row_entropy, row_logsumexp = tl.load(entropy + row), tl.load(logsumexp + row)
    by_logprob, by_entropy = tl.load(logprob_gradient + row), tl.load(entropy_gradient + row)
    for start in range(0, width, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < width
        x = tl.load(logits + columns, mask=inside, other=0.0).to(tl.float32)
        if CAP is not None:
            tanh = _tanh(x / CAP)
            x = CAP * tanh
        log_p = x * inverse_temperature - row_logsumexp
        gradient = -tl.exp(log_p) * (by_logprob + by_entropy * (log_p + row_entropy))
        gradient += tl.where(columns == target, by_logprob, 0.0)
        if CAP is not None:
            gradient *= 1 - tanh * tanh
        tl.store(logits + columns, (gradient * inverse_temperature).to(logits.dtype.element_ty), mask=inside)


def statistics(
    logits: torch.Tensor, targets: torch.Tensor, temperature: float, cap: float | None = None
) -> RowStatistics:
    """Do what plain_rows.statistics does, for logits (n, V) whose rows are contiguous, and may be padded."""
    _check(logits)
    num_rows, vocab_size = logits.shape
    logprobs, entropy, logsumexp = (torch.empty(num_rows, dtype=torch.float32, device=logits.device) for _ in range(3))
    if num_rows:
        _statistics_kernel[(num_rows,)](
            logits,
            targets,
            logprobs,
            entropy,
            logsumexp,
            logits.stride(0),
            _width(logits),
            vocab_size,
            1 / temperature,
            CAP=cap,
            BLOCK=BLOCK,
        )
    return RowStatistics(logprobs=logprobs, entropy=entropy, logsumexp=logsumexp)


def write_gradient_(
    logits: torch.Tensor,
    targets: torch.Tensor,
    rows: RowStatistics,
    logprob_gradient: torch.Tensor,
    entropy_gradient: torch.Tensor | None,
    temperature: float,
    cap: float | None = None,
) -> None:
    """Do what plain_rows.write_gradient_ does, for logits (n, V) with contiguous rows; a padding is overwritten."""
    _check(logits)
    num_rows = len(logits)
    if entropy_gradient is None:
        entropy_gradient = torch.zeros_like(logprob_gradient)
    if num_rows:
        _gradient_kernel[(num_rows,)](
            logits,
            targets,
            rows.entropy,
            rows.logsumexp,
            logprob_gradient.contiguous(),
            entropy_gradient.contiguous(),
            logits.stride(0),
            _width(logits),
            1 / temperature,
            CAP=cap,
            BLOCK=BLOCK,
        )


def row_width(vocab_size: int) -> int:
    """Return how long rows of logits should be allocated, so that every access is wide."""
    return -(-vocab_size // ALIGNMENT) * ALIGNMENT


def _width(logits: torch.Tensor) -> int:
    """Return how much of a row is read and written: its padding too, where it has one."""
    vocab_size = logits.shape[1]
    return min(row_width(vocab_size), max(logits.stride(0), vocab_size))


def _check(logits: torch.Tensor) -> None:
    assert logits.stride(1) == 1, "the kernels read a row's logits one after the other"
