"""Gives a reader the whole dialogue, as far as its context holds it: what does not fit is cut out of the middle.

    LongContext(limit=30_000, count=count, by_source=True)(dialogue, depth=20)

The limit holds for the whole prompt. Its instructions and the question are kept; the beginning and the end of the
dialogue have the room that is left, half each. The tokens that were cut out are told of each question.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from membuilder.evaluation.chunks import Chunk, Count, chunks_of
from membuilder.evaluation.recall import Item, Ranking
from membuilder.evaluation.source_metrics import form_of
from membuilder.llm.answer_and_judge import answer_prompt
from membuilder.types import Dialogue, Question

_PIECE = re.compile(r"(?s).{1,200}(?=\s)|.{1,200}")
"""What is kept or cut as a whole: up to 200 characters, to the end of a word where there is one."""
_CUT = "\n[{} tokens are left out here]\n"


@dataclass(frozen=True, kw_only=True, slots=True)
class LongContext:
    """The dialogue itself, cut in the middle to the reader's limit."""

    limit: int
    """Tokens of a whole prompt."""
    count: Count
    by_source: bool
    """Whether turns are read as they stand in the data, and answers asked for in the form of their source."""

    def __call__(self, dialogue: Dialogue, depth: int) -> list[Ranking]:
        chunks = chunks_of(dialogue, verbatim=self.by_source)
        text, spans = _joined(chunks)
        pieces = _PIECE.findall(text)
        sizes = [self.count(piece) for piece in pieces]
        return [self._ranking(question, dialogue, pieces, sizes, spans) for question in dialogue.questions]

    def _ranking(
        self,
        question: Question,
        dialogue: Dialogue,
        pieces: Sequence[str],
        sizes: Sequence[int],
        spans: Sequence[tuple[str, int, int]],
    ) -> Ranking:
        now = dialogue.sessions[-1].timestamp
        form = form_of(question) if self.by_source else None
        bare = answer_prompt(question, core="", memories=[_CUT.format(sum(sizes))], now=now, form=form)
        front, back = kept(sizes, self.limit - self.count(bare))
        if front == len(pieces):
            text, cut = "".join(pieces), 0
        else:
            cut = sum(sizes[front : len(sizes) - back])
            text = "".join([*pieces[:front], _CUT.format(cut), *pieces[len(pieces) - back :]])
        ends = [0, *accumulate(map(len, pieces))]
        until, since = ends[front], ends[len(pieces) - back]
        turns = tuple(turn_id for turn_id, start, end in spans if end <= until or start >= since)
        item = Item(text=text, source_turns=turns)
        memory = ("".join(pieces[:front]), "".join(pieces[len(pieces) - back :]))
        return Ranking(items=(item,), memory=tuple(filter(None, memory)), cut_tokens=cut)


def kept(sizes: Sequence[int], room: int) -> tuple[int, int]:
    """Return how many pieces at the beginning and at the end fit the room together; all are at the beginning, or none
    are in both.
    """
    if sum(sizes) <= max(room, 0):
        return len(sizes), 0
    front = back = used = 0
    while used + sizes[front] <= room // 2:
        used += sizes[front]
        front += 1
    while used + sizes[len(sizes) - back - 1] <= room:
        used += sizes[len(sizes) - back - 1]
        back += 1
    return front, back


def _joined(chunks: Sequence[Chunk]) -> tuple[str, list[tuple[str, int, int]]]:
    """Return all chunks as one text, and where in it each turn begins and ends."""
    text, spans, length = [], [], 0
    for chunk in chunks:
        for turn_id, line in zip(chunk.turn_ids, chunk.lines, strict=True):
            spans.append((turn_id, length, length + len(line)))
            text.append(f"{line}\n")
            length += len(line) + 1
        text.append("\n")
        length += 1
    return "".join(text), spans
