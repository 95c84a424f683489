"""Makes an instance of each character of PerLTQA: its records in time order, several to a chunk, and its questions.

A short answer that stands in its evidence is the gold; of a longer one the names and rare words are, joined by `;`.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from membuilder.datasets.perltqa import MEMORY_FILE, QUESTION_FILE, stream
from membuilder.instances.draw import shuffled
from membuilder.instances.frame import FRAME_TOKENS
from membuilder.instances.keywords import keywords
from membuilder.instances.one_each import Names
from membuilder.instances.reading import MAX_ANSWER_WORDS
from membuilder.instances.records import Instance, Shape, Tokens
from membuilder.instances.sentences import sentences
from membuilder.instances.sessions import lay_out, pieces
from membuilder.types import Dialogue, Question

FILES = (MEMORY_FILE, QUESTION_FILE)
MAX_PARTS = 3
"""Keywords of an answer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Life:
    documents: tuple[str, ...]
    """The character."""
    dialogue: Dialogue
    dropped: tuple[str, ...] = ()
    is_empty: bool = False


def read(files: Sequence[Path]) -> Iterator[Life]:
    for dialogue in stream(files[0].parent):
        yield Life(documents=(dialogue.speakers[0],), dialogue=dialogue)


def make(life: Life, shape: Shape, tokens: Tokens, names: Names, dropped: Counter[str]) -> Instance | None:
    """Return the instance of a character, with questions whose evidence tells the answer."""
    limit = shape.chunk_tokens[1] - FRAME_TOKENS
    turns = [turn for session in life.dialogue.sessions for turn in session.turns]
    if max(tokens(part) for turn in turns for part in sentences(turn.text)) > limit:
        dropped["sentence_longer_than_a_chunk"] += 1
        return None
    told = [(session, piece) for session in life.dialogue.sessions for piece in pieces(session, limit, tokens)]
    chunks, place = lay_out(told, limit, tokens)
    if len(chunks) > shape.chunks:
        dropped["longer_than_an_instance"] += 1
        return None
    texts = {turn.id: turn.content for turn in turns}
    asked = [each for question in life.dialogue.questions if (each := _asked(question, texts, place, dropped))]
    if len(asked) < shape.questions[0]:
        dropped["in_an_instance_of_too_few_questions"] += len(asked)
        return None
    chosen = set(shuffled(range(len(asked)), *names)[: shape.questions[1]])
    dropped["more_than_an_instance_takes"] += len(asked) - len(chosen)
    return Instance(chunks=tuple(chunks), questions=tuple(each for i, each in enumerate(asked) if i in chosen))


def _asked(
    question: Question, texts: Mapping[str, str], place: Mapping[str, Sequence[str]], dropped: Counter[str]
) -> dict[str, Any] | None:
    """Return a question as a file has it; None, and counted, where nothing of its answer stands in its evidence."""
    evidence = "\n".join(texts[each] for each in question.evidence)
    answer = question.answer.strip().rstrip(".")
    if not evidence:
        dropped["evidence_absent"] += 1
        return None
    if len(answer.split()) > MAX_ANSWER_WORDS or answer.lower() not in evidence.lower():
        answer = "; ".join(keywords(question.answer, evidence)[:MAX_PARTS])
    if not answer:
        dropped["no_keywords"] += 1
        return None
    lines = [line for each in question.evidence for line in place[each]]
    return {"question": question.text, "answer": answer, "evidence": lines}
