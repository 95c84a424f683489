"""Scores texts by the words they share with a query, in any script, and fuses rankings.

bm25_scores(["I have a cat.", "我领养了一只橘猫。"], ["橘猫叫什么？"])  # (1, 2): 0 for the first, more for the second
"""

import unicodedata
from collections.abc import Sequence
from functools import cache

import numpy as np

RRF_CONSTANT = 60
"""The constant of reciprocal rank fusion: Cormack, Clarke and Buettcher, SIGIR 2009."""
_UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}ー\p{Hangul}\p{Line_Break=Complex_Context}]"
"""What Lucene's CJKBigramFilter cuts, and what Unicode's line breaking calls South East Asian: Thai, Lao, Khmer, ...

Korean has spaces, but its words carry their particles."""


def search_terms(text: str) -> list[str]:
    """Return the lower-case words of a text, and the character bigrams of what is written without spaces.

    A word has two characters or more. A lone character of a script without spaces stands for itself.
    """
    terms = []
    for found in _pattern().finditer(unicodedata.normalize("NFKC", text).lower()):
        run = found["unspaced"]
        if run is None or len(run) == 1:
            terms.append(found[0])
        else:
            terms += [run[i : i + 2] for i in range(len(run) - 1)]
    return terms


@cache
def _pattern():
    import regex  # only searching by words needs it

    # Marks belong to the word they stand in (Arabic, Devanagari), but none opens one: those of emoji are no words.
    words = rf"[[\p{{L}}\p{{N}}_]--{_UNSPACED}][\w--{_UNSPACED}]+"
    return regex.compile(rf"(?V1)(?P<unspaced>{_UNSPACED}+)|{words}")


def bm25_scores(texts: Sequence[str], queries: Sequence[str]) -> np.ndarray:
    """Return the BM25 score of each text for each query; 0 where they share no term but English stop words. # (Q, N)"""
    import bm25s  # it loads scipy

    def tokenize(given: Sequence[str]) -> list[list[str]]:
        split = [" ".join(search_terms(text)) for text in given]
        return bm25s.tokenize(split, token_pattern=r"\S+", stopwords="en", show_progress=False, return_ids=False)

    index = bm25s.BM25(k1=1.5, b=0.75)  # in Lucene's variant
    terms, asked = tokenize(texts), tokenize(queries)
    found = np.zeros((len(queries), len(texts)), dtype=np.float32)
    if any(terms):
        index.index(terms, show_progress=False)
        for row, query in enumerate(asked):
            if known := [term for term in query if term in index.vocab_dict]:
                found[row] = index.get_scores(known)
    return found


def reciprocal_ranks(scores: np.ndarray) -> np.ndarray:
    """Return 1 / (60 + rank), rank from 1, per row; equal scores share the best rank of theirs. # (Q, N)"""
    from scipy.stats import rankdata  # seconds to import, and only hybrid search needs it

    return 1.0 / (RRF_CONSTANT + rankdata(-scores, method="min", axis=1))


def fused(similarities: np.ndarray, word_scores: np.ndarray) -> np.ndarray:
    """Fuse dense and BM25 scores by their reciprocal ranks; a text that shares no word has no rank there. # (Q, N)"""
    by_words = np.where(word_scores > 0, reciprocal_ranks(word_scores), 0.0)
    return reciprocal_ranks(similarities) + by_words
