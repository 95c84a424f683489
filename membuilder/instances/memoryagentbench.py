"""Reads the parts of MemoryAgentBench as they are published: a long context, its questions, their answers.

A context is cut into chunks by its kind: documents and books between sentences, talk between turns, labelled examples
between examples. Sources that Mem-alpha does not evaluate on are left out and counted.
"""

import ast
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from msgspec import Struct

from membuilder.datasets import parquet
from membuilder.datasets.parsing import read_time
from membuilder.datasets.typed import FieldError, Text, convert, located
from membuilder.instances.books import read_in_days
from membuilder.instances.draw import Draw, shuffled
from membuilder.instances.frame import FRAME_TOKENS, LABELLING, READING, framed
from membuilder.instances.keywords import keywords
from membuilder.instances.one_each import Names
from membuilder.instances.records import Instance, Shape, Tokens
from membuilder.instances.sentences import filled, sentences
from membuilder.instances.sessions import lay_out, pieces
from membuilder.types import Session, Turn

WITH_SUMMARIES = "Long_Range_Understanding"
PARTS = ("Accurate_Retrieval", "Test_Time_Learning", WITH_SUMMARIES)
DOCUMENTS, EXAMPLES, SUMMARIES, TALK = "ruler_qa", "icl_", "infbench_sum", "longmemeval_s*"
"""How the sources begin that are taken; the last is a whole name, and its star no wildcard."""
_LABELLED = re.compile(r"^(?:(?:Sentence|Text): *)?(.+)\n[Ll]abel: *(\S+) *$", re.MULTILINE)
_DATE_FORM, _DATE_EXAMPLE = "%Y/%m/%d (%a) %H:%M", "2023/05/04 (Thu) 09:30"


class _Metadata(Struct):
    source: Text
    question_dates: list[str] | None = None
    question_types: list[str] | None = None
    question_ids: list[str] | None = None


class _Record(Struct):
    context: Text
    questions: list[Text]
    answers: list[list[Text]]
    metadata: _Metadata


class _Said(Struct):
    role: Text
    content: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    documents: tuple[str, ...]
    """Its source and place in the file."""
    record: _Record
    questions: tuple[Mapping[str, Any], ...] = ()
    sessions: tuple[Session, ...] = ()
    """Of a context that is talk."""
    examples: tuple[str, ...] = ()
    """Of a context that is labelled."""
    dropped: tuple[str, ...] = ()

    @property
    def is_empty(self) -> bool:
        return bool(self.dropped)


def read(files: Sequence[Path]) -> Iterator[Part]:
    for path in files:
        for number, raw in enumerate(parquet.read_rows(path)):
            with located(path, f"row {number}"):
                yield _part(convert(_Record, raw), number)


def _part(record: _Record, number: int) -> Part:
    source, told = record.metadata.source, record.metadata
    documents = (f"{source}/{number}",)
    if source != TALK and not source.startswith((DOCUMENTS, EXAMPLES, SUMMARIES)):
        return Part(documents=documents, record=record, dropped=(f"source_left_out_{source}",))
    lists = {"answers": record.answers} | {
        f"metadata.{name}": getattr(told, name) or record.questions
        for name in ("question_dates", "question_types", "question_ids")
    }
    for name, values in lists.items():
        if len(values) != len(record.questions):
            raise FieldError(name, f"has {len(values)} values for {len(record.questions)} questions")
    return Part(
        documents=documents,
        record=record,
        questions=tuple(_question(record, index) for index in range(len(record.questions))),
        sessions=tuple(_sessions(record.context)) if source == TALK else (),
        examples=_examples(record.context) if source.startswith(EXAMPLES) else (),
    )


def _sessions(context: str) -> Iterator[Session]:
    """Read the text of a Python list that holds, one after another, the time of a session and its turns."""
    try:
        told = ast.literal_eval(context)  # literals only: evaluates no code
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:  # raised on damaged or hostile text
        raise FieldError("context", f"expected the text of a Python list, found {context!r:.80}") from error
    told = convert(list, told, "context")
    flat = [part for each in told for part in (each if _is_pair(each) else [each])]
    if len(flat) % 2:
        raise FieldError("context", "expected a time before the turns of each session")
    for index, (time, said) in enumerate(zip(flat[::2], flat[1::2], strict=True)):
        turns = convert(list[_Said], said, f"context[{index}]")
        yield Session(
            id=f"S{index + 1}",
            index=index,
            timestamp=_time(convert(str, time, f"context[{index}]"), f"context[{index}]"),
            turns=tuple(
                Turn(id=f"S{index + 1}:{i}", speaker=each.role, role=each.role, text=each.content)
                for i, each in enumerate(turns, start=1)
                if each.content.strip()
            ),
        )


def _is_pair(value: object) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 2 and isinstance(value[0], str)


def _time(text: str, field: str) -> datetime:
    found = re.search(r"\d{4}/\d\d/\d\d \(\w+\) \d\d:\d\d", text)
    return read_time(found[0] if found else text, _DATE_FORM, _DATE_EXAMPLE, field)


def make(part: Part, shape: Shape, tokens: Tokens, names: Names, dropped: Counter[str]) -> Instance | None:
    """Return the instance of a context."""
    made = _instance(part, shape.chunk_tokens[1] - FRAME_TOKENS, tokens, Draw(*names))
    if made is None:
        dropped["sentence_longer_than_a_chunk"] += 1
        return None
    chosen = set(shuffled(range(len(made.questions)), *names)[: shape.questions[1]])
    dropped["more_than_an_instance_takes"] += len(made.questions) - len(chosen)
    asked = tuple(each for i, each in enumerate(made.questions) if i in chosen)
    ids = part.record.metadata.question_ids or ()
    samples = tuple(each for i, each in enumerate(ids) if i in chosen)
    return replace(made, questions=asked, data_source=part.record.metadata.source, samples=samples)


def _instance(part: Part, limit: int, tokens: Tokens, draw: Draw) -> Instance | None:
    """Return all questions of a part with its chunks; None where a sentence or example is longer than a chunk."""
    record, source = part.record, part.record.metadata.source
    if source == TALK:
        longest = (part for session in part.sessions for turn in session.turns for part in sentences(turn.text))
        if max(map(tokens, longest)) > limit:
            return None
        told = [(session, piece) for session in part.sessions for piece in pieces(session, limit, tokens)]
        return Instance(chunks=tuple(lay_out(told, limit, tokens)[0]), questions=part.questions)
    chunks = filled(part.examples or sentences(record.context), limit, tokens)
    if chunks is None:
        return None
    if source.startswith(SUMMARIES):
        summary = record.answers[0][0]
        return read_in_days(chunks, keywords(summary, record.context), draw, summary)
    openers = LABELLING if part.examples else READING
    read = ("\n".join(framed([chunk], number, openers, draw)) for number, chunk in enumerate(chunks))
    return Instance(chunks=tuple(read), questions=part.questions)


def _examples(context: str) -> tuple[str, ...]:
    found = tuple(f"Sentence: {text.strip()}\nLabel: {label}\n\n" for text, label in _LABELLED.findall(context))
    if not found:
        raise FieldError("context", "has no example, such as a text and `label: 3` on the line behind it")
    return found


def _question(record: _Record, index: int) -> dict[str, Any]:
    golds, told = list(dict.fromkeys(record.answers[index])), record.metadata
    if not golds:
        raise FieldError(f"answers[{index}]", "is empty; a question needs an answer")
    more: dict[str, Any] = {}
    if told.question_dates:
        more["asked_at"] = _time(told.question_dates[index], f"metadata.question_dates[{index}]").isoformat()
    if told.question_types:
        more["question_type"] = told.question_types[index]
    return {"question": record.questions[index], "answer": golds[0] if len(golds) == 1 else golds, **more}
