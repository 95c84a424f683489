"""An async judge at work beside the engine: in an event loop in a thread of its own."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Hashable, Iterable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any, Protocol, Self, runtime_checkable

from membuilder.bank.retrieve import Retrieval
from membuilder.embedding.local import TextEmbedder
from membuilder.errors import MemBuilderError
from membuilder.schemes.scheme import Scheme
from membuilder.types import Bank, Question
from reward.judge_calls import DEADLINE, TIMEOUT, LoopThread, missing, unreachable, verdict_of
from reward.judges import Judge, JudgeLimits, Verdict
from reward.qa import QAResult, found_for

CLOSING_SECONDS = 5.0
"""How long a judge may take to give up what is not waited for; one that blocks its loop is left behind."""

WriteAnswers = Callable[[Sequence[str]], Iterable[tuple[int, "str | Verdict"]]]
"""Prompts -> for each of them its number and the answer, or the verdict where there is none, in any order."""


@runtime_checkable
class Shared(Protocol):
    """A judge may have this too: then what has one key is asked once a step."""

    def key(self, question: Question, bank: Bank, retrieval: Retrieval) -> Hashable:
        """Return everything that the verdict depends on."""


@runtime_checkable
class Grader(Shared, Protocol):
    """A judge whose answers are written elsewhere."""

    def prompt(self, question: Question, bank: Bank, retrieval: Retrieval) -> str: ...

    async def grade(self, question: Question, answer_text: str) -> Verdict: ...


class Alongside(AbstractContextManager):
    """The questions of one step, put to an async judge as soon as their bank is there.

    Banks are searched in the order they are added, by one thread. A judge that is an async context manager is entered
    first. With `write_answers` the judge only grades: all answers are written at once when everything is sampled.
    """

    def __init__(
        self,
        scheme: Scheme,
        embedder: TextEmbedder,
        judge: Judge,
        k: int,
        limits: JudgeLimits,
        write_answers: WriteAnswers | None,
    ) -> None:
        self._scheme, self._embedder, self._judge, self._k, self._limits = scheme, embedder, judge, k, limits
        self._write_answers = write_answers
        self._places = asyncio.Semaphore(limits.max_concurrent)
        self._banks: dict[tuple[int, ...], Future[tuple[list[Retrieval], list[Hashable]]]] = {}
        self._cases: dict[Hashable, tuple[Question, Bank, Retrieval]] = {}
        self._verdicts: dict[Hashable, Future[Verdict]] = {}
        self._failed = threading.Event()

    def __enter__(self) -> Self:
        self._thread = LoopThread()
        self._searcher = _searcher()
        if isinstance(self._judge, AbstractAsyncContextManager):
            entered = self._thread.submit(self._judge.__aenter__())
            if entered.exception() is not None:
                self._thread.stop()
            entered.result()
        return self

    def __exit__(self, *raised: object) -> None:
        self._searcher.shutdown(cancel_futures=True)
        closed = self._thread.submit(self._close())
        if wait([closed], timeout=CLOSING_SECONDS).done:
            self._thread.stop()
            closed.result()

    async def _close(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if isinstance(self._judge, AbstractAsyncContextManager):
            await self._judge.__aexit__(None, None, None)

    def add(self, place: tuple[int, ...], bank: Bank, questions: Sequence[Question]) -> None:
        """Search the bank and have its questions judged; raises what the judge raised so far."""
        if self._failed.is_set():
            self._raise_failure()
        self._banks[place] = self._searcher.submit(self._find, bank, questions)

    def _find(self, bank: Bank, questions: Sequence[Question]) -> tuple[list[Retrieval], list[Hashable]]:
        """Return what is found for each question, and the keys of their verdicts."""
        retrievals = found_for(self._scheme, bank, questions, self._embedder, self._k)
        keys = []
        for question, retrieval in zip(questions, retrievals, strict=True):
            case = (question, bank, retrieval)
            key = self._judge.key(*case) if isinstance(self._judge, Shared) else len(self._cases)
            keys.append(key)
            if key not in self._cases:
                self._cases[key] = case
                if self._write_answers is None:
                    self._have_judged(key, self._judge, *case)
        return retrievals, keys

    def _have_judged(self, key: Hashable, judge: Callable[..., Awaitable[Verdict]], *case: Any) -> None:
        self._verdicts[key] = self._thread.submit(self._in_time(judge, *case))
        self._verdicts[key].add_done_callback(self._note)

    def _note(self, done: Future[Verdict]) -> None:
        if not done.cancelled() and done.exception() is not None:
            self._failed.set()

    async def _in_time(self, judge: Callable[..., Awaitable[Verdict]], *case: Any) -> Verdict:
        async with self._places:
            try:
                async with asyncio.timeout(self._limits.question_seconds) as limit:
                    return verdict_of(self._judge, case[0], await judge(*case))
            except (TimeoutError, ConnectionError) as error:  # the judge may live across a network
                return missing(TIMEOUT, self._limits) if limit.expired() else unreachable(error)

    def results(self) -> dict[tuple[int, ...], QAResult]:
        """Return what became of every bank, once all verdicts are there or the deadline has passed."""
        found = {place: bank.result() for place, bank in self._banks.items()}
        if self._write_answers is not None:
            self._grade_written(self._write_answers)
        wait(self._verdicts.values(), timeout=self._limits.step_seconds, return_when=FIRST_EXCEPTION)
        if self._failed.is_set():
            self._raise_failure()
        late = missing(DEADLINE, self._limits)
        verdicts = {key: late if future.cancel() else future.result() for key, future in self._verdicts.items()}
        return {
            place: QAResult(retrievals=tuple(retrievals), verdicts=tuple(verdicts[key] for key in keys))
            for place, (retrievals, keys) in found.items()
        }

    def _grade_written(self, write: WriteAnswers) -> None:
        """Have each answer graded as soon as it is written."""
        if not isinstance(self._judge, Grader):
            raise MemBuilderError(f"judge {self._judge!r} cannot grade answers that are written elsewhere")
        keys = list(self._cases)
        for number, answer in write([self._judge.prompt(*self._cases[key]) for key in keys]):
            key = keys[number]
            if isinstance(answer, Verdict):
                self._verdicts[key] = Future()
                self._verdicts[key].set_result(answer)
            else:
                self._have_judged(key, self._judge.grade, self._cases[key][0], answer)

    def _raise_failure(self) -> None:
        for future in list(self._verdicts.values()):  # more are still added by the searching thread
            if future.done() and not future.cancelled() and future.exception() is not None:
                future.result()


def _searcher() -> ThreadPoolExecutor:
    """Return an executor whose only thread computes with one CPU thread; other threads keep theirs.

    Texts are embedded in it, beside an engine. OpenMP gives every Python thread that computes a pool of its own, and
    once there are more of them than CPUs, the whole process sleeps at each barrier where it had waited awake: a tiny
    model decoded three times slower after one text was embedded in another thread.
    """
    import torch  # seconds that reading a configuration need not wait for

    def begin() -> None:
        torch.get_num_threads()  # a thread's first operation takes the number that was set last, in whichever thread
        torch.set_num_threads(1)

    executor, number = ThreadPoolExecutor(1, "search"), torch.get_num_threads()
    executor.submit(begin).result()
    torch.set_num_threads(number)
    return executor
