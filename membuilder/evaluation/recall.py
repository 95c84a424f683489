"""What a question found, and how much of its evidence that holds. Standard library only.

    recall(evidence={"D1:3", "D1:4"}, found={"D1:3"})  # Recall(all=0.0, any=1.0, mean=0.5)

A trainer's held-out evaluation calls `recall` too, so the two cannot drift apart.
"""

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field

from membuilder.types import Question


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """One thing that a search found."""

    text: str
    source_turns: tuple[str, ...]
    """Turns that stand in it word for word; empty for what a model wrote in its own words."""
    session: int | None = None
    """Index of the session it was written in, which is known of every entry of a bank."""
    score: float | None = None
    """How well it fits the question; None where nothing was ranked."""
    entry_id: str | None = None


@dataclass(frozen=True, slots=True)
class Search:
    """A memory as its reader may search it while it answers one question."""

    find: Callable[[str], Sequence[Item]]
    """What a query finds, the best first."""
    queries: list[str] = field(default_factory=list)
    """What it was asked for so far."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranking:
    """All that one question found."""

    items: tuple[Item, ...] = ()
    """What was found, the best first; recall at k looks at the first k."""
    always: Item | None = None
    """What is read with every question and counts outside the k: the core of a bank."""
    given: tuple[Item, ...] | None = None
    """What an answer is given; None: the first of the items."""
    memory: tuple[str, ...] | None = None
    """All texts that the system keeps to answer from; None: the dialogue itself."""
    cut_tokens: int | None = None
    """Tokens that were cut out of the dialogue for this question, where its context is limited."""
    search: Search | None = None
    """By which a reader may find more; None: there is nothing to search."""

    def sources(self, k: int) -> set[str]:
        """Turns that the first k items and what is always read stand on."""
        return {turn_id for item in self._read(k) for turn_id in item.source_turns}

    def sessions(self, k: int, session_of: Mapping[str, int]) -> set[int]:
        """Sessions of those turns, and of those items that know no turn but their session."""
        own_words = {item.session for item in self._read(k) if not item.source_turns and item.session is not None}
        return own_words | {session_of[turn_id] for turn_id in self.sources(k)}

    def can_show(self, by_session: bool) -> bool:
        """Tell whether evidence could show in it: False where all that was found is in a model's own words."""
        read = self._read(len(self.items))
        return not read or any(item.source_turns or (by_session and item.session is not None) for item in read)

    def _read(self, k: int) -> list[Item]:
        return [*self.items[:k], *([self.always] if self.always else [])]


@dataclass(frozen=True, kw_only=True, slots=True)
class Recall:
    """How much of the evidence was found."""

    all: float
    """1 if every piece of evidence was found, else 0."""
    any: float
    """1 if some piece was found, else 0."""
    mean: float
    """Share of the evidence that was found."""


def recall(evidence: Set, found: Set) -> Recall:
    """Tell how much of the evidence (turns or sessions, at least one) is among what was found."""
    share = len(evidence & found) / len(evidence)
    return Recall(all=float(share == 1), any=float(share > 0), mean=share)


def evidence_recall(
    question: Question, ranking: Ranking, k: int, session_of: Mapping[str, int] | None
) -> Recall | None:
    """Recall at k; `session_of` (turn id -> session) counts sessions instead of turns.

    It is None without evidence, and where all that was found is in a model's own words, which stand for no turn.
    """
    if not question.evidence or not ranking.can_show(by_session=session_of is not None):
        return None
    if session_of is None:
        return recall(set(question.evidence), ranking.sources(k))
    return recall({session_of[turn_id] for turn_id in question.evidence}, ranking.sessions(k, session_of))
