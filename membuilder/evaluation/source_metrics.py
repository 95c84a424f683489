"""How a reply to a question of an instance is scored: one metric per source, for rewards and for every system alike.

| metric | of | a reply scores |
|---|---|---|
| keywords | booksum, infbench_sum | the share of the gold keywords that it names |
| label | pubmed-rct, csabstruct, icl_*, nlu, trec, banking77, clinc150 | 1 for the gold number in its `\\boxed{}` |
| parts | perltqa | the share of the gold answer's parts, between semicolons, that it holds |
| rubric | lme_train, longmemeval | what a model judges by the rubric of the question's type |
| contains | squad, hotpotqa, ruler and every other source | 1 if it holds one of the gold answers |

Words are compared as SQuAD normalises them: without case, punctuation, articles and accents; whole words, not pieces
of them. A question that nothing answers is for a model to judge too. A score that cannot be had is None.
"""

import re
import unicodedata
from collections.abc import Iterator
from enum import StrEnum

from membuilder.datasets.memalpha import source_of as source_of_id
from membuilder.llm.answer_and_judge import FORMS, RUBRICS
from membuilder.types import Dialogue, Question


class SourceMetric(StrEnum):
    KEYWORDS = "keywords"
    LABEL = "label"
    PARTS = "parts"
    RUBRIC = "rubric"
    CONTAINS = "contains"


_SOURCES = (
    (SourceMetric.KEYWORDS, ("booksum", "infbench_sum")),
    (SourceMetric.LABEL, ("pubmed-rct", "csabstruct", "icl", "ttl", "nlu", "trec", "banking77", "clinc150")),
    (SourceMetric.PARTS, ("perltqa",)),
    (SourceMetric.RUBRIC, ("lme", "longmemeval")),
)
"""How the names of sources begin."""
_NUMBER = re.compile(r"(?:(?<!\w)-)?\d+(?:\.\d+)?")
_BOX = re.compile(r"boxed\s*\{((?:[^{}]|\{[^{}]*\})*)\}?")
_COMMA = re.compile(r",(?!\d{3}\b)|\uff0c|\u3001")
"""Ends a keyword; in `1,000` it does not."""
_SEMICOLON = re.compile(r"[;\uff1b]")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}\b)")
_DECIMAL = re.compile(r"(?<![\d.])(\d+)\.(\d+)(?!\.?\d)")
_POINT = "\u02d1"
"""Stands for a decimal point: a letter, so that 3 is no word of 3.5, nor 35 the same."""
_ACCENTS = re.compile("[\u0300-\u036f]")
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
"""Scripts in which words have no blanks around them, or carry their particles."""


class _Punctuation(dict[int, int | str]):
    """A table for `str.translate` that puts one text in the place of every mark and symbol of any script."""

    def __init__(self, replacement: str):
        self._replacement = replacement

    def __missing__(self, code: int) -> int | str:
        self[code] = self._replacement if unicodedata.category(chr(code))[0] in "PS" else code
        return self[code]


_PUNCTUATION = (_Punctuation(""), _Punctuation(" "))


def metric_of(question: Question) -> SourceMetric:
    """Return the metric of a question's source, which is its category."""
    if question.category in RUBRICS or not question.answerable:
        return SourceMetric.RUBRIC
    name = question.category.casefold()
    return next((metric for metric, begins in _SOURCES if name.startswith(begins)), SourceMetric.CONTAINS)


def form_of(question: Question) -> str | None:
    """Return the form that the question's source wants a reply in, one of FORMS; None: a short one."""
    metric = metric_of(question)
    return str(metric) if metric in FORMS else None


def source_of(dialogue: Dialogue) -> str:
    """Return the source of an instance: the category of its questions, or where they have types, what its id says."""
    categories = {question.category for question in dialogue.questions}
    if len(categories) == 1 and not categories & RUBRICS.keys():
        return categories.pop()
    return source_of_id(dialogue) or dialogue.id


def source_score(question: Question, reply: str) -> float | None:
    """Score a reply, 0 to 1; None where a model has to judge it, or where there is no gold answer to compare with."""
    metric = metric_of(question)
    golds = [gold for gold in question.golds if gold.strip()]
    if metric is SourceMetric.RUBRIC or not golds:
        return None
    if metric is SourceMetric.KEYWORDS:
        return keyword_share(golds, reply)
    if metric is SourceMetric.LABEL:
        return float(any(is_label(gold, reply) for gold in golds))
    if metric is SourceMetric.PARTS:
        return max(part_share(gold, reply) for gold in golds)
    return float(any(holds(reply, gold) for gold in golds))


def keyword_share(golds: list[str], reply: str) -> float:
    """Return the share of the different keywords in the reply; one gold is a list at its commas, several are one each.

    The last word of a keyword may be in the plural in the reply.
    """
    given = _COMMA.split(golds[0]) if len(golds) == 1 else golds
    keywords = {" ".join(_words(each)) or each: each for each in given if each.strip()}.values()
    return sum(holds(reply, keyword, plural=True) for keyword in keywords) / len(keywords) if keywords else 0.0


def part_share(gold: str, reply: str) -> float:
    """Return the share of the parts of a gold answer that the reply holds."""
    parts = [part for part in _SEMICOLON.split(gold) if part.strip()]
    return sum(holds(reply, part) for part in parts) / len(parts) if parts else float(holds(reply, gold))


def is_label(gold: str, reply: str) -> bool:
    """Tell whether the last box of the reply, or a reply without one, commits itself to the gold label alone."""
    boxes = _BOX.findall(reply)
    said = boxes[-1] if boxes else reply
    wanted, found = _numbers(gold), _numbers(said)
    if wanted:
        return len(wanted) == 1 and found == wanted
    return " ".join(_words(said)) == " ".join(_words(gold))  # a label that is a name


def _numbers(text: str) -> set[str]:
    """Return the different numbers of a text in one way of writing each: `03` and `3.0` are `3`."""
    return set(map(_plain, _NUMBER.findall(unicodedata.normalize("NFKC", text))))


def _plain(number: str) -> str:
    whole, _, fraction = number.lstrip("-").partition(".")
    fraction = fraction.rstrip("0")
    sign = "-" if number.startswith("-") else ""
    return f"{sign}{whole.lstrip('0') or '0'}{'.' if fraction else ''}{fraction}"


def holds(reply: str, gold: str, plural: bool = False) -> bool:
    """Tell whether the words of a gold answer stand in the reply, in their order and whole."""
    forms = list(zip(_forms(gold), _forms(reply), strict=True))
    if not any(words for words, _ in forms):  # such as A or +, of which nothing would be left
        return re.search(rf"(?<!\w){re.escape(gold.strip())}(?!\w)", reply) is not None
    return any(_stands_in(words, given, plural) for words, given in forms if words)


def _stands_in(words: str, reply: str, plural: bool) -> bool:
    if _UNSPACED.search(words):
        return words.replace(" ", "") in reply.replace(" ", "")
    end = r"(?:e?s)?(?!\w)" if plural else r"(?!\w)"
    return re.search(rf"(?<!\w){re.escape(words)}{end}", reply) is not None


def _forms(text: str) -> Iterator[str]:
    """Yield the words of a text with its punctuation deleted, as SQuAD has it (U.S. is us), and replaced by blanks."""
    folded = unicodedata.normalize("NFD", unicodedata.normalize("NFKC", text).casefold())
    folded = _DECIMAL.sub(rf"\1{_POINT}\2", _THOUSANDS.sub("", unicodedata.normalize("NFC", _ACCENTS.sub("", folded))))
    for table in _PUNCTUATION:
        yield " ".join(word for word in folded.translate(table).split() if word not in ("a", "an", "the"))


def _words(text: str) -> list[str]:
    return next(_forms(text)).split()
