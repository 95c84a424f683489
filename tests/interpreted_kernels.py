"""The head's Triton kernels against their plain twin, run by Triton's interpreter (tests/test_head.py starts this)."""

import math

import pytest
import torch

from tests.kernel_twins import assert_rows_equal_their_plain_twin
from trainer.kernels import triton_rows
from trainer.model.head import LogitScaling, head_loss

triton_rows.BLOCK = 16  # several blocks to a row even on small vocabularies


@pytest.mark.parametrize("cap", [None, 3.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 2), (3, 16), (5, 17), (2, 100)], ids=str)
def test_triton_rows_equal_their_plain_twin(shape, dtype, cap):
    rounding = {"rtol": 1e-5, "atol": 1e-5} if dtype is torch.float32 else {"rtol": 0.02, "atol": 1e-3}
    assert_rows_equal_their_plain_twin(shape, dtype, torch.device("cpu"), 1e-5, rounding, cap)


@pytest.mark.parametrize("chunk_rows", [2, 5])
def test_a_head_with_bias_scale_and_soft_cap_is_the_same_on_both_kernels(chunk_rows):
    """Of 37 columns, whose rows are padded to 48."""
    torch.manual_seed(0)
    parameters = [torch.randn(*shape).requires_grad_() for shape in ((5, 6), (37, 6), (37,))]
    hidden, weight, bias = parameters
    targets = torch.randint(37, (5,))

    def loss(logprobs, entropy, rows):
        return logprobs * torch.arange(5)[rows] + 0.3 * entropy, {}

    def found(impl: str) -> list[torch.Tensor]:
        options = {"chunk_rows": chunk_rows, "bias": bias, "scaling": LogitScaling(scale=1.5, cap=3.0), "impl": impl}
        output = head_loss(hidden, weight, targets, 0.7, loss, **options)
        return [output.head.logprobs, output.head.entropy, *torch.autograd.grad(output.loss, parameters)]

    for by_triton, by_torch in zip(found("triton"), found("plain"), strict=True):
        torch.testing.assert_close(by_triton, by_torch, rtol=1e-5, atol=1e-5)


def test_a_soft_cap_holds_an_infinite_range():
    logits = torch.tensor([[0.0, -1e30, 1e30, 1e4]])
    rows = triton_rows.statistics(logits, torch.tensor([2]), 1.0, 2.0)  # 0, -2, 2, 2
    assert rows.logprobs.tolist() == pytest.approx([2 - math.log(1 + math.exp(-2) + 2 * math.exp(2))])
    triton_rows.write_gradient_(logits, torch.tensor([2]), rows, torch.ones(1), torch.zeros(1), 1.0, 2.0)
    assert logits.tolist() == [[pytest.approx(-1 / (1 + math.exp(-2) + 2 * math.exp(2))), 0, 0, 0]]


def test_triton_rows_survive_an_infinite_range():
    logits = torch.tensor([[0.0, -1e30, 1e4, 1e4], [-1e4, -1e4, -1e4, -1e4]])
    rows = triton_rows.statistics(logits, torch.tensor([2, 0]), 1.0)
    assert rows.logprobs.tolist() == pytest.approx([-math.log(2), -math.log(4)])
    assert rows.entropy.tolist() == pytest.approx([math.log(2), math.log(4)])


@pytest.mark.parametrize("vocabulary", [5, 16, 17, 31])
def test_what_stands_in_the_padding_of_rows_has_no_influence(vocabulary):
    torch.manual_seed(0)
    logits, targets = torch.randn(3, vocabulary), torch.randint(vocabulary, (3,))
    width = triton_rows.row_width(vocabulary)
    padded = torch.full((3, width), torch.nan)[:, :vocabulary].copy_(logits)
    found, expected = (triton_rows.statistics(each, targets, 0.7) for each in (padded, logits))
    for name in ("logprobs", "entropy", "logsumexp"):
        assert torch.equal(getattr(found, name), getattr(expected, name))
    for each, rows in ((padded, found), (logits, expected)):
        triton_rows.write_gradient_(each, targets, rows, torch.ones(3), torch.ones(3), 0.7)
    assert torch.equal(padded, logits)


def test_triton_writes_only_its_chunk_of_the_workspace():
    workspace = torch.ones(4, 10)
    rows = triton_rows.statistics(workspace[:2], torch.tensor([0, 1]), 1.0)
    triton_rows.write_gradient_(workspace[:2], torch.tensor([0, 1]), rows, torch.ones(2), torch.zeros(2), 1.0)
    assert torch.equal(workspace[2:], torch.ones(2, 10)) and not torch.equal(workspace[:2], torch.ones(2, 10))
