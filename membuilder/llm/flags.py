"""The flags by which every command names the models it asks, and what their calls may cost.

add_endpoint_flags(parser, "", "answers the questions")        --model --provider --base-url --api-key --endpoint
add_endpoint_flags(parser, "judge-", "grades the answers")     --judge-model --judge-provider ...
answerer = read_endpoint(given, "", given.model)
judge = read_endpoint(given, "judge-", given.judge_model, like=answerer)
"""

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from membuilder.config import load
from membuilder.errors import ConfigError
from membuilder.llm.endpoints import (
    EmbeddingEndpoint,
    ModelAccess,
    ModelEndpoint,
    PriceConfig,
    Provider,
    ServerEndpoint,
)

Endpoint = TypeVar("Endpoint", bound=ServerEndpoint)
PROVIDERS = tuple(map(str, Provider))
SETTINGS: dict[str, Any] = {"action": "append", "default": [], "metavar": "KEY=VALUE"}
"""How argparse reads a repeatable flag that sets keys."""


def add_endpoint_flags(
    parser: argparse._ActionsContainer,
    prefix: str,
    model_help: str,
    *,
    model_flags: Sequence[str] = (),
    model: str | None = None,
    provider: str | None = None,
) -> None:
    """Add the flags of one model. A prefix marks a further model, on the first one's server unless told otherwise.

    `model_flags` name the model by other flags; `model` and `provider` are defaults.
    """
    same = "" if not prefix else " where the provider is the same"
    add = parser.add_argument
    add(*(model_flags or (f"--{prefix}model",)), default=model, metavar="MODEL", help=model_help)
    add(f"--{prefix}provider", choices=PROVIDERS, default=provider, help="else --provider" if prefix else None)
    add(f"--{prefix}base-url", metavar="URL", help=f"API address{'; else --base-url' + same if prefix else ''}")
    own = f"else --api-key{same[:6]} where provider and address are the same" if prefix else "else the environment's"
    add(f"--{prefix}api-key", metavar="KEY", help=f"{own}; never stored, and sent to this model's address alone")
    keys = "the keys of --endpoint" if prefix else _names(ModelEndpoint)
    add(f"--{prefix}endpoint", **SETTINGS, help=f"any other setting of its endpoint, repeatable: {keys}")


def read_endpoint(
    given: argparse.Namespace,
    prefix: str,
    model: str,
    *,
    like: ModelAccess | None = None,
    is_first: bool = False,
    provider: str | None = None,
    **settings: Any,
) -> ModelAccess:
    """Read the model that the flags of `prefix` name; they override these settings. Raises ConfigError.

    It is on the server of `like` where the flags name no other provider or address. A key stays with the address that
    it was given for. `is_first`: it is the model of --model once more, so what --endpoint says holds for it too.
    `provider` is taken where the flags name none.
    """
    values, stem = vars(given), prefix.replace("-", "_")
    provider = values[f"{stem}provider"] or provider
    base_url, api_key = values[f"{stem}base_url"], values[f"{stem}api_key"]
    if like is not None:
        server = like.endpoint
        is_same = provider in (None, server.provider)
        if api_key is None and is_same and (base_url is None or _bare(base_url) == _bare(server.base_url)):
            api_key = like.api_key
            settings["api_key_env"] = server.api_key_env
        base_url = base_url or (server.base_url if is_same else None)
        provider = provider or server.provider
    settings |= {"name": model, "provider": provider, "base_url": base_url}
    first = values["endpoint"] if is_first else []
    endpoint = endpoint_of(ModelEndpoint, settings, [*first, *values[f"{stem}endpoint"]])
    return ModelAccess(endpoint=endpoint, api_key=api_key, key_flag=f"--{prefix}api-key")


def endpoint_of(kind: type[Endpoint], settings: dict[str, Any], overrides: Sequence[str]) -> Endpoint:
    """Make an endpoint of the settings that are not None and of `KEY=VALUE` flags. Raises ConfigError."""
    given = [f"{key}={json.dumps(value)}" for key, value in settings.items() if value is not None]
    try:
        return load(kind, None, [*given, *overrides])
    except ConfigError as error:
        raise ConfigError(f"model {settings['name']!r}: {error}") from error


def _names(kind: type[ServerEndpoint]) -> str:
    """Name the keys of an endpoint that have no flag of their own."""
    return ", ".join(each.name for each in fields(kind) if each.name not in ("name", "provider", "base_url"))


def _bare(url: str | None) -> str:
    return (url or "").rstrip("/")


def add_embedding_flags(parser: argparse.ArgumentParser) -> None:
    flags = parser.add_argument_group("embeddings")
    add = flags.add_argument
    add("--embedding-model", metavar="MODEL", help="folder or hub name of a sentence-transformers model; else MiniLM")
    add("--embedding-provider", choices=PROVIDERS, help="a server embeds, which knows --embedding-model")
    add("--embedding-base-url", metavar="URL", help="else OPENAI_EMBEDDINGS_BASE_URL, else as for chat")
    add("--embedding-api-key", metavar="KEY", help="else OPENAI_EMBEDDINGS_API_KEY, else as for chat; never stored")
    add("--embedding-endpoint", **SETTINGS, help=f"any other setting of that server: {_names(EmbeddingEndpoint)}")
    add("--embedding-cache", metavar="FOLDER", help="vectors of a local model; else embeddings in MEMBUILDER_CACHE")


def add_cost_flags(parser: argparse.ArgumentParser) -> None:
    flags = parser.add_argument_group("cost")
    text = "dollars per million prompt and answered tokens, repeatable; without it the cost stays unknown"
    flags.add_argument("--price", **SETTINGS | {"type": _price, "metavar": "MODEL=IN,OUT"}, help=text)
    flags.add_argument("--answer-cache", type=Path, metavar="FOLDER", help="answers kept here are not paid for twice")


def _price(text: str) -> tuple[str, PriceConfig]:
    try:
        return model_price(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no MODEL=IN,OUT such as gpt-4.1=2,8") from None


def model_price(text: str) -> tuple[str, PriceConfig]:
    """Read the price of one model from `MODEL=IN,OUT`; ValueError for anything else."""
    name, _, prices = text.rpartition("=")
    given, written = map(float, prices.split(","))
    if not name or not (0 <= given < math.inf and 0 <= written < math.inf):
        raise ValueError(text)
    return name, PriceConfig(input_per_million=given, output_per_million=written)
