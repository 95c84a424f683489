"""The head's Triton kernels against their plain twin, run by Triton's interpreter (tests/test_head.py starts this)."""

import math

import pytest
import torch

from tests.kernel_twins import assert_rows_equal_their_plain_twin
from trainer.kernels import triton_rows

triton_rows.BLOCK = 16  # several blocks to a row even on small vocabularies


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 2), (3, 16), (5, 17), (2, 100)], ids=str)
def test_triton_rows_equal_their_plain_twin(shape, dtype):
    rounding = {"rtol": 1e-5, "atol": 1e-5} if dtype is torch.float32 else {"rtol": 0.02, "atol": 1e-3}
    assert_rows_equal_their_plain_twin(shape, dtype, torch.device("cpu"), 1e-5, rounding)


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
