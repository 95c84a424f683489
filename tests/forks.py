"""Runs of the real loops in children of this process.

A forked child has imported everything already: a life costs a second. A spawned one starts anew: vLLM takes it, because
a lock that any thread of this process holds at the moment of a fork stays locked in the child for ever.
"""

import faulthandler
import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import RLock

import pytest
import torch
from tqdm import tqdm

from membuilder.command import clear_errors
from membuilder.embedding.local import Embedder
from tests.both_loops import as_new
from tests.patience import HANGS
from trainer import run_setup

FORK, SPAWN = multiprocessing.get_context("fork"), multiprocessing.get_context("spawn")


def nothing() -> None:
    """What happens before a run that nobody disturbs; it has a name, so that a spawned child can import it."""


@pytest.fixture(scope="module", autouse=True)
def embedder() -> None:
    """One real embedder, loaded before the forks."""
    loaded = Embedder(None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_setup, "Embedder", lambda name: loaded)
        yield


def _child(main: Callable, arguments: tuple, before: Callable[[], None], log: str, is_forked: bool) -> None:
    sys.stdout = sys.stderr = open(log, "a", buffering=1)
    faulthandler.dump_traceback_later(HANGS * 0.9, file=sys.stderr)
    if is_forked:
        sys.modules["vllm"] = None  # its import fails here at once; it would hang once in a hundred runs
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where the tests run in the background of a shell
    tqdm.set_lock(
        RLock()
    )  # its own is one of all processes: a child killed while it holds it would stop every later one
    os.environ.pop("WANDB_SERVICE", None)  # one that a test started in the parent knows the runs of killed children
    before()
    with clear_errors("run"):
        main(*arguments)


def start(
    main: Callable,
    arguments: tuple,
    log: str | Path,
    before: Callable[[], None] = nothing,
    context: BaseContext = FORK,
) -> BaseProcess:
    process = context.Process(target=_child, args=(main, arguments, before, str(log), context is FORK))
    process.start()
    return process


def finish(main: Callable, arguments: tuple, log: str | Path, *more) -> None:
    """Start a run with what else `start` takes, and wait for its good end."""
    process = start(main, arguments, log, *more)
    process.join(HANGS)
    assert process.exitcode == 0, Path(log).read_text()[-6000:]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def as_rank(rank: int, size: int, port: int) -> None:
    """What a launcher would tell a process, which forgets what Accelerate knew of the process it was forked from."""
    as_new()
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size),
                   "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}  # fmt: skip
