"""Signs of life that every process of a run gives, so that one that dies is named on all hosts, and none waits for it.

A process that loses a connection sees that somebody is gone, not who. On its own host it can look for processes; about
others it asks the store through which the run's processes found each other (MASTER_ADDR:MASTER_PORT). Each process
counts up a number of its own there once a second, and whoever knows why the run ends writes that down for all.

A collective on CUDA raises nothing when its peer dies: it waits. So the thread that counts also looks at the others,
and ends a process whose main thread does not end by itself.
"""

import atexit
import os
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from threading import Event, Thread

import psutil
from torch.distributed import DistError, PrefixStore, TCPStore

from membuilder.errors import RankError

PERIOD_SECONDS = 1.0
LOST_SECONDS = 10.0
"""Once a connection broke, a process whose number stood still for so long is gone."""
SILENT_SECONDS = 300.0
"""The same where nothing broke: a live process may hold Python's lock for long in one call of C, such as writing a
large file to a slow disk. Only a process of another host is looked for like this; one of this host is seen to be
gone."""
GRACE_SECONDS = 15.0
"""How long a main thread has to find out by itself (LOST_SECONDS at most) and to end."""
ANSWER = timedelta(seconds=5)
"""How long the store may take to answer."""


@dataclass(frozen=True, kw_only=True)
class Home:
    """Where a process runs."""

    host: str
    machine: str
    """The same for processes that can see each other: containers on two hosts may share a name."""
    pid: int

    @classmethod
    def here(cls) -> "Home":
        host, boot = socket.gethostname(), Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return cls(host=host, machine=f"{host} {boot} {os.readlink('/proc/self/ns/pid')}", pid=os.getpid())

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


class Heartbeat:
    """This process's number in the store, and a look at the others'; a context manager for what needs the others."""

    def __init__(self, run: str, rank: int, homes: Sequence[Home]) -> None:
        """`run` tells apart the runs that use one store after the other; `homes`: of each rank."""
        self._rank, self._homes = rank, homes
        self._address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        # A connection of its own: the process group's is busy while a collective is being set up.
        store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=ANSWER)
        self._store = PrefixStore(f"heartbeat {run}", store)
        self._reason: str | None = None
        self._guarding, self._ended = Event(), Event()
        self._thread = Thread(target=self._live, name="heartbeat", daemon=True)
        self._thread.start()
        atexit.register(self._stop)

    def __enter__(self) -> None:
        """From here on this process is stopped when another one is gone."""
        self._guarding.set()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """Raise a RankError that names the process that is gone; where this one fails by itself, tell the others."""
        # a RuntimeError is what gloo, NCCL and DeepSpeed raise when a connection closes
        gone = self._find() if isinstance(error, RuntimeError) else None
        if error is not None:
            first_line = f"{kind.__name__}: {error}".splitlines()[0][:300]
            self._record(gone or f"rank {self._rank} failed on {self._homes[self._rank].host} ({first_line})")
        # this process needs the others no more; its number stands still from here on
        with suppress(DistError):  # the store went first: nobody is left to be told
            self._store.add(f"ended {self._rank}", 1)
        atexit.unregister(self._stop)
        self._stop()
        if gone is not None:
            raise RankError(self._message(gone)) from error

    def _stop(self) -> None:
        """End the thread. Without that the interpreter's end may catch it inside the store, and abort (SIGABRT)."""
        self._ended.set()
        self._thread.join()

    def _record(self, reason: str) -> None:
        """Write down for all why the run ends; the first reason stays."""
        with suppress(DistError):  # as in `__exit__`
            self._store.compare_set("reason", "", reason)
            time.sleep(2 * PERIOD_SECONDS)  # the store may go with this process: let the others read it

    def _find(self) -> str | None:
        """Who ended, or None: looked for until a process that is alive would have given a sign."""
        deadline, before = time.monotonic() + LOST_SECONDS, self._numbers()
        while time.monotonic() < deadline:
            dead, told = self._dead_here(), self._told()
            if dead or told:
                return self._gone(dead[0]) if dead else told
            if before is None and self._homes[0].machine != self._homes[self._rank].machine:
                break
            time.sleep(0.1)
        after = self._numbers()
        if before is None or after is None:
            return self._gone_with_the_store()
        lost = silent(before, after)
        return self._gone(lost[0], "no sign of life from ") if lost else None

    def _message(self, gone: str) -> str:
        return (
            f"rank {self._rank} of {len(self._homes)} stops, because {gone}. Look for that one's error, fix its cause "
            "and start again with resume=auto"
        )

    def _live(self) -> None:
        """Give a sign again and again, look at the others, and end this process where the main thread does not."""
        since, looked, before = time.monotonic(), 0.0, None
        while not self._ended.is_set():
            gone = None
            try:
                self._store.add(str(self._rank), 1)
                gone = self._told()
                if self._guarding.is_set() and gone is None:
                    gone = self._first(self._dead_here())
                    if before is None:
                        looked, before = time.monotonic(), self._read()
                    elif time.monotonic() - looked > SILENT_SECONDS:
                        gone = gone or self._first(silent(before, self._read()), "no sign of life from ")
                        before = None
                if gone is not None:
                    self._store.compare_set("reason", "", gone)
            except DistError:
                gone = gone or self._told() or self._gone_with_the_store()
            if gone is None or not self._guarding.is_set():
                since = time.monotonic()
            elif time.monotonic() - since > GRACE_SECONDS:
                print(self._message(gone), file=sys.stderr, flush=True)
                os._exit(1)
            self._ended.wait(PERIOD_SECONDS)

    def _first(self, ranks: list[int], how: str = "") -> str | None:
        """Return the first of them that did not end as it should."""
        lost = [rank for rank in ranks if not self._store.check([f"ended {rank}"])]
        return self._gone(lost[0], how) if lost else None

    def _told(self) -> str | None:
        """Tell why the run ends, where somebody knows."""
        with suppress(DistError):  # what was read before it went is all there is
            if self._reason is None and self._store.check(["reason"]):
                self._reason = self._store.get("reason").decode()
        return self._reason

    def _numbers(self) -> list[int] | None:
        """Everybody's number now; None when the store is gone."""
        try:
            return self._read()
        except DistError:
            return None

    def _read(self) -> list[int]:
        return [self._store.add(str(rank), 0) for rank in range(len(self._homes))]

    def _dead_here(self) -> list[int]:
        """Ranks of this host whose process is gone; it may take a moment to show after its connections closed."""
        machine = self._homes[self._rank].machine
        return [rank for rank, home in enumerate(self._homes) if home.machine == machine and not _alive(home.pid)]

    def _gone(self, rank: int, how: str = "") -> str:
        return f"rank {rank} is gone ({how}{self._homes[rank]})"

    def _gone_with_the_store(self) -> str:
        """Name the ranks gone with the store, which lives in rank 0 or in its launcher."""
        host = self._homes[0].host
        ranks = ", ".join(str(rank) for rank, home in enumerate(self._homes) if home.host == host)
        return f"rank {ranks} is gone (nothing answers at {self._address} on {host})"


def silent(before: list[int], after: list[int]) -> list[int]:
    """Ranks whose number stood still between two looks."""
    return [rank for rank, (then, now) in enumerate(zip(before, after, strict=True)) if then == now]


def _alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
