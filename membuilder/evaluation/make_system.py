"""Opens the system that a name means. Nothing is built, embedded or asked before it is called."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Any

from membuilder.bank.indexed_bank import IndexedBank, memory_of
from membuilder.bank.ranking import SearchMethod
from membuilder.embedding.local import TextEmbedder
from membuilder.embedding.naming import identity_of
from membuilder.errors import EvaluationError
from membuilder.evaluation.agents import manifest_of, rules_manifest
from membuilder.evaluation.banks import BankFolder
from membuilder.evaluation.chunks import token_counter
from membuilder.evaluation.line_banks import all_lines, random_lines
from membuilder.evaluation.names import (
    AGENTS,
    ALL_LINES,
    BEST_CHUNKS,
    CHUNKS,
    CONTEXT_TOKENS,
    LONG_CONTEXT,
    RANDOM_LINES,
    RETRIEVERS,
    RULES,
    RUNNING,
    STORED,
)
from membuilder.evaluation.options import Options
from membuilder.evaluation.protocols.best_chunks import BestChunks
from membuilder.evaluation.protocols.long_context import LongContext
from membuilder.evaluation.protocols.running_memory import RunningMemory
from membuilder.evaluation.reading import Reading, without_parts
from membuilder.evaluation.scheme_search import SchemeSearch
from membuilder.evaluation.systems import (
    Retriever,
    System,
    Unit,
    build_by_rules,
    from_memories,
    full_context,
    nothing,
)
from membuilder.schemes.load import FOUR_AGENTS, MEMALPHA, scheme_of
from membuilder.schemes.memalpha.config import MemAlphaConfig
from membuilder.schemes.scheme import Scheme
from membuilder.types import Agent, Bank, Dialogue

RUNNING_FOLDER = "running"
"""Folder under --output-dir of the texts that the systems in RUNNING wrote."""


def open_system(
    name: str,
    options: Options,
    settings: dict[str, Any],
    embedder: TextEmbedder,
    on_session: Callable[[], object] = lambda: None,
) -> System:
    """Return the system of that name. `on_session` is called after each session of a memory that is built then.

    Raises EvaluationError where --db-path holds other banks.
    """
    flags, count = options.flags, token_counter(options.flags.tokenizer)
    if name == "full-context":
        return full_context
    if name == "none":
        return nothing
    if name == LONG_CONTEXT:
        limit = flags.context_tokens or CONTEXT_TOKENS
        return LongContext(limit=limit, count=count, by_source=options.by_source)
    if name == BEST_CHUNKS:
        return BestChunks(num_chunks=flags.chunks or CHUNKS, verbatim=options.by_source)
    if name in RUNNING:
        return RunningMemory(name=name, folder=flags.output_dir / RUNNING_FOLDER)
    if name == STORED:
        folder = BankFolder(options.db_path)
        folder.check(settings, flags.build_model)
        return _searched(folder.load, _reading_of_stored(folder, options), options, embedder, folder)
    if name == AGENTS:
        folder = BankFolder(options.db_path, manifest_of(options, settings))
        return _searched(folder.load, folder.reading, options, embedder, folder)
    if name in (RULES, ALL_LINES, RANDOM_LINES):
        return _built(name, options, settings, embedder, on_session)
    _, unit, *method = name.split("-")
    how = SearchMethod(*(method or ["dense"]))
    return Retriever(unit=Unit(unit), method=how, embedder=embedder, pieces=options.index.pieces)


def embeds_turns(name: str, options: Options) -> bool:
    """Tell whether a system embeds every turn of a dialogue."""
    if name in (RULES, ALL_LINES, RANDOM_LINES):
        return options.reading.scheme == FOUR_AGENTS
    return name in RETRIEVERS and not name.endswith("-bm25")


def _reading_of_stored(folder: BankFolder, options: Options) -> Reading:
    """Return how stored banks were built, without the parts that shall not be read. Raises EvaluationError."""
    built, flags = folder.reading, options.flags
    if flags.scheme not in (None, built.scheme):
        problem = f"holds banks of scheme {built.scheme!r}; leave out --scheme {flags.scheme}, or name another folder"
        raise EvaluationError(f"{options.db_path} {problem} by --db-path")
    return built if flags.exclude_memory is None else without_parts(built, flags.exclude_memory)


def _built(
    name: str,
    options: Options,
    settings: dict[str, Any],
    embedder: TextEmbedder,
    on_session: Callable[[], object],
) -> System:
    """Return a system whose memory needs no model. Those of the rules are kept in --db-path where it is theirs."""
    reading, count = options.reading, token_counter(options.flags.tokenizer)
    is_first = reading.scheme == FOUR_AGENTS  # whose rules read whole sessions in their own prompts
    scheme = None if is_first else scheme_of(reading)
    reading = Reading() if is_first else replace(reading, max_turns=None)
    by_rules = partial(build_by_rules, embedder=embedder, on_session=on_session, scheme=scheme)
    if name == ALL_LINES:
        return _searched(partial(all_lines, scheme=scheme), reading, options, embedder)
    if name == RANDOM_LINES:
        build = partial(random_lines, by_rules=by_rules, count=count, scheme=scheme)
        return _searched(build, reading, options, embedder)
    if options.db_path is None or AGENTS in options.systems:
        return _searched(by_rules, reading, options, embedder)
    folder = BankFolder(options.db_path, rules_manifest(reading, settings))

    @cache
    def check_embedder() -> None:
        folder.built_by(identity_of(embedder, options.embedder))

    def load(dialogue: Dialogue) -> Bank:
        if not folder.has(dialogue):
            check_embedder()
            folder.save(dialogue, by_rules(dialogue))
        return folder.load(dialogue)

    return _searched(load, folder.reading, options, embedder, folder)


def _searched(
    bank_of: Callable[[Dialogue], Bank],
    reading: Reading,
    options: Options,
    embedder: TextEmbedder,
    folder: BankFolder | None = None,
) -> System:
    """Return banks as a system: by an index of all entries, or as their scheme finds what a question asks for."""
    if reading.scheme == FOUR_AGENTS or (reading.scheme != MEMALPHA and options.retrieval is not None):

        def open_bank(dialogue: Dialogue) -> IndexedBank:
            bank, path = bank_of(dialogue), None if folder is None else folder.path(dialogue)
            return memory_of(bank, embedder, options.index, path)

        return from_memories(open_bank, reading, options.retrieval)
    return SchemeSearch(
        bank_of=bank_of,
        scheme=_finding(reading, options.retrieval),
        embedder=embedder,
        top_k=options.flags.top_k,
        reads_core=reading.memalpha is None or Agent.CORE in reading.memalpha.parts,
        max_turns=reading.max_turns,
    )


def _finding(reading: Reading, method: SearchMethod | None) -> Scheme:
    """Return the scheme that searches, by the method of --retrieval where that is given."""
    if reading.scheme == MEMALPHA and method is not None:
        settings = replace(reading.memalpha or MemAlphaConfig(), retrieval=method)
        reading = replace(reading, memalpha=settings)
    return scheme_of(reading)
