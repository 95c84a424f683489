"""Writes sessions of talk as chunks: a session is cut between turns, and a long turn at the end of a sentence."""

from collections.abc import Hashable, Iterable, Iterator

from membuilder.datasets.memalpha import turn_id, turn_spans
from membuilder.instances.records import Tokens
from membuilder.instances.sentences import sentences
from membuilder.types import Session, Turn

CLOSED_FROM = 0.88
"""Share of a chunk's tokens from which an answer of the assistant ends it."""
Piece = list[tuple[int, str]]
"""The number of each turn in its session, and what is written of it."""


def head(session: Session) -> str:
    return f"[Dialogue at timestamp {session.timestamp:%Y/%m/%d (%a) %H:%M}]"


def pieces(session: Session, limit: int, tokens: Tokens) -> Iterator[Piece]:
    """Cut a session into pieces, none longer than a chunk.

    A user's turn goes to the next piece rather than stand last, before its answer.
    """
    piece: Piece = []
    filled = 0
    for index, turn in enumerate(session.turns):
        for text in _parts(turn, limit, tokens):
            size = tokens(text) + 1  # the line break
            if piece and filled + size > limit:
                last = session.turns[piece[-1][0]]
                moved = len(piece) > 1 and last.role == "user" and tokens(piece[-1][1]) + size <= limit
                rest = [piece.pop()] if moved else []
                yield piece
                piece, filled = rest, sum(tokens(text) for _, text in rest)
            piece.append((index, text))
            filled += size
        if turn.role == "assistant" and filled >= CLOSED_FROM * limit:
            yield piece
            piece, filled = [], 0
    if piece:
        yield piece


def lay_out(
    told: Iterable[tuple[Session, Piece]], limit: int, tokens: Tokens
) -> tuple[list[str], dict[Hashable, list[str]]]:
    """Write pieces as chunks, as many as fit into each; return the chunks and the lines of each turn, by its id."""
    chunks: list[list[str]] = []
    place: dict[Hashable, list[str]] = {}
    filled = limit
    for session, piece in told:
        size = tokens(head(session)) + 1 + sum(tokens(text) + 1 for _, text in piece)
        if not chunks or filled + size > limit:
            chunks.append([])
            filled = 0
        filled += size
        lines = chunks[-1]
        lines.append(head(session))
        for index, text in piece:
            ids = [turn_id(len(chunks), len(lines) + line) for line, _ in turn_spans(text)]
            place.setdefault(session.turns[index].id, []).extend(ids)
            lines += text.split("\n")
    return ["\n".join(lines) for lines in chunks], place


def _parts(turn: Turn, limit: int, tokens: Tokens) -> Iterator[str]:
    """Yield a turn as it is written, in as many parts as it needs."""
    mark = f"<{turn.speaker[:1].upper()}{turn.speaker[1:]}>"
    text, filled = mark, tokens(mark)
    for sentence in sentences(turn.text.strip()):
        size = tokens(sentence)
        if text != mark and filled + size > limit:
            yield text.rstrip()
            text, filled = mark, tokens(mark)
        text += sentence
        filled += size
    yield text.rstrip()
