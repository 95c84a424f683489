"""The evaluation's name for `membuilder.embedders`."""

from membuilder.embedders import (
    CACHE_FILE,
    Precision,
    _in_bfloat16,
    best_precision,
    cache_folder,
    open_embedder,
    open_remote,
)

__all__ = [
    "CACHE_FILE",
    "Precision",
    "_in_bfloat16",
    "best_precision",
    "cache_folder",
    "open_embedder",
    "open_remote",
]
