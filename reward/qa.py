"""Dense question answering: a session's questions put to the bank right after it."""

import asyncio
import inspect
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from membuilder.bank.retrieve import Retrieval
from membuilder.embedding.local import TextEmbedder
from membuilder.errors import ConfigError
from membuilder.plugins import place_of
from membuilder.schemes.scheme import Scheme
from membuilder.types import Bank, Question
from reward.judges import Judge, Verdict


@dataclass(frozen=True, kw_only=True, slots=True)
class QAResult:
    """One retrieval and one verdict per question, in the order of the questions."""

    retrievals: tuple[Retrieval, ...]
    verdicts: tuple[Verdict, ...]

    @property
    def num_missing(self) -> int:
        return sum(verdict.correct is None for verdict in self.verdicts)

    @property
    def accuracy(self) -> float | None:
        """Mean over the questions that could be judged; None if there are none."""
        judged = [verdict.correct for verdict in self.verdicts if verdict.correct is not None]
        return sum(judged) / len(judged) if judged else None

    @property
    def retrieval_counts(self) -> Counter[str]:
        """Entries found per role that wrote them, summed over all questions, judged or not."""
        return Counter(entry.agent for retrieval in self.retrievals for entry in retrieval.entries)


def answer_banks(
    tasks: Sequence[tuple[Bank, Sequence[Question]]],
    scheme: Scheme,
    embedder: TextEmbedder,
    judge: Judge,
    k: int = 10,
) -> list[QAResult]:
    """Find k entries of each bank for each of its questions, and judge whether they and the core answer it.

    An async judge is awaited for the questions of all banks together.
    """
    # one call fills the embedder's cache in full batches; bank by bank the new texts would come a few at a time
    embedder.embed([entry.text for bank, _ in tasks for entry in bank.entries])
    embedder.embed([question.text for _, questions in tasks for question in questions])
    found = [scheme.find(bank, [question.text for question in questions], embedder, k) for bank, questions in tasks]
    cases = [
        (question, bank, retrieval)
        for (bank, questions), retrievals in zip(tasks, found, strict=True)
        for question, retrieval in zip(questions, retrievals, strict=True)
    ]
    verdicts = asyncio.run(_judge_all(judge, cases))
    ends = list(accumulate(map(len, found), initial=0))
    return [
        QAResult(retrievals=tuple(retrievals), verdicts=tuple(verdicts[start:end]))
        for retrievals, (start, end) in zip(found, pairwise(ends), strict=True)
    ]


async def _judge_all(judge: Judge, cases: Sequence[tuple[Question, Bank, Retrieval]]) -> list[Verdict]:
    return await asyncio.gather(*(_judge_one(judge, case) for case in cases))


async def _judge_one(judge: Judge, case: tuple[Question, Bank, Retrieval]) -> Verdict:
    try:
        verdict = judge(*case)
        if inspect.isawaitable(verdict):
            verdict = await verdict
    except (TimeoutError, ConnectionError) as error:  # the judge may live across a network
        return Verdict(correct=None, reason=f"judge unreachable: {type(error).__name__}: {error}")
    if not isinstance(verdict, Verdict):
        raise ConfigError(f"reward.judge: {place_of(judge)} returns {verdict!r:.80}; expected reward.judges.Verdict")
    return verdict
