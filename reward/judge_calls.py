"""What a judge's call becomes: its verdict, or one that is missing because of time or network."""

import asyncio
import inspect
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from membuilder.errors import ConfigError
from membuilder.plugins import place_of
from membuilder.types import Question
from reward.judges import Judge, JudgeLimits, Verdict, score_reply

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


def checked(judge: Judge, question: Question, call: Callable[[], object]) -> Verdict:
    """Return what a call comes to, which must be a verdict or a reply. What else the judge raises is its own fault."""
    try:
        return verdict_of(judge, question, call())
    except (TimeoutError, ConnectionError) as error:
        return unreachable(error)


def verdict_of(judge: Judge, question: Question, value: object) -> Verdict:
    """Return a verdict as it is, and a reply scored as the question's source is."""
    if isinstance(value, str):
        return score_reply(question, value)
    if not isinstance(value, Verdict):
        expected = "expected reward.judges.Verdict, or a reply as a text"
        raise ConfigError(f"reward.judge: {place_of(judge)} returns {value!r:.80}; {expected}")
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
