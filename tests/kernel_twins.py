"""The head's Triton kernels and their plain twin on the same random rows."""

import torch

from trainer.kernels import plain_rows


def assert_rows_equal_their_plain_twin(
    shape, dtype, device, statistics: float, gradient: dict[str, float], cap: float | None = None
) -> None:
    """`statistics`: tolerance of log-probabilities and the like; `gradient`: that of what the backward pass writes."""
    from trainer.kernels import triton_rows

    torch.manual_seed(0)
    logits = (5 * torch.randn(shape, device=device)).to(dtype)
    targets = torch.randint(shape[1], shape[:1], device=device)
    by_logprob, by_entropy = torch.randn(shape[0], device=device), torch.randn(shape[0], device=device)
    plain = plain_rows.statistics(logits, targets, 0.7, cap)
    fused = triton_rows.statistics(logits, targets, 0.7, cap)
    for name in ("logprobs", "entropy", "logsumexp"):
        torch.testing.assert_close(getattr(fused, name), getattr(plain, name), rtol=statistics, atol=statistics)
    expected, found = logits.clone(), logits.clone()
    plain_rows.write_gradient_(expected, targets, plain, by_logprob, by_entropy, 0.7, cap)
    triton_rows.write_gradient_(found, targets, fused, by_logprob, by_entropy, 0.7, cap)
    torch.testing.assert_close(found, expected, **gradient)
