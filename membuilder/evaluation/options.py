"""Command line of `python -m membuilder.eval`: the published document's flags under their names, and what we add."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

from membuilder.bank.index import IndexConfig
from membuilder.config import describe, from_mappings, load, read
from membuilder.datasets.selection import DATA_FOLDER, DATASET_NAMES, SPLITS, load_selected, shorten
from membuilder.embedding.options import EmbedderOptions
from membuilder.errors import ConfigError
from membuilder.evaluation.model_flags import add_models, dialogues_at_once, embedder, models, questions_at_once
from membuilder.llm.endpoints import ModelAccess
from membuilder.llm.flags import add_cost_flags, add_embedding_flags
from membuilder.schemes.four_agents.prompts import PromptConfig
from membuilder.schemes.load import FOUR_AGENTS
from membuilder.types import Dialogue

RETRIEVERS = tuple(f"rag-{unit}{method}" for unit in ("turn", "session") for method in ("", "-bm25", "-hybrid"))
"""Search by embeddings unless the name says otherwise."""
AGENTS = "agents"
"""Four memory agents, whose answers --build-model writes: any model, a trained checkpoint among them."""
RULES = "rules"
BUILDERS = (RULES, AGENTS)
STORED = "bank"
"""Banks that another run, or another program, left at --db-path."""
AUTO, MEMORIES = "auto", "memories"
"""Default of --db-path, and the folder under --output-dir that it means."""
SYSTEMS = (*BUILDERS, "full-context", *RETRIEVERS, "none", STORED)
EPILOG = """`python -m membuilder.eval compare A B` tests two runs on the same questions.

System agents is the four-agent builder with any model, a trained checkpoint among them. Serve the checkpoint with vLLM

    launch/serve.sh OUT/rl/model 8000 1 --served-model-name trained

and let it build while another model answers, or leave --model out to score retrieval alone:

    python -m membuilder.eval --system agents --system rag-turn --build-model trained --build-provider vllm \\
        --build-config OUT/rl/config.yaml --model gpt-4.1-mini

A tokenizer without a chat template (the quickstart's) was trained on the bare prompt: add
--chat-template '{{ messages[0]["content"] }}' to that."""


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    pass


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How the builder's model reads and writes."""

    scheme: str = FOUR_AGENTS
    prompts: PromptConfig = field(default_factory=PromptConfig)
    max_turns: int = 60
    """Turns read at once: a longer session becomes several of the same date."""


def reading_of(path: Path | None) -> Reading:
    """The reading that the `config.yaml` of a training run tells; None: as real models read. Raises ConfigError."""
    if path is None:
        return Reading()
    match read(path):
        case {"scheme": str(scheme), "prompts": {} as prompts, "data": {"max_turns": int(max_turns)}}:
            known = from_mappings(PromptConfig, (prompts, f"{path}: prompts"))
            return Reading(scheme=scheme, prompts=known, max_turns=max_turns)
    problem = "no keys `scheme`, `prompts` and `data.max_turns`; name the config.yaml that a training run wrote"
    raise ConfigError(f"{path}: {problem}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What an evaluation is asked for."""

    dataset: str
    dataset_path: Path | None
    data_dir: Path
    ids: tuple[str, ...]
    """The ids of --conv-id, --sample-id and --character-id; empty: all dialogues."""
    split: str | None
    subset_file: Path | None
    mode: str
    systems: tuple[str, ...]
    answerer: ModelAccess | None
    """None: retrieval is scored, nothing is answered."""
    judge: ModelAccess | None
    builder: ModelAccess | None
    """The model that writes the memories of system agents."""
    reading: Reading
    build_parallel: int
    """Dialogues that system agents builds at once."""
    sessions: int | None
    questions: int | None
    top_k: int
    db_path: Path | None
    """Where the banks of the one system lie that builds or reads them; None: no bank is kept."""
    build_model: str | None
    """Who wrote the stored banks that system bank reads; None: whoever did."""
    index: IndexConfig
    """How the entries of a bank are searched."""
    concurrency: int
    """Questions in flight at once."""
    output_dir: Path
    embedder: EmbedderOptions
    flags: argparse.Namespace = field(repr=False)
    """All flags as they were given, for what reads flags of its own (costs)."""
    seed: int
    verbose: bool


def parse(argv: Sequence[str]) -> Options:
    """Read the command line. A bad flag ends the program; flags that do not fit each other raise ConfigError."""
    given = command_line().parse_args(argv)
    answerer, judge, writer = models(given)
    default = STORED if given.mode == "answer" else RULES if writer is None else AGENTS
    systems = tuple(dict.fromkeys(given.system or [default]))
    _check_mode(given.mode, systems)
    chosen = {
        "ids": tuple(name for name in (given.conv_id, given.sample_id, given.character_id) if name is not None),
        "systems": systems,
        "answerer": answerer,
        "judge": judge,
        "builder": writer if AGENTS in systems else None,
        "reading": reading_of(given.build_config),
        "build_parallel": dialogues_at_once(given),
        "db_path": _db_path(given, systems),
        "build_model": given.build_model if STORED in systems else None,
        "index": load(IndexConfig, None, given.index),
        "concurrency": questions_at_once(given),
        "embedder": embedder(given),
        "flags": given,
    }
    as_given = {each.name: getattr(given, each.name) for each in fields(Options) if each.name not in chosen}
    options = Options(**as_given, **chosen)
    _check(options)
    return options


def dialogues_of(options: Options) -> tuple[list[Dialogue], Path]:
    """The dialogues to ask about, and the file they came from."""
    dialogues, path = load_selected(
        options.dataset,
        options.dataset_path,
        options.data_dir,
        split=options.split,
        subset_file=options.subset_file,
        ids=options.ids,
        ids_from=f"--conv-id, --sample-id or --character-id {options.ids}",
    )
    return shorten(dialogues, options.sessions, options.questions), path


def _db_path(given: argparse.Namespace, systems: Sequence[str]) -> Path | None:
    kept = set(systems) & {*BUILDERS, STORED}
    is_needed = given.mode == "build" or STORED in kept
    if len(kept) != 1 and (is_needed or given.db_path != AUTO):
        raise ConfigError(f"--db-path holds the banks of one system: give one of {', '.join((*BUILDERS, STORED))}")
    if given.db_path != AUTO:
        return Path(given.db_path)
    return given.output_dir / MEMORIES if is_needed or AGENTS in kept else None


def _check_mode(mode: str, systems: Sequence[str]) -> None:
    if mode == "build" and set(systems) - set(BUILDERS):
        raise ConfigError(f"--mode build needs a system that builds: {', '.join(BUILDERS)}")
    if mode == "answer" and set(systems) & set(BUILDERS):
        raise ConfigError(f"--mode answer builds nothing; its banks are system {STORED}, which reads --db-path")


def _check(options: Options) -> None:
    counts = (options.top_k, options.concurrency, options.build_parallel, options.sessions, options.questions)
    if min(count for count in counts if count is not None) < 1:
        raise ConfigError("--top-k, --concurrency, --workers, --sessions and --questions must be at least 1")
    if AGENTS in options.systems and options.builder is None:
        raise ConfigError(f"system {AGENTS} needs --build-model or --model: who writes the memories")
    if options.split and options.subset_file:
        raise ConfigError("--split and --subset-file both choose the samples; give one of them")
    if options.split and not options.dataset.startswith("longmemeval"):
        raise ConfigError(f"--split names parts of longmemeval; dataset {options.dataset} has none")
    if options.dataset == "custom" and options.dataset_path is None:
        problem = "dataset custom needs --dataset-path FILE.jsonl; membuilder/datasets/custom.py has its format"
        raise ConfigError(problem)


def command_line() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m membuilder.eval",
        description=__doc__.splitlines()[0],
        epilog=f"{EPILOG}\n\n--index {describe(IndexConfig)}",
        formatter_class=_Help,
    )
    _add_data(parser)
    add_models(parser)
    _add_run(parser)
    add_embedding_flags(parser)
    add_cost_flags(parser)
    return parser


def _add_data(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("data").add_argument
    add("--dataset", default="locomo", choices=DATASET_NAMES)
    add("--dataset-path", type=Path, help="the raw file; else where `membuilder.data fetch` put it")
    add("--data-dir", type=Path, default=Path(DATA_FOLDER), help="of `membuilder.data fetch`")
    add("--conv-id", help="one conversation (locomo)")
    add("--sample-id", help="one sample (longmemeval)")
    add("--character-id", help="one character (perltqa)")
    add("--split", choices=SPLITS, help="predefined split (longmemeval)")
    add("--subset-file", type=Path, help="JSON file with a list of ids")
    add("--sessions", type=int, metavar="N", help="first sessions of each dialogue only")
    add("--questions", type=int, metavar="N", help="first questions of each dialogue only")


def _add_run(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("run").add_argument
    add("--mode", default="full", choices=("build", "answer", "full"))
    text = "repeatable; else rules, agents where a model is named, bank in mode answer"
    add("--system", action="append", choices=SYSTEMS, help=text)
    add("--top-k", type=int, default=10, help="items an answer is given")
    text = f"folder of banks, written by build and full, read by answer; {AUTO}: {MEMORIES} under --output-dir"
    add("--db-path", default=AUTO, help=text)
    add("--concurrency", type=int, default=1, help="questions in flight at once")
    add("--parallel", action="store_true", help="at least --workers questions in flight at once")
    add("--workers", type=int, default=4, help=f"with --parallel also dialogues {AGENTS} builds at once")
    add("--output-dir", type=Path, default=Path("logs"))
    add("--seed", type=int, default=0, help="of the bootstrap")
    add("--verbose", action="store_true", help="show each question with what became of it")
