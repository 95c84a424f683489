"""What the benchmarks share: a clock, peak memory, and the file that results go to."""

import ctypes
import json
import math
import multiprocessing
import os
import signal
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from trainer.logs.provenance import provenance

M_MMAP_THRESHOLD = -3
"""Of glibc's malloc.h."""
RIVALS = ("trl", "liger-kernel", "cut-cross-entropy", "prefix-grouper", "triton")
STOPPED = (128 + signal.SIGTERM, -signal.SIGTERM)
"""Exit statuses of a training that was stopped: by itself, its step saved, and before it could hear of it."""
LOAD_AT_START = os.getloadavg()[0]
"""What others did on this machine in the minute before: a ratio of things that take turns stands it, times do not."""


@cache
def header() -> dict:
    """Hardware, versions and commit, as of the first result: the top of every result file."""
    record = provenance()
    return {
        "hardware": record["hardware"] | {"threads": torch.get_num_threads(), "load_at_start": LOAD_AT_START},
        "versions": record["packages"] | {name: _version(name) for name in RIVALS},
        "commit": record["git"]["commit"],
        "dirty": record["git"]["dirty"],
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def seconds(run: Callable[[], object], repeats: int = 5) -> float:
    """Median seconds of `run` after one warm-up."""
    return statistics.median(rounds({"": run}, repeats)[""])


def rounds(
    runs: Mapping[str, Callable[[], object]], repeats: int = 5, before: Callable[[], object] = lambda: None
) -> dict[str, list[float]]:
    """Seconds of each run in each round after a warm-up; they take turns, so that other load meets all alike.

    `before` prepares each, and its time does not count.
    """
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for attempt in range(repeats + 1):
        for name, run in runs.items():
            before()
            _synchronize()
            began = time.perf_counter()
            run()
            _synchronize()
            if attempt:
                taken[name].append(time.perf_counter() - began)
    return taken


def times_over(other: Sequence[float], own: Sequence[float]) -> float:
    """Median over rounds of the time of one run over that of another, which a slow minute meets alike."""
    return statistics.median(theirs / ours for theirs, ours in zip(other, own, strict=True))


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_mb(prepare: Callable[[], Callable[[], object]]) -> float:
    """MB that running what `prepare` returns needs at its peak, beyond what stood before.

    On a CPU in a process of its own, because a process's peak never falls; `prepare` must then be picklable.
    """
    if torch.cuda.is_available():
        run = prepare()
        _synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return round((torch.cuda.max_memory_allocated() - before) / 1e6, 1)
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_peak_of, (prepare, torch.get_num_threads()))


def _peak_of(prepare: Callable[[], Callable[[], object]], threads: int) -> float:
    ctypes.CDLL(None).mallopt(
        M_MMAP_THRESHOLD, 1 << 16
    )  # a freed tensor leaves the process at once, none is kept for later
    torch.set_num_threads(threads)
    run = prepare()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from what stands now (Linux)
    before = _resident("VmRSS")
    run()
    return round((_resident("VmHWM") - before) / 1e6, 1)


def _resident(field: str) -> int:
    """Bytes of this process in memory: now (VmRSS) or at the peak (VmHWM)."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    (line,) = (line for line in status.splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def write(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(header() | {"rows": rows}, indent=2) + "\n", encoding="utf-8")


def train_until(command: Sequence[str], ends: float, stage: Path, key: str) -> None:
    """Run a training until it ends or the time (of `time.monotonic`) is over; then end it with the steps it has made.

    `stage` is the folder whose checkpoints count the steps, `key` the setting that says how many there are to be.
    SystemExit where it fails.
    """
    with subprocess.Popen(command) as process:
        try:
            status = process.wait(None if math.isinf(ends) else max(1.0, ends - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)
            status = process.wait()
    if status in STOPPED and (done := steps_done(stage)):
        status = subprocess.run([*command, f"{key}={done}"]).returncode
    if status != 0 and status not in STOPPED:
        raise SystemExit(f"{' '.join(command[:3])} of {stage} failed (exit {status}); its run.log says why")


def steps_done(stage: Path) -> int:
    """Return the number of steps that the newest checkpoint of a stage's folder holds."""
    return max((int(each.name.removeprefix("step_")) for each in (stage / "checkpoints").glob("step_*")), default=0)
