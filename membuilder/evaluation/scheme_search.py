"""Searches a memory as its scheme says an answerer does, in place of one index over all entries."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from membuilder.datasets.windows import sessions_of_windows
from membuilder.embedding.local import TextEmbedder
from membuilder.evaluation.recall import Item, Ranking, Search
from membuilder.evaluation.systems import entry_items
from membuilder.schemes.scheme import Scheme, entry_agents
from membuilder.types import Bank, Dialogue


@dataclass(frozen=True, kw_only=True, slots=True)
class SchemeSearch:
    """Gives an answer all that the scheme finds with `top_k`, and its core with every question."""

    bank_of: Callable[[Dialogue], Bank]
    scheme: Scheme
    embedder: TextEmbedder
    top_k: int
    reads_core: bool = True
    """False: the core is no part of the memory, as --exclude-memory may say."""
    max_turns: int | None
    """Turns that the builder read at once."""
    empty: set[str] = field(default_factory=set)
    """Ids of the dialogues searched so far whose memory holds nothing."""

    def __call__(self, dialogue: Dialogue, depth: int) -> list[Ranking]:
        bank, parts = self.bank_of(dialogue), entry_agents(self.scheme)
        if not self.reads_core:
            bank = replace(bank, core="", core_quotes=())
        core, kept = bank.core, [entry.text for entry in bank.kept() if entry.agent in parts]
        memory = (*([core] if core else []), *kept)
        if not memory:
            self.empty.add(dialogue.id)
        sessions = sessions_of_windows(dialogue, self.max_turns)
        always = Item(text=core, source_turns=bank.core_sources) if core else None
        queries = [question.text for question in dialogue.questions]
        if not queries:
            return []

        def found(texts: list[str], k: int) -> list[tuple[Item, ...]]:
            return [entry_items(each, sessions) for each in self.scheme.find(bank, texts, self.embedder, k)]

        items = found(queries, depth)
        given = items if depth == self.top_k else found(queries, self.top_k)
        return [
            Ranking(
                items=of_question,
                always=always,
                given=shown,
                memory=memory,
                search=Search(lambda query: found([query], depth)[0]),
            )
            for of_question, shown in zip(items, given, strict=True)
        ]
