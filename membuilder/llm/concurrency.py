"""Runs one coroutine function on many items side by side."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

Item = TypeVar("Item")


async def for_each(do: Callable[[Item], Awaitable[object]], items: Iterable[Item], limit: int) -> None:
    """Await `do(item)` for every item, begun in their order, at most `limit` at once.

    The first error ends the others and is raised as itself, not in a group.
    """
    waiting = iter(items)

    async def work() -> None:
        for item in waiting:
            await do(item)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(limit):
                group.create_task(work())
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
