"""Hard deletion: what an edit took out of a store is gone from its file, the files beside it and the caches named."""

import glob
from collections.abc import Collection, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from membuilder.bank.lost_words import Lost
from membuilder.bank.store import Store, reading, remove_store, writing
from membuilder.embedding.cache import packed
from membuilder.errors import CacheError
from membuilder.llm.response_cache import AnswerCache

REBUILD, RETRY = ".rebuild", ".retry"
BESIDE = (REBUILD, RETRY)
"""Ends of the names of stores beside a store, which hold what it held."""


@contextmanager
def editing(path: Path) -> Iterator[Store]:
    """Open a store to be changed; in the end nothing that was deleted is on the disk, now or by an edit cut short."""
    with reading(path) as store:
        settings = store.settings()
    with writing(path, settings) as store:
        try:
            yield store
        finally:
            erase_traces(store)


def erase_traces(store: Store) -> None:
    """Erase what the store holds no more from its file, and remove what was made of that beside it."""
    store.erase_deleted()
    for end in BESIDE:
        remove_store(Path(f"{store.path}{end}"))
    for index in store.path.parent.glob(f"{glob.escape(store.path.name)}.index*"):
        index.unlink()


def erase_from_cache(folder: Path, lost: Lost, answers: Collection[str], vectors: np.ndarray) -> int:
    """Remove these answers and vectors (N, D), and answers that hold what is lost, from a cache; return how many.

    The keys of a cache are hashes, so its records are told by what they hold. Raises CacheError.
    """
    if not (folder / "cache.db").is_file():
        raise CacheError(f"{folder}: no such cache; name the folder that a build was given, or none")
    numbers = {packed(vector)["float32"] for vector in vectors}

    def is_lost(record: dict[str, Any]) -> bool:
        text = record.get("text")
        return record.get("float32") in numbers or (isinstance(text, str) and (text in answers or lost.in_text(text)))

    with closing(AnswerCache(folder)) as cache:
        return cache.forget(is_lost)
