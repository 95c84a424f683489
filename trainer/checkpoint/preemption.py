"""A run that is asked to stop finishes and saves the step in hand first."""

import os
import signal
from types import FrameType

from membuilder.errors import Interrupted
from trainer.distributed.process_group import World

NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM", signal.SIGUSR1: "SIGUSR1"}
"""What asks a run to stop, as a user knows it."""
ONCE_MORE = b"\nCtrl-C: this step is finished and saved first; once more ends the run at once, and this step is lost\n"
STDERR = 2
"""The file descriptor, as every Unix has it."""


class Stop:
    """Remembers a signal, so that the step in hand can be finished and saved first. The second Ctrl-C ends at once.

    SIGUSR1 is for Slurm (launch/slurm.sbatch): torch's launcher passes a SIGTERM on, but kills soon after it.
    """

    def __init__(self, world: World) -> None:
        self._world, self._number = world, 0
        # what a shell starts in the background is not meant by its Ctrl-C
        wanted = NAMES.keys() - ({signal.SIGINT} if signal.getsignal(signal.SIGINT) is signal.SIG_IGN else set())
        self._before = {number: signal.signal(number, self._ask) for number in wanted}

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._number = number
        if number == signal.SIGINT:
            # No handler of Python's: one would have to wait where this thread waits in a library. Torch's launcher
            # passes its second Ctrl-C on as a SIGTERM.
            for once_more in (signal.SIGINT, signal.SIGTERM):
                signal.signal(once_more, signal.SIG_DFL)
            if self._world.rank == 0:
                os.write(STDERR, ONCE_MORE)  # `print` may be what was interrupted, and cannot be entered twice

    @property
    def asked(self) -> bool:
        """Of any process; all must ask at the same place."""
        agreed = next(filter(None, self._world.gather(self._number)), 0)
        if agreed:  # else what was asked while they agreed on nothing counts the next time
            self._number = agreed
        return agreed != 0

    def interrupted(self, step: int) -> Interrupted:
        """Return the error that ends the run after a step that is saved; signals mean again what they did before."""
        self.close()
        return Interrupted(f"stopped by {NAMES[self._number]} after step {step}, which is saved", 128 + self._number)

    def close(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
