"""Reads HotpotQA, in the spelling of its own files and in that of the Hugging Face copy, exported as a JSON list.

Only the paragraphs that hold a supporting fact are read to the model, not the distractors.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

from msgspec import Meta, Struct

from membuilder.datasets.streams import json_items
from membuilder.datasets.typed import FieldError, Text, convert, located
from membuilder.instances.records import Asked, Passage, Unit

FILES = ("hotpot*.json",)
_Number = Annotated[int, Meta(ge=0)]


class _Context(Struct):
    title: list[Text]
    sentences: list[list[str]]


class _Facts(Struct):
    title: list[Text]
    sent_id: list[_Number]


class _Record(Struct):
    question: Text
    answer: Text
    context: list[tuple[Text, list[str]]] | _Context
    supporting_facts: list[tuple[Text, _Number]] | _Facts


def read(files: Sequence[Path]) -> Iterator[Unit]:
    """Yield a unit for each question; its documents are the articles of its supporting facts."""
    for path in files:
        for number, raw in enumerate(json_items(path)):
            with located(path, f"record {number}"):
                record = convert(_Record, raw)
                unit = _unit(record, *_pairs(record))
            yield unit


def _pairs(record: _Record) -> tuple[list[tuple[str, list[str]]], list[tuple[str, int]]]:
    context, facts = record.context, record.supporting_facts
    if isinstance(context, _Context):
        if len(context.title) != len(context.sentences):
            raise FieldError("context", "has not as many titles as lists of sentences")
        context = list(zip(context.title, context.sentences, strict=True))
    if isinstance(facts, _Facts):
        if len(facts.title) != len(facts.sent_id):
            raise FieldError("supporting_facts", "has not as many titles as numbers of sentences")
        facts = list(zip(facts.title, facts.sent_id, strict=True))
    return context, facts


def _unit(record: _Record, context: list[tuple[str, list[str]]], facts: list[tuple[str, int]]) -> Unit:
    titles = tuple(dict.fromkeys(title for title, _ in facts))
    articles = {title: sentences for title, sentences in context if title in titles}
    if not facts or not all(_has(articles.get(title, []), number) for title, number in facts):
        return Unit(documents=titles, dropped=("evidence_absent",))
    passages = tuple(_passage(title, articles[title]) for title in titles)
    asked = Asked(question=record.question.strip(), answer=record.answer.strip(), evidence=tuple(dict.fromkeys(facts)))
    return Unit(documents=titles, passages=passages, questions=(asked,))


def _has(sentences: list[str], number: int) -> bool:
    return number < len(sentences) and bool(sentences[number].strip())


def _passage(title: str, sentences: list[str]) -> Passage:
    """Join sentences that lack the blank between them, and keep them on one line."""
    flat = [" ".join(sentence.split()) for sentence in sentences]
    spaced = [f"{sentence} " for sentence in flat[:-1]] + flat[-1:]
    return Passage(key=title, title=f"Title: {title}", sentences=tuple(spaced))
