"""Reads the command line of `python -m membuilder.eval` into what its flags come to together."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from membuilder.bank.index import IndexConfig
from membuilder.bank.ranking import SearchMethod
from membuilder.config import load
from membuilder.datasets.selection import load_selected, shorten
from membuilder.embedding.options import EmbedderOptions, Precision, best_precision, options_of
from membuilder.errors import ConfigError
from membuilder.evaluation.flags import JUDGE_MODEL, command_line
from membuilder.evaluation.metrics import JUDGES
from membuilder.evaluation.names import (
    AGENTS,
    AUTO,
    BANKS,
    BEST_CHUNKS,
    BUILDERS,
    INSTANCES,
    LONG_CONTEXT,
    MEMORIES,
    RETRIEVERS,
    RULES,
    RUNNING,
    STORED,
    WRITERS,
)
from membuilder.evaluation.reading import Reading, reading_of
from membuilder.llm.endpoints import ModelAccess
from membuilder.llm.flags import read_endpoint
from membuilder.schemes.load import MEMALPHA, scheme_of
from membuilder.types import Dialogue

THINKING = {"on": "true", "off": "false"}
"""Value of --thinking -> what the chat template of --model is told as `enable_thinking`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What an evaluation is asked for: the flags as they were given, and what they come to together."""

    flags: argparse.Namespace = field(repr=False)
    systems: tuple[str, ...]
    answerer: ModelAccess | None
    """None: retrieval is scored, nothing is answered."""
    judge: ModelAccess | None
    builder: ModelAccess | None
    """The model that writes the memories of system agents, and the texts of the systems in RUNNING."""
    reading: Reading
    build_parallel: int
    """Dialogues that system agents builds at once."""
    db_path: Path | None
    """Where the banks of the one system lie that builds or reads them; None: no bank is kept."""
    retrieval: SearchMethod | None
    """How the entries of a bank are found; None: as its builder's prompts say, else ANSWERING."""
    index: IndexConfig
    """What the entries' vectors are searched with."""
    concurrency: int
    """Questions in flight at once."""
    embedder: EmbedderOptions

    @property
    def by_source(self) -> bool:
        """Tell whether answers are scored by the metric of their source, in place of two judges."""
        return self.flags.dataset in INSTANCES


def parse(argv: Sequence[str]) -> Options:
    """Read the command line. A bad flag ends the program; flags that do not fit each other raise ConfigError."""
    given = command_line().parse_args(argv)
    writes = given.build_model is not None or given.model is not None
    default = STORED if given.mode == "answer" else AGENTS if writes else RULES
    systems = tuple(dict.fromkeys(given.system or [default]))
    _check(given, systems)
    reading = reading_of(given.build_config, given.scheme, given.exclude_memory)
    _check_search(given, systems, reading)
    questions = given.concurrency
    if given.parallel:
        questions = max(questions, given.workers)
    dialogues = given.workers if given.parallel else 1
    if given.thinking is not None:
        thinking = f"extra_body.chat_template_kwargs.enable_thinking={THINKING[given.thinking]}"
        given.endpoint = [*given.endpoint, thinking]
    # what --model and the flags beside it say: the other models and embeddings take their server from it
    first = read_endpoint(given, "", given.model or "unnamed", max_tokens=given.max_tokens, concurrency=questions)
    answerer = judge = builder = None
    if given.model is not None and given.mode != "build":
        answerer = first
        settings = {"max_tokens": given.max_tokens, "concurrency": questions * len(JUDGES)}
        name = given.judge_model or JUDGE_MODEL  # at openai, so that a self-hosted model does not grade itself
        judge = read_endpoint(given, "judge-", name, like=first, provider="openai", **settings)
    if writes:
        in_flight = max(dialogues * len(scheme_of(reading).roles), questions if set(systems) & set(RUNNING) else 0)
        settings = {"max_tokens": given.max_tokens, "concurrency": in_flight}
        name, is_first = given.build_model or given.model, given.build_model is None
        builder = read_endpoint(given, "build-", name, like=first, is_first=is_first, **settings)
    return Options(
        flags=given,
        systems=systems,
        answerer=answerer,
        judge=judge,
        builder=builder if set(systems) & set(WRITERS) else None,
        reading=reading,
        build_parallel=dialogues,
        db_path=_db_path(given, systems),
        retrieval=given.retrieval and SearchMethod(given.retrieval),
        index=load(IndexConfig, None, given.index),
        concurrency=questions,
        embedder=options_of(given, first, given.embedding_api_key, _precision(given, systems)),
    )


def dialogues_of(given: argparse.Namespace) -> tuple[list[Dialogue], Path]:
    """Return the dialogues to ask about, and the file they came from."""
    ids = [name for name in (given.conv_id, given.sample_id, given.character_id) if name is not None]
    dialogues, path = load_selected(given, ids, f"--conv-id, --sample-id or --character-id {tuple(ids)}")
    return shorten(dialogues, given.sessions, given.questions), path


def _db_path(given: argparse.Namespace, systems: Sequence[str]) -> Path | None:
    kept = set(systems) & {*BUILDERS, STORED}
    is_needed = given.mode == "build" or STORED in kept
    if len(kept) != 1 and (is_needed or given.db_path != AUTO):
        raise ConfigError(f"--db-path holds the banks of one system: give one of {', '.join((*BUILDERS, STORED))}")
    if given.db_path != AUTO:
        return Path(given.db_path)
    return given.output_dir / MEMORIES if is_needed or AGENTS in kept else None


def _precision(given: argparse.Namespace, systems: Sequence[str]) -> Precision:
    if given.embedding_precision and given.embedding_provider:
        raise ConfigError("--embedding-precision is that of a local model: a server embeds in its own")
    if given.embedding_precision:
        return Precision(given.embedding_precision)
    is_folder = given.embedding_model is None or Path(given.embedding_model).exists()
    is_free = is_folder and given.embedding_provider is None and AGENTS not in systems  # a store is built in float32
    return best_precision() if is_free else Precision.FLOAT32


def _check(given: argparse.Namespace, systems: Sequence[str]) -> None:
    """Raise ConfigError for flags that do not fit each other."""
    if given.mode == "build" and set(systems) - set(BUILDERS):
        raise ConfigError(f"--mode build needs a system that builds: {', '.join(BUILDERS)}")
    if given.mode == "answer" and set(systems) & set(BUILDERS):
        raise ConfigError(f"--mode answer builds nothing; its banks are system {STORED}, which reads --db-path")
    if given.judge_model is not None and given.model is None and given.mode != "build":
        raise ConfigError("--judge-model needs --model: without answers there is nothing to judge")
    if given.endpoint and given.model is None:
        raise ConfigError("--endpoint sets keys of --model; every other model has a flag of its own")
    _refuse_unused(given, "judge", given.model is not None or given.mode == "build", "--model")
    writers = [name for name in systems if name in WRITERS]
    _refuse_unused(given, "build", bool(writers) or given.mode == "answer", f"system {AGENTS}")
    if writers and given.build_model is None and given.model is None:
        raise ConfigError(f"system {writers[0]} needs --build-model or --model: who writes the memories")
    _refuse_idle(given, systems)
    if given.split and given.subset_file:
        raise ConfigError("--split and --subset-file both choose the samples; give one of them")
    if given.split and not given.dataset.startswith("longmemeval"):
        raise ConfigError(f"--split names parts of longmemeval; dataset {given.dataset} has none")
    if given.dataset == "custom" and given.dataset_path is None:
        problem = "dataset custom needs --dataset-path FILE.jsonl; membuilder/datasets/custom.py has its format"
        raise ConfigError(problem)


def _refuse_idle(given: argparse.Namespace, systems: Sequence[str]) -> None:
    """Raise ConfigError for flags of systems that are not asked for."""
    needed = {
        "--scheme": (given.scheme, {*BANKS}),
        "--exclude-memory": (given.exclude_memory, {*BANKS}),
        "--context-tokens": (given.context_tokens, {LONG_CONTEXT}),
        "--chunks": (given.chunks, {BEST_CHUNKS}),
        "--agentic-search": (given.agentic_search, {*BANKS}),
    }
    for flag, (value, of) in needed.items():
        if value is not None and not of & set(systems):
            raise ConfigError(f"{flag} is without effect here: it is about system {' or '.join(sorted(of))}")
    for flag, value in (("--agentic-search", given.agentic_search), ("--thinking", given.thinking)):
        if value is not None and (given.model is None or (given.mode == "build" and flag == "--agentic-search")):
            raise ConfigError(f"{flag} is about who answers: add --model, and another --mode than build")


def _check_search(given: argparse.Namespace, systems: Sequence[str], reading: Reading) -> None:
    """Raise ConfigError for flags about a search that no system does."""
    embeds = {*RETRIEVERS, STORED} if reading.scheme == MEMALPHA else {*RETRIEVERS, *BANKS}
    if given.index and not embeds & set(systems):
        raise ConfigError(
            f"--index is without effect here: scheme {MEMALPHA} searches each part of a memory as a whole"
        )


def _refuse_unused(given: argparse.Namespace, role: str, is_used: bool, needs: str) -> None:
    """Raise ConfigError where flags describe the server of a model that nobody asks."""
    named = [f"--{role}-{end}" for end in ("provider", "base-url", "api-key", "endpoint")]
    unused = [flag for flag in named if not is_used and vars(given)[flag.strip("-").replace("-", "_")]]
    if unused:
        raise ConfigError(f"{', '.join(unused)}: nobody is asked there without {needs}")
