"""The name and revision of an embedder that options opened, beside what tells it from any other (identity.py)."""

from pathlib import Path
from typing import Any

from membuilder.embedding.cache import fingerprint_of
from membuilder.embedding.identity import NAME, PROVIDER, REVISION, SETTINGS, probed
from membuilder.embedding.local import DEFAULT_PACKAGE, TextEmbedder, default_folder
from membuilder.embedding.options import EmbedderOptions, Precision


def name_of(options: EmbedderOptions) -> dict[str, Any]:
    """Return the settings that are known of an embedder before it is opened."""
    name = options.model or DEFAULT_PACKAGE
    if options.precision is not Precision.FLOAT32:
        name = f"{name} in {options.precision}"
    return {NAME: name, PROVIDER: options.provider} | _settings(options)


def identity_of(embedder: TextEmbedder, options: EmbedderOptions) -> dict[str, Any]:
    """Return what is recorded of the embedder that `options` opened, as JSON values."""
    # a server's is the one it gave when it was opened: the cache of answers may hold that of an earlier model
    probe = None if options.provider is None else embedder.probe
    return probed(embedder, probe) | name_of(options) | {REVISION: _revision(options)}


def _settings(options: EmbedderOptions) -> dict[str, Any]:
    if options.provider is None:
        return {}
    server = options.endpoint()
    names = ("long_texts", "max_text_chars", "extra_body")
    return {SETTINGS: {name: getattr(server, name) for name in names}}


def _revision(options: EmbedderOptions) -> str | None:
    """Return a hash of a folder's files, or the commit of a hub's model; a server tells of none."""
    if options.provider is not None:
        return None
    folder = default_folder() if options.model is None else Path(options.model)
    if folder.is_dir():
        return fingerprint_of(folder)
    from huggingface_hub import try_to_load_from_cache  # takes half a second to import

    found = try_to_load_from_cache(options.model, "config.json")
    return Path(found).parent.name if isinstance(found, str) else None
