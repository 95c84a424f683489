"""Dense question answering: what a bank's questions found in it, and how they were judged."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from membuilder.bank.retrieve import Retrieval
from membuilder.embedding.local import TextEmbedder
from membuilder.schemes.scheme import Scheme
from membuilder.types import Bank, Question
from reward.judges import Verdict


def found_for(
    scheme: Scheme, bank: Bank, questions: Sequence[Question], embedder: TextEmbedder, k: int
) -> list[Retrieval]:
    """Return what the scheme finds for each question; one that has none to find anything for is not asked."""
    return scheme.find(bank, [question.text for question in questions], embedder, k) if questions else []


@dataclass(frozen=True, kw_only=True, slots=True)
class QAResult:
    """One retrieval and one verdict per question, in the order of the questions."""

    retrievals: tuple[Retrieval, ...]
    verdicts: tuple[Verdict, ...]

    @property
    def num_missing(self) -> int:
        return sum(verdict.correct is None for verdict in self.verdicts)

    @property
    def missing(self) -> dict[str, int]:
        """Return how many verdicts are missing for each cause."""
        return dict(Counter(each.cause or "undecided" for each in self.verdicts if each.correct is None))

    @property
    def accuracy(self) -> float | None:
        """Mean over the questions that could be judged; None if there are none."""
        judged = [verdict.correct for verdict in self.verdicts if verdict.correct is not None]
        return sum(judged) / len(judged) if judged else None

    @property
    def retrieval_counts(self) -> Counter[str]:
        """Entries found per role that wrote them, summed over all questions, judged or not."""
        return Counter(entry.agent for retrieval in self.retrievals for entry in retrieval.entries)
