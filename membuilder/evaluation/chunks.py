"""The texts that a dialogue is read in, a session or chunk each, and what their tokens are counted by."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

from membuilder.instances.tokens import counter
from membuilder.text import quoted
from membuilder.types import Dialogue

Count = Callable[[str], int]
"""Counts the tokens of a text."""


class Chunk(NamedTuple):
    """One session as it is read; it may be empty."""

    lines: tuple[str, ...]
    """One of each turn."""
    turn_ids: tuple[str, ...]

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


def chunks_of(dialogue: Dialogue, verbatim: bool) -> list[Chunk]:
    """Return the sessions in their order.

    `verbatim`: as the turns stand in the data, which is how instances tell speakers and dates; else with both before
    each turn.
    """
    return [
        Chunk(
            tuple(turn.content if verbatim else quoted(session, turn) for turn in session.turns),
            tuple(turn.id for turn in session.turns),
        )
        for session in dialogue.sessions
    ]


@cache
def token_counter(tokenizer: Path | None) -> Count:
    """Return what counts tokens: by the tokenizer of a model folder, or four characters a token."""
    return counter(tokenizer)
