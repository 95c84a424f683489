"""Finds what a question asks for in each part of a memory: by BM25 as Okapi scores it, by embeddings or by both.

    found = find_parts(bank, ["Who founded Zog?"], 20, SearchMethod.BM25, 30_000, count_tokens, embedder)

BM25 is that of rank_bm25's `BM25Okapi`, which the published numbers were taken with: a term that more than half of the
texts hold weighs a quarter of the mean weight of all terms, and a text that shares no word is found with a score of 0.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache

import numpy as np

from membuilder.bank.ranking import SearchMethod, scores_by, search_terms
from membuilder.bank.retrieve import Retrieval
from membuilder.embedding.local import TextEmbedder
from membuilder.types import Bank, CountTokens, Entry

K1, B, EPSILON = 1.5, 0.75, 0.25
Weigh = Callable[[int, np.ndarray], np.ndarray]
"""Number of texts and in how many of them each term stands -> the weight of each term."""


def find_parts(
    bank: Bank,
    questions: Sequence[str],
    k_per_part: int,
    method: SearchMethod,
    budget_tokens: int | None,
    count_tokens: CountTokens,
    embedder: TextEmbedder | None,
) -> list[Retrieval]:
    """Find the k best current entries of each part of the bank for each question, all parts in one order of scores.

    What core and entries come to beyond the budget is left out, the lowest score first; the core always stays, and an
    entry that no budget of its own would hold is passed over. None: there is no budget. BM25 needs no embedder.
    """
    places: dict[str, list[int]] = defaultdict(list)
    entries = bank.current()
    for place, entry in enumerate(entries):
        places[entry.agent].append(place)
    found: list[list[tuple[float, int]]] = [[] for _ in questions]
    for of_part in places.values():
        scores = _scores([entries[place].text for place in of_part], questions, method, embedder)  # (Q, N)
        best = np.argsort(-scores, axis=1, kind="stable")[:, :k_per_part]
        for question, (row, columns) in enumerate(zip(scores, best, strict=True)):
            found[question] += [(-float(row[column]), of_part[column]) for column in columns]
    left = None if budget_tokens is None else max(0, budget_tokens - count_tokens([bank.core] if bank.core else []))
    return [_retrieval(sorted(each), entries, left, count_tokens) for each in found]


def _scores(
    texts: Sequence[str], questions: Sequence[str], method: SearchMethod, embedder: TextEmbedder | None
) -> np.ndarray:
    def similarities() -> np.ndarray:
        return embedder.embed(questions) @ embedder.embed(texts).T  # (Q, N)

    def word_scores() -> np.ndarray:
        index = _index_of(tuple(texts))
        return np.stack([index.scores(terms_of(question)) for question in questions])  # (Q, N)

    return scores_by(method, similarities, word_scores)


def _retrieval(
    found: Sequence[tuple[float, int]], entries: Sequence[Entry], budget: int | None, count_tokens: CountTokens
) -> Retrieval:
    """Return the found entries, pairs (negative score, place), as far as they fit into the budget."""
    kept, left = [], budget
    for score, place in found:
        if budget is not None:
            tokens = count_tokens([entries[place].text])
            if tokens > budget:
                continue
            if tokens > left:
                break
            left -= tokens
        kept.append((entries[place], -score))
    return Retrieval(entries=tuple(entry for entry, _ in kept), scores=tuple(score for _, score in kept))


def okapi_weights(num_texts: int, frequencies: np.ndarray) -> np.ndarray:
    """Return the inverse frequencies of Okapi; one below 0 is EPSILON times the mean of all, as rank_bm25 has it."""
    weights = np.log(num_texts - frequencies + 0.5) - np.log(frequencies + 0.5)
    return np.where(weights < 0, EPSILON * weights.mean(), weights)


def positive_weights(num_texts: int, frequencies: np.ndarray) -> np.ndarray:
    """Return the inverse frequencies of Lucene, which tell words apart in two or three texts too."""
    return np.log(1 + (num_texts - frequencies + 0.5) / (frequencies + 0.5))


class Okapi:
    """Texts as lists of terms, to be searched again and again by BM25."""

    def __init__(self, texts: Sequence[Sequence[str]], weigh: Weigh = okapi_weights):
        postings: dict[str, tuple[list[int], list[int]]] = {}  # term -> the texts it stands in, and how often
        for place, terms in enumerate(texts):
            for term, count in Counter(terms).items():
                places, counts = postings.setdefault(term, ([], []))
                places.append(place)
                counts.append(count)
        lengths = np.array([len(terms) for terms in texts], dtype=np.float64)
        mean = lengths.mean() if lengths.any() else 1.0
        self._norms = K1 * (1 - B + B * lengths / mean)  # (N,)
        frequencies = np.array([len(places) for places, _ in postings.values()], dtype=np.float64)
        weights = weigh(len(texts), frequencies) if postings else frequencies
        self._weights = dict(zip(postings, weights.tolist(), strict=True))
        self._postings, self._arrays = postings, {}

    def scores(self, query: Iterable[str]) -> np.ndarray:
        """Return the score of each text; a term that the query repeats counts as often. # (N,)"""
        scores = np.zeros(len(self._norms))
        for term in query:
            if term in self._postings:
                if term not in self._arrays:
                    self._arrays[term] = [np.array(each) for each in self._postings[term]]
                places, counts = self._arrays[term]
                scores[places] += self._weights[term] * counts * (K1 + 1) / (counts + self._norms[places])
        return scores


@lru_cache(maxsize=64)
def _index_of(texts: tuple[str, ...]) -> Okapi:
    """Return the index of a part. A reader who searches asks for the same part again and again.

    As many are kept as the questions in flight may need.
    """
    return Okapi([terms_of(text, with_characters=True) for text in texts])


def forget_indexes() -> None:
    """Let go of the texts that `_index_of` keeps, for a program in which one of them was erased."""
    _index_of.cache_clear()


def terms_of(text: str, with_characters: bool = False) -> list[str]:
    """Return the lower-case words of a text, as `search_terms` for scripts without spaces; single characters count."""
    lower = text.lower()
    if lower.isascii():
        return re.findall(r"\w+", lower)
    return search_terms(text, with_characters) + re.findall(r"(?<!\w)[a-z0-9](?!\w)", lower)
