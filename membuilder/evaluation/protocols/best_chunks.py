"""Gives a reader the chunks that BM25 ranks highest for the bare question, in the order of their scores.

BM25 is that of rank_bm25's `BM25Okapi`, which the published numbers of this baseline were taken with.
"""

from dataclasses import dataclass

import numpy as np

from membuilder.bank.okapi import Okapi, terms_of
from membuilder.evaluation.chunks import chunks_of
from membuilder.evaluation.recall import Item, Ranking
from membuilder.types import Dialogue


@dataclass(frozen=True, kw_only=True, slots=True)
class BestChunks:
    """Searches whole chunks by words."""

    num_chunks: int
    """Chunks that an answer is given."""
    verbatim: bool
    """Whether turns are read as they stand in the data."""

    def __call__(self, dialogue: Dialogue, depth: int) -> list[Ranking]:
        chunks = [chunk for chunk in chunks_of(dialogue, self.verbatim) if chunk.lines]
        index = Okapi([terms_of(chunk.text, with_characters=True) for chunk in chunks])
        rankings = []
        for question in dialogue.questions:
            scores = index.scores(terms_of(question.text))
            best = np.argsort(-scores, kind="stable")[: max(depth, self.num_chunks)].tolist()
            items = tuple(
                Item(text=chunks[place].text, source_turns=chunks[place].turn_ids, score=float(scores[place]))
                for place in best
            )
            rankings.append(Ranking(items=items, given=items[: self.num_chunks]))
        return rankings
