"""The garbage collector's share of a program that waits for many small things."""

import gc


def keep_loaded() -> None:
    """Take all that is loaded out of the collector's sight, for good.

    PyTorch and its company are a million objects, and each full pass over them stops every thread for 0.3 s: several
    times in a step whose judge answers thousands of questions. To be called once, when a program is set up.
    """
    gc.collect()
    gc.freeze()
