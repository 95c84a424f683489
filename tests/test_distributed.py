"""The policy, head included, on two real gloo processes under DDP, ZeRO-2 and ZeRO-3: the numbers of one process."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.distributed_policy import train_alone

ROOT = Path(__file__).parent.parent
ENGINES = {"ddp": ("DistributedDataParallel", None), "zero2": ("DeepSpeedEngine", 2), "zero3": ("DeepSpeedEngine", 3)}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.mark.parametrize("mode", ENGINES)
def test_two_processes_train_as_one(tmp_path, mode):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_addr", "127.0.0.1"]
    command += ["--master_port", str(free_port()), "tests/distributed_policy.py", str(tmp_path), mode]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=240)
    assert result.returncode == 0, result.stderr[-3000:]
    for name in ("tied", "untied"):
        seen = json.loads((tmp_path / f"{name}.json").read_text(encoding="utf-8"))
        assert (seen["ranks"], seen["engine"], seen["stage"]) == (2, *ENGINES[mode])
        losses, weights = train_alone(2, name == "tied")
        assert seen["losses"] == pytest.approx(losses, abs=1e-5)
        found = torch.load(tmp_path / f"{name}.pt", weights_only=True)
        assert found.keys() == weights.keys()
        for parameter, expected in weights.items():
            assert (found[parameter] - expected).abs().max() <= 1e-5, parameter
