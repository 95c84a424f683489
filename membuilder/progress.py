"""One progress bar for everything that takes longer than a few seconds."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from tqdm import tqdm

if TYPE_CHECKING:
    from membuilder.types import Dialogue


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


class SessionBar:
    """It shows a bar over dialogues that moves by session, as whoever works on a dialogue tells by `session_done`.

    Sessions that nobody told of count once their dialogue is done.
    """

    def __init__(self) -> None:
        self._bar: tqdm | None = None

    def over(self, dialogues: "Sequence[Dialogue]", label: str) -> "Iterator[Dialogue]":
        """Yield each dialogue while the bar is shown."""
        total, done = sum(len(dialogue.sessions) for dialogue in dialogues), 0
        with progress(total=total, label=label, unit="session") as self._bar:
            for dialogue in dialogues:
                yield dialogue
                done += len(dialogue.sessions)
                self._bar.update(done - self._bar.n)

    def session_done(self) -> None:
        if self._bar is not None:
            self._bar.update()
