"""Signs of life that every process of a run gives, so that one that dies is named on all hosts.

A process that loses a connection sees that somebody is gone, not who. On its own host it can look for processes; about
others it asks the store through which the run's processes found each other (MASTER_ADDR:MASTER_PORT). Each process
counts up a number of its own there once a second, and whoever knows why the run ends writes that down for all.
"""

import os
import time
from datetime import timedelta
from threading import Event, Thread

from torch.distributed import DistError, PrefixStore, TCPStore

PERIOD_SECONDS = 1.0
LOST_SECONDS = 10.0
"""A process whose number stood still for so long is gone."""
ANSWER = timedelta(seconds=5)
"""How long the store may take to answer."""


class Pulse:
    """This process's number in the store, and a look at the others'."""

    def __init__(self, run: str, rank: int, size: int) -> None:
        """`run` tells apart the runs that use one store after the other; the same on all processes."""
        self.rank, self.size = rank, size
        self.home = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        # A connection of its own: the process group's is busy while a collective is being set up.
        store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=ANSWER)
        self._store = PrefixStore(f"pulse {run}", store)
        self._reason: str | None = None
        self._ended = Event()
        self._thread = Thread(target=self._beat, name="pulse", daemon=True)
        self._thread.start()

    def _beat(self) -> None:
        while not self._ended.is_set():
            try:
                self._store.add(str(self.rank), 1)
            except DistError:  # the store went with its process: there is nobody to tell
                return
            self.told()  # while it can be read
            self._ended.wait(PERIOD_SECONDS)

    def end(self) -> None:
        """This process needs the others no more. Its number stands still from here on."""
        self._ended.set()
        self._thread.join()

    def tell(self, reason: str) -> None:
        """Write down for all why the run ends; the first reason stays."""
        try:
            self._store.compare_set("reason", "", reason)
        except DistError:  # see `_beat`
            return
        time.sleep(2 * PERIOD_SECONDS)  # the store may go with this process: let the others read it

    def told(self) -> str | None:
        """Why the run ends, where somebody knows."""
        try:
            if self._reason is None and self._store.check(["reason"]):
                self._reason = self._store.get("reason").decode()
        except DistError:  # what was read before it went is all there is
            return self._reason
        return self._reason

    def numbers(self) -> list[int] | None:
        """Everybody's number now; None when the store is gone."""
        try:
            return [self._store.add(str(rank), 0) for rank in range(self.size)]
        except DistError:
            return None


def silent(before: list[int], after: list[int]) -> list[int]:
    """Ranks whose number stood still between two looks."""
    return [rank for rank, (then, now) in enumerate(zip(before, after, strict=True)) if then == now]
