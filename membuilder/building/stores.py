"""Builds many dialogues into stores of their own, some of them at once."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from membuilder.bank.store import writing
from membuilder.bank.store_rows import StoredSession
from membuilder.building.builder import Builder
from membuilder.llm.concurrency import for_each
from membuilder.progress import progress
from membuilder.types import Dialogue


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    dialogue: Dialogue
    path: Path
    """The path of its store; a build that is begun there goes on."""
    settings: Mapping[str, Any]
    """The settings that the store records and that a build which goes on must share."""


async def build_stores(
    jobs: Sequence[Job], builder: Builder, parallel: int, label: str, on_built: Callable[[Path], object]
) -> None:
    """Build at most `parallel` dialogues at once. The first error stops all; what is stored stays.

    `on_built(path)` runs in a thread once a store holds its whole dialogue, while the store is still locked.
    """
    with progress(total=sum(len(job.dialogue.sessions) for job in jobs), label=label, unit="session") as bar:

        async def build(job: Job) -> None:
            with writing(job.path, job.settings) as store:
                bar.update(store.num_sessions())
                await builder.build(job.dialogue, store, on_session=lambda session: bar.update())
                await asyncio.to_thread(on_built, job.path)

        await for_each(build, jobs, parallel)


def failures(sessions: Iterable[StoredSession]) -> Counter[str]:
    """Count the answers that failed, by kind."""
    return Counter(
        answer.failure.kind for session in sessions for answer in session.answers.values() if answer.failure is not None
    )
