"""Tells which texts hold what is being forgotten: a name, a word that nobody else said, or a whole text."""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from membuilder.bank.ranking import search_terms

_STOP_WORDS = frozenset(
    "a an and are as at be but by for if in into is it no not of on or such that the their then there these they this"
    " to was will with".split()
)
"""Lucene's English ones: they tell nothing, whoever said them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Lost:
    names: tuple[str, ...] = ()
    words: frozenset[str] = frozenset()
    """Search terms: words, and bigrams of scripts without spaces."""
    texts: tuple[str, ...] = ()

    def names_one(self, text: str) -> bool:
        """Return whether a text names one of `names`, in any case; `Ann` is not named by `Anne`."""
        return any(_stands_alone(name.casefold(), text.casefold()) for name in self.names)

    def in_text(self, text: str) -> bool:
        """Return whether a text, or what it says as JSON, holds any of it."""
        read = _unescaped(text)
        if self.names_one(text) or self.names_one(read):
            return True
        terms = {*search_terms(text), *search_terms(read)}
        flat = (_flat(text), _flat(read))
        return not self.words.isdisjoint(terms) or any(_flat(each) in one for each in self.texts for one in flat)


def words_only_in(removed: Iterable[str], kept: Iterable[str]) -> frozenset[str]:
    """Return the search terms of some texts that no other text has; English stop words are none."""
    return frozenset(_terms(removed) - _terms(kept) - _STOP_WORDS)


def without(text: str, quotes: Collection[str], sentences: Collection[str], lost: Lost) -> tuple[str, int]:
    """Take quotes, sentences, and those that hold what is lost, out of a text; return it and how many went."""
    num_gone = 0
    for quote in sorted(quotes, key=len, reverse=True):
        num_gone += text.count(quote)
        text = text.replace(quote, "")
    lines = []
    for line in text.split("\n"):
        parts = sentences_of(line)
        kept = [each for each in parts if each not in sentences and not lost.in_text(each)]
        num_gone += len(parts) - len(kept)
        if parts == kept:
            lines.append(line)
        elif kept:
            lines.append(" ".join(kept))
    return ("\n".join(line for line in lines if line.strip()) if num_gone else text), num_gone


def sentences_of(text: str) -> list[str]:
    return [each for each in re.split(r"\n|(?<=[.!?])\s+|(?<=[。！？])", text) if each.strip()]


def _stands_alone(name: str, text: str) -> bool:
    """Return whether a text has a name with no letter before or behind it, in a script that has cases."""

    def joins(character: str) -> bool:  # other scripts write names and words without a space between
        return character.isdigit() or character.lower() != character.upper()

    for found in re.finditer(re.escape(name), text):
        before, behind = text[: found.start()][-1:], text[found.end() :][:1]
        if not (joins(name[0]) and joins(before)) and not (joins(name[-1]) and joins(behind)):
            return True
    return False


def _terms(texts: Iterable[str]) -> set[str]:
    return {term for text in texts for term in search_terms(text)}


def _flat(text: str) -> str:
    return " ".join(text.split())


def _unescaped(text: str) -> str:
    r"""Read the escapes of JSON in a text that need not be JSON, such as `\n`, `\"` and `é`."""

    def character(match: re.Match) -> str:
        escape = match[1]
        if escape.startswith("u"):
            return chr(int(escape[1:], 16))
        return " " if escape in "nrtbf" else escape

    read = re.sub(r"\\(u[0-9a-fA-F]{4}|.)", character, text)
    return read.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # halves of a pair become one
