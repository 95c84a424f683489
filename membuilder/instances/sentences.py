"""Cuts a text into sentences. Where it is not sure that a sentence ends it does not cut."""

import re
from collections.abc import Callable, Sequence

_END = re.compile(
    r"""(?:(?<=[.!?])|(?<=[.!?]["'\u201d\u2019)\]]))\s+(?=["'\u201c\u2018(\[]?[A-Z0-9])|(?<=[\u3002\uff01\uff1f])|\n+"""
)
_ABBREVIATED = re.compile(
    r"(?:\b[A-Za-z]|\b(?:Mr|Mrs|Ms|Dr|St|Prof|Sr|Jr|vs|No|Inc|Ltd|Co|Corp|Gen|Col|Sgt|Capt|Lt|Rev|Hon|Fig|Mt|al|etc|ca"
    r"|cf|approx|Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sep|Sept|Oct|Nov|Dec))\.$"
)


def sentences(text: str) -> list[str]:
    """Return the sentences with the blanks behind them: joined they are the text."""
    found, start = [], 0
    for end in _END.finditer(text):
        sentence = text[start : end.start()]
        if sentence.strip() and ("\n" in end[0] or not _ABBREVIATED.search(sentence)):
            found.append(text[start : end.end()])
            start = end.end()
    return [*found, text[start:]] if text[start:].strip() or not found else [*found[:-1], found[-1] + text[start:]]


def filled(
    parts: Sequence[str], limit: int, tokens: Callable[[str], int], at_least: int | None = None
) -> list[str] | None:
    """Join parts of a text to chunks of `limit` tokens; None if one is too long.

    With `at_least`, chunks of a short text are smaller, so that there are so many of them.
    """
    sizes = [tokens(part) for part in parts]
    if max(sizes) > limit:
        return None
    size = limit if at_least is None else max(max(sizes), min(limit, -(-sum(sizes) // at_least)))
    chunks, used = [""], 0
    for part, tokens_of_part in zip(parts, sizes, strict=True):
        if used + tokens_of_part > size and chunks[-1]:
            chunks.append("")
            used = 0
        chunks[-1] += part
        used += tokens_of_part
    return [chunk.strip() for chunk in chunks]
