"""One progress bar for everything that takes longer than a few seconds."""

import sys
from collections.abc import Iterable

from tqdm import tqdm


def progress(
    items: Iterable | None = None,
    *,
    total: int | None = None,
    initial: int = 0,
    label: str,
    unit: str,
    enabled: bool = True,
) -> tqdm:
    """Show a bar with rate and time left; in a log file it prints a line every 20 seconds instead of redrawing."""
    interval = 0.2 if sys.stderr.isatty() else 20
    return tqdm(
        items, total=total, initial=initial, desc=label, unit=f" {unit}", mininterval=interval, disable=not enabled
    )
