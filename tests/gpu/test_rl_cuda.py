"""The RL loop with a KL term: every model must stand where the batches are."""

import pytest
import torch

from tests.small_rl import Run, config_of, weights

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


def test_two_steps_with_a_reference_model(tmp_path):
    run = Run(config_of(tmp_path))
    before = weights(run.policy)
    rows = run.train()
    assert [row["step"] for row in rows] == [0, 1]
    assert {parameter.device.type for parameter in run.reference.parameters()} == {run.accelerator.device.type}
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-6) and rows[1]["kl"] > 0
    assert all(row["grad_norm"] > 0 for row in rows) and not torch.equal(weights(run.policy), before)
