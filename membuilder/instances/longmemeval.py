"""Makes instances of several samples of LongMemEval's oracle file: their sessions in time order, their questions.

A session is cut between turns, and a turn that is longer than a chunk at the end of a sentence. A sample whose session
stands in the instance already, under another date, is left out.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from membuilder.datasets.longmemeval import parse_one
from membuilder.datasets.memalpha import turn_id, turn_spans
from membuilder.datasets.splits import of_the_test_split
from membuilder.datasets.streams import json_items
from membuilder.datasets.typed import convert, located
from membuilder.instances.draw import Draw
from membuilder.instances.frame import FRAME_TOKENS
from membuilder.instances.records import Instance, Progress, Shape, Tokens
from membuilder.instances.sentences import sentences
from membuilder.instances.sessions import head, pieces
from membuilder.types import Dialogue, Question, Session

FILES = ("longmemeval_oracle*.json",)
INSTANCE_TOKENS = (10_000, 30_000)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    documents: tuple[str, ...]
    """Ids of its sessions without their numbers, which samples about the same talk have in common."""
    dialogue: Dialogue
    dropped: tuple[str, ...] = ()

    @property
    def is_empty(self) -> bool:
        return bool(self.dropped)


def read(files: Sequence[Path], allow_leak: bool) -> Iterator[Sample]:
    """Yield the samples; those of the published test split are left out unless `allow_leak`."""
    for path in files:
        for number, raw in enumerate(json_items(path)):
            dialogue = parse_one(raw, number, path)
            with located(path, f"record {number} ({dialogue.id})"):
                sessions = convert(list[str], raw.get("answer_session_ids"), "answer_session_ids")
            documents = dict.fromkeys(re.sub(r"_\d+$", "", name) for name in sessions)
            tested = of_the_test_split([dialogue.id]) and not allow_leak
            dropped = ("of_the_published_test_split",) if tested else ()
            yield Sample(documents=tuple(documents) or (dialogue.id,), dialogue=dialogue, dropped=dropped)


def pack(
    samples: Iterator[tuple[int, Sample]], shape: Shape, tokens: Tokens, names: Sequence[object], progress: Progress
) -> Iterator[Instance]:
    """Yield instances of 10,000 to 30,000 tokens; see `reading.pack`."""
    limit = shape.chunk_tokens[1] - FRAME_TOKENS
    number, sample = next(samples, (progress.units, None))
    while sample is not None:
        wanted = Draw(*names, progress.instances).between(*INSTANCE_TOKENS)
        sessions: dict[_Texts, Session] = {}
        asked: list[tuple[Question, list[tuple[_Texts, int]]]] = []
        filled, taken = 0, []
        while sample is not None:
            new = {_texts(session): session for session in sample.dialogue.sessions}
            size = sum(tokens(text) for texts in new.keys() - sessions.keys() for text in texts)
            if reason := _problem(new, sessions, limit, tokens):
                progress.dropped[reason] += 1
            elif filled + size > (wanted if filled >= INSTANCE_TOKENS[0] else INSTANCE_TOKENS[1]):
                break
            else:
                sessions, filled = new | sessions, filled + size
                asked += [(question, _evidence(question, new)) for question in sample.dialogue.questions]
                taken.append(sample.dialogue.id)
            number, sample = next(samples, (number + 1, None))
        progress.units, progress.instances = number, progress.instances + 1
        if filled < INSTANCE_TOKENS[0]:
            progress.dropped["in_an_instance_of_too_few_tokens"] += len(asked)
        else:
            yield replace(_instance(sessions, asked, limit, tokens), samples=tuple(taken))


_Texts = tuple[str, ...]
"""The texts of a session's turns: what it is known by."""


def _texts(session: Session) -> _Texts:
    return tuple(turn.text for turn in session.turns)


def _evidence(question: Question, sessions: Mapping[_Texts, Session]) -> list[tuple[_Texts, int]]:
    return [
        (texts, index)
        for texts, session in sessions.items()
        for index, turn in enumerate(session.turns)
        if turn.id in question.evidence
    ]


def _problem(
    new: Mapping[_Texts, Session], sessions: Mapping[_Texts, Session], limit: int, tokens: Tokens
) -> str | None:
    """Say why a sample cannot be part of any instance, or of this one."""
    parts = [tokens(part) for texts in new for text in texts for part in sentences(text)]
    if max(parts) > limit:
        return "sentence_longer_than_a_chunk"
    if sum(parts) > INSTANCE_TOKENS[1]:
        return "longer_than_an_instance"
    moved = any(sessions[texts].timestamp != new[texts].timestamp for texts in new.keys() & sessions.keys())
    return "session_under_two_dates" if moved else None


def _instance(
    sessions: Mapping[_Texts, Session],
    asked: Sequence[tuple[Question, list[tuple[_Texts, int]]]],
    limit: int,
    tokens: Tokens,
) -> Instance:
    chunks: list[str] = []
    place: dict[tuple[_Texts, int], list[str]] = {}
    for texts, session in sorted(sessions.items(), key=lambda item: (item[1].timestamp, item[0])):
        for piece in pieces(session, limit, tokens):
            lines = [head(session)]
            for index, text in piece:
                ids = [turn_id(len(chunks) + 1, len(lines) + line) for line, _ in turn_spans(text)]
                place.setdefault((texts, index), []).extend(ids)
                lines += text.split("\n")
            chunks.append("\n".join(lines))
    questions = [_question(question, [each for where in told for each in place[where]]) for question, told in asked]
    return Instance(chunks=tuple(chunks), questions=tuple(questions))


def _question(question: Question, evidence: Sequence[str]) -> dict[str, Any]:
    more = {} if question.answerable else {"answerable": False}
    return {
        "question": question.text,
        "answer": question.answer,
        "evidence": list(evidence),
        "asked_at": question.asked_at.isoformat(),
        "question_type": question.category,
        **more,
    }
