"""Finds the words of a summary by which it is scored: names, and words that are rare in the text."""

import re

MAX_KEYWORDS = 10
_RARE = 3
_NAME = re.compile(r"(?<=[\w,;:] )(?!I['\u2019])(?:(?:Mr|Mrs|Ms|Dr|St)\. )?[A-Z][\w'\u2019-]+(?: [A-Z][\w'\u2019-]+)*")
_WORD = re.compile(r"\b[a-z][a-z-]{4,}\b")


def keywords(summary: str, text: str) -> list[str]:
    """Return names and rare words of a summary that stand in the text, in the summary's order."""
    low = text.lower()
    names = [name for name in dict.fromkeys(_NAME.findall(summary)) if name.lower() in low]
    words = dict.fromkeys(_WORD.findall(summary))
    rare = [word for word in words if 0 < len(re.findall(rf"\b{re.escape(word)}\b", low)) <= _RARE]
    return sorted([*names, *rare][:MAX_KEYWORDS], key=summary.index)
