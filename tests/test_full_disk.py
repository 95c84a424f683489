"""A disk that is full under DeepSpeed: two real ZeRO-2 ranks say so at once, instead of waiting for each other."""

import errno
import json
import os
import time
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from membuilder.errors import CheckpointError
from tests.forks import as_rank, free_port, start
from trainer.checkpoint.checkpoints import Best, Checkpoints, Progress
from trainer.distributed import process_group
from trainer.distributed.process_group import World, start_accelerator
from trainer.sft_config import SFTConfig

pytestmark = pytest.mark.slow
PATIENCE = timedelta(seconds=60)
BEST = Best(metric="loss", higher_is_better=False)


def no_room(*_: object, **__: object) -> None:
    raise RuntimeError(f"PytorchStreamWriter failed writing file: {os.strerror(errno.ENOSPC)}")


def no_room_to_copy(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


FAULTS = {  # what fails, and in which rank
    "weights": (lambda engine: (type(engine.checkpoint_engine), "save", no_room), 0),
    "moments": (lambda engine: (type(engine.checkpoint_engine), "save", no_room), 1),
    "recovery script": (lambda engine: (type(engine), "_copy_recovery_script", no_room_to_copy), 0),
}


def one_of_two(rank: int, port: int, folder: Path) -> None:
    """Saves at a disk that is full in one way after the other, then at one with room."""
    as_rank(rank, 2, port)
    process_group.PATIENCE = PATIENCE
    os.environ |= {
        "ACCELERATE_USE_DEEPSPEED": "true",
        "DS_ACCELERATOR": "cpu",
        "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(folder / "deepspeed.json"),
    }
    accelerator = start_accelerator(1.0)
    world = World.of(accelerator)
    model = torch.nn.Linear(8, 8)
    engine, _ = accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
    config = SFTConfig(out=str(folder), keep_last=1)
    nothing = SimpleNamespace(save_pretrained=lambda folder: None)
    no_files = SimpleNamespace(config=nothing, generation_config=nothing)
    checkpoints = Checkpoints(config, accelerator, world, no_files, nothing, BEST)
    seen = {"engine": type(engine).__name__}
    with world.watched():
        for name, (place, faulty_rank) in FAULTS.items():
            began = time.monotonic()
            with pytest.MonkeyPatch.context() as patch, pytest.raises(CheckpointError) as caught:
                if rank == faulty_rank:
                    patch.setattr(*place(engine))
                checkpoints.save(Progress(step=1, best=None, wandb_run_id=None), {})
            took = time.monotonic() - began
            world.barrier()
            left = [path.name for path in (folder / "checkpoints").iterdir()]
            world.barrier()
            seen[name] = {"said": str(caught.value), "took": took, "left": left}
        checkpoints.save(Progress(step=2, best=None, wandb_run_id=None), {})
    (folder / f"{rank}.json").write_text(json.dumps(seen))


def test_all_ranks_say_that_the_disk_is_full_and_can_save_again(tmp_path):
    deepspeed = {"zero_optimization": {"stage": 2}, "train_micro_batch_size_per_gpu": 1}
    (tmp_path / "deepspeed.json").write_text(json.dumps(deepspeed))
    port = free_port()
    ranks = [start(one_of_two, (rank, port, tmp_path), tmp_path / f"{rank}.log") for rank in range(2)]
    for rank, process in enumerate(ranks):
        process.join(120)
        assert process.exitcode == 0, (tmp_path / f"{rank}.log").read_text()[-3000:]
        seen = json.loads((tmp_path / f"{rank}.json").read_text())
        assert seen["engine"] == "DeepSpeedEngine"
        for name, (_, faulty_rank) in FAULTS.items():
            said = seen[name]["said"]
            assert "No space left on device" in said and "earlier checkpoints are kept" in said
            assert said.startswith("could not write" if rank == faulty_rank else f"rank {faulty_rank}: could not write")
            assert seen[name]["took"] < PATIENCE.total_seconds() / 2 and seen[name]["left"] == []
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_2"]
