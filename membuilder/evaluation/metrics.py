"""Every number an evaluation takes of a question, declared once in METRICS; one that does not apply is None, not 0.

Token F1 is LoCoMo's (snap-research/locomo, task_eval/evaluation.py): words lower-cased, without punctuation and
articles, stemmed by Porter; what differs by category is in `token_f1`.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import NamedTuple

from membuilder.evaluation.recall import Ranking, evidence_recall
from membuilder.evaluation.source_metrics import SourceMetric, metric_of, source_score
from membuilder.llm.answer_and_judge import AnswerVerdict
from membuilder.types import Dialogue, Question

CUTOFFS = (5, 10, 20)
JUDGES = ("strict", "lenient")
RUBRIC = "rubric"
"""The judge of sources that are graded by rubric; it is asked in place of the others."""
ADVERSARIAL, ABSTENTION = "adversarial", "abstention"
SET_APART = (ADVERSARIAL, ABSTENTION)
"""Groups of questions that have columns of their own and count in no mean of answers."""
LOCOMO_REFUSALS = ("no information available", "not mentioned")
REFUSALS = (
    *(*LOCOMO_REFUSALS, "not answerable", "unanswerable", "cannot be answered", "does not say"),
    *("not enough information", "no information about", "don't know", "do not know"),
)
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the|and)\b")


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """All that a question put to one system came to: the one thing metrics are computed from."""

    system: str
    dialogue: Dialogue
    question: Question
    ranking: Ranking
    answer: str | None = None
    """The answer; None where nobody was asked, or no answer could be had."""
    verdicts: Mapping[str, AnswerVerdict] = field(default_factory=dict)
    """The verdict of each judge that applies to the question."""
    source: str | None = None
    """Where the instance comes from, by whose metric it is scored; None: the benchmark has no such sources."""
    memory_tokens: int | None = None
    """Tokens of all that the system keeps to answer from; None: they were not counted."""
    chunk_tokens: int | None = None
    """Tokens of the whole dialogue as it is read."""


class Metric(NamedTuple):
    """One number per question."""

    name: str
    """Its name in records, in `compare --metric` and in tables."""
    meaning: str
    score: Callable[[Outcome], float | None]
    title: str | None = None
    """What it is called where it is shown by category; None: it is not shown there."""


def group_of(question: Question) -> str:
    """Return the column a question counts in: its category, unless it is adversarial or asks for abstention."""
    if question.category == ADVERSARIAL:
        return ADVERSARIAL
    return question.category if question.answerable else ABSTENTION


def token_f1(question: Question, answer: str) -> float | None:
    """F1 of stemmed words, as LoCoMo scores the question's category, with the gold answer that it fits best.

    None where there is no gold answer.
    Multi-hop: both sides are lists at their commas, each gold part takes its best match. Open-domain: only the gold
    text before the first semicolon counts. Adversarial: 1 for one of LoCoMo's two phrases of refusal. Others: plain.
    """
    if question.category == ADVERSARIAL:
        return float(_has_phrase(answer, LOCOMO_REFUSALS))
    if not question.golds or not question.answerable:
        return None
    return max(_f1_by_category(question.category, answer, gold) for gold in question.golds)


def _f1_by_category(category: str, answer: str, gold: str) -> float:
    if category == "multi-hop":
        given, parts = answer.split(","), gold.split(",")
        return sum(max(_f1(one, part) for one in given) for part in parts) / len(parts)
    return _f1(answer, gold.split(";")[0] if category == "open-domain" else gold)


def exact_match(question: Question, answer: str) -> float | None:
    """1 if the same words stand in both, in whatever order and number (LoCoMo's exact match)."""
    given, golds = set(_normal(answer).split()), _golds(question)
    return float(any(given == set(gold.split()) for gold in golds)) if golds else None


def substring_match(question: Question, answer: str) -> float | None:
    """1 if a gold answer stands in the answer as whole words, in its order."""
    given, golds = f" {_normal(answer)} ", _golds(question)
    return float(any(f" {gold} " in given for gold in golds)) if golds else None


def _golds(question: Question) -> list[str]:
    """Return the words of each gold answer; none where the question is set apart."""
    return [] if group_of(question) in SET_APART else [_normal(gold) for gold in question.golds]


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
    from nltk.stem import PorterStemmer  # seconds to import, which `--help` need not wait for

    return PorterStemmer().stem(word)


def _normal(text: str) -> str:
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def _recall_metrics() -> Iterator[Metric]:
    kinds = {
        "": ("all", "whether every piece of evidence was found"),
        "_any": ("any", "whether some evidence was found"),
        "_mean": ("mean", "the share of the evidence that was found"),
    }
    for level in ("", "session_"):
        for kind, (part, meaning) in kinds.items():
            for k in CUTOFFS:
                name = f"{level}recall{kind}@{k}"
                meaning_at_k = f"{meaning}, by {'sessions' if level else 'turns'}, in the first {k} items"
                score = partial(_recall, by_session=bool(level), part=part, k=k)
                yield Metric(name, meaning_at_k, score, f"evidence {name}" if name == "recall@10" else None)


def _recall(outcome: Outcome, *, by_session: bool, part: str, k: int) -> float | None:
    session_of = outcome.dialogue.session_of_turn() if by_session else None
    found = evidence_recall(outcome.question, outcome.ranking, k, session_of)
    return None if found is None else getattr(found, part)


def _of_answer(score: Callable[[Question, str], float | None]) -> Callable[[Outcome], float | None]:
    return lambda outcome: None if outcome.answer is None else score(outcome.question, outcome.answer)


def _of_judge(outcome: Outcome, name: str) -> float | None:
    verdict = outcome.verdicts.get(name)
    return None if verdict is None or verdict.correct is None else float(verdict.correct)


def _of_source(outcome: Outcome) -> float | None:
    """Score by the metric of the question's source."""
    if outcome.source is None or outcome.answer is None:
        return None
    if metric_of(outcome.question) is SourceMetric.RUBRIC:
        return _of_judge(outcome, RUBRIC)
    return source_score(outcome.question, outcome.answer)


_RECALLS = tuple(_recall_metrics())
"""These count on every question with evidence; all others on the answerable questions only."""
_ANSWERS = (
    Metric("f1", "shared stemmed words of answer and gold answer", _of_answer(token_f1), "F1"),
    Metric("exact", "whether both hold the same words", _of_answer(exact_match)),
    Metric("substring", "whether the gold answer stands in the answer", _of_answer(substring_match)),
    Metric("abstention", "whether an unanswerable question was turned down", _of_answer(abstention)),
    Metric("wrongly_abstained", "whether an answerable question was turned down", _of_answer(wrongly_abstained)),
)
_VERDICTS = tuple(
    Metric(
        f"judge_{name}",
        f"whether the {name} judge calls the answer right",
        partial(_of_judge, name=name),
        f"judge, {name}",
    )
    for name in JUDGES
)
_SOURCE = Metric(
    "source", "the score by the metric of the question's source, where it has one", _of_source, "source score"
)
METRICS = {metric.name: metric for metric in (*_RECALLS, *_ANSWERS, *_VERDICTS, _SOURCE)}
RECALLS, ANSWER_SCORES = (tuple(metric.name for metric in metrics) for metrics in (_RECALLS, _ANSWERS))
