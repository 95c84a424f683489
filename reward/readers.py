"""Readers that need no model: what they reply to a question from a memory, and which entries they took it from.

`excerpt` gives the sentence or line that fits the question best, `nearest` the label of the stored example that is most
like it, and `offline` is the one of both that the question's source needs. The source's metric scores the reply.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from membuilder.bank.okapi import Okapi, positive_weights, terms_of
from membuilder.bank.retrieve import Retrieval
from membuilder.evaluation.source_metrics import SourceMetric, metric_of
from membuilder.instances.sentences import sentences
from membuilder.types import Bank, Question

WHOLE_WORDS = 40
"""A line of an entry with at most so many words is an excerpt as a whole; several lines never are, so that no more is
replied from an entry for having been stored together."""
_END = r"\s*\(?(\d+)\)?[.,;]?[^\S\n]*(?:\n|$)"
_LABELS_LAST = (re.compile(rf"\bLabels?\s*[:=]?{_END}"), re.compile(rf"(?:->|=>|:(?=\s)){_END}"))
"""Each ends an example: `Sentence: ... Label: 3`; `... -> 3` or `...: 3`. A text is read by the first that it holds."""
_LABEL_FIRST = re.compile(r"(?m)^(?!\[\d{4}-\d\d-\d\d\])\W*(?:Labels?\s*)?(\d+)\)?\s*[:=-]\s*(\S.*)$")
"""A line such as `Label 3: ...`, in a text without one of the others. The date that a quote begins with is no label."""
_NAME = re.compile(r"\A\s*(?:Sentence|Sample)s?\s*:")


@dataclass(frozen=True, slots=True)
class Reply:
    text: str
    """Empty where nothing in the memory shares a word with the question."""
    entries: tuple[str, ...]
    """Ids of the entries it was taken from; none where it comes from the core, or says nothing."""


Reader = Callable[[Question, Bank, Retrieval], Reply]


@dataclass(frozen=True, slots=True)
class _Piece:
    """What may be replied, and what the question is compared with."""

    text: str
    reply: str
    source: str | None
    """Id of the entry; None: the core."""


def excerpt(question: Question, bank: Bank, retrieval: Retrieval) -> Reply:
    """Reply with the sentence of core and entries found, or the short line of an entry, that fits the question best."""
    return _best(question, bank, retrieval, _excerpts)


def nearest(question: Question, bank: Bank, retrieval: Retrieval) -> Reply:
    """Reply with the label, as `\\boxed{3}`, of the stored example that shares most words with the question."""
    return _best(question, bank, retrieval, _examples)


def offline(question: Question, bank: Bank, retrieval: Retrieval) -> Reply:
    """Reply as `nearest` where the question's source is scored by labels, and else as `excerpt`."""
    reader = nearest if metric_of(question) is SourceMetric.LABEL else excerpt
    return reader(question, bank, retrieval)


def _best(
    question: Question, bank: Bank, retrieval: Retrieval, cut: Callable[[str, str | None], list[_Piece]]
) -> Reply:
    """Reply with the piece of the highest score; of equal ones with that which stands first."""
    texts = ((bank.core, None), *((entry.text, entry.id) for entry in retrieval.entries))
    pieces, index = _indexed(texts, cut)
    scores = index.scores(terms_of(question.text))
    if not pieces or scores.max() <= 0:
        return Reply("", ())
    found = pieces[int(scores.argmax())]
    return Reply(found.reply, () if found.source is None else (found.source,))


@lru_cache(maxsize=256)  # the questions about one memory often find the same
def _indexed(
    texts: tuple[tuple[str, str | None], ...], cut: Callable[[str, str | None], list[_Piece]]
) -> tuple[Sequence[_Piece], Okapi]:
    pieces = [piece for text, source in texts for piece in cut(text, source)]
    return pieces, Okapi([terms_of(piece.text, with_characters=True) for piece in pieces], positive_weights)


def _excerpts(text: str, source: str | None) -> list[_Piece]:
    parts = []
    for line in text.splitlines():
        is_whole = source is not None and len(line.split()) <= WHOLE_WORDS
        parts += [line] if is_whole else sentences(line)
    return [_Piece(part, part.strip(), source) for part in parts if part.strip()]


def _examples(text: str, source: str | None) -> list[_Piece]:
    """Return the labelled examples of a text; what stands between two labels belongs to the second."""
    for pattern in _LABELS_LAST:
        labels = list(pattern.finditer(text))
        if labels:
            starts = [0, *(label.end() for label in labels)]
            found = [(text[start : each.start()], each[1]) for start, each in zip(starts, labels, strict=False)]
            break
    else:
        found = [(example, label) for label, example in _LABEL_FIRST.findall(text)]
    pieces = [(_NAME.sub("", example), label) for example, label in found]
    return [_Piece(example, f"\\boxed{{{label}}}", source) for example, label in pieces if example.strip()]
