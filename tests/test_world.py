"""Who is named when a process of a run ends: real gloo processes, forked, each on a host of its own name."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from membuilder.command import clear_errors
from tests.forks import FORK, as_rank, free_port
from trainer.distributed import heartbeat
from trainer.distributed.process_group import World, start_accelerator


def one_rank(rank: int, hosts: tuple[str, ...], port: int, end: dict, folder: Path) -> None:
    """Meets the others until a connection breaks, unless `end` says something else."""
    torch.set_num_threads(1)
    socket.gethostname = lambda: hosts[rank]
    heartbeat.LOST_SECONDS, heartbeat.SILENT_SECONDS, heartbeat.GRACE_SECONDS, heartbeat.PERIOD_SECONDS = (
        2.0,
        2.0,
        3.0,
        0.1,
    )
    sys.stderr = open(folder / f"{rank}.log", "w")
    as_rank(rank, len(hosts), port)
    try:
        with clear_errors("run"):
            together = World.of(start_accelerator(1.0))
            with together.watched():
                together.barrier()
                done = end.get(rank, lambda: False)()
                while not done:
                    together.barrier()
            (folder / str(rank)).write_text("done")
    except SystemExit as stopped:
        (folder / str(rank)).write_text(str(stopped))
    finally:
        os._exit(1)


def run(hosts: tuple[str, ...], end: dict, folder: Path) -> tuple[list[str], list[int]]:
    """What each rank said at its end ("" for nothing), and their process ids."""
    port = free_port()
    processes = [FORK.Process(target=one_rank, args=(rank, hosts, port, end, folder)) for rank in range(len(hosts))]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode is not None, "still waiting for a process that is gone"
    said = [folder / str(rank) for rank in range(len(hosts))]
    return [path.read_text() if path.exists() else "" for path in said], [process.pid for process in processes]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail() -> None:
    raise ValueError("no room for\nthe batch")


def test_a_process_of_this_host_is_named_here_and_on_other_hosts(tmp_path):
    said, pids = run(("a", "a", "b"), {1: die}, tmp_path)
    gone = f"because rank 1 is gone (process {pids[1]} on a). Look for that one's error"
    assert said[0].startswith(f"run: rank 0 of 3 stops, {gone}")
    assert said[2].startswith(f"run: rank 2 of 3 stops, {gone}")


@pytest.mark.slow
def test_a_process_alone_on_its_host_is_named_by_its_silence(tmp_path):
    said, pids = run(("a", "b", "c"), {2: die}, tmp_path)
    for rank in (0, 1):
        assert (
            f"rank {rank} of 3 stops, because rank 2 is gone (no sign of life from process {pids[2]} on c)"
            in said[rank]
        )


def test_the_host_that_keeps_the_store_is_named_when_nothing_answers_there(tmp_path):
    said, _ = run(("a", "b"), {0: die}, tmp_path)
    assert "rank 1 of 2 stops, because rank 0 is gone (nothing answers at 127.0.0.1:" in said[1] and " on a)" in said[1]


def wait() -> None:
    """As a collective on CUDA does, whose peer is gone."""
    time.sleep(100)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("host", "how"),
    [("a", "process {} on a"), ("b", "no sign of life from process {} on b")],
    ids=["here", "elsewhere"],
)
def test_a_process_whose_main_thread_only_waits_is_ended_with_the_name_of_the_other(tmp_path, host, how):
    began = time.monotonic()
    said, pids = run(("a", host), {0: wait, 1: die}, tmp_path)
    assert said == ["", ""] and time.monotonic() - began < 70, "the main thread did not wait"
    log = (tmp_path / "0.log").read_text()
    assert f"rank 0 of 2 stops, because rank 1 is gone ({how.format(pids[1])})" in log and "resume=auto" in log


@pytest.mark.slow
def test_a_process_that_ended_well_is_not_taken_for_a_dead_one(tmp_path):
    def learn_on() -> bool:
        time.sleep(7)  # longer than a silence and the grace after it
        return True

    assert run(("a", "a", "b"), {0: learn_on, 1: lambda: True, 2: lambda: True}, tmp_path)[0] == ["done"] * 3


@pytest.mark.slow
def test_a_process_that_never_ended_its_pulse_can_still_exit():
    """Its thread is inside the store nearly always: without being stopped it would abort most of such processes."""
    program = """
import sys
from torch.distributed import TCPStore
from trainer.distributed import heartbeat
store = TCPStore("127.0.0.1", int(sys.argv[1]), is_master=True, wait_for_workers=False)
heartbeat.PERIOD_SECONDS = 0.0
kept = heartbeat.Heartbeat(run="r", rank=0, homes=[heartbeat.Home.here()])
heartbeat.time.sleep(0.1)
"""
    for _ in range(3):
        port = free_port()
        environment = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        assert subprocess.run([sys.executable, "-c", program, str(port)], env=environment, check=False).returncode == 0


def test_a_process_that_fails_leaves_its_error_to_the_others(tmp_path):
    said, _ = run(("a", "b"), {1: fail}, tmp_path)
    assert "rank 0 of 2 stops, because rank 1 failed on b (ValueError: no room for)" in said[0]


@pytest.mark.parametrize(("before", "after", "lost"), [([3, 3, 3], [4, 3, 9], [1]), ([0, 1], [1, 2], [])])
def test_silent_is_whose_number_stands_still(before, after, lost):
    assert heartbeat.silent(before, after) == lost
