"""What one answer and one retrieval are worth. Pure functions; a score that does not apply is None, never 0.

Token F1 is LoCoMo's (snap-research/locomo, task_eval/evaluation.py): words lower-cased, without punctuation and articles,
stemmed by Porter; what differs by category is in `token_f1`.
"""

import re
import string
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache

from nltk.stem import PorterStemmer

from membuilder.evaluation.systems import Ranking
from membuilder.types import Question

CUTOFFS = (5, 10, 20)
ADVERSARIAL = "adversarial"
LOCOMO_REFUSALS = ("no information available", "not mentioned")
REFUSALS = (
    *LOCOMO_REFUSALS,
    "not answerable",
    "unanswerable",
    "cannot be answered",
    "does not say",
    "not enough information",
    "no information about",
    "don't know",
    "do not know",
)
_STEMMER = PorterStemmer()
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the|and)\b")


@dataclass(frozen=True, kw_only=True, slots=True)
class Recall:
    """How much of a question's evidence a retrieval holds, at one cutoff and by turns or sessions."""

    all: float
    """1 if every piece of evidence was found, else 0."""
    any: float
    """1 if some was."""
    mean: float
    """Share of the evidence that was."""


def evidence_recall(question: Question, ranking: Ranking, k: int, session_of: dict[str, int] | None) -> Recall | None:
    """Recall at k; `session_of` (turn id -> session) counts sessions instead of turns.

    None without evidence, and where nothing that was found could show it: all of it is in a model's own words, which
    stand for no turn.
    """
    if not question.evidence or not (ranking.knows_turns() if session_of is None else ranking.knows_sessions()):
        return None
    wanted, found = set(question.evidence), ranking.sources(k)
    if session_of is not None:
        wanted, found = {session_of[turn_id] for turn_id in wanted}, ranking.sessions(k, session_of)
    share = len(wanted & found) / len(wanted)
    return Recall(all=float(share == 1), any=float(share > 0), mean=share)


def is_set_apart(question: Question) -> bool:
    """Whether a question is adversarial or asks for abstention: such questions have a column of their own."""
    return not question.answerable or question.category == ADVERSARIAL


def token_f1(question: Question, answer: str) -> float | None:
    """F1 of stemmed words, as LoCoMo scores the question's category. None where there is no gold answer to compare with.

    Multi-hop: both sides are lists at their commas, each gold part takes its best match. Open-domain: only the gold text
    before the first semicolon counts. Adversarial: 1 for one of LoCoMo's two phrases of refusal. Others: plain.
    """
    if question.category == ADVERSARIAL:
        return float(_has_phrase(answer, LOCOMO_REFUSALS))
    if question.answer is None or not question.answerable:
        return None
    if question.category == "multi-hop":
        given, gold = answer.split(","), question.answer.split(",")
        return sum(max(_f1(one, part) for one in given) for part in gold) / len(gold)
    gold = question.answer.split(";")[0] if question.category == "open-domain" else question.answer
    return _f1(answer, gold)


def exact_match(question: Question, answer: str) -> float | None:
    """1 if the same words stand in both, in whatever order and number (LoCoMo's exact match)."""
    if question.answer is None or is_set_apart(question):
        return None
    return float(set(_normal(answer).split()) == set(_normal(question.answer).split()))


def substring_match(question: Question, answer: str) -> float | None:
    """1 if the gold answer stands in the answer as whole words, in its order."""
    if question.answer is None or is_set_apart(question):
        return None
    return float(f" {_normal(question.answer)} " in f" {_normal(answer)} ")


def abstention(question: Question, answer: str) -> float | None:
    """1 if an unanswerable question was turned down; None for questions that have an answer."""
    return None if question.answerable else float(_has_phrase(answer, REFUSALS))


def wrongly_abstained(question: Question, answer: str) -> float | None:
    """1 if an answerable question was turned down: what abstaining always would cost."""
    return float(_has_phrase(answer, REFUSALS)) if question.answerable else None


def _has_phrase(answer: str, phrases: tuple[str, ...]) -> bool:
    text = answer.lower().replace("\u2019", "'")
    return any(phrase in text for phrase in phrases)


def _f1(answer: str, gold: str) -> float:
    given, wanted = _stems(answer), _stems(gold)
    common = sum((Counter(given) & Counter(wanted)).values())
    return 2 * common / (len(given) + len(wanted)) if common else 0.0


def _stems(text: str) -> list[str]:
    return [_stem(word) for word in _normal(text).split()]


@lru_cache(maxsize=65536)
def _stem(word: str) -> str:
    return _STEMMER.stem(word)


def _normal(text: str) -> str:
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())
