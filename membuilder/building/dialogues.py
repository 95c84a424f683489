"""Builds many dialogues into stores of their own, some of them at once."""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from membuilder.bank.store import Store, writing
from membuilder.bank.store_rows import StoredSession
from membuilder.building.builder import Builder, ask_expert, ask_model
from membuilder.building.config import RULES, BuildConfig, Keys
from membuilder.building.rebuild import rebuild
from membuilder.building.retry import retry_failed
from membuilder.embedding.naming import identity_of
from membuilder.embedding.options import embedder_of
from membuilder.errors import StoreError
from membuilder.llm.chat_model import Role
from membuilder.llm.client import ChatClient
from membuilder.llm.concurrency import for_each
from membuilder.llm.costs import Costs
from membuilder.llm.response_cache import AskedAgain
from membuilder.progress import progress
from membuilder.schemes.four_agents.rules import warn_of_unread_turns
from membuilder.schemes.load import FOUR_AGENTS, scheme_of
from membuilder.schemes.scheme import Scheme, entry_agents
from membuilder.types import Dialogue

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    dialogue: Dialogue
    path: Path
    """The path of its store; a build that is begun there goes on."""
    settings: Mapping[str, Any]
    """The settings that the store records and that a build which goes on must share."""


async def build_all(
    config: BuildConfig,
    stores: Sequence[tuple[Path, Dialogue]],
    role: Role,
    keys: Keys,
    costs: Costs,
    on_built: Callable[[Path], object],
    before_replace: Callable[[Path], object] | None = None,
    rebuild_from: int | None = None,
) -> None:
    """Build each dialogue into the store at the path beside it; `on_built` runs in a thread for each whole store.

    A model is checked with one small call before anything else begins. With `before_replace`, what failed is asked
    again, past the cache of answers; it runs just before a store holds the new answers. With `rebuild_from`, stores
    read their sessions again from that one on (rebuild.py).
    """
    if before_replace is not None and costs.answers is not None:
        costs = replace(costs, answers=AskedAgain(costs.answers))
    scheme = scheme_of(config)
    async with AsyncExitStack() as stack:
        if config.model.name == RULES:
            ask = ask_expert(scheme)
            if config.scheme == FOUR_AGENTS:
                warn_of_unread_turns(dialogue for _, dialogue in stores)
        else:
            model = await stack.enter_async_context(ChatClient(config.chat(keys), role, costs))
            await model.check()
            ask = ask_model(model, scheme, config.on_bad_operation)
        options = config.embedder(keys)
        embedder = stack.enter_context(embedder_of(options, costs))
        identity = identity_of(embedder, options)
        builder = Builder(ask=ask, embedder=embedder, scheme=scheme)
        stack.callback(builder.close)
        jobs = [
            Job(dialogue=dialogue, path=path, settings=config.settings(dialogue, identity)) for path, dialogue in stores
        ]
        empty = await build_stores(jobs, builder, config.parallel, str(role), on_built, before_replace, rebuild_from)
        warn_of_empty(str(role), empty, len(jobs))


async def build_stores(
    jobs: Sequence[Job],
    builder: Builder,
    parallel: int,
    label: str,
    on_built: Callable[[Path], object],
    before_replace: Callable[[Path], object] | None = None,
    rebuild_from: int | None = None,
) -> list[str]:
    """Build at most `parallel` dialogues at once and return the ids of those of which nothing was stored.

    The first error stops all; what is stored stays.

    `on_built(path)` runs in a thread once a store holds its whole dialogue, while the store is still locked. With
    `before_replace(path)`, what failed in a store is asked again first (retry.py); with `rebuild_from`, a store first
    reads again the sessions from that one on.
    """
    empty = []
    with progress(total=sum(len(job.dialogue.sessions) for job in jobs), label=label, unit="session") as bar:

        async def build(job: Job) -> None:
            with writing(job.path, job.settings) as store:
                _check_agents(store, builder.scheme)
                if rebuild_from is not None:
                    await rebuild(job.dialogue, store, builder, rebuild_from, bar.update)
                elif before_replace is None:
                    bar.update(store.num_sessions())
                else:
                    await retry_failed(job.dialogue, store, builder, before_replace, bar.update)
                bank = await builder.build(job.dialogue, store, on_session=lambda session: bar.update())
                if not bank.memory_text():
                    empty.append(job.dialogue.id)
                await asyncio.to_thread(on_built, job.path)

        await for_each(build, jobs, parallel)
    return empty


def _check_agents(store: Store, scheme: Scheme) -> None:
    """Raise StoreError for a store with entries that its scheme does not write."""
    known = entry_agents(scheme)
    if strange := sorted(store.agents().difference(known)):
        problem = f"holds entries of {strange[0]!r}, which is none of {', '.join(known)} of scheme {scheme.name!r}"
        raise StoreError(store.path, f"{problem}; it was changed from outside: build into a new file")


def warn_of_empty(builder: str, empty: Collection[str], num_dialogues: int) -> None:
    """Log of how many dialogues nothing was stored, if there are any."""
    if empty:
        problem = "%s: nothing was stored of %d of %d dialogues, such as %s"
        _log.warning(problem, builder, len(empty), num_dialogues, min(empty))


def dropped_operations(sessions: Iterable[StoredSession]) -> Counter[str]:
    """Count the operations that were not applied of answers that stand, by kind of problem."""
    return Counter(each.kind for session in sessions for answer in session.answers.values() for each in answer.dropped)


def failures(sessions: Iterable[StoredSession]) -> Counter[str]:
    """Count the answers that failed, by kind."""
    answers = (answer for session in sessions for answer in session.answers.values())
    return Counter(answer.failure.kind for answer in answers if answer.failure is not None)


def told_failures(failed: Mapping[str, int], dropped: Mapping[str, int]) -> str:
    """Say such as "failed answers: 1 not_json; 3 operations dropped: 2 schema, 1 unknown_target"."""
    said = f"failed answers: {listed(failed) or 'none'}"
    return f"{said}; {sum(dropped.values())} operations dropped: {listed(dropped)}" if dropped else said


def listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
