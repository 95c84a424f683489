"""Asks again what failed in a store: a new one is written beside it, which then takes its place in one transaction.

A kill leaves the old store whole until then. The one beside it, NAME.db.retry, stays, and the same command goes on
there.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from membuilder.bank.erase import RETRY
from membuilder.bank.store import Store, reading, remove_store, writing
from membuilder.building.builder import Builder
from membuilder.errors import StoreError
from membuilder.types import Dialogue


async def retry_failed(
    dialogue: Dialogue,
    store: Store,
    builder: Builder,
    before_replace: Callable[[Path], object],
    advance: Callable[[int], object],
) -> None:
    """Ask again what failed in `store`; `before_replace(path)` runs just before it holds the new answers.

    `advance` hears how many more sessions are dealt with. Raises as `Builder.build` does.
    """
    sessions, beside = store.sessions(), Path(f"{store.path}{RETRY}")
    if all(answer.failure is None for stored in sessions for answer in stored.answers.values()):
        remove_store(beside)
        advance(len(sessions))
        return
    # a retry of other answers is none to go on with
    settings = store.settings() | {"retry_of": digest_of(sessions)}
    if not is_begun_with(beside, settings):
        remove_store(beside)
    with writing(beside, settings) as fresh:
        advance(fresh.num_sessions())
        await builder.retry(dialogue, store, fresh, on_session=lambda session: advance(1))
    before_replace(store.path)
    store.take_over(beside)
    remove_store(beside)


def digest_of(work: object) -> str:
    """Return a digest of records; operations without a part or turn have the one from before there were any."""
    told = repr(work).replace(", part=None", "").replace(", turn=None", "")
    return hashlib.sha256(told.encode()).hexdigest()


def is_begun_with(path: Path, settings: Mapping[str, Any]) -> bool:
    """Return whether a store beside another was begun for the very same work, which then goes on there."""
    try:
        with reading(path) as store:
            return store.settings() == json.loads(json.dumps(settings))
    except StoreError:  # none, or killed while it began
        return False
