"""Command line of `python -m membuilder.eval`: the published document's flags under their names, and what we add."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from membuilder.data import DATA_FOLDER
from membuilder.datasets.selection import SPLITS
from membuilder.errors import ConfigError
from membuilder.evaluation.embedders import CACHE_FILE, Precision, best_precision, cache_folder
from membuilder.evaluation.records import JUDGES
from membuilder.evaluation.roles import ModelOptions
from membuilder.types import Agent

RETRIEVERS = tuple(f"rag-{unit}{method}" for unit in ("turn", "session") for method in ("", "-bm25", "-hybrid"))
"""Dense unless named otherwise."""
AGENTS = "agents"
"""Four memory agents, whose answers --build-model writes: any model, a trained checkpoint among them."""
BUILDERS = ("rules", AGENTS)
STORED = "bank"
"""Banks that another run, or another program, left at --db-path."""
JUDGE_MODEL = "gpt-4.1"
"""The published document's."""
SYSTEMS = (*BUILDERS, "full-context", *RETRIEVERS, "none", STORED)
PROVIDERS = ("openai", "vllm")
DATASETS = ("locomo", "longmemeval", "longmemeval-s", "longmemeval-m", "longmemeval-oracle", "perltqa", "custom")
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    dataset: str
    dataset_path: Path | None
    data_dir: Path
    ids: tuple[str, ...]
    """Of --conv-id, --sample-id and --character-id; empty: all."""
    split: str | None
    subset_file: Path | None
    mode: str
    systems: tuple[str, ...]
    answerer: ModelOptions | None
    """None: retrieval is scored, nothing is answered."""
    judge: ModelOptions | None
    builder: ModelOptions | None
    """Writes the memories of system agents."""
    build_config: Path | None
    build_parallel: int
    """Dialogues that system agents builds at once."""
    answer_cache: Path | None
    sessions: int | None
    questions: int | None
    top_k: int
    db_path: Path | None
    concurrency: int
    """Questions in flight at once."""
    output_dir: Path
    embedding_model: str | None
    embedding_endpoint: tuple[str, str | None, str | None] | None
    """Provider, address and key of a server that embeds; None: a local model does."""
    precision: Precision
    embedding_cache: Path
    seed: int
    verbose: bool


def parse(argv: Sequence[str]) -> Options:
    """Ends the program on a bad flag; raises ConfigError where flags do not fit each other."""
    given = _parser().parse_args(argv)
    answerer, judge = _models(given)
    builder = _builder(given)
    default = STORED if given.mode == "answer" else "rules" if builder is None else AGENTS
    systems = tuple(dict.fromkeys(given.system or [default]))
    options = Options(
        dataset=given.dataset,
        dataset_path=given.dataset_path,
        data_dir=given.data_dir,
        ids=tuple(name for name in (given.conv_id, given.sample_id, given.character_id) if name is not None),
        split=given.split,
        subset_file=given.subset_file,
        mode=given.mode,
        systems=systems,
        answerer=answerer,
        judge=judge,
        builder=builder if AGENTS in systems else None,
        build_config=given.build_config,
        build_parallel=_dialogues_at_once(given),
        answer_cache=given.answer_cache,
        sessions=given.sessions,
        questions=given.questions,
        top_k=given.top_k,
        db_path=given.db_path,
        concurrency=_in_flight(given),
        output_dir=given.output_dir,
        embedding_model=given.embedding_model,
        embedding_endpoint=given.embedding_provider
        and (given.embedding_provider, given.embedding_base_url, given.embedding_api_key),
        precision=Precision(given.embedding_precision) if given.embedding_precision else best_precision(),
        embedding_cache=given.embedding_cache or cache_folder() / CACHE_FILE,
        seed=given.seed,
        verbose=given.verbose,
    )
    _check(options)
    return options


def _models(given: argparse.Namespace) -> tuple[ModelOptions | None, ModelOptions | None]:
    """Who answers and who judges."""
    if given.mode == "build":
        return None, None
    if given.model is None:
        if given.judge_model is not None:
            raise ConfigError("--judge-model needs --model: without answers there is nothing to judge")
        return None, None
    # A self-hosted model does not grade itself unless told to.
    name, provider = given.judge_model or JUDGE_MODEL, given.judge_provider or "openai"
    questions = _in_flight(given)
    judge = _model(given, name, provider, given.judge_base_url, questions * len(JUDGES))
    return _model(given, given.model, given.provider, given.base_url, questions), judge


def _builder(given: argparse.Namespace) -> ModelOptions | None:
    name = given.build_model or given.model
    if name is None:
        return None
    provider = given.build_provider or given.provider
    return _model(given, name, provider, given.build_base_url, _dialogues_at_once(given) * len(Agent))


def _model(given: argparse.Namespace, name: str, provider: str, base_url: str | None, concurrency: int) -> ModelOptions:
    """A model with an address of its own, or that of --model where the provider is the same; so with the key."""
    is_same = provider == given.provider
    return ModelOptions(
        model=name,
        provider=provider,
        base_url=base_url or (given.base_url if is_same else None),
        api_key=given.api_key if is_same else None,
        max_tokens=given.max_tokens,
        price=dict(given.price).get(name),
        concurrency=max(1, concurrency),  # a count below 1 is refused with the others
    )


def _price(text: str) -> tuple[str, tuple[float, float]]:
    name, _, prices = text.rpartition("=")
    given, written = prices.split(",")
    return name, (float(given), float(written))


def _in_flight(given: argparse.Namespace) -> int:
    return max(given.concurrency, given.workers) if given.parallel else given.concurrency


def _dialogues_at_once(given: argparse.Namespace) -> int:
    return given.workers if given.parallel else 1


def _check(options: Options) -> None:
    counts = (options.top_k, options.concurrency, options.build_parallel, options.sessions or 1, options.questions or 1)
    if min(counts) < 1:
        raise ConfigError("--top-k, --concurrency, --workers, --sessions and --questions must be at least 1")
    if AGENTS in options.systems and options.builder is None:
        raise ConfigError(f"system {AGENTS} needs --build-model or --model: who writes the memories")
    if options.split and options.subset_file:
        raise ConfigError("--split and --subset-file both choose the samples; give one of them")
    if options.split and not options.dataset.startswith("longmemeval"):
        raise ConfigError(f"--split names parts of longmemeval; dataset {options.dataset} has none")
    if options.dataset == "custom" and options.dataset_path is None:
        raise ConfigError(
            "dataset custom needs --dataset-path FILE.jsonl; membuilder/datasets/custom.py has its format"
        )
    if options.mode == "build" and (options.db_path is None or set(options.systems) - set(BUILDERS)):
        raise ConfigError(f"--mode build needs --db-path and a system that builds: {', '.join(BUILDERS)}")
    if options.db_path is not None and len(set(options.systems) & {*BUILDERS, STORED}) != 1:
        raise ConfigError(f"--db-path holds the banks of one system: give one of {', '.join((*BUILDERS, STORED))}")
    if STORED in options.systems and options.db_path is None:
        raise ConfigError(f"system {STORED} (mode answer) reads what --mode build wrote; give the same --db-path")
    if options.mode == "answer" and set(options.systems) & set(BUILDERS):
        raise ConfigError(f"--mode answer builds nothing; its banks are system {STORED}, at --db-path")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m membuilder.eval",
        description=__doc__.splitlines()[0],
        epilog=EPILOG,
        formatter_class=_Help,
    )
    _add_data(parser)
    _add_models(parser)
    _add_run(parser)
    return parser


def _add_data(parser: argparse.ArgumentParser) -> None:
    flags = parser.add_argument_group("data")
    flags.add_argument("--dataset", default="locomo", choices=DATASETS)
    flags.add_argument("--dataset-path", type=Path, help="the raw file; else where `membuilder.data fetch` put it")
    flags.add_argument("--data-dir", type=Path, default=Path(DATA_FOLDER), help="of `membuilder.data fetch`")
    flags.add_argument("--conv-id", help="one conversation (locomo)")
    flags.add_argument("--sample-id", help="one sample (longmemeval)")
    flags.add_argument("--character-id", help="one character (perltqa)")
    flags.add_argument("--split", choices=SPLITS, help="predefined split (longmemeval)")
    flags.add_argument("--subset-file", type=Path, help="JSON file with a list of ids")
    flags.add_argument("--sessions", type=int, metavar="N", help="first sessions of each dialogue only")
    flags.add_argument("--questions", type=int, metavar="N", help="first questions of each dialogue only")


def _add_models(parser: argparse.ArgumentParser) -> None:
    flags = parser.add_argument_group("models")
    flags.add_argument("--model", help="answers the questions; without it retrieval is scored and nothing is asked")
    flags.add_argument("--judge-model", help=f"grades the answers; {JUDGE_MODEL} unless given")
    flags.add_argument("--provider", default="openai", choices=PROVIDERS)
    flags.add_argument("--judge-provider", choices=PROVIDERS, help="openai unless given, also beside vllm")
    flags.add_argument("--base-url", help="API address; for vllm http://localhost:8000/v1 unless given")
    flags.add_argument(
        "--judge-base-url", help="API address of the judge; else --base-url where the provider is the same"
    )
    flags.add_argument("--api-key", help="else OPENAI_API_KEY; vllm needs none")
    flags.add_argument("--build-model", help=f"writes the memories of system {AGENTS}; else --model")
    flags.add_argument("--build-provider", choices=PROVIDERS, help="else --provider")
    flags.add_argument("--build-base-url", help="API address; else --base-url where the provider is the same")
    flags.add_argument(
        "--build-config",
        type=Path,
        metavar="FILE",
        help="config.yaml of the run that trained the checkpoint: its prompts, answer format and turns read at once",
    )
    flags.add_argument("--max-tokens", type=int, default=4096, help="longest answer of any model; a longer one fails")
    flags.add_argument(
        "--price",
        action="append",
        type=_price,
        default=[],
        metavar="MODEL=IN,OUT",
        help="dollars per million prompt and answered tokens, repeatable; the cost of a model without one stays unknown",
    )
    flags.add_argument("--answer-cache", type=Path, metavar="FOLDER", help="answers kept here are not paid for twice")
    flags.add_argument(
        "--embedding-model", metavar="MODEL", help="folder of a local sentence-transformers model; else MiniLM"
    )
    flags.add_argument("--embedding-provider", choices=PROVIDERS, help="a server embeds, which knows --embedding-model")
    flags.add_argument("--embedding-base-url", help="else OPENAI_EMBEDDINGS_BASE_URL, else as for chat")
    flags.add_argument("--embedding-api-key", help="else OPENAI_EMBEDDINGS_API_KEY, else as for chat")
    flags.add_argument(
        "--embedding-precision", choices=[str(each) for each in Precision], help="else what is fastest here"
    )
    flags.add_argument("--embedding-cache", type=Path, metavar="FILE", help=f"else {CACHE_FILE} in MEMBUILDER_CACHE")
    flags.add_argument("--vector-store", default="faiss", choices=("faiss",))


def _add_run(parser: argparse.ArgumentParser) -> None:
    flags = parser.add_argument_group("run")
    flags.add_argument("--mode", default="full", choices=("build", "answer", "full"))
    flags.add_argument(
        "--system",
        action="append",
        choices=SYSTEMS,
        help="repeatable; else rules, agents where a model is named, bank in mode answer",
    )
    flags.add_argument("--top-k", type=int, default=10, help="items an answer is given")
    flags.add_argument("--db-path", type=Path, help="folder of banks: written by build and full, read by answer")
    flags.add_argument("--concurrency", type=int, default=1, help="questions in flight at once")
    flags.add_argument("--parallel", action="store_true", help="at least --workers questions in flight at once")
    flags.add_argument("--workers", type=int, default=4, help=f"with --parallel also dialogues {AGENTS} builds at once")
    flags.add_argument("--output-dir", type=Path, default=Path("logs"))
    flags.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    flags.add_argument("--verbose", action="store_true", help="show each question with what became of it")
