"""Runs of the real loops in children forked from this process, which has imported everything: a life costs a second."""

import multiprocessing
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from membuilder.embedding.local import Embedder
from membuilder.errors import clear_errors
from tests.both_loops import as_new
from trainer import run_setup

FORK = multiprocessing.get_context("fork")


@pytest.fixture(scope="module", autouse=True)
def embedder() -> None:
    """One real embedder, loaded before the forks."""
    loaded = Embedder(None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_setup, "Embedder", lambda name: loaded)
        yield


def _child(main: Callable, arguments: tuple, before: Callable[[], None], log: str) -> None:
    sys.stdout = sys.stderr = open(log, "a", buffering=1)
    torch.set_num_threads(1)
    os.environ.pop("WANDB_SERVICE", None)  # one that a test started in the parent knows the runs of killed children
    before()
    with clear_errors("run"):
        main(*arguments)


def start(main: Callable, arguments: tuple, log: str | Path, before: Callable[[], None] = lambda: None):
    process = FORK.Process(target=_child, args=(main, arguments, before, str(log)))
    process.start()
    return process


def finish(
    main: Callable, arguments: tuple, log: str | Path, before: Callable[[], None] = lambda: None, seconds: float = 200
) -> None:
    process = start(main, arguments, log, before)
    process.join(seconds)
    assert process.exitcode == 0, Path(log).read_text()[-3000:]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def as_rank(rank: int, size: int, port: int) -> None:
    """What a launcher would tell a process, which forgets what Accelerate knew of the process it was forked from."""
    as_new()
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size),
                   "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}  # fmt: skip
