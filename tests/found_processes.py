"""Processes that a test did not start itself: one may end between being found and being asked or killed."""

from collections.abc import Callable, Iterable
from contextlib import suppress

import psutil


def that(holds: Callable[[psutil.Process], bool], processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Those of which it holds. One that is gone, or another user's, is none of them."""
    found = []
    for process in processes:
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if holds(process):
                found.append(process)
    return found


def running(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Those that run: not gone, and not only waiting to be collected."""
    return that(lambda process: process.status() != psutil.STATUS_ZOMBIE, processes)


def kill(processes: Iterable[psutil.Process]) -> None:
    """Kill those that have not ended meanwhile."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
