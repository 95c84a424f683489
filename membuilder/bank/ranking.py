"""Scores texts by the words they share with a query, in any script, and ranks by meaning, by words or by both.

bm25_scores(["I have a cat.", "我领养了一只橘猫。"], ["橘猫叫什么？"])  # (1, 2): 0 for the first, more for the second
"""

import re
import unicodedata
from collections.abc import Callable, Sequence
from enum import StrEnum
from functools import cache

import numpy as np

RRF_CONSTANT = 60
"""The constant of reciprocal rank fusion: Cormack, Clarke and Buettcher, SIGIR 2009."""
_UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}ー\p{Hangul}\p{Line_Break=Complex_Context}]"
"""What Lucene's CJKBigramFilter cuts, and what Unicode's line breaking calls South East Asian: Thai, Lao, Khmer, ...

Korean has spaces, but its words carry their particles."""


class SearchMethod(StrEnum):
    DENSE = "dense"
    """By embeddings."""
    BM25 = "bm25"
    """By words; what shares none with the query is not found."""
    HYBRID = "hybrid"
    """By the reciprocal ranks of both."""


ANSWERING = SearchMethod.HYBRID
"""How a memory is searched for an answer unless told otherwise: better than dense search in docs/results.md."""


def search_terms(text: str, with_characters: bool = False) -> list[str]:
    """Return the lower-case words of a text, and the character bigrams of what is written without spaces.

    A word has two characters or more. A lone character of a script without spaces stands for itself; to be found by
    such a query, a text is indexed `with_characters`, each one beside its bigrams.
    """
    if text.isascii():  # ten times as fast
        return re.findall(r"\w\w+", text.lower())
    terms = []
    for found in _pattern().finditer(unicodedata.normalize("NFKC", text).lower()):
        run = found["unspaced"]
        if run is None or len(run) == 1:
            terms.append(found[0])
            continue
        terms += [run[i : i + 2] for i in range(len(run) - 1)]
        if with_characters:
            terms += run
    return terms


@cache
def _pattern():
    import regex  # only searching by words needs it

    # Marks belong to the word they stand in (Arabic, Devanagari), but none opens one: those of emoji are no words.
    words = rf"[[\p{{L}}\p{{N}}_]--{_UNSPACED}][\w--{_UNSPACED}]+"
    return regex.compile(rf"(?V1)(?P<unspaced>{_UNSPACED}+)|{words}")


class WordIndex:
    """The words of some texts, to be searched again and again by BM25."""

    def __init__(self, texts: Sequence[str]):
        import bm25s  # it loads scipy

        self._num_texts = len(texts)
        self._index = bm25s.BM25(k1=1.5, b=0.75)  # in Lucene's variant
        terms = _tokenized([search_terms(text, with_characters=True) for text in texts])
        self._has_terms = any(terms)
        if self._has_terms:
            self._index.index(terms, show_progress=False)

    def scores(self, queries: Sequence[str]) -> np.ndarray:
        """Return the score of each text for each query; 0 where they share no term but English stop words. # (Q, N)"""
        found = np.zeros((len(queries), self._num_texts), dtype=np.float32)
        if self._has_terms:
            for row, query in enumerate(_tokenized([search_terms(query) for query in queries])):
                if known := [term for term in query if term in self._index.vocab_dict]:
                    found[row] = self._index.get_scores(known)
        return found


def _tokenized(terms: Sequence[Sequence[str]]) -> list[list[str]]:
    import bm25s

    joined = [" ".join(each) for each in terms]
    return bm25s.tokenize(joined, token_pattern=r"\S+", stopwords="en", show_progress=False, return_ids=False)


def bm25_scores(texts: Sequence[str], queries: Sequence[str]) -> np.ndarray:
    """Return the BM25 score of each text for each query, as `WordIndex.scores` does. # (Q, N)"""
    return WordIndex(texts).scores(queries)


def reciprocal_ranks(scores: np.ndarray) -> np.ndarray:
    """Return 1 / (60 + rank), rank from 1, per row; equal scores share the best rank of theirs. # (Q, N)"""
    from scipy.stats import rankdata  # seconds to import, and only hybrid search needs it

    return 1.0 / (RRF_CONSTANT + rankdata(-scores, method="min", axis=1))


def fused(similarities: np.ndarray, word_scores: np.ndarray) -> np.ndarray:
    """Fuse dense and BM25 scores by their reciprocal ranks; a text that shares no word has no rank there. # (Q, N)

    A similarity of -inf has none either: it is that of a text which an index did not return.
    """
    by_meaning = np.where(similarities > -np.inf, reciprocal_ranks(similarities), 0.0)
    by_words = np.where(word_scores > 0, reciprocal_ranks(word_scores), 0.0)
    return by_meaning + by_words


def scores_by(
    method: SearchMethod, similarities: Callable[[], np.ndarray], word_scores: Callable[[], np.ndarray]
) -> np.ndarray:
    """Return the scores by which `method` ranks, of dense and of BM25 scores; only what it needs is called. # (Q, N)"""
    if method is SearchMethod.DENSE:
        return similarities()
    return word_scores() if method is SearchMethod.BM25 else fused(similarities(), word_scores())


def best_of(scores: np.ndarray, k: int, method: SearchMethod) -> list[tuple[list[int], list[float]]]:
    """Return, per query, the places and scores of the k best of N texts (Q, N), equal ones in their order.

    What shares no word with the query is not found by words; a similarity of 0 is one like any other.
    """
    found = []
    for row in scores:
        places = _best_places(row, k)
        kept = places if method is SearchMethod.DENSE else places[row[places] > 0]
        found.append((kept.tolist(), row[kept].tolist()))
    return found


def _best_places(scores: np.ndarray, k: int) -> np.ndarray:
    """Return the places of the k best scores (N,), equal ones in their order; only what may be among them is sorted."""
    places = np.arange(len(scores))
    if 0 < k < len(scores):
        least = np.partition(scores, len(scores) - k)[len(scores) - k]
        places = np.flatnonzero(scores >= least)
    return places[np.argsort(-scores[places], kind="stable")[:k]]
