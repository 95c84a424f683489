"""Reads the command line of `python -m membuilder.eval`: the published document's flags under their names, and ours."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from membuilder.bank.index import IndexConfig
from membuilder.bank.ranking import ANSWERING, SearchMethod
from membuilder.building.read_answer import OnBadOperation
from membuilder.command import ArgumentParser
from membuilder.config import describe, from_mappings, load, read
from membuilder.datasets.selection import add_data_flags, load_selected, shorten
from membuilder.embedding.options import EmbedderOptions, Precision, best_precision, options_of
from membuilder.errors import ConfigError
from membuilder.evaluation.metrics import JUDGES
from membuilder.llm.endpoints import ModelAccess
from membuilder.llm.flags import SETTINGS, add_cost_flags, add_embedding_flags, add_endpoint_flags, read_endpoint
from membuilder.schemes.four_agents.prompts import PromptConfig
from membuilder.schemes.load import FOUR_AGENTS, scheme_of
from membuilder.schemes.memalpha.config import MemAlphaConfig
from membuilder.types import Dialogue
from membuilder.value_types import PositiveInt, Seed, flag_type

JUDGE_MODEL = "gpt-4.1"
"""The judge of the published document."""
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
INSTANCES = ("memalpha", "memoryagentbench")
"""Datasets whose instances come from sources with a metric each."""
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
    memalpha: MemAlphaConfig | None = None
    max_turns: int | None = None
    """Turns read at once, so that a longer session becomes several of the same date; None: whole sessions."""


def reading_of(path: Path | None) -> Reading:
    """Return the reading that a training run's `config.yaml` tells; None: as real models read. Raises ConfigError."""
    if path is None:
        return Reading(max_turns=60)
    match read(path):
        case {"scheme": str(scheme), "prompts": {} as prompts, "data": {"max_turns": int(max_turns)}}:
            known = from_mappings(PromptConfig, (prompts, f"{path}: prompts"))
            own = read(path).get("memalpha")
            memalpha = None if own is None else from_mappings(MemAlphaConfig, (own, f"{path}: memalpha"))
            return Reading(scheme=scheme, prompts=known, memalpha=memalpha, max_turns=max_turns)
    problem = "no keys `scheme`, `prompts` and `data.max_turns`; name the config.yaml that a training run wrote"
    raise ConfigError(f"{path}: {problem}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What an evaluation is asked for: the flags as they were given, and what they come to together."""

    flags: argparse.Namespace = field(repr=False)
    systems: tuple[str, ...]
    answerer: ModelAccess | None
    """None: retrieval is scored, nothing is answered."""
    judge: ModelAccess | None
    builder: ModelAccess | None
    """The model that writes the memories of system agents."""
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
    reading, questions = reading_of(given.build_config), given.concurrency
    if given.parallel:
        questions = max(questions, given.workers)
    dialogues = given.workers if given.parallel else 1
    # what --model and the flags beside it say: the other models and embeddings take their server from it
    first = read_endpoint(given, "", given.model or "unnamed", max_tokens=given.max_tokens, concurrency=questions)
    answerer = judge = builder = None
    if given.model is not None and given.mode != "build":
        answerer = first
        settings = {"max_tokens": given.max_tokens, "concurrency": questions * len(JUDGES)}
        name = given.judge_model or JUDGE_MODEL  # at openai, so that a self-hosted model does not grade itself
        judge = read_endpoint(given, "judge-", name, like=first, provider="openai", **settings)
    if writes:
        num_roles = len(scheme_of(reading).roles)
        settings = {"max_tokens": given.max_tokens, "concurrency": dialogues * num_roles}
        name, is_first = given.build_model or given.model, given.build_model is None
        builder = read_endpoint(given, "build-", name, like=first, is_first=is_first, **settings)
    return Options(
        flags=given,
        systems=systems,
        answerer=answerer,
        judge=judge,
        builder=builder if AGENTS in systems else None,
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
    _refuse_unused(given, "build", AGENTS in systems or given.mode == "answer", f"system {AGENTS}")
    if AGENTS in systems and given.build_model is None and given.model is None:
        raise ConfigError(f"system {AGENTS} needs --build-model or --model: who writes the memories")
    if given.split and given.subset_file:
        raise ConfigError("--split and --subset-file both choose the samples; give one of them")
    if given.split and not given.dataset.startswith("longmemeval"):
        raise ConfigError(f"--split names parts of longmemeval; dataset {given.dataset} has none")
    if given.dataset == "custom" and given.dataset_path is None:
        problem = "dataset custom needs --dataset-path FILE.jsonl; membuilder/datasets/custom.py has its format"
        raise ConfigError(problem)


def _refuse_unused(given: argparse.Namespace, role: str, is_used: bool, needs: str) -> None:
    """Raise ConfigError where flags describe the server of a model that nobody asks."""
    named = [f"--{role}-{end}" for end in ("provider", "base-url", "api-key", "endpoint")]
    unused = [flag for flag in named if not is_used and vars(given)[flag.strip("-").replace("-", "_")]]
    if unused:
        raise ConfigError(f"{', '.join(unused)}: nobody is asked there without {needs}")


def command_line() -> argparse.ArgumentParser:
    parser = ArgumentParser(
        prog="python -m membuilder.eval",
        description=__doc__.splitlines()[0],
        epilog=f"{EPILOG}\n\n--index {describe(IndexConfig)}",
        formatter_class=_Help,
    )
    flags = parser.add_argument_group("data")
    add_data_flags(flags, default="locomo")
    flags.add_argument("--sample-id", help="one sample (longmemeval)")
    flags.add_argument("--character-id", help="one character (perltqa)")
    text = "first questions of each dialogue only"
    flags.add_argument("--questions", type=flag_type(PositiveInt), metavar="N", help=text)
    _add_models(parser.add_argument_group("models"))
    _add_run(parser.add_argument_group("run").add_argument)
    add_embedding_flags(parser)
    add_cost_flags(parser)
    return parser


def _add_models(flags: argparse._ActionsContainer) -> None:
    text = "answers the questions; without it retrieval is scored and nothing is asked"
    add_endpoint_flags(flags, "", text, provider="openai")
    add_endpoint_flags(flags, "judge-", f"grades the answers; {JUDGE_MODEL} at provider openai unless given")
    add_endpoint_flags(flags, "build-", "writes the memories of system agents; else --model")
    text = "config.yaml of the run that trained the checkpoint: its prompts, answer format and turns read at once"
    flags.add_argument("--build-config", type=Path, metavar="FILE", help=text)
    text = "an answer of --build-model that holds one: apply the others, ask once more first, or let it fail"
    bad = [str(each) for each in OnBadOperation]
    flags.add_argument("--on-bad-operation", default=bad[0], choices=bad, help=text)
    text = "longest answer of any model; a longer one fails"
    flags.add_argument("--max-tokens", type=flag_type(PositiveInt), default=4096, help=text)
    precisions = [str(each) for each in Precision]
    flags.add_argument(
        "--embedding-precision", choices=precisions, help="else what is fastest here; float32 for agents"
    )
    flags.add_argument("--vector-store", default="faiss", choices=("faiss",))
    text = f"how the entries of a bank are found; else as the builder's prompts say, else {ANSWERING}"
    flags.add_argument("--retrieval", choices=[str(each) for each in SearchMethod], help=text)
    text = "what their vectors are searched with, repeatable, such as kind=hnsw; the keys stand below"
    flags.add_argument("--index", **SETTINGS, help=text)


def _add_run(add: Callable[..., argparse.Action]) -> None:
    add("--mode", default="full", choices=("build", "answer", "full"))
    text = "repeatable; else rules, agents where a model is named, bank in mode answer"
    add("--system", action="append", choices=SYSTEMS, help=text)
    add("--top-k", type=flag_type(PositiveInt), default=10, help="items an answer is given")
    text = f"folder of banks, written by build and full, read by answer; {AUTO}: {MEMORIES} under --output-dir"
    add("--db-path", default=AUTO, help=text)
    add("--concurrency", type=flag_type(PositiveInt), default=1, help="questions in flight at once")
    add("--parallel", action="store_true", help="at least --workers questions in flight at once")
    text = f"with --parallel also dialogues {AGENTS} builds at once"
    add("--workers", type=flag_type(PositiveInt), default=4, help=text)
    add("--output-dir", type=Path, default=Path("logs"))
    add("--seed", type=flag_type(Seed), default=0, help="of the bootstrap")
    add("--verbose", action="store_true", help="show each question with what became of it")
