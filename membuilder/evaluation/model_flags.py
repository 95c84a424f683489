"""Flags that say which model answers, judges, builds and embeds, and where each is served."""

import argparse
from pathlib import Path

from membuilder.embedding.options import EmbedderOptions, Precision, add_embedder_flags, best_precision
from membuilder.errors import ConfigError
from membuilder.evaluation.answerer import ModelOptions
from membuilder.evaluation.records import JUDGES
from membuilder.llm import cost_flags
from membuilder.llm.endpoints import Server
from membuilder.types import Agent

JUDGE_MODEL = "gpt-4.1"
"""The published document's."""
PROVIDERS = ("openai", "vllm")


def add_models(parser: argparse.ArgumentParser) -> None:
    flags = parser.add_argument_group("models")
    flags.add_argument("--model", help="answers the questions; without it retrieval is scored and nothing is asked")
    flags.add_argument("--judge-model", help=f"grades the answers; {JUDGE_MODEL} unless given")
    flags.add_argument("--provider", default="openai", choices=PROVIDERS)
    flags.add_argument("--judge-provider", choices=PROVIDERS, help="openai unless given, also beside vllm")
    flags.add_argument("--base-url", help="API address; for vllm http://localhost:8000/v1 unless given")
    flags.add_argument(
        "--judge-base-url", help="API address of the judge; else --base-url where the provider is the same"
    )
    flags.add_argument(
        "--api-key",
        help="else OPENAI_API_KEY; vllm needs none. It goes to the address of --model alone: a judge or builder at another "
        "one has a key of its own",
    )
    flags.add_argument("--judge-api-key", help="else --api-key where the address is the same")
    flags.add_argument("--build-model", help="writes the memories of system agents; else --model")
    flags.add_argument("--build-provider", choices=PROVIDERS, help="else --provider")
    flags.add_argument("--build-base-url", help="API address; else --base-url where the provider is the same")
    flags.add_argument("--build-api-key", help="else --api-key where the address is the same")
    flags.add_argument(
        "--build-config",
        type=Path,
        metavar="FILE",
        help="config.yaml of the run that trained the checkpoint: its prompts, answer format and turns read at once",
    )
    flags.add_argument("--max-tokens", type=int, default=4096, help="longest answer of any model; a longer one fails")
    flags.add_argument(
        "--embedding-precision", choices=[str(each) for each in Precision], help="else what is fastest here"
    )
    flags.add_argument("--vector-store", default="faiss", choices=("faiss",))
    flags.add_argument(
        "--index",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="how the entries of a bank are searched, repeatable, such as kind=hnsw; the keys stand below",
    )
    add_embedder_flags(parser)
    cost_flags.add_flags(parser)


def models(given: argparse.Namespace) -> tuple[ModelOptions | None, ModelOptions | None]:
    """Who answers and who judges."""
    if given.mode == "build":
        return None, None
    if given.model is None:
        if given.judge_model is not None:
            raise ConfigError("--judge-model needs --model: without answers there is nothing to judge")
        return None, None
    # A self-hosted model does not grade itself unless told to.
    name, provider = given.judge_model or JUDGE_MODEL, given.judge_provider or "openai"
    questions = questions_at_once(given)
    in_flight = questions * len(JUDGES)
    judge = _model(given, name, provider, given.judge_base_url, given.judge_api_key, in_flight)
    return _model(given, given.model, given.provider, given.base_url, given.api_key, questions), judge


def builder(given: argparse.Namespace) -> ModelOptions | None:
    name = given.build_model or given.model
    if name is None:
        return None
    provider = given.build_provider or given.provider
    in_flight = dialogues_at_once(given) * len(Agent)
    return _model(given, name, provider, given.build_base_url, given.build_api_key, in_flight)


def chat(given: argparse.Namespace) -> Server:
    return Server(provider=given.provider, base_url=given.base_url, api_key=given.api_key)


def embedder(given: argparse.Namespace) -> EmbedderOptions:
    if given.embedding_precision and given.embedding_provider:
        raise ConfigError("--embedding-precision is that of a local model: a server embeds in its own")
    is_folder = given.embedding_model is None or Path(given.embedding_model).exists()
    fastest = best_precision() if is_folder and given.embedding_provider is None else Precision.FLOAT32
    return EmbedderOptions(
        model=given.embedding_model,
        provider=given.embedding_provider,
        base_url=given.embedding_base_url,
        api_key=given.embedding_api_key,
        chat=chat(given),
        cache=Path(given.embedding_cache) if given.embedding_cache else None,
        precision=Precision(given.embedding_precision) if given.embedding_precision else fastest,
    )


def _model(
    given: argparse.Namespace, name: str, provider: str, base_url: str | None, api_key: str | None, concurrency: int
) -> ModelOptions:
    """A model with an address of its own, or that of --model where the provider is the same."""
    server = chat(given).other(provider, base_url, api_key)
    return ModelOptions(
        model=name,
        provider=server.provider,
        base_url=server.base_url,
        api_key=server.api_key,
        max_tokens=given.max_tokens,
        price=cost_flags.prices(given).get(name),
        concurrency=max(1, concurrency),  # a count below 1 is refused with the others
    )


def questions_at_once(given: argparse.Namespace) -> int:
    return max(given.concurrency, given.workers) if given.parallel else given.concurrency


def dialogues_at_once(given: argparse.Namespace) -> int:
    return given.workers if given.parallel else 1
