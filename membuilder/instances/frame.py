"""The frame around what is read: a dialogue of a day, in which the user tells something and the assistant notes it."""

from datetime import timedelta

from membuilder.datasets.memalpha import FIRST_DAY
from membuilder.instances.draw import Draw

PROMPT = "You will read texts one after another and be asked about them later. Keep what the questions may need."
"""Told to baselines that take the chunks as they are."""
READING = (
    "Here is something to read:",
    "Please keep the following in mind:",
    "I came across this today:",
    "Some facts that I shall ask you about later:",
    "Take note of what follows:",
    "Another text for you:",
)
LABELLING = (
    "Some texts with their labels:",
    "Learn the labels from these examples:",
    "Here is how these are labelled:",
    "More examples of the labels:",
)
NOTED = (
    "Noted.",
    "Thank you, I have read it.",
    "I shall remember it.",
    "Understood, go on.",
    "I have kept what matters.",
)
FRAME_TOKENS = 64
"""Left free in a chunk for what frames it."""


def framed(lines: list[str], number: int, openers: tuple[str, ...], draw: Draw) -> list[str]:
    """Return the lines of chunk `number`, from 0: two before those that are given, and one behind."""
    head = f"[Dialogue between User and Assistant on {FIRST_DAY + timedelta(days=number):%Y-%m-%d 00:00}]"
    return [head, f"<User>{draw.pick(openers)}", *lines, f"<Assistant>{draw.pick(NOTED)}"]


LINES_BEFORE = 2
OWN_LINES = frozenset((*READING, *LABELLING, *NOTED))
"""What is said in chunks and tells nothing."""
