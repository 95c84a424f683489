"""The flags that say which models an evaluation asks: who answers, judges, writes the memories, and embeds."""

import argparse
from pathlib import Path

from membuilder.embedding.options import EmbedderOptions, Precision, best_precision
from membuilder.errors import ConfigError
from membuilder.evaluation.metrics import JUDGES
from membuilder.llm.endpoints import ModelAccess
from membuilder.llm.flags import SETTINGS, add_endpoint_flags, read_endpoint
from membuilder.types import Agent

JUDGE_MODEL = "gpt-4.1"
"""The judge of the published document."""


def models(given: argparse.Namespace) -> tuple[ModelAccess | None, ModelAccess | None, ModelAccess | None]:
    """Who answers, who judges, and who writes the memories."""
    if given.model is None and given.judge_model is not None and given.mode != "build":
        raise ConfigError("--judge-model needs --model: without answers there is nothing to judge")
    questions, settings = questions_at_once(given), {"max_tokens": given.max_tokens}
    first = _first_model(given)
    answerer = judge = builder = None
    if given.model is not None and given.mode != "build":
        answerer = first
        judge = read_endpoint(
            given,
            "judge-",
            given.judge_model or JUDGE_MODEL,
            like=first,
            provider="openai",  # a self-hosted model does not grade itself unless told to
            concurrency=max(1, questions * len(JUDGES)),
            **settings,
        )
    if given.build_model or given.model:
        in_flight = max(1, dialogues_at_once(given) * len(Agent))  # a count below 1 is refused with the others
        name = given.build_model or given.model
        builder = read_endpoint(given, "build-", name, like=first, concurrency=in_flight, **settings)
    return answerer, judge, builder


def _first_model(given: argparse.Namespace) -> ModelAccess:
    """What --model and the flags beside it say; other models and embeddings take their server from it."""
    settings = {"max_tokens": given.max_tokens, "concurrency": max(1, questions_at_once(given))}
    return read_endpoint(given, "", given.model or "unnamed", **settings)


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
        settings=tuple(given.embedding_endpoint),
        chat=_first_model(given),
        cache=Path(given.embedding_cache) if given.embedding_cache else None,
        precision=Precision(given.embedding_precision) if given.embedding_precision else fastest,
    )


def questions_at_once(given: argparse.Namespace) -> int:
    return max(given.concurrency, given.workers) if given.parallel else given.concurrency


def dialogues_at_once(given: argparse.Namespace) -> int:
    return given.workers if given.parallel else 1


def add_models(parser: argparse.ArgumentParser) -> None:
    flags = parser.add_argument_group("models")
    text = "answers the questions; without it retrieval is scored and nothing is asked"
    add_endpoint_flags(flags, "", text, provider="openai")
    add_endpoint_flags(flags, "judge-", f"grades the answers; {JUDGE_MODEL} at provider openai unless given")
    add_endpoint_flags(flags, "build-", "writes the memories of system agents; else --model")
    text = "config.yaml of the run that trained the checkpoint: its prompts, answer format and turns read at once"
    flags.add_argument("--build-config", type=Path, metavar="FILE", help=text)
    flags.add_argument("--max-tokens", type=int, default=4096, help="longest answer of any model; a longer one fails")
    precisions = [str(each) for each in Precision]
    flags.add_argument("--embedding-precision", choices=precisions, help="else what is fastest here")
    flags.add_argument("--vector-store", default="faiss", choices=("faiss",))
    text = "how the entries of a bank are searched, repeatable, such as kind=hnsw; the keys stand below"
    flags.add_argument("--index", **SETTINGS, help=text)
