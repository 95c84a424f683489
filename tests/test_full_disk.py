"""A disk that is full under DeepSpeed: two real ZeRO-2 ranks say so at once, instead of waiting for each other."""

import errno
import json
import os
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch

from membuilder.errors import CheckpointError
from tests.forks import as_rank, free_port, start
from trainer.resume import Best, Checkpoints
from trainer.world import World, start_accelerator

pytestmark = pytest.mark.slow
PATIENCE = timedelta(seconds=20)
BEST = Best(metric="loss", higher_is_better=False)


def no_room(*_: object, **__: object) -> None:
    raise RuntimeError(f"PytorchStreamWriter failed writing file: {os.strerror(errno.ENOSPC)}")


def no_room_to_copy(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def one_of_two(rank: int, port: int, folder: Path, fault: str, faulty_rank: int) -> None:
    """Saves at a full disk, then at one with room."""
    as_rank(rank, 2, port)
    os.environ |= {
        "ACCELERATE_USE_DEEPSPEED": "true",
        "DS_ACCELERATOR": "cpu",
        "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(folder / "deepspeed.json"),
    }
    accelerator = start_accelerator(1.0, patience=PATIENCE)
    world = World.of(accelerator, patience=PATIENCE)
    model = torch.nn.Linear(8, 8)
    engine, _ = accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
    checkpoints = Checkpoints(
        root=folder / "checkpoints", settings={}, config={}, accelerator=accelerator, world=world, model_files={}
    )
    usual = type(engine.checkpoint_engine).save, type(engine)._copy_recovery_script
    if rank == faulty_rank:
        if fault == "weights":
            type(engine.checkpoint_engine).save = no_room
        else:
            type(engine)._copy_recovery_script = no_room_to_copy
    began = time.monotonic()
    with world.watched():
        try:
            checkpoints.save(1, {"step": 1}, 1, {}, BEST)
            said = "saved"
        except CheckpointError as error:
            said = str(error)
        took = time.monotonic() - began
        left = sorted(path.name for path in (folder / "checkpoints").iterdir())
        world.meet()
        type(engine.checkpoint_engine).save, type(engine)._copy_recovery_script = usual
        checkpoints.save(2, {"step": 2}, 1, {}, BEST)
    seen = {"said": said, "took": took, "left": left, "engine": type(engine).__name__}
    (folder / f"{rank}.json").write_text(json.dumps(seen))


@pytest.mark.parametrize(("fault", "faulty_rank"), [("weights", 0), ("weights", 1), ("recovery script", 0)])
def test_all_ranks_say_that_the_disk_is_full_and_can_save_again(tmp_path, fault, faulty_rank):
    deepspeed = {"zero_optimization": {"stage": 2}, "train_micro_batch_size_per_gpu": 1}
    (tmp_path / "deepspeed.json").write_text(json.dumps(deepspeed))
    port = free_port()
    ranks = [
        start(one_of_two, (rank, port, tmp_path, fault, faulty_rank), tmp_path / f"{rank}.log") for rank in range(2)
    ]
    for rank, process in enumerate(ranks):
        process.join(90)
        assert process.exitcode == 0, (tmp_path / f"{rank}.log").read_text()[-3000:]
        seen = json.loads((tmp_path / f"{rank}.json").read_text())
        assert seen["engine"] == "DeepSpeedEngine" and seen["took"] < PATIENCE.total_seconds() / 2
        assert "No space left on device" in seen["said"] and "earlier checkpoints are kept" in seen["said"]
        assert seen["said"].startswith("could not write" if rank == faulty_rank else f"rank {faulty_rank}: could not")
        assert seen["left"] == []
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_2"]
