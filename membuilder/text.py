"""How turns and entries are written as text."""

from membuilder.types import Session, Turn


def quoted(session: Session, turn: Turn) -> str:
    """A turn as memory text: verbatim, with the session's date."""
    return f"[{session.timestamp:%Y-%m-%d}] {turn.speaker}: {turn.content}"


def on_one_line(text: str) -> str:
    """How an entry is shown, so that a stored turn cannot draw lines of its own into a prompt."""
    return " ".join(text.split())
