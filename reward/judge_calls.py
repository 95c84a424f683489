"""What a judge's call becomes: its verdict, or one that is missing because of time or network."""

import asyncio
import inspect
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from membuilder.errors import ConfigError
from membuilder.plugins import place_of
from reward.judges import Judge, JudgeLimits, Verdict

T = TypeVar("T")

TIMEOUT, DEADLINE, UNREACHABLE = "question_timeout", "step_deadline", "unreachable"
"""Causes of a missing verdict that hold for every judge."""


def missing(cause: str, limits: JudgeLimits) -> Verdict:
    """Return the verdict of a judge that was not waited for any longer."""
    key, seconds = {
        TIMEOUT: ("question_timeout_seconds", limits.question_seconds),
        DEADLINE: ("step_deadline_seconds", limits.step_seconds),
    }[cause]
    return Verdict(correct=None, reason=f"no verdict within reward.{key}={seconds:g}", cause=cause)


def unreachable(error: Exception) -> Verdict:
    """Return the verdict of a judge that lives across a network and was not reached."""
    return Verdict(correct=None, reason=f"judge unreachable: {type(error).__name__}: {error}", cause=UNREACHABLE)


def checked(judge: Judge, call: Callable[[], object]) -> Verdict:
    """Return what a call gives, which must be a verdict. Whatever else the judge raises is a fault of its own."""
    try:
        return verdict_only(judge, call())
    except (TimeoutError, ConnectionError) as error:
        return unreachable(error)


def verdict_only(judge: Judge, value: object) -> Verdict:
    if not isinstance(value, Verdict):
        raise ConfigError(f"reward.judge: {place_of(judge)} returns {value!r:.80}; expected reward.judges.Verdict")
    return value


class LoopThread:
    """An event loop in a thread of its own. The program's end does not wait for it, so it may be left behind."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self._run, daemon=True, name="judge").start()

    def submit(self, call: Coroutine[Any, Any, T]) -> "Future[T]":
        """Run a coroutine there."""
        return asyncio.run_coroutine_threadsafe(call, self.loop)

    def stop(self) -> None:
        """End the thread after what it is doing now."""
        self.loop.call_soon_threadsafe(self.loop.stop)

    def _run(self) -> None:
        self.loop.run_forever()
        self.loop.close()


async def called(call: Callable[..., Any], *arguments: Any) -> Any:
    """Return what a function gives, or what that is awaited to."""
    value = call(*arguments)
    return await value if inspect.isawaitable(value) else value
