"""A run that is asked to stop finishes and saves the step in hand first."""

import signal
from types import FrameType

from membuilder.errors import Interrupted
from trainer.distributed.process_group import World


class Stop:
    """Remembers a SIGTERM or SIGUSR1, so that the step in hand can be finished and saved first.

    SIGUSR1 is for Slurm (launch/slurm.sbatch): torch's launcher passes a SIGTERM on, but kills soon after it.
    """

    def __init__(self, world: World) -> None:
        self._world, self._asked = world, False
        self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGTERM, signal.SIGUSR1)}

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True

    @property
    def asked(self) -> bool:
        """Of any process; all must ask at the same place."""
        return any(self._world.gather(self._asked))

    def close(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def interrupted(step: int) -> Interrupted:
    return Interrupted(f"stopped by a signal after step {step}, which is saved; start again with resume=auto")
