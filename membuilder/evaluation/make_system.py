"""The systems of an evaluation by name, as its options want them."""

from typing import Any

from membuilder.bank.indexed_bank import Memory, memory_of
from membuilder.embedding.local import TextEmbedder
from membuilder.evaluation.agents import manifest_of
from membuilder.evaluation.banks import BUILT_FROM, BankFolder
from membuilder.evaluation.options import AGENTS, RETRIEVERS, RULES, STORED, Options
from membuilder.evaluation.systems import (
    Method,
    Ranking,
    Retriever,
    System,
    Unit,
    build_by_rules,
    from_memories,
    full_context,
    nothing,
)
from membuilder.types import Dialogue


def open_system(name: str, options: Options, settings: dict[str, Any], embedder: TextEmbedder) -> System:
    """Nothing is built or embedded before it is called. Raises EvaluationError where --db-path holds other banks."""
    if name == "full-context":
        return full_context
    if name == "none":
        return nothing
    if name == STORED:
        folder = BankFolder(options.db_path)
        folder.check(settings, options.build_model)
        return _stored(folder, options, embedder)
    if name == AGENTS:
        return _stored(memories(options, settings), options, embedder)
    if name == RULES:
        return _by_rules(options, settings, embedder)
    _, unit, *method = name.split("-")
    return Retriever(unit=Unit(unit), method=Method(*(method or ["dense"])), embedder=embedder)


def memories(options: Options, settings: dict[str, Any]) -> BankFolder:
    """Where system agents keeps its banks."""
    return BankFolder(options.db_path, manifest_of(options, settings))


def embeds_turns(name: str) -> bool:
    """Whether a system embeds every turn of a dialogue."""
    return name == RULES or (name in RETRIEVERS and not name.endswith("-bm25"))


def _stored(folder: BankFolder, options: Options, embedder: TextEmbedder) -> System:
    def open_bank(dialogue: Dialogue) -> Memory:
        return memory_of(folder.load(dialogue), embedder, options.index, folder.path(dialogue))

    return from_memories(open_bank, folder.max_turns, folder.include_superseded)


def _by_rules(options: Options, settings: dict[str, Any], embedder: TextEmbedder) -> System:
    """Builds each bank, into --db-path where that is kept for them."""
    if options.db_path is None or AGENTS in options.systems:
        return from_memories(lambda dialogue: memory_of(build_by_rules(dialogue, embedder), embedder, options.index))
    folder = BankFolder(options.db_path, {"builder": RULES} | {key: settings[key] for key in BUILT_FROM})
    search = _stored(folder, options, embedder)

    def build_and_search(dialogue: Dialogue, depth: int) -> list[Ranking]:
        if not folder.has(dialogue):
            folder.save(dialogue, build_by_rules(dialogue, embedder))
        return search(dialogue, depth)

    return build_and_search
