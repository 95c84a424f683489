"""How turns and entries are written as text, and which strings are text."""

from collections.abc import Sequence

from membuilder.types import Session, Turn

HALF_CHARACTER = "holds half a surrogate pair, which is no text"
"""What messages say of a string that `is_text` refuses."""


def is_text(text: str) -> bool:
    """Return whether a string can be sent, shown and stored. JSON from outside may hold one that cannot (`\\ud83d`)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def in_short(error: BaseException) -> str:
    """Return the first line of what an error says, for a message on one line; libraries write pages."""
    first = next(iter(str(error).strip().splitlines()), "")
    return first if len(first) <= 300 else f"{first[:300]} ..."


def first_of(names: Sequence[str], most: int = 3) -> str:
    """Name the first few for a message: `a, b, c, ...`."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def quoted(session: Session, turn: Turn) -> str:
    """Write a turn as memory text: verbatim, with the session's date."""
    return f"[{session.timestamp:%Y-%m-%d}] {turn.speaker}: {turn.content}"


def on_one_line(text: str) -> str:
    """Write an entry as it is shown, so that a stored turn cannot draw lines of its own into a prompt."""
    return " ".join(text.split())
