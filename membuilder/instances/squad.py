"""Reads SQuAD 1.1 (train-v1.1.json, xquad.en.json): the paragraphs of articles with questions about each."""

from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Annotated

from msgspec import Meta, Struct

from membuilder.datasets.streams import json_items
from membuilder.datasets.typed import Text, typed
from membuilder.instances.records import Asked, Passage, Unit
from membuilder.instances.sentences import sentences

FILES = ("*.json",)


class _Answer(Struct):
    text: str
    answer_start: Annotated[int, Meta(ge=0)]


class _Question(Struct):
    question: Text
    answers: list[_Answer] = []
    is_impossible: bool = False


class _Paragraph(Struct):
    context: Text
    qas: list[_Question]


class _Article(Struct):
    title: Text
    paragraphs: list[_Paragraph]


def read(files: Sequence[Path]) -> Iterator[Unit]:
    """Yield a unit for each paragraph. Its document is the article: paragraphs of one tell of each other."""
    for path in files:
        for number, raw in enumerate(json_items(path, "data")):
            article = typed(_Article, raw, path, f"data[{number}]")
            for index, paragraph in enumerate(article.paragraphs):
                yield _unit(article.title, f"{article.title}/{index}", paragraph)


def _unit(title: str, key: str, paragraph: _Paragraph) -> Unit:
    parts = sentences(paragraph.context)
    ends = list(accumulate(map(len, parts)))
    asked, dropped = [], []
    for question in paragraph.qas:
        gold = None if question.is_impossible or not question.answers else question.answers[0]
        if gold is None:
            dropped.append("no_answer")
        elif not gold.text.strip() or not paragraph.context.startswith(gold.text, gold.answer_start):
            dropped.append("evidence_absent")
        else:
            first, last = gold.answer_start, gold.answer_start + len(gold.text) - 1
            found = {next(i for i, end in enumerate(ends) if place < end) for place in (first, last)}
            evidence = tuple((key, index) for index in range(min(found), max(found) + 1))
            asked.append(Asked(question=question.question.strip(), answer=gold.text.strip(), evidence=evidence))
    passage = Passage(key=key, sentences=tuple(parts))
    return Unit(documents=(title,), passages=(passage,), questions=tuple(asked), dropped=tuple(dropped))
